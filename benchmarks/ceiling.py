"""How good can super-resolution be? The physical ceiling of simulated lenses without substructure, and what it costs.

    python -m benchmarks.ceiling --scenes 24

Lenses are singular isothermal ellipsoids in shear with Sersic sources, 64 LR pixels of 0.1" under a Gaussian PSF of
0.18", seen at HR by HST (0.05", 0.09"), with independent noise of the same 1-sigma in every pixel; S/N is that of the
brightest LR pixel, decibels have the median peak of the HR images for their range. Prints, for each S/N, the mean PSNR
of bicubic interpolation, of the oracle and of the Cramer-Rao bound; the share of images accepted; and that share
and the time against the number of starts. Times are of the CPU's clock, on one thread, with the renderings of the
draws from the prior apart.
"""

import argparse
from time import process_time

import numpy as np
import torch

from simulate.generate import SimulateSettings
from simulate.instruments import load_instrument
from simulate.sample import draw_sample, instruments
from simulate.settings import parse_settings
from sr.models.interpolation import Interpolation
from sr.oracle.examine import examine
from sr.oracle.fit import FitSettings, Fitter
from sr.oracle.imaging import Optics
from sr.oracle.objective import Images
from sr.oracle.parameters import scene_parameters

SIGNAL_TO_NOISE = (10.0, 30.0, 100.0)
ROUNDS = (1, 2, 4, 8)
"""Of one start each, until an image's fit is accepted."""
PSF_FWHM_ARCSEC = 0.18


def population() -> SimulateSettings:
    """The lenses and the instruments."""
    lr = load_instrument("euclid-vis")
    lr = lr.model_copy(update={"psf": lr.psf.model_copy(update={"fwhm_arcsec": PSF_FWHM_ARCSEC})})
    content = {"classes": ["none"], "hr_size": 128, "scene": {"macro": {"slope": 2.0}, "supersampling": 4}}
    return parse_settings(SimulateSettings, {**content, "lr_instrument": lr.model_dump()}, "benchmark").resolve()


def make_fitter(settings: SimulateSettings, how: FitSettings) -> Fitter:
    """With the renderings of the draws from the prior."""
    hr, lr = instruments(settings)
    size = settings.hr_size // settings.scale
    optics = Optics(hr.psf, lr.psf, lr.pixel_scale_arcsec, size, settings.scale, settings.scene.supersampling)
    generator = torch.Generator().manual_seed(0)
    return Fitter(scene_parameters(settings.scene), optics, how, generator, torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    count = parser.parse_args().scenes
    torch.set_num_threads(1)
    settings = population()
    clock = process_time()
    fitter = make_fitter(settings, FitSettings())
    print(f"{fitter.settings.draws} draws from the prior: {process_time() - clock:.1f} s\n")
    truth = [fitter.parameters.of_scene(draw_sample(settings, 1, index, "test")[0]) for index in range(count)]
    u = torch.tensor(truth, dtype=torch.float64)
    with torch.no_grad():
        light = torch.cat([fitter.fine.light(one) for one in u.split(1)])
        lr, hr = fitter.fine.lr(light), fitter.fine.hr(light)
    data_range = float(hr.amax((1, 2)).median())

    def decibels(mean_square: torch.Tensor) -> np.ndarray:
        return (10 * torch.log10(data_range**2 / mean_square)).numpy()

    print("  S/N  bicubic  oracle  Cramer-Rao  accepted  chi2/dof  fits a second")
    for signal_to_noise in SIGNAL_TO_NOISE:
        images = observe(lr, signal_to_noise)
        clock = process_time()
        fit = fitter.fit(images)
        rate = count / (process_time() - clock)
        bound = examine(fitter.fine, images, u).hr_sigma.square().mean((1, 2))
        bicubic = Interpolation("bicubic", settings.scale)(images.lr[:, None])[:, 0] / settings.scale**2
        columns = [decibels((one - hr).square().mean((1, 2))).mean() for one in (bicubic, fit.hr)]
        accepted, ratio = fit.accepted.double().mean(), (fit.chi2 / fit.degrees_of_freedom).mean()
        print(
            f"{signal_to_noise:5.0f}  {columns[0]:7.1f}  {columns[1]:6.1f}  {decibels(bound).mean():10.1f}"
            f"  {accepted:8.0%}  {ratio:8.3f}  {rate:13.2f}"
        )
    print("\n  S/N  starts  accepted  fits a second")
    for signal_to_noise in SIGNAL_TO_NOISE[1:]:
        images = observe(lr, signal_to_noise)
        for rounds in ROUNDS:
            tried = make_fitter(settings, FitSettings(starts=1, rounds=rounds))
            clock = process_time()
            fit = tried.fit(images)
            rate = count / (process_time() - clock)
            print(f"{signal_to_noise:5.0f}  {rounds:6d}  {fit.accepted.double().mean():8.0%}  {rate:13.2f}")


def observe(lr: torch.Tensor, signal_to_noise: float) -> Images:
    """The images with noise."""
    sigma = (lr.amax((1, 2), keepdim=True) / signal_to_noise).expand_as(lr)
    generator = torch.Generator().manual_seed(int(signal_to_noise))
    return Images(lr + sigma * torch.randn(lr.shape, dtype=lr.dtype, generator=generator), sigma)


if __name__ == "__main__":
    main()
