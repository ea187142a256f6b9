"""Sources: their light by quadrature and by lenstronomy, and no real galaxy in two splits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from lenstronomy.LightModel.light_model import LightModel
from scipy.ndimage import gaussian_filter

from simulate.errors import InputError
from simulate.profiles.light import LIGHT_PROFILES, light_sum
from simulate.settings import Settings, parse_settings
from simulate.sources import ClumpySettings, GalaxySettings, SersicSettings, Source, SourceSettings, Split, draw_source
from simulate.sources.base import flux_njy
from simulate.sources.galaxy import split_of, usable_galaxies
from simulate.sources.sersic import draw_sersic
from simulate.sources.stamps import clean_stamp

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def lenstronomy_light(names: list[str], kwargs: list[dict[str, Any]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return LightModel(names).surface_brightness(x.ravel(), y.ravel(), kwargs).reshape(x.shape)


class Holder(Settings):
    """A section with a source, as a scene has."""

    source: SourceSettings = SersicSettings()


def test_source_without_kind_is_sersic_and_typos_are_explained() -> None:
    parsed = parse_settings(Holder, {"source": {"magnitude": 23.0}}, "a.yaml").source
    assert parsed == SersicSettings.model_validate({"magnitude": 23.0})
    assert isinstance(parse_settings(Holder, {"source": {"kind": "clumpy"}}, "a.yaml").source, ClumpySettings)
    assert parse_settings(Holder, {"source": ClumpySettings(kind="clumpy")}, "a").source.kind == "clumpy"
    for content, message in (
        ({"magnitud": 23.0}, r"unknown key .*magnitud.*did you mean 'magnitude'\?"),
        ({"kind": "clumpy", "arm_pich_deg": 20}, r"unknown key .*did you mean 'arm_pitch_deg'\?"),
        ({"kind": "clumpi"}, r"'source': expected a source of kind clumpy, galaxy, sersic"),
        ({"kind": "galaxy"}, r"source.galaxy.path' is missing"),
        ({"kind": "clumpy", "arm_share": 0.7, "clump_share": 0.4}, "must not exceed 1 together, found up to 1.1"),
        ({"kind": "galaxy", "path": "a.fits", "fractions": {"train": 0.9}}, "must add up to 1, found 1.2"),
        (23.0, "expected a source of kind"),
    ):
        with pytest.raises(InputError, match=message):
            parse_settings(Holder, {"source": content}, "a.yaml")


def test_sersic_draw_takes_its_numbers_in_a_fixed_order() -> None:
    """Seeds of earlier data sets go on giving the same lenses."""
    settings, rng = SersicSettings(), np.random.default_rng(5)
    kwargs = draw_sersic(settings, np.random.default_rng(5))
    magnitude, radius, index = rng.uniform(22, 24), rng.uniform(0.05, 0.25), rng.uniform(0.8, 2.5)
    shape = [rng.normal(0, 0.15), rng.normal(0, 0.15), rng.normal(0, 0.1), rng.normal(0, 0.1)]
    assert [kwargs[key] for key in ("e1", "e2", "center_x", "center_y")] == shape
    assert (kwargs["R_sersic"], kwargs["n_sersic"]) == (radius, index)
    assert lenstronomy_flux([("SERSIC_ELLIPSE", kwargs)]) == pytest.approx(flux_njy(magnitude), rel=2e-3)


def lenstronomy_flux(models: list[tuple[str, dict[str, Any]]]) -> float:
    """Integral of the surface brightness by quadrature: a fine grid inside 1", logarithmic rings outside."""
    names, kwargs = [name for name, _ in models], [one for _, one in models]
    x0, y0 = kwargs[0]["center_x"], kwargs[0]["center_y"]
    step = 0.004
    axis = np.arange(-1 + step / 2, 1, step)
    inner = light_sum(*(torch.tensor(one) for one in np.meshgrid(axis + x0, axis + y0)), names, kwargs).sum() * step**2
    rings = np.geomspace(1e-3, 60, 900)
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    x, y = x0 + rings[:, None] * np.cos(angles), y0 + rings[:, None] * np.sin(angles)
    outside = (np.abs(x - x0) > 1) | (np.abs(y - y0) > 1)
    light = np.where(outside, lenstronomy_light(names, kwargs, x, y), 0)
    outer = (light * rings[:, None] ** 2).sum() * np.log(rings[1] / rings[0]) * 2 * np.pi / 90
    return float(inner) + float(outer)


@pytest.mark.parametrize("seed", range(4))
def test_clumpy_disc_has_the_drawn_magnitude_and_is_inclined_as_one(seed: int) -> None:
    source = draw_source(ClumpySettings(kind="clumpy"), "train", np.random.default_rng(seed))
    assert lenstronomy_flux(source.light_models) == pytest.approx(flux_njy(source.draw["source_magnitude"]), rel=3e-3)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for name, kwargs in source.light_models:
        by_name.setdefault(name, []).append(kwargs)
    (disc,) = by_name["SERSIC_ELLIPSE"]
    total = flux_njy(source.draw["source_magnitude"])
    for name, share in (("GAUSSIAN", "source_clump_share"), ("GAUSSIAN_ELLIPSE", "source_arm_share")):
        assert sum(one["amp"] for one in by_name[name]) / total == pytest.approx(source.draw[share])
    assert json.loads(json.dumps(source.light_models)) == [list(one) for one in source.light_models]
    again = draw_source(ClumpySettings(kind="clumpy"), "test", np.random.default_rng(seed))
    assert again == source
    # every arm and clump lies inside the ellipse of the disc that 2.2 half-light radii and a clump's scatter reach
    for one in by_name["GAUSSIAN"] + by_name["GAUSSIAN_ELLIPSE"]:
        dx, dy = one["center_x"] - disc["center_x"], one["center_y"] - disc["center_y"]
        u = (1 - disc["e1"]) * dx - disc["e2"] * dy
        v = (1 + disc["e1"]) * dy - disc["e2"] * dx
        assert np.hypot(u, v) / np.sqrt(1 - disc["e1"] ** 2 - disc["e2"] ** 2) <= 2.21 * disc["R_sersic"]


@pytest.mark.parametrize("pitch_deg", [15.0, 30.0])
def test_arms_have_their_pitch_and_number(pitch_deg: float) -> None:
    """Face-on, three arms have the phase of their third azimuthal Fourier mode turn by 3 / tan(pitch) per ln r."""
    content = {"e1": 0, "e2": 0, "center_x_arcsec": 0, "center_y_arcsec": 0, "radius_arcsec": 0.3, "clump_share": 0}
    content |= {"kind": "clumpy", "arm_count": 3, "arm_share": 0.3, "arm_pitch_deg": pitch_deg, "arm_width": 0.06}
    settings = parse_settings(ClumpySettings, content, "source")
    logarithms = np.linspace(np.log(0.6), np.log(2.0), 60)
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x, y = (torch.tensor(0.3 * np.exp(logarithms)[:, None] * wave(angles)) for wave in (np.cos, np.sin))
    turns = []
    for seed in range(6):
        names, kwargs = zip(*draw_source(settings, "train", np.random.default_rng(seed)).light_models, strict=True)
        light = light_sum(x, y, names, kwargs).numpy()
        modes = np.fft.fft(light / light.mean(1, keepdims=True), axis=1)[:, :8]
        assert np.argmax(np.abs(modes[:, 1:]).mean(0)) + 1 == 3
        turns.append(np.polyfit(logarithms, np.unwrap(np.angle(modes[:, 3])), 1)[0])
    assert min(turns) < 0 < max(turns)  # both ways round
    assert np.degrees(np.arctan(3 / np.abs(turns).mean())) == pytest.approx(pitch_deg, abs=1)


def noisy_stamp(rng: np.random.Generator, size: int = 72, neighbour: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A galaxy with sky and correlated noise of sigma 1, as drizzled images have, and without them."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    angle, ratio, peak, width = rng.uniform(0, np.pi), rng.uniform(0.4, 1), rng.uniform(60, 150), rng.uniform(4.5, 6.5)
    major, minor = x * np.cos(angle) + y * np.sin(angle), (y * np.cos(angle) - x * np.sin(angle)) / ratio
    truth = gaussian_filter(peak * np.exp(-np.hypot(major, minor) / width), 1.3)
    noise = gaussian_filter(rng.standard_normal((size, size)), 0.6)
    image = truth + noise / noise.std() + 7.0
    if neighbour:
        image += 200 * np.exp(-((x - 26) ** 2 + (y + 24) ** 2) / 8)
    return image, truth


@pytest.mark.parametrize("neighbour", [False, True])
def test_stamps_are_cleaned(neighbour: bool) -> None:
    image, truth = noisy_stamp(np.random.default_rng(8), neighbour=neighbour)
    stamp = clean_stamp(image, 145, 10, 3)
    assert not isinstance(stamp, str)
    size = len(stamp.image)
    assert size <= 145
    assert stamp.image.min() == 0
    assert not any(edge.any() for edge in (stamp.image[[0, -1]], stamp.image[:, [0, -1]]))
    axis = np.arange(size) - (size - 1) / 2
    for centroid in ((stamp.image * axis).sum(), (stamp.image.T * axis).sum()):
        assert abs(centroid / stamp.image.sum()) < 0.05

    # twice as fine: compare with the truth on its own pixels
    y, x = (np.arange(72) - 35.5,) * 2
    found = LIGHT_PROFILES["INTERPOL"](
        *(torch.tensor(one) for one in np.meshgrid(x, y)), image=stamp.image, scale=0.5
    ).numpy()
    found *= (found * truth).sum() / (found**2).sum()
    radius = np.hypot(*np.meshgrid(x, y))
    for low, high, most in ((20, 1000, 1.2), (8, 20, 0.9), (2, 8, 0.45)):  # brightness and residual, of the noise
        ring = (truth > low) & (truth < high)
        assert (found - truth)[ring].std() < most * (image - truth)[ring].std()
    assert np.abs(found - truth)[radius > 28].max() < 1  # of the noise, whose largest value there is 3.5
    assert found[9:14, 59:64].max() < 0.1  # the neighbour was 200 times as bright as the noise
    order = np.argsort(radius.ravel())
    half = np.interp(0.5, np.cumsum(truth.ravel()[order]) / truth.sum(), radius.ravel()[order])
    assert stamp.radius_pixels / 2 == pytest.approx(half, rel=0.08)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda image: image * np.nan, "not numbers"),
        (lambda image: np.random.default_rng(0).normal(0, 1, image.shape), "too faint"),
        (lambda image: np.roll(image, 30, 1), "too faint"),
        (lambda image: np.zeros_like(image), "too faint"),
        (lambda image: gaussian_filter(image, (0, 30)) + image, "cut by the edge"),
        (lambda image: image + 3 * np.roll(image - 7, 13, 0), "brighter neighbour"),
        (
            lambda image: np.pad(image[33:39, 33:39] - 7, 33) + 0.1 * np.random.default_rng(0).normal(size=(72, 72)),
            "hardly",
        ),
    ],
)
def test_unusable_stamps_are_left_out_with_a_reason(change: Any, reason: str) -> None:
    image, _ = noisy_stamp(np.random.default_rng(8))
    found = clean_stamp(change(image), 64, 20, 4)
    assert isinstance(found, str), found
    assert reason in found


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 made-up galaxies; the last is the first once more, under another number."""
    rng = np.random.default_rng(4)
    stamps = [noisy_stamp(rng)[0] for _ in range(39)]
    path = tmp_path_factory.mktemp("cube") / "galaxies.fits"
    table = fits.BinTableHDU.from_columns([fits.Column("NAME", "8A", array=[f"g{i % 39}" for i in range(40)])])
    data = np.array([*stamps, stamps[0]], ">f4")
    fits.HDUList(
        [fits.PrimaryHDU(), fits.ImageHDU(data[0], name="ONE"), fits.ImageHDU(data, name="CUBE"), table]
    ).writeto(path)
    return path


def galaxy_settings(path: Path, **changes: Any) -> GalaxySettings:
    content = {"kind": "galaxy", "path": str(path), "fractions": {"train": 0.5, "val": 0.25, "test": 0.25}, **changes}
    return parse_settings(GalaxySettings, content, "source")


@pytest.mark.parametrize("id_column", [None, "NAME"])
def test_no_galaxy_is_in_two_splits(cube: Path, id_column: str | None) -> None:
    settings = galaxy_settings(cube, id_column=id_column)
    names = {split: {one.name for one in usable_galaxies(settings, split)} for split in SPLITS}
    rows = {split: {one.row for one in usable_galaxies(settings, split)} for split in SPLITS}
    assert not names["train"] & names["val"]
    assert not names["train"] & names["test"]
    assert not names["val"] & names["test"]
    assert sum(len(one) for one in rows.values()) == 40
    assert any({0, 39} <= one for one in rows.values()), "the same galaxy twice falls into one split"
    for split in SPLITS:
        drawn = [draw_source(settings, split, np.random.default_rng(i)).draw["source_galaxy"] for i in range(60)]
        assert set(drawn) <= names[split]
        assert len(set(drawn)) > len(names[split]) / 2
    everywhere = usable_galaxies(galaxy_settings(cube, split_by_galaxy=False), "val")
    assert [one.row for one in everywhere] == list(range(40))


def test_splits_take_their_share_and_more_data_moves_no_galaxy() -> None:
    settings = galaxy_settings(Path("a.fits"))
    where = [split_of(f"galaxy {i}", settings.fractions) for i in range(4000)]
    assert where.count("train") / 4000 == pytest.approx(0.5, abs=0.03)
    assert where.count("val") / 4000 == pytest.approx(0.25, abs=0.03)
    assert split_of("NGC 1365", settings.fractions) == "val"  # for ever, whatever the process and platform


def flux_of(source: Source) -> float:
    ((name, kwargs),) = source.light_models
    assert name == "INTERPOL"
    reach = kwargs["scale"] * (len(kwargs["image"]) + 2) / 2 * np.sqrt(2)
    axis = np.linspace(-reach, reach, 401)
    x, y = np.meshgrid(kwargs["center_x"] + axis, kwargs["center_y"] + axis)
    return float(lenstronomy_light([name], [kwargs], x, y).sum() * (axis[1] - axis[0]) ** 2)


def test_real_galaxies_have_the_drawn_magnitude_and_radius(cube: Path) -> None:
    settings = galaxy_settings(cube)
    for seed in range(4):
        source = draw_source(settings, "train", np.random.default_rng(seed))
        kwargs = source.light_models[0][1]
        assert flux_of(source) == pytest.approx(flux_njy(source.draw["source_magnitude"]), rel=2e-3)
        image = np.array(kwargs["image"])
        axis = (np.arange(len(image)) - (len(image) - 1) / 2) * kwargs["scale"]
        radius = np.hypot(axis[:, None], axis)
        share = image[radius < source.draw["source_radius_arcsec"]].sum() / image.sum()
        assert share == pytest.approx(0.5, abs=0.05)
        assert json.loads(json.dumps(kwargs)) == kwargs
        assert all(value == float(f"{value:.5g}") for row in kwargs["image"] for value in row)
        place = (torch.tensor([[one]], dtype=torch.float64) for one in (0.05, 0.02))
        torch_light = light_sum(*place, ["INTERPOL"], [kwargs])
        expected = lenstronomy_light(["INTERPOL"], [kwargs], np.array([[0.05]]), np.array([[0.02]]))
        assert torch_light.numpy() == pytest.approx(expected, rel=1e-9)


def test_turning_and_flipping_show_a_galaxy_from_all_sides(cube: Path) -> None:
    settings = galaxy_settings(cube, magnitude=23.0, radius_arcsec=0.2, center_x_arcsec=0.0, center_y_arcsec=0.0)
    angles, flips = [], set()
    for seed in range(80):
        kwargs = draw_source(settings, "train", np.random.default_rng(seed)).light_models[0][1]
        stored = [one.image for one in usable_galaxies(settings, "train")]
        angles.append(kwargs["phi_G"])
        flips.add(kwargs["image"] in stored)
    assert flips == {True, False}
    assert np.histogram(angles, 4, (0, 2 * np.pi))[0].min() >= 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nothing.fits"}, r"nothing.fits: cannot be read"),
        ({"path": __file__}, r"test_sources.py: cannot be read as FITS"),
        ({"hdu": "SKY"}, r"has no HDU 'SKY'; HDUs with a cube: \[2\]"),
        ({"hdu": "ONE"}, r"HDU 'ONE' is no cube \(galaxy, row, column\)"),
        ({"hdu": 3}, r"HDU 3 is no cube"),
        ({"id_column": "ID"}, r"has no column 'ID' with 40 rows; columns: \['NAME'\]"),
        ({"least_galaxies": 30}, r"split 'val' has \d+ usable galaxies, expected at least least_galaxies = 30"),
        (
            {"lowest_signal_to_noise": 1e4},
            r"split 'val' has 0 usable .*\d+ of 40 fall to it \(\d+ is too faint\); give",
        ),
        ({"fractions": {"train": 1, "val": 0, "test": 0}}, r"split 'val' has 0 usable .* 0 of 40 fall to it"),
    ],
)
def test_files_that_cannot_serve_are_refused(cube: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_source(galaxy_settings(**{"path": cube, **changes}), "val", np.random.default_rng(0))


def test_cube_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    path = tmp_path / "galaxies.fits"
    first, second = (np.array([noisy_stamp(rng)[0] for _ in range(2)], "f4") for _ in range(2))
    settings = galaxy_settings(path, split_by_galaxy=False, least_galaxies=1)
    names = []
    for data in (first, second):
        fits.writeto(path, data, overwrite=True)
        found = usable_galaxies(settings, "train")
        assert usable_galaxies(settings, "train") is found
        names.append({one.name for one in found})
    assert not names[0] & names[1]


def test_observed_galaxies_become_sources(observed_images: Path) -> None:
    path = observed_images / "hst_galaxies" / "cosmos_acs_f814w.fits"
    settings = galaxy_settings(path, fractions={"train": 0.02, "val": 0.08, "test": 0.9}, electrons_per_unit=2028)
    galaxies = usable_galaxies(settings, "val")
    assert 5 <= len(galaxies) <= 15
    source = draw_source(settings, "val", np.random.default_rng(0))
    assert flux_of(source) == pytest.approx(flux_njy(source.draw["source_magnitude"]), rel=2e-3)
    for galaxy in galaxies:
        image = np.array(galaxy.image)
        assert image.shape[0] == image.shape[1] <= 64
        assert image.max() == 1
        assert image[[0, -1]].max() == 0
