"""A PSF of its own for each simulated pair: in images of every engine, in stored data, and in what reads them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.seeings import TOLD_THE_MEAN, fwhms_arcsec, groups_of, main, predictions
from simulate.audit import audit_sample
from simulate.errors import InputError
from simulate.generate import SimulateSettings, assemble, simulate_run
from simulate.instruments import PSFSettings, load_instrument, psf_kernel
from simulate.lenstronomy_engine import render_reference
from simulate.priors import Prior
from simulate.provenance import settings_yaml
from simulate.sample import draw_sample, instruments, render_scenes, simulate_sample
from simulate.scene import Scene
from simulate.seeing import KERNEL_FLUX, seeing_kernels
from simulate.settings import parse_settings
from simulate.shards import concatenate, read_pairs
from simulate.torch_engine.blocks import render_block
from sr.degradation import knows_degradation
from sr.evaluate import EvaluateSettings, evaluate_run
from sr.metrics import data_range_of
from sr.model_folder import load_model
from sr.operators import forward_operator, matching_kernels
from sr.oracle.ceiling import CeilingSettings, measure_ceiling
from sr.plan import TrainSettings
from sr.training import train_run
from sr.truth_parts import render_truth_parts

CONTENT = {"classes": ["cdm", "none"], "hr_size": 32, "scene": {"supersampling": 1}}
RANGE = {"uniform": [0.12, 0.28]}
CPU = torch.device("cpu")
PSFS = {
    "gaussian": {"fwhm_arcsec": 0.16},
    "moffat": {"kind": "moffat", "fwhm_arcsec": 0.16, "moffat_beta": 3.0},
    "airy": {"kind": "airy", "fwhm_arcsec": 0.16, "airy_obscuration": 0.3},
}


def make_settings(psf: dict[str, object] | None = None, **more: object) -> SimulateSettings:
    lr = load_instrument("euclid-vis").model_dump()
    return parse_settings(
        SimulateSettings, {**CONTENT, "lr_instrument": {**lr, "psf": psf or lr["psf"]}, **more}, "test"
    ).resolve()


def drawn(settings: SimulateSettings, count: int, seed: int = 3) -> list[Scene]:
    return [draw_sample(settings, seed, index, "train")[0] for index in range(count)]


WANTED = make_settings(lr_psf_fwhm_arcsec=RANGE)


@pytest.mark.parametrize("kind", PSFS)
def test_the_image_is_that_of_an_instrument_with_that_fwhm(kind: str) -> None:
    own = make_settings(PSFS[kind], lr_psf_fwhm_arcsec=RANGE)
    scenes = drawn(own, 3)
    fwhms = [scene.lr_psf_fwhm_arcsec for scene in scenes]
    assert len(set(fwhms)) == 3
    assert all(0.12 <= fwhm <= 0.28 for fwhm in fwhms)
    for scene, (hr, lr) in zip(scenes, render_scenes(own, scenes), strict=True):
        sharp_or_not = make_settings({**PSFS[kind], "fwhm_arcsec": scene.lr_psf_fwhm_arcsec})
        (expected_hr, expected_lr), *_ = render_scenes(sharp_or_not, [replace(scene, lr_psf_fwhm_arcsec=None)])
        assert np.array_equal(hr, expected_hr)
        assert np.array_equal(lr, expected_lr)
        reference = render_reference(scene, instruments(sharp_or_not)[1], 16, 2)
        np.testing.assert_allclose(lr, reference, atol=1e-4 * reference.max())
        usual = render_reference(scene, instruments(own)[1], 16, 2)
        assert np.abs(usual - reference).max() > 1e-2 * reference.max()  # which is what a forgotten FWHM would give


@pytest.mark.parametrize("kind", PSFS)
def test_lenstronomy_engine_and_audit_see_the_same(kind: str) -> None:
    settings = make_settings(PSFS[kind], lr_psf_fwhm_arcsec=RANGE)
    scenes = drawn(settings, 2)
    reference = render_scenes(settings.model_copy(update={"engine": "lenstronomy"}), scenes)
    for ours, theirs in zip(render_scenes(settings, scenes), reference, strict=True):
        for image, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(image, expected, atol=1e-4 * expected.max())
    assert max(audit_sample(settings, 3, 0).values()) < 1e-4


@pytest.mark.parametrize("kind", PSFS)
def test_blocks_on_a_device_see_each_scene_through_its_own(kind: str) -> None:
    """Rays are shot for all together; kernels of different sizes need grids of different sizes."""
    settings = make_settings(PSFS[kind], lr_psf_fwhm_arcsec=RANGE, lr_peak_signal_to_noise=30)
    scenes = drawn(settings, 4)
    block = render_block(settings, scenes, torch.Generator().manual_seed(0), CPU, 2**30)
    for row, (hr, lr) in enumerate(render_scenes(settings, scenes)):
        np.testing.assert_allclose(block["hr"][row, 0], hr, atol=1e-5 * hr.max())
        noise = simulate_sample(settings, 3, row)["lr_noise"][0]
        np.testing.assert_allclose(block["lr_noise"][row, 0], noise, rtol=1e-4)
        scatter = (block["lr"][row, 0].numpy() - lr) / noise
        assert scatter.std() == pytest.approx(1, abs=0.2)  # 256 pixels: 4 sigma are 0.18


def test_points_of_light_have_the_psf_of_their_scene() -> None:
    scene_settings = {"supersampling": 2, "lensing": {"kind": "quasar"}}
    settings = make_settings(classes=["none"], lr_psf_fwhm_arcsec=RANGE, scene=scene_settings, hr_size=96)
    scenes = drawn(settings, 2)
    block = render_block(settings, scenes, torch.Generator().manual_seed(0), CPU, 2**30)
    for row, (scene, (_, lr)) in enumerate(zip(scenes, render_scenes(settings, scenes), strict=True)):
        psf = {"fwhm_arcsec": scene.lr_psf_fwhm_arcsec}
        plain = make_settings(psf, classes=["none"], scene=scene_settings, hr_size=96)
        ((_, expected),) = render_scenes(plain, [replace(scene, lr_psf_fwhm_arcsec=None)])
        assert np.array_equal(lr, expected)
        in_sigma = (block["lr"][row, 0].numpy() - lr) / block["lr_noise"][row, 0].numpy()
        assert np.abs(in_sigma).max() < 5  # of 2304 pixels; points are hundreds of sigma


def test_only_the_lr_image_changes() -> None:
    plain, wanted = make_settings(), WANTED
    scene, seen = draw_sample(plain, 3, 2, "train")[0], draw_sample(wanted, 3, 2, "train")[0]
    assert seen == replace(scene, lr_psf_fwhm_arcsec=seen.lr_psf_fwhm_arcsec)
    assert Scene.from_json(seen.to_json()) == seen
    assert "lr_psf_fwhm_arcsec" not in scene.to_json()
    assert "lr_psf_fwhm_arcsec" not in settings_yaml(plain)  # nor does the hash of older configurations change
    samples = [simulate_sample(settings, 3, 2) for settings in (plain, wanted)]
    assert np.array_equal(samples[0]["hr"], samples[1]["hr"])
    assert not np.allclose(samples[0]["lr_noise"], samples[1]["lr_noise"])
    assert assemble(plain, samples[:1]).lr_band.psf.ndim == 2


def test_the_signal_to_noise_is_drawn_as_without_a_seeing() -> None:
    both = make_settings(lr_psf_fwhm_arcsec=RANGE, lr_peak_signal_to_noise={"log_uniform": [10, 200]})
    alone = both.model_copy(update={"lr_psf_fwhm_arcsec": None})
    for one, other in zip(drawn(both, 3), drawn(alone, 3), strict=True):
        assert one.lr_peak_signal_to_noise == other.lr_peak_signal_to_noise


def measured_fwhm_arcsec(kernel: np.ndarray, spacing_arcsec: float) -> float:
    """Of a Gaussian, from its second moment."""
    axis = (np.arange(len(kernel)) - len(kernel) // 2) * spacing_arcsec
    return float(2 * np.sqrt(2 * np.log(2) * (kernel.sum(0) * axis**2).sum()))


def test_kernels_stay_with_their_rows() -> None:
    pairs = assemble(WANTED, [simulate_sample(WANTED, 3, index) for index in range(5)])
    assert pairs.lr_band.psf.ndim == 3
    assert pairs.hr_band.psf.ndim == 2
    joined = concatenate([pairs.select(np.array([4, 1])), pairs.select(np.arange(5) == 2)])
    for some, expected in ((pairs, [0, 1, 2, 3, 4]), (joined, [4, 1, 2])):
        assert some.index.tolist() == expected
        for row, name in enumerate(some.name):
            wanted = Scene.from_json(name).lr_psf_fwhm_arcsec
            found = measured_fwhm_arcsec(some.lr_band.psf[row], some.lr_band.psf_pixel_scale_arcsec)
            assert found == pytest.approx(wanted, rel=1e-3)
    # and it is the right one: A(HR) is the noiseless LR image, with another row's kernel it is not
    operator = forward_operator(pairs)
    hr = torch.from_numpy(pairs.hr).double()
    scenes = [Scene.from_json(name) for name in pairs.name]
    lr = torch.from_numpy(np.stack([lr for _, lr in render_scenes(WANTED, scenes)]))[:, None].double()
    inside = (..., slice(operator.margin, -operator.margin), slice(operator.margin, -operator.margin))

    def errors(kernels: torch.Tensor | None) -> torch.Tensor:
        return ((operator(hr, kernels) - lr)[inside].abs() / lr.amax((2, 3), keepdim=True)).amax((1, 2, 3))

    assert (5 * errors(None) < errors(torch.tensor([1, 2, 3, 4, 0]))).all()


@pytest.mark.parametrize("kind", PSFS)
def test_kernels_have_one_size_and_hardly_lose_light(kind: str) -> None:
    psf, prior, spacing = PSFSettings(**PSFS[kind]), Prior(uniform=(0.12, 0.28)), 0.0125
    narrow, wide = (seeing_kernels(psf, [fwhm], prior, spacing)[0] for fwhm in (0.12, 0.28))
    assert narrow.shape == wide.shape
    for kernel, fwhm in ((narrow, 0.12), (wide, 0.28)):
        assert kernel.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
        whole = psf_kernel(psf.model_copy(update={"fwhm_arcsec": fwhm}), spacing)
        size = max(len(whole), len(kernel))
        whole, stored = (np.pad(one, (size - len(one)) // 2) for one in (whole, kernel))
        assert np.abs(whole - stored).sum() < 3 * (1 - KERNEL_FLUX)


@pytest.mark.parametrize("wrong", [0, -0.1, {"uniform": [0, 0.2]}, {"normal": [0.2, 0.1]}, "wide"])
def test_the_fwhm_is_positive(wrong: object) -> None:
    with pytest.raises(InputError, match="lr_psf_fwhm_arcsec"):
        make_settings(lr_psf_fwhm_arcsec=wrong)


def test_a_psf_without_fwhm_is_refused() -> None:
    fits = {"kind": "fits", "fits": "star.fits", "includes_pixel_response": True}
    with pytest.raises(InputError, match=r"lr_psf_fwhm_arcsec: the PSF of .* found fits"):
        make_settings(fits, lr_psf_fwhm_arcsec=RANGE)


def test_the_ceiling_is_refused() -> None:
    pairs = assemble(WANTED, [simulate_sample(WANTED, 3, 1)])
    with pytest.raises(InputError, match="each pair has a PSF of its own"):
        measure_ceiling(pairs, WANTED, 1.0, CeilingSettings(scenes=1), 0, CPU)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of five shards, and a network that is told its PSFs."""
    folder = tmp_path_factory.mktemp("seeing")
    content = {"counts": {"train": 3, "val": 1, "test": 3}, "shard_size": 2, "lr_psf_fwhm_arcsec": RANGE}
    simulate_run(folder, make_settings(**content), seed=4, resume=True, workers=1)
    tiny = {"architecture": "unrolled", "settings": {"steps": 1, "blocks": 1, "fields": 2}}
    recipe = {"steps": 2, "batch_size": 2, "crop_size": 8, "loss": {"l1": 1, "data_consistency": 0.1}, "models": [tiny]}
    train_run(folder, TrainSettings.model_validate(recipe), 4, CPU, resume=True)
    return folder


def test_shards_have_kernels_of_one_size_and_scenes_render_again(run: Path) -> None:
    train, test = (read_pairs(run / "data", split) for split in ("train", "test"))
    assert train.lr_band.psf.shape[0] == 3
    assert train.lr_band.psf.shape[1:] == test.lr_band.psf.shape[1:]
    parts = render_truth_parts(test, run / "data", CPU)
    assert np.isfinite(parts.macro[test.label == 0]).all()


def test_evaluate_says_that_the_ceiling_is_missing(run: Path) -> None:
    settings = EvaluateSettings.model_validate({"uncertainty": {"scenes": 0, "noise_images": 3}})
    metrics = evaluate_run(run, settings, 4, CPU, resume=False)
    assert "each pair has a PSF of its own" in metrics["ceiling"]["missing"]
    assert {row["model"] for row in metrics["rows"]} >= {"bicubic", "wiener", "richardson-lucy", "unrolled"}


def test_the_benchmark_tells_each_pair_its_own_psf(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = read_pairs(run / "data", "test")
    images, told = predictions(run, test)
    assert told == ["unrolled"]
    model = load_model(run / "train" / "unrolled", CPU)
    assert knows_degradation(model.network)
    for row in range(3):
        alone = test.select(np.array([row]))
        kernel = matching_kernels(alone.hr_band, alone.lr_band)
        expected = model.super_resolve(alone.lr, alone.lr_noise, CPU, kernels=kernel)[0]
        found, wrong = images["unrolled"][row], images[TOLD_THE_MEAN.format("unrolled")][row]
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
        assert np.abs(wrong - expected).max() > 1e-3 * expected.max()
    groups = groups_of(fwhms_arcsec(test))
    assert [int(rows.sum()) for rows in groups.values()] == [3, 1, 1, 1]
    order = [int(rows.argmax()) for rows in list(groups.values())[1:]]
    assert order == np.argsort([Scene.from_json(name).lr_psf_fwhm_arcsec for name in test.name]).tolist()
    main([str(run)])
    data_range = data_range_of(*(getattr(read_pairs(run / "data", "train"), name) for name in ("hr", "hr_mask")))
    error = ((images["bicubic"] - test.hr).astype("f8") ** 2).mean((1, 2, 3))
    psnr_db = (10 * np.log10(data_range**2 / error)).mean()
    assert f"| `bicubic` | {psnr_db:.2f} [" in capsys.readouterr().out


def test_a_network_that_is_told_psfs_needs_stored_ones(run: Path) -> None:
    recipe = {"steps": 2, "data": "on-the-fly", "models": [{"architecture": "unrolled"}]}
    with pytest.raises(InputError, match="needs data: stored where each pair has a PSF of its own"):
        train_run(run, TrainSettings.model_validate(recipe), 4, CPU, resume=True)
