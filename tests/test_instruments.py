"""Instruments against lenstronomy's configurations and noise model, measured depths and real images; wrong PSFs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.stats import sigma_clipped_stats
from lenstronomy.SimulationAPI.observation_api import SingleBand
from lenstronomy.SimulationAPI.ObservationConfig.DES import DES
from lenstronomy.SimulationAPI.ObservationConfig.Euclid import Euclid
from lenstronomy.SimulationAPI.ObservationConfig.HST import HST
from lenstronomy.SimulationAPI.ObservationConfig.JWST import JWST
from lenstronomy.SimulationAPI.ObservationConfig.LSST import LSST
from lenstronomy.SimulationAPI.ObservationConfig.Roman import Roman
from scipy.signal import fftconvolve

from simulate.instruments import (
    Instrument,
    aperture_depth_mag,
    config_folder,
    draw_noise,
    load_instrument,
    noise_correlation_kernel,
    noise_sigma_njy,
    pixel_psf,
    point_source_depth_mag,
)
from simulate.psf import SIGMA_PER_FWHM

SHIPPED = sorted(path.stem for path in (config_folder() / "instruments").glob("*.yaml"))


def make_instrument(**changes: Any) -> Instrument:
    plain = {
        "name": "test",
        "pixel_scale_arcsec": 0.1,
        "psf": {"fwhm_arcsec": 0.2},
        "exposure_time_s": 500,
        "num_exposures": 4,
        "magnitude_zero_point": 25.5,
        "sky_brightness_mag_arcsec2": 22.0,
        "read_noise_electrons": 5,
    }
    return load_instrument({**plain, **changes})


def single_band(instrument: Instrument, pixel_scale_arcsec: float, read_noise: float) -> SingleBand:
    return SingleBand(
        pixel_scale=pixel_scale_arcsec,
        exposure_time=instrument.exposure_time_s,
        num_exposures=instrument.num_exposures,
        magnitude_zero_point=instrument.magnitude_zero_point,
        read_noise=read_noise,
        sky_brightness=instrument.sky_brightness_mag_arcsec2,
        psf_type="NONE",
        data_count_unit="e-",
    )


def by_lenstronomy(instrument: Instrument, flux_njy: np.ndarray) -> np.ndarray:
    band = single_band(instrument, instrument.pixel_scale_arcsec, instrument.read_noise_electrons)
    unit = instrument.nanojansky_per_electron_s
    return np.hypot(band.background_noise, band.flux_noise(flux_njy / unit)) * unit


# Instruments


@pytest.mark.parametrize(
    ("name", "theirs", "different"),
    [
        ("euclid-vis", Euclid("VIS"), {"pixel_scale"}),
        ("euclid-nisp-h", Euclid("H"), {"seeing"}),
        ("roman-wfi-f129", Roman("F129"), set()),
        ("lsst-i", LSST("i"), set()),
        ("des-i", DES("i"), set()),
        (
            "hst-wfc3-f160w",
            HST("WFC3_F160W"),
            {"exposure_time", "num_exposures", "magnitude_zero_point", "sky_brightness", "seeing", "read_noise"},
        ),
        (
            "jwst-nircam-f115w",
            JWST("F115W"),
            {"exposure_time", "num_exposures", "magnitude_zero_point", "sky_brightness", "read_noise"},
        ),
        (
            "jwst-nircam-f150w",
            JWST("F150W"),
            {"exposure_time", "num_exposures", "magnitude_zero_point", "sky_brightness", "read_noise"},
        ),
    ],
)
def test_lenstronomys_configuration_but_for_what_the_yaml_explains(name: str, theirs: Any, different: set[str]) -> None:
    ours = load_instrument(name)
    values = {
        "pixel_scale": ours.pixel_scale_arcsec,
        "exposure_time": ours.exposure_time_s,
        "num_exposures": ours.num_exposures,
        "magnitude_zero_point": ours.magnitude_zero_point,
        "sky_brightness": ours.sky_brightness_mag_arcsec2,
        "read_noise": ours.read_noise_electrons,
        "seeing": ours.psf.fwhm_arcsec,
    }
    band = theirs.kwargs_single_band()
    assert {key for key, value in values.items() if value != band[key]} == different
    if different:
        assert "lenstronomy" in (config_folder() / "instruments" / f"{name}.yaml").read_text()


def test_values_that_differ_from_lenstronomy_follow_from_their_sources() -> None:
    # NISP: with the pixel that the simulator applies, a star is as wide as it was measured
    nisp = load_instrument("euclid-nisp-h")
    assert nisp.psf.fwhm_arcsec is not None
    assert np.hypot(nisp.psf.fwhm_arcsec, 0.3 / np.sqrt(12) / SIGMA_PER_FWHM) == pytest.approx(0.50, abs=1e-3)
    # NIRCam: MJy/sr per DN/s times the pixel, and 2.05 electrons per DN
    for name, photmjsr in (("jwst-nircam-f115w", 3.102), ("jwst-nircam-f150w", 2.299)):
        njy = photmjsr * 1e15 * 2.2575e-14 / 2.05
        assert load_instrument(name).nanojansky_per_electron_s == pytest.approx(njy, rel=0.01)
        sky_njy = 0.2 * 1e15 * (np.pi / 180 / 3600) ** 2  # 0.2 MJy/sr per square arcsec
        sky = load_instrument(name).sky_brightness_mag_arcsec2
        assert 31.4 - 2.5 * np.log10(sky_njy) == pytest.approx(sky, abs=0.03)
    # Slope through 5 groups of 4 averaged reads, by fitting simulated ramps
    reads = np.random.default_rng(0).normal(0, 15.77 / np.sqrt(2), (20000, 5, 4)).mean(2)
    slope = np.polyfit(np.arange(5) * 5, reads.T, 1)[0]  # electrons per frame, of which there are 24 in 257.7 s
    assert load_instrument(name).read_noise_electrons == pytest.approx(24 * slope.std(), rel=0.02)


@pytest.mark.parametrize(
    ("name", "diameter", "sigmas", "published", "tolerance"),
    [
        ("des-i", 1.95, 10, 23.8, 0.15),  # Abbott et al. 2021, DR2
        ("hsc-i", 2.0, 5, 25.9, 0.15),  # Aihara et al. 2018
        ("euclid-vis", 1.3, 10, 25.6, 0.15),  # Q1, arXiv:2503.15303
        ("jwst-nircam-f115w", 0.3, 5, 27.5, 0.3),  # Casey et al. 2023, shallowest of the four bands
    ],
)
def test_depth_in_an_aperture_is_what_the_survey_measured(
    name: str, diameter: float, sigmas: float, published: float, tolerance: float
) -> None:
    assert aperture_depth_mag(load_instrument(name), diameter, sigmas) == pytest.approx(published, abs=tolerance)


def test_depth_for_a_point_source_is_that_of_lsst_and_of_the_textbook() -> None:
    lsst = load_instrument("lsst-i")
    assert point_source_depth_mag(lsst) == pytest.approx(26.8, abs=0.1)  # Ivezic et al. 2019, table 1
    # A well-sampled Gaussian has 4 pi sigma^2 effective pixels
    wide = make_instrument(psf={"fwhm_arcsec": 1.0})
    sigma_pixels = 1.0 * SIGMA_PER_FWHM / 0.1
    flux = 5 * wide.background_sigma_njy * np.sqrt(4 * np.pi * (sigma_pixels**2 + 1 / 12))
    assert point_source_depth_mag(wide) == pytest.approx(31.4 - 2.5 * np.log10(flux), abs=2e-3)
    star = pixel_psf(wide)
    assert star.sum() == pytest.approx(1)
    np.testing.assert_allclose(star, star[::-1, ::-1], atol=1e-15)


@pytest.mark.parametrize(("name", "band", "highest"), [("euclid-vis", "VIS", 1.3), ("euclid-nisp-h", "NIR_H", 1.5)])
def test_background_is_that_of_real_euclid_images(observed_images: Path, name: str, band: str, highest: float) -> None:
    """Sums of 1.2" x 1.2" of the emptiest of 10 fields scatter as predicted, or more: there are faint galaxies."""
    instrument, side, measured = load_instrument(name), 12, []
    for path in sorted((observed_images / "two_telescope").glob("euclidQ1*.fits")):
        with fits.open(path) as file:
            (image,) = (one for one in file if one.name in (f"{band}_FLUX", f"{band}_BGSUB"))
            height, width = (count // side * side for count in image.shape)
            pixels = image.data[:height, :width].astype("f8")
            blocks = pixels.reshape(height // side, side, width // side, side).sum((1, 3))
            unit_njy = 10 ** (0.4 * (31.4 - image.header["MAGZERO"]))
            measured.append(sigma_clipped_stats(blocks, sigma=2.5)[2] * unit_njy)
    predicted = instrument.background_sigma_njy * side * 0.1 / instrument.pixel_scale_arcsec
    assert 1.0 < min(measured) / predicted < highest


# Noise


@pytest.mark.parametrize("name", [name for name in SHIPPED if not load_instrument(name).drizzle])
def test_noise_equals_lenstronomys_single_band(name: str) -> None:
    instrument = load_instrument(name)
    flux = np.array([[-3.0, 0.0, 0.02], [10.0, 1e3, 1e6]])
    expected = by_lenstronomy(instrument, flux.copy())
    np.testing.assert_allclose(noise_sigma_njy(instrument, flux), expected, rtol=1e-9)
    np.testing.assert_allclose(instrument.background_sigma_njy, expected[0, 1], rtol=1e-9)
    tensor = noise_sigma_njy(instrument, torch.from_numpy(flux))
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-9)
    single = noise_sigma_njy(instrument, torch.from_numpy(flux).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-6)
    # One electron in all exposures together is the flux whose Poisson noise is itself
    one = instrument.njy_per_electron
    assert noise_sigma_njy(instrument, one) ** 2 - instrument.background_sigma_njy**2 == pytest.approx(one**2, rel=1e-4)


def test_gain_adds_the_rounding_to_whole_units() -> None:
    gain, read_noise, rng = 9.0, 4.0, np.random.default_rng(1)
    level = rng.uniform(1000, 1100, 200_000)
    rounded = np.round((level + rng.normal(0, read_noise, level.shape)) / gain) * gain
    instrument = make_instrument(read_noise_electrons=read_noise, gain_electrons_per_adu=gain)
    assert instrument.noise_per_read_electrons == pytest.approx((rounded - level).std(), rel=0.01)
    assert instrument.noise_per_read_electrons > 1.15 * read_noise
    without = make_instrument(read_noise_electrons=instrument.noise_per_read_electrons)
    assert instrument.background_sigma_njy == pytest.approx(without.background_sigma_njy, rel=1e-12)


def test_drizzling_does_not_change_what_a_wide_area_tells() -> None:
    """Its noise is that of the input pixels; of one drizzled pixel it is R times less than its area would tell."""
    drizzled = make_instrument(pixel_scale_arcsec=0.05, drizzle={"pixfrac": 0.8, "input_pixel_scale_arcsec": 0.1})
    band = single_band(drizzled, 0.1, 5)
    unit = drizzled.nanojansky_per_electron_s
    for flux in (0.0, 500.0):  # nJy per input pixel, a quarter of it per drizzled one
        input_noise = np.hypot(band.background_noise, band.flux_noise(np.array([flux / unit]))[0]) * unit
        per_pixel = float(noise_sigma_njy(drizzled, flux / 4))
        assert 2 * per_pixel * drizzled.noise_correlation_ratio == pytest.approx(input_noise, rel=1e-9)


def drizzle_lines(input_pixel: float, drop: float, rng: np.random.Generator, count: int = 64) -> np.ndarray:
    """(many, count) lines of unit pixels drizzled from independent noise: weighted means over dithered exposures."""
    exposures, lines = 120, 250
    total, weight = np.zeros((lines, count)), np.zeros(count)
    left = np.arange(count)
    for _ in range(exposures):
        centres = np.arange(-3, count / input_pixel + 3) * input_pixel + rng.uniform(0, input_pixel)
        upper = np.minimum(left[:, None] + 1, centres + drop / 2)
        overlap = np.clip(upper - np.maximum(left[:, None], centres - drop / 2), 0, None)
        total += rng.standard_normal((lines, len(centres))) @ overlap.T
        weight += overlap.sum(1)
    return total / weight


@pytest.mark.parametrize(("pixfrac", "ratio"), [(0.8, 1.6), (1.0, 1.0), (0.6, 1.2), (1.0, 2.0)])
def test_noise_is_correlated_as_drizzling_does(pixfrac: float, ratio: float) -> None:
    drizzle = {"pixfrac": pixfrac, "input_pixel_scale_arcsec": 0.1 * ratio}
    instrument = make_instrument(drizzle=drizzle)
    lines = drizzle_lines(ratio, pixfrac * ratio, np.random.default_rng(2))
    kernel = noise_correlation_kernel(instrument)
    assert kernel.shape[0] % 2 == 1
    assert (kernel**2).sum() == pytest.approx(1, abs=1e-12)
    ours = fftconvolve(kernel, kernel[::-1, ::-1])[len(kernel) - 1, len(kernel) - 1 :]
    for lag in range(4):
        real = (lines[:, : 64 - lag] * lines[:, lag:]).mean() / (lines**2).mean()
        expected = ours[lag] if lag < len(ours) else 0.0
        assert real == pytest.approx(expected, abs=0.03)
    # Fruchter & Hook 2002, eqs. 9 and 10
    drop = pixfrac * ratio
    asymptotic = drop / (1 - 1 / (3 * drop)) if drop > 1 else 1 / (1 - drop / 3)
    assert instrument.noise_correlation_ratio == pytest.approx(asymptotic)
    assert kernel.sum() == pytest.approx(asymptotic, rel=3e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drawn_noise_has_its_sigma_and_wide_areas_are_noisier_by_r(dtype: type) -> None:
    drizzled = make_instrument(drizzle={"pixfrac": 0.8, "input_pixel_scale_arcsec": 0.16})
    independent = make_instrument()
    sigma = np.full((6, 256, 256), 3.0, dtype)
    sigma[:, :128] = 0.5
    block = 32
    scatter = []
    for instrument in (independent, drizzled):
        noise = draw_noise(instrument, sigma, np.random.default_rng(3))
        assert noise.dtype == dtype
        assert noise.shape == sigma.shape
        assert noise[:, 128:].std() == pytest.approx(3.0, rel=0.01)
        assert noise[:, :128].std() == pytest.approx(0.5, rel=0.01)
        assert noise[:, -1].std() == pytest.approx(3.0, rel=0.06)  # at the edge as well
        blocks = (noise / sigma).reshape(6, 256 // block, block, 256 // block, block).mean((2, 4))
        scatter.append(float(blocks.std()))
    r = drizzled.noise_correlation_ratio
    assert r == pytest.approx(1.731, abs=1e-3)
    # Casertano et al. 2000: short of R by the border of a block (here 2 % of it)
    assert scatter[1] / scatter[0] == pytest.approx(r, rel=0.08)
    assert scatter[0] == pytest.approx(1 / block, rel=0.06)
    again = draw_noise(drizzled, sigma, np.random.default_rng(3))
    assert np.array_equal(noise, again)
    assert noise_correlation_kernel(independent).shape == (1, 1)


def test_importing_instruments_is_light() -> None:
    code = (
        "import sys, simulate.instruments;"
        "heavy = {'scipy', 'astropy', 'torch', 'lenstronomy', 'h5py'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
