"""The forward operator: from an image as the HR instrument sees it to the LR image without noise, and its adjoint.

An HR image in the data is the sky seen through the HR instrument's PSF and pixel. Its convolution with the kernel of
transfer T_lr / T_hr, the ratio of what the two PSFs transmit, is the sky seen through the LR PSF and the HR pixel, and
the sum of `scale` x `scale` of its pixels is the LR image: pixels of both instruments enter exactly once.
"""

from math import ceil

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional

from simulate.psf import Psf
from simulate.shards import Band, Pairs

HR_TRANSFER_FLOOR = 3e-2
"""What the HR PSF transmits less of than this counts as transmitted at this share: noise is not divided by nothing."""
UNKNOWN_SHARE = 1e-2
"""Share of the kernel that may reach out of the frame from a pixel within the margin."""


class ForwardOperator(nn.Module):
    """A linear map of images in flux per pixel, (B,C,H,W) -> (B,C,H/scale,W/scale), with the flux kept.

    Light from outside the frame does not come in, as in the simulator; where there could be some, trust the pixels
    that are at least `margin` LR pixels away from the edge. Images in surface brightness (the networks' domain): divide
    the result by `scale`**2. Differentiable, in the precision of the images, and nothing waits for the device.
    """

    def __init__(self, kernels: np.ndarray | Tensor, scale: int, margin: int | None = None) -> None:
        """`kernels` (N,k,k): one an image, or one for all; k odd, on the HR pixel grid, each sums to 1.

        As a tensor they are (N,1,k,k), and their `margin` must be given: it is not worked out on a device.
        """
        super().__init__()
        self.scale = scale
        if isinstance(kernels, np.ndarray):
            margin, kernels = _margin(kernels, scale), torch.from_numpy(kernels)[:, None]
        if margin is None:
            raise ValueError("margin: expected that of the kernels, found none")
        self.margin = margin
        self.register_buffer("kernels", kernels, persistent=False)
        self.kernels: Tensor

    def select(self, rows: slice | Tensor) -> "ForwardOperator":
        """That of the images `rows`, in their order."""
        return ForwardOperator(self.kernels[rows], self.scale, self.margin) if len(self.kernels) > 1 else self

    def forward(self, hr: Tensor, rows: Tensor | None = None) -> Tensor:
        """A(hr); `rows` (B,) says which of the N kernels belong to the images, None: in their order."""
        return functional.avg_pool2d(self._convolve(hr, rows, adjoint=False), self.scale, divisor_override=1)

    def adjoint(self, lr: Tensor, rows: Tensor | None = None) -> Tensor:
        """The transpose of `forward`: (B,C,h,w) -> (B,C,scale*h,scale*w)."""
        spread = functional.interpolate(lr, scale_factor=self.scale, mode="nearest")
        return self._convolve(spread, rows, adjoint=True)

    def _convolve(self, images: Tensor, rows: Tensor | None, adjoint: bool) -> Tensor:
        """Convolve by Fourier transform on a grid that is large enough for nothing to come in at the other edge."""
        kernels = self.kernels.to(images.dtype)
        if rows is not None and len(kernels) > 1:
            kernels = kernels[rows]
        height, width = images.shape[-2:]
        reach_y, reach_x = (min(kernels.shape[-1] // 2, size - 1) for size in (height, width))
        middle = kernels.shape[-1] // 2  # what lies farther out than the image is large reaches no pixel from another
        kernels = kernels[..., middle - reach_y : middle + reach_y + 1, middle - reach_x : middle + reach_x + 1]
        grid = [next_fast_len(size + reach, real=True) for size, reach in ((height, reach_y), (width, reach_x))]
        padded = functional.pad(kernels, (0, grid[1] - kernels.shape[-1], 0, grid[0] - kernels.shape[-2]))
        transfer = torch.fft.rfft2(padded.roll((-reach_y, -reach_x), (-2, -1)))
        spectrum = torch.fft.rfft2(images, s=grid) * (transfer.conj() if adjoint else transfer)
        return torch.fft.irfft2(spectrum, s=grid)[..., :height, :width]


def forward_operator(pairs: Pairs, scale: int | None = None) -> ForwardOperator:
    """The operator of a data set, in float64 on the CPU; with PSFs that differ, its kernels are those of the rows.

    With a `scale`, that of `pairs.at_scale(scale)`.
    """
    scale = scale or pairs.scale
    return ForwardOperator(matching_kernels(pairs.hr_band_at(scale), pairs.lr_band), scale)


def matching_kernels(hr_band: Band, lr_band: Band) -> np.ndarray:
    """Kernels (N,k,k) that turn the HR PSF into the LR PSF, on the HR pixel grid; N is 1 if all pairs share both PSFs.

    The transfer is T_lr conj(T_hr) / max(|T_hr|, HR_TRANSFER_FLOOR)^2, which is T_lr / T_hr wherever the HR instrument
    sees anything. A kernel reaches as far as the LR PSF and sums to 1.
    """
    pixel = hr_band.pixel_scale_arcsec
    psfs = [band.psf.reshape(-1, *band.psf.shape[-2:]) for band in (hr_band, lr_band)]
    steps = [band.psf_pixel_scale_arcsec for band in (hr_band, lr_band)]
    hr_reach, reach = (ceil(one.shape[-1] // 2 * step / pixel - 1e-6) for one, step in zip(psfs, steps, strict=True))
    middle = hr_reach + reach
    frequency = np.fft.fftfreq(2 * middle + 1, pixel)

    def transfer(psf: np.ndarray, step: float) -> np.ndarray:
        centre = float(len(psf) // 2)
        return Psf(psf, (centre, centre), step, includes_pixel=False).transfer(frequency, frequency)

    kernels = []
    for row in range(max(map(len, psfs))):  # a PSF that all share counts for every row
        given, wanted = (transfer(one[row % len(one)], step) for one, step in zip(psfs, steps, strict=True))
        ratio = wanted * np.conj(given) / np.maximum(np.abs(given), HR_TRANSFER_FLOOR) ** 2
        kernel = np.fft.fftshift(np.fft.ifft2(ratio).real)
        kernel = kernel[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
        kernels.append(kernel / kernel.sum())
    return np.stack(kernels)


def _margin(kernels: np.ndarray, scale: int) -> int:
    """LR pixels from the edge beyond which at most UNKNOWN_SHARE of a kernel reaches out of the frame."""
    middle = kernels.shape[-1] // 2
    weight = np.abs(kernels)
    for margin in range(ceil(middle / scale)):
        inside = slice(middle - margin * scale, middle + margin * scale + 1)
        if (weight[:, inside, inside].sum((1, 2)) >= (1 - UNKNOWN_SHARE) * weight.sum((1, 2))).all():
            return margin
    return ceil(middle / scale)
