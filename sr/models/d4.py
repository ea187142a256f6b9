"""Convolutions equivariant under D4, the 8 symmetries of the square (Cohen & Welling 2016, arXiv:1602.07576).

A layer L is equivariant if turning and mirroring its input does the same to its output: L(g x) = g L(x). Between the
layers a feature is a *field* of 8 channels, one an element, in which the group also moves the channels about:
(g f)_k = act(g, f_{g^-1 k}). F fields are (B,8F,h,w), channel 8 * field + element, so that every layer is one ordinary
convolution with kernels that are written out from the free weights at each forward pass.

All weights are 4-dimensional, as `Module.to(memory_format=torch.channels_last)` needs. In float32 the layers are
equivariant to rounding; reduced precision (bfloat16, TF32) rounds each element's sum in its own way.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

ORDER = 8
"""Elements of D4."""


def act(element: int, images: Tensor) -> Tensor:
    """Element 0 ... 7 acting on images (...,h,w), numbered as in `sr.samples.transform`.

    Bit 1 mirrors left and right, then bit 2 up and down, then bit 4 transposes, to (...,w,h). 0 is the identity.
    """
    axes = [axis for axis, bit in ((-1, 1), (-2, 2)) if element & bit]
    images = images.flip(axes)
    return images.transpose(-1, -2) if element & 4 else images


def product(left: int, right: int) -> int:
    """The element that acts as `right` followed by `left`."""
    flips = left & 3
    if right & 4:  # a flip after a transposition is the other flip before it
        flips = flips >> 1 | (flips & 1) << 1
    return (flips ^ (right & 3)) | ((left ^ right) & 4)


def inverse(element: int) -> int:
    """The element that undoes `element`."""
    return next(other for other in range(ORDER) if product(other, element) == 0)


def _places(kernel: int, field: bool) -> Tensor:
    """(8, n) int64: where in a flattened kernel the values of its 8 transformed copies come from.

    The kernel is (kernel, kernel), or (8, kernel, kernel) for a field, whose channels the group moves too.
    """
    pixels = torch.arange(kernel**2).view(kernel, kernel)
    rows = []
    for element in range(ORDER):
        moved = act(element, pixels).flatten()
        back = inverse(element)
        channels = [product(back, other) for other in range(ORDER)] if field else [0]
        rows.append(torch.cat([channel * kernel**2 + moved for channel in channels]))
    return torch.stack(rows)


class _Kernels(nn.Module):
    """Free weights, and the kernels written out from them: 8 transformed copies of each along the first axis."""

    def __init__(self, first: int, second: int, kernel: int, field: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(first, second * (ORDER if field else 1), kernel, kernel))
        self.second = second
        self.places: Tensor
        self.register_buffer("places", _places(kernel, field), persistent=False)

    def kernels(self) -> Tensor:
        """(first, second [*8], k, k) weights -> (8*first, second [*8], k, k)."""
        first, channels, height, width = self.weight.shape
        flat = self.weight.reshape(first, self.second, 1, -1)
        # A permutation for each element: its gradient has no sums whose order could vary on a GPU.
        copies = torch.take_along_dim(flat, self.places[None, None], dim=3)  # (first, second, 8, n)
        return copies.transpose(1, 2).reshape(ORDER * first, channels, height, width)


class GroupConvolution(_Kernels):
    """Convolution to fields at the same size: of images (`lift`, equation 10) or of fields (equation 11).

    One bias a field. Weights start as He et al. 2015 do for a PReLU of slope 0.25: an output sums over the elements
    too, which its fan-in counts, and the 8 kernels of a field have the same variance, so the second moment of a field
    is kept as in an ordinary network.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, lift: bool = False) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"a kernel of {kernel} pixels is not centred on a pixel; it must be odd")
        super().__init__(outputs, inputs, kernel, field=not lift)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.padding = kernel // 2
        nn.init.kaiming_normal_(self.weight, a=0.25)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) images or (B,8C,h,w) fields -> (B,8F,h,w)."""
        return functional.conv2d(x, self.kernels(), _for_each_element(self.bias), padding=self.padding)


class GroupPReLU(nn.Module):
    """PReLU with one slope a field: a slope for each channel would not commute with the group."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((fields,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """(B,8F,h,w) -> (B,8F,h,w)."""
        return functional.prelu(x, _for_each_element(self.weight))


class GroupUpsampling(_Kernels):
    """Transposed convolution of fields to images `scale` times as large: the sum over the group, and out of it.

    The kernel of element k is the free kernel under k, which is the most general equivariant map (the adjoint of the
    lifting). Weights start as FSRCNN's (section 3.3).
    """

    def __init__(self, fields: int, channels: int, scale: int) -> None:
        kernel = centred_kernel(scale)
        super().__init__(fields, channels, kernel, field=False)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = scale
        self.padding = (kernel - scale) // 2
        nn.init.normal_(self.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B,8F,h,w) -> (B,C,scale*h,scale*w)."""
        return functional.conv_transpose2d(x, self.kernels(), self.bias, stride=self.scale, padding=self.padding)


class GroupDownsampling(_Kernels):
    """Convolution of images to fields `scale` times as small, from what lies in 3 x 3 of their pixels.

    Its kernels lie symmetrically about the pixel of the small grid at any scale, as `centred_kernel`'s. Weights start
    as those of `GroupConvolution`.
    """

    def __init__(self, channels: int, fields: int, scale: int) -> None:
        super().__init__(fields, channels, 3 * scale, field=False)
        self.bias = nn.Parameter(torch.zeros(fields))
        self.scale = scale
        nn.init.kaiming_normal_(self.weight, a=0.25)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,scale*h,scale*w) -> (B,8F,h,w)."""
        kernels, bias = self.kernels(), _for_each_element(self.bias)
        return functional.conv2d(x, kernels, bias, stride=self.scale, padding=self.scale)


def centred_kernel(scale: int) -> int:
    """Size of a transposed convolution's kernel that can be symmetric about an LR pixel: 9 (FSRCNN's), or 10 if even.

    An LR pixel's centre is a pixel's centre of the HR grid for odd scales and a corner of four for even ones. With the
    other parity the image is off by half an HR pixel, and kernels bound to the symmetry cannot learn that away as
    FSRCNN's do: at scale 2 the small equivariant FSRCNN reached 33.5 dB with 9 pixels where it reaches 46.0 with 10
    (300 steps on quickstart's lenses; bicubic 33.7).
    """
    return 9 + (scale + 1) % 2


def _for_each_element(values: Tensor) -> Tensor:
    """(F,) a field -> (8F,) a channel."""
    return values[:, None].expand(-1, ORDER).flatten()
