"""SwinIR (Liang et al. 2021, arXiv:2108.10257), the lightweight kind: attention in windows that shift by half.

An image is padded to whole windows by its mirror image. The published code also subtracts a fixed RGB mean, as RCAN's,
and skips layers at random in training, without effect by its own comment; both are left out.
"""

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from simulate.settings import Settings

INITIAL_DEVIATION = 0.02  # of linear weights and position biases, as in the published code


class SwinirSettings(Settings):
    """Size of the network; the defaults are SwinIR-light's."""

    groups: PositiveInt = 4
    """Residual Swin transformer blocks (RSTB)."""
    layers: PositiveInt = 6
    """Attention layers in each group; every second one shifts its windows."""
    features: PositiveInt = 60
    heads: PositiveInt = 6
    window: PositiveInt = 8
    """Side of a window in LR pixels."""
    hidden_ratio: PositiveInt = 2
    """Hidden features of the perceptron, over features."""

    @model_validator(mode="after")
    def _check_heads(self) -> "SwinirSettings":
        if self.features % self.heads:
            raise ValueError(f"features ({self.features}) must be a multiple of heads ({self.heads})")
        return self


class WindowAttention(nn.Module):
    """Attention among the pixels of a window, with a learned bias for each head and relative position."""

    def __init__(self, features: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.inputs = nn.Linear(features, 3 * features)  # queries, keys, values
        self.output = nn.Linear(features, features)
        side = 2 * window - 1
        self.position_bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(heads, side, side), std=INITIAL_DEVIATION))

    def forward(self, windows: Tensor, together: Tensor | None) -> Tensor:
        """(B,N,T,C), N windows of T pixels, -> the same; `together` (N,1,T,T) bool: which pixels see each other."""
        count = windows.shape[1]
        # Windows and heads share an axis: the fused kernels take four, and a mask that is the same for all images.
        split = self.inputs(windows).unflatten(-1, (3, self.heads, -1))  # (B,N,T,3,heads,C/heads)
        queries, keys, values = split.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        bias = self.bias_of_pixels().to(queries.dtype)
        bias = bias.expand(count, -1, -1, -1) if together is None else bias.where(together, -torch.inf)
        mixed = scaled_dot_product_attention(queries, keys, values, bias.flatten(0, 1)[None])  # mask (1,N*heads,T,T)
        return self.output(mixed.unflatten(1, (count, self.heads)).transpose(2, 3).flatten(3))

    def bias_of_pixels(self) -> Tensor:
        """(heads,T,T): for pixel (y,x) looking at (v,u) the bias at row y - v + window - 1 and column x - u + ..."""
        rows = self.position_bias.unfold(1, self.window, 1).unfold(2, self.window, 1)  # at row y + (window - 1 - v) ...
        return rows.flip(3, 4).flatten(3, 4).flatten(1, 2)


class SwinLayer(nn.Module):
    """x + attention(LN(x)), then x + perceptron(LN(x)) (section 3.2)."""

    def __init__(self, settings: SwinirSettings, shift: int) -> None:
        super().__init__()
        features, hidden = settings.features, settings.hidden_ratio * settings.features
        self.window, self.shift = settings.window, shift
        self.attention_norm = nn.LayerNorm(features)
        self.attention = WindowAttention(features, settings.heads, settings.window)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features)
        )

    def forward(self, x: Tensor, together: Tensor) -> Tensor:
        """(B,h,w,C), whole windows, -> the same; `together` is `pixels_together` of shifted windows."""
        height, width = x.shape[1:3]
        rolled = self.attention_norm(x).roll((-self.shift, -self.shift), (1, 2))
        windows = self.attention(partition(rolled, self.window), together if self.shift else None)
        x = x + merge(windows, height, width, self.window).roll((self.shift, self.shift), (1, 2))
        return x + self.perceptron(x)


class Group(nn.Module):
    """A residual Swin transformer block: attention layers and a convolution, with a skip (section 3.2)."""

    def __init__(self, settings: SwinirSettings) -> None:
        super().__init__()
        shifts = (settings.window // 2 * (number % 2) for number in range(settings.layers))
        self.layers = nn.ModuleList(SwinLayer(settings, shift) for shift in shifts)
        self.convolution = nn.Conv2d(settings.features, settings.features, 3, padding=1)

    def forward(self, x: Tensor, together: Tensor) -> Tensor:
        """(B,h,w,C) -> the same."""
        mixed = x
        for layer in self.layers:
            mixed = layer(mixed, together)
        return x + self.convolution(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Swinir(nn.Module):
    """SwinIR-light: shallow features, groups of window attention, one convolution and shuffle to HR size."""

    def __init__(self, settings: SwinirSettings, scale: int, channels: int) -> None:
        super().__init__()
        features = settings.features
        self.scale, self.window = scale, settings.window
        self.head = nn.Conv2d(channels, features, 3, padding=1)
        self.first_norm = nn.LayerNorm(features)
        self.groups = nn.ModuleList(Group(settings) for _ in range(settings.groups))
        self.last_norm = nn.LayerNorm(features)
        self.tail = nn.Conv2d(features, features, 3, padding=1)
        self.upsampling = nn.Sequential(nn.Conv2d(features, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INITIAL_DEVIATION)
                nn.init.zeros_(module.bias)

    def forward(self, lr: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        height, width = lr.shape[-2:]
        shallow = self.head(mirror_to_multiple(mirror_to_multiple(lr, 2, self.window), 3, self.window))
        x = self.first_norm(shallow.permute(0, 2, 3, 1))
        together = pixels_together(x.shape[1], x.shape[2], self.window, self.window // 2, x.device)
        for group in self.groups:
            x = group(x, together)
        deep = self.tail(self.last_norm(x).permute(0, 3, 1, 2))
        return self.upsampling(shallow + deep)[..., : self.scale * height, : self.scale * width].float()


def partition(x: Tensor, window: int) -> Tensor:
    """(B,h,w,C) -> (B,N,T,C): N windows, row by row, of T = window² pixels."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # (B,rows,window,columns,window,C)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def merge(windows: Tensor, height: int, width: int, window: int) -> Tensor:
    """The inverse of `partition`: (B,N,T,C) -> (B,height,width,C)."""
    x = windows.unflatten(2, (window, window)).unflatten(1, (height // window, width // window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def pixels_together(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(N,1,T,T) bool: which pixels of a window are neighbours, where rolling the image joined opposite borders."""
    rows = (torch.arange(height, device=device) - shift) // window  # of shifted windows; -1: cut off by the border
    columns = (torch.arange(width, device=device) - shift) // window
    label = (rows[:, None] * (width + 1) + columns).roll((-shift, -shift), (0, 1))
    labels = partition(label[None, :, :, None], window)[0]  # (N,T,1)
    return (labels == labels.transpose(1, 2))[:, None]


def mirror_to_multiple(x: Tensor, axis: int, multiple: int) -> Tensor:
    """Continue an axis by its mirror image, the last pixel repeated, and again if need be, to a whole multiple."""
    size = x.shape[axis]
    if size % multiple == 0:
        return x
    place = torch.arange(size + -size % multiple, device=x.device) % (2 * size)
    return x.index_select(axis, torch.minimum(place, 2 * size - 1 - place))
