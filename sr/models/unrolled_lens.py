"""Unrolled super-resolution that starts from a fitted lens in place of the interpolated image.

What a trained `LensEncoder` makes of an LR image, a lens and its source that are fitted to it and seen by the HR
instrument, is right to the noise where the lens is of that kind, and it has what no network can learn from crops: that
all images of a source are of one source. The steps of `Unrolled` correct what it has not: substructure, other sources,
and fits that ended in another minimum. The encoder learns nothing here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simulate.errors import InputError

from .lens_encoder import LensEncoder, LensEncoderSettings
from .unrolled import Unrolled, UnrolledSettings

if TYPE_CHECKING:
    from ..degradation import Degradation


class UnrolledLensSettings(UnrolledSettings):
    """Size of the steps, and the encoder."""

    encoder: LensEncoderSettings = LensEncoderSettings()


class UnrolledLens(Unrolled):
    """LR image -> fitted lens -> steps towards the data and of the learnt prior, in turns."""

    whole_images = True
    guesses_from_whole_images = True

    def __init__(self, settings: UnrolledLensSettings, scale: int, channels: int) -> None:
        """Raises `InputError` for several scales: the encoder is of one."""
        super().__init__(settings, scale, channels)
        if len(self.scales) > 1:
            raise InputError("scales: unrolled_lens serves that of its encoder alone; leave them out")
        self.encoder = LensEncoder(settings.encoder, scale, channels).requires_grad_(False)

    def guess(self, lr: Tensor, degradation: Degradation) -> Tensor:
        """(B,C,scale*h,scale*w): the encoder's answer to whole LR images."""
        with torch.no_grad():
            return self.encoder(lr, degradation)
