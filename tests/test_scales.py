"""One network for several scales: coarser pairs against the simulator, one prior on every grid, training to FITS."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from torch import Tensor, nn
from torch.nn import functional

import benchmarks.scales
from benchmarks.ship_weights import ship
from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.instruments import noise_sigma_njy, psf_kernel
from simulate.sample import draw_sample, instruments, view_of
from simulate.shards import Band, Pairs, read_pairs
from simulate.torch_engine.render import render_batch
from sr.degradation import Degradation
from sr.losses import loss_context
from sr.metrics import data_range_of, image_scores
from sr.model_folder import load_model
from sr.models.unrolled import DataTerm, UnrolledSettings, check_scales
from sr.normalisation import fit_normalisation
from sr.operators import ForwardOperator, forward_operator, matching_kernels
from sr.plan import ModelSettings, TrainSettings, plan_models
from sr.samples import draw_batch, load_samples
from sr.schedule import LoopSettings
from sr.shipped import validation_psnr_db
from sr.super_resolve import super_resolve_fits
from sr.trained_model import TrainedModel
from sr.trainer import Trainer
from sr.training import train_run
from sr.transfer import transfer_run
from sr.transfer_variants import TransferSettings

from .conftest import blob_pairs, gaussian_kernel, write_dataset
from .test_degradation import noise
from .test_unrolled import TINY, tiny_network

CPU = torch.device("cpu")
BOTH = {**TINY, "scales": [2, 4], "predict_sigma": True}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# -- coarser pairs ----------------------------------------------------------------------------------------------------


def simulated(supersampling: int, **more: Any) -> Pairs:
    """Three lenses of 64 x 64 LR pixels, noiseless."""
    settings = SimulateSettings(lr_instrument="euclid-vis", scene={"supersampling": supersampling}, **more).resolve()
    scenes = [draw_sample(settings, 3, index, "train")[0] for index in range(3)]
    hr, lr = render_batch(scenes, view_of(settings), torch.float64, CPU)
    spacing = settings.ray_spacing_arcsec
    hr_band, lr_band = (
        Band(one.name, one.pixel_scale_arcsec, psf_kernel(one.psf, spacing), spacing) for one in instruments(settings)
    )
    pairs = blob_pairs(3, scale=settings.scale, lr_size=64)
    hr, lr = hr[:, None].numpy(), lr[:, None].numpy()
    sigma = noise_sigma_njy(instruments(settings)[1], lr)
    return replace(pairs, hr=hr, lr=lr, lr_noise=sigma, hr_band=hr_band, lr_band=lr_band)


def test_summed_pixels_are_what_the_simulator_gives_at_that_scale() -> None:
    fine = simulated(2, hr_instrument="hst-acs-f814w-0025", scale=4, hr_size=256)
    coarse = simulated(4, hr_instrument="hst-acs-f814w", scale=2, hr_size=128)  # the same rays
    found = fine.at_scale(2)
    assert found.scale == 2
    assert found.hr_band.pixel_scale_arcsec == pytest.approx(coarse.hr_band.pixel_scale_arcsec)
    residual = ((forward_operator(found)(torch.from_numpy(found.hr)).numpy() - found.lr) / found.lr_noise) ** 2
    assert residual.mean() < 1e-5
    np.testing.assert_allclose(found.hr, coarse.hr, rtol=0, atol=1e-6 * coarse.hr.max())


def test_a_summed_pixel_is_real_if_all_of_it_is() -> None:
    pairs = blob_pairs(1, scale=4, lr_size=4)
    pairs.hr_mask[0, 0, 5, 6] = False
    mask = pairs.at_scale(2).hr_mask[0, 0]
    assert np.argwhere(~mask).tolist() == [[2, 3]]
    assert pairs.at_scale(4) is pairs
    with pytest.raises(ValueError, match="scale 4 cannot be made pairs of scale 3"):
        pairs.at_scale(3)


def test_crops_at_a_scale_are_crops_of_pairs_at_that_scale() -> None:
    pairs = blob_pairs(4, scale=4)
    pairs.hr_mask[:, :, ::5, ::3] = False
    pairs = replace(pairs, hr=np.where(pairs.hr_mask, pairs.hr, 0))
    batches = []
    for one in (pairs, pairs.at_scale(2)):
        samples = load_samples(one, replace(fit_normalisation(pairs), scale=one.scale), "hr", CPU)
        batches.append(draw_batch(samples, 6, 8, True, generator()).at_scale(2))
    found, expected = batches
    torch.testing.assert_close(found.hr, expected.hr)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.lr, expected.lr)
    assert 0 < int(found.mask.sum()) < found.mask.numel()


# -- one prior on every grid ------------------------------------------------------------------------------------------


def pooled(images: Tensor, many: int) -> Tensor:
    return functional.avg_pool2d(images, many)


def test_the_data_term_means_the_same_at_every_scale() -> None:
    """For an instrument that only sums pixels, and a unit that is everywhere the same."""
    settings = UnrolledSettings(unit_of_light=1e-9)
    lr, fine = noise(2, 1, 6, 5).float(), noise(2, 1, 24, 20, seed=1).float()
    answers = []
    for scale, x in ((4, fine), (2, pooled(fine, 2))):
        operator = ForwardOperator(torch.ones(1, 1, 1, 1), scale, 0)
        data = DataTerm(lr, Degradation(torch.full_like(lr, 0.3), operator), settings, finest=4)
        spread = torch.tensor(3.0)
        answers.append([data.bound(spread), pooled(data.step(x, spread), scale // 2), data.solve(x, spread, 3)])
    answers[0][2] = pooled(answers[0][2], 2)
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_at_the_finest_scale_it_is_the_network_of_that_scale() -> None:
    many, one = tiny_network(4, scales=(2, 4)), tiny_network(4)
    assert many.state_dict().keys() == one.state_dict().keys()
    degradation = Degradation(torch.ones(1, 1, 6, 6), ForwardOperator(torch.ones(1, 1, 1, 1), 4, 0))
    lr = noise(1, 1, 6, 6).float()
    assert torch.equal(many(lr, degradation), one(lr, degradation))


@pytest.mark.parametrize(("scales", "scale"), [((2, 3), 2), ((2, 4), 3), ((1, 2), 2)])
def test_scales_divide_the_largest(scales: tuple[int, ...], scale: int) -> None:
    with pytest.raises(InputError, match=f"scales: expected {scale} and others"):
        check_scales(scales, scale)


# -- training ---------------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """Keeps what it is told."""

    knows_degradation = True

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        self.told: list[tuple[int, tuple[int, ...]]] = []

    def forward(self, lr: Tensor, degradation: Degradation) -> Tensor:
        scale = degradation.operator.scale
        self.told.append((scale, tuple(degradation.operator.kernels.shape)))
        return self.factor * lr.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def test_scales_take_turns_each_with_its_own_operator() -> None:
    pairs = blob_pairs(4, scale=4)
    normalisation = fit_normalisation(pairs)
    context = loss_context({"l1": 1.0}, pairs, normalisation, "hr", CPU, knows_degradation=True)
    coarser = {2: forward_operator(pairs.at_scale(2)).to(CPU, torch.float32)}
    assert context.operator is not None
    loop = LoopSettings(steps=4, batch_size=2, crop_size=8)
    network = Told()
    samples = load_samples(pairs, normalisation, "hr", CPU)
    Trainer(network, samples, loop, 0, context=context, coarser=coarser).run(lambda *_: None)
    sizes = {4: context.operator.kernels.shape[-1], 2: coarser[2].kernels.shape[-1]}
    assert network.told == [(scale, (2, 1, sizes[scale], sizes[scale])) for scale in (2, 4, 2, 4)]


def settings(steps: int = 4, **more: Any) -> TrainSettings:
    model = ModelSettings(architecture="unrolled", settings=BOTH)
    return TrainSettings(
        steps=steps, batch_size=8, crop_size=None, learning_rate=5e-3, ema_decay=0.9, models=(model,), **more
    )


@pytest.fixture
def run(blob_run: Callable[..., Path]) -> Path:
    """With a model of two scales, in RUN/train."""
    folder = blob_run(scale=4)
    train_run(folder, settings(40), 0, CPU, resume=True)
    return folder


def psnr_db(model: TrainedModel, folder: Path, scale: int) -> float:
    pairs = read_pairs(folder / "data", "val").at_scale(scale)
    error = model.at_scale(scale).super_resolve_pairs(pairs, CPU) - pairs.hr
    return float(10 * np.log10(pairs.hr.max() ** 2 / np.mean(error**2)))


def test_one_model_serves_both_scales(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(run / "train/unrolled", CPU)
    untrained = replace(model, network=tiny_network(4, scales=(2, 4), predict_sigma=True))
    train = read_pairs(run / "data", "train")
    benchmarks.scales.main([str(run)])
    shown = capsys.readouterr().out
    for scale in (2, 4):
        table = shown.partition(f"\nx{scale}\n")[2].partition("\nx")[0]
        own = next(line for line in table.splitlines() if line.startswith("| `unrolled` |"))
        test = read_pairs(run / "data", "test").at_scale(scale)
        train_hr = train.at_scale(scale).hr
        found = model.at_scale(scale).super_resolve_pairs(test, CPU)
        expected = image_scores(found, test, data_range_of(train_hr, np.ones(train_hr.shape, bool)))["psnr_db"].mean()
        assert f"{expected:.2f} [" in own
        assert psnr_db(model, run, scale) > psnr_db(untrained, run, scale) + 0.5
        own = model.at_scale(scale)
        assert own.kernel is not None
        expected = train.at_scale(scale)
        np.testing.assert_array_equal(
            own.kernel.kernel, matching_kernels(expected.hr_band, expected.lr_band).mean(0), strict=True
        )
        assert own.kernel.hr_band is not None
        assert own.kernel.hr_band.pixel_scale_arcsec == pytest.approx(expected.hr_band.pixel_scale_arcsec)
    scores = model.config.scores
    mean = np.mean([scores[f"validation, x{scale}"]["psnr_db"] for scale in (2, 4)])
    assert scores["validation"]["psnr_db"] == pytest.approx(mean)
    with pytest.raises(InputError, match="model unrolled: expected a scale of 2 or 4, found 3"):
        model.at_scale(3)

    header = fits.Header({"PIXSCALE": train.lr_band.pixel_scale_arcsec, "TELESCOP": train.lr_band.instrument})
    fits.PrimaryHDU(train.lr[0, 0], header).writeto(tmp_path / "in.fits")
    for asked, scale in ((None, 2), (2, 2), (4, 4)):
        out = tmp_path / f"{asked}.fits"
        done = super_resolve_fits(
            tmp_path / "in.fits", out, run / "train/unrolled", CPU, scale=asked, force=True, overwrite=True
        )
        assert done["scale"] == scale
        image, written = fits.getdata(out, header=True)
        assert image.shape == (16 * scale, 16 * scale)
        assert written["PIXSCALE"] == pytest.approx(train.lr_band.pixel_scale_arcsec / scale)
        assert np.sum(image) == pytest.approx(np.sum(train.lr[0]), rel=0.1)
        own, one = model.at_scale(scale), train.select(np.arange(1))
        expected, sigma = own.super_resolve_and_sigma(one.lr, np.full_like(one.lr, done["noise_sigma"]), CPU)
        np.testing.assert_allclose(image, expected[0, 0], rtol=1e-4, atol=1e-5 * expected.max())
        np.testing.assert_allclose(fits.getdata(out, "SIGMA"), sigma[0, 0], rtol=1e-4)
    with pytest.raises(InputError, match="found 1 channels and 2 or 4 times"):
        super_resolve_fits(tmp_path / "in.fits", out, run / "train/unrolled", CPU, scale=3, force=True, overwrite=True)


def test_a_shipped_one_is_scored_on_common_lenses_and_takes_their_psf(run: Path, tmp_path: Path) -> None:
    common = blob_pairs(3, seed=5)
    lr_band = replace(common.lr_band, psf=gaussian_kernel(3), pixel_scale_arcsec=0.2)
    common = replace(common, hr_band=replace(common.hr_band, pixel_scale_arcsec=0.1), lr_band=lr_band)
    lenses = tmp_path / "lenses"
    write_dataset(lenses / "data", {"train": common, "val": common})
    with pytest.raises(InputError, match="unrolled: serves several scales; give --lenses"):
        ship(run, "unrolled", tmp_path / "unrolled", CPU)
    scores = ship(run, "unrolled", tmp_path / "unrolled", CPU, lenses)
    assert "- validation: x2, on the lenses" in (tmp_path / "unrolled" / "README.md").read_text()
    stored = load_model(tmp_path / "unrolled", CPU)
    assert stored.kernel is not None
    assert list(stored.config.scores) == ["validation", "validation, own data, x2", "validation, own data, x4"]
    assert scores["psnr_db"]["mean"] == validation_psnr_db(stored.config)
    for scale in (2, 4):
        hr_band = replace(common.hr_band, pixel_scale_arcsec=common.lr_band.pixel_scale_arcsec / scale)
        kernel = stored.at_scale(scale).kernel
        assert kernel is not None
        np.testing.assert_array_equal(kernel.kernel, matching_kernels(hr_band, common.lr_band)[0])
        assert psnr_db(stored, run, scale) == pytest.approx(
            psnr_db(load_model(run / "train/unrolled", CPU), run, scale), abs=0.05
        )


def test_lenses_of_another_instrument_are_refused(run: Path, tmp_path: Path) -> None:
    other = blob_pairs(3, seed=5)
    lenses = tmp_path / "lenses"
    write_dataset(lenses / "data", {"train": replace(other, unit="electrons"), "val": replace(other, unit="electrons")})
    with pytest.raises(InputError, match=r'expected blurred, 0\.2", nJy, found blurred, 0\.1", electrons, x2'):
        ship(run, "unrolled", tmp_path / "unrolled", CPU, lenses)


@pytest.mark.parametrize("scale", [2, 4])
def test_it_goes_on_to_observed_pairs_of_either_scale(run: Path, scale: int) -> None:
    pairs = blob_pairs(6, scale=scale, seed=9, kind="real HR, degraded LR")
    write_dataset(run / "pairs", {"observed": pairs})
    transfer = TransferSettings(
        models=("unrolled",), frozen_steps=2, finetune_steps=2, folds=2, batch_size=4, crop_size=10
    )
    transfer_run(run, transfer, 0, CPU, resume=True)
    tuned = load_model(run / "transfer/unrolled", CPU)
    assert (tuned.config.scale, tuned.scales) == (scale, (scale,))
    error = tuned.super_resolve_pairs(pairs, CPU) - pairs.hr
    before = load_model(run / "train/unrolled", CPU).super_resolve_pairs(pairs, CPU) - pairs.hr
    assert 0.5 < np.sqrt(np.mean(error**2) / np.mean(before**2)) < 1.1
    with pytest.raises(InputError, match=f"expected a scale of {scale}, found {6 - scale}"):
        tuned.at_scale(6 - scale)


def test_data_of_the_finest_scale_are_needed(blob_run: Callable[..., Path]) -> None:
    folder = blob_run()
    train, val = (read_pairs(folder / "data", split) for split in ("train", "val"))
    with pytest.raises(InputError, match=r"train\.models\.0: unrolled is to serve x4, the data are of x2; simulate x4"):
        plan_models(settings(), train, val, "", 0)
    fine = blob_pairs(4, scale=4)
    consistent = settings(loss={"l1": 1.0, "data_consistency": 0.1})
    with pytest.raises(InputError, match="several scales, and the loss data_consistency is of one"):
        plan_models(consistent, fine, fine, "", 0)
