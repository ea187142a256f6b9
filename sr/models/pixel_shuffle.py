"""Sub-pixel upsampling (Shi et al. 2016, arXiv:1609.05158), as SRResNet and RCAN stack it."""

from collections.abc import Callable

from torch import nn


def shuffle_factors(scale: int) -> tuple[int, ...]:
    """The factors whose product is `scale`: one 3 for scale 3, else as many 2s as needed."""
    if scale == 3:
        return (3,)
    stages = scale.bit_length() - 1
    if stages < 1 or scale != 2**stages:
        raise ValueError(f"pixel shuffle works for scale 3 and powers of 2, not {scale}")
    return (2,) * stages


def shuffle_stages(features: int, scale: int, activation: Callable[[], nn.Module] | None = None) -> list[nn.Module]:
    """Layers (3x3 convolution, shuffle, activation a stage): (B,features,h,w) -> (B,features,scale*h,scale*w)."""
    layers: list[nn.Module] = []
    for factor in shuffle_factors(scale):
        layers += [nn.Conv2d(features, features * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        if activation is not None:
            layers.append(activation())
    return layers
