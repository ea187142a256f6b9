"""The stage `pairs` from FITS files and from the embedded picture to a data set on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from simulate.errors import InputError
from simulate.settings import parse_settings
from simulate.shards import file_sha256, read_manifest, read_pairs, verify_dataset
from sr.observed import PairsSettings, pairs_run
from sr.observed.fits_images import read_image, read_real_images
from sr.observed.hubble_deep_field import find_galaxies, grey_picture
from sr.observed.noise import mend_noise, noise_map
from sr.observed.settings import FitsSettings, PsfSettings

KIND = "real HR, degraded LR"


def star(size: int, fwhm: float, centre: tuple[float, float] | None = None) -> np.ndarray:
    y, x = np.indices((size, size))
    cy, cx = centre or ((size - 1) / 2,) * 2
    image = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) * 4 * np.log(2) / fwhm**2)
    return image / image.sum()


def write_fits(path: Path, image: np.ndarray, psf: np.ndarray | None = None, **header: Any) -> Path:
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image.astype(">f4"), name="SCI")]
    hdus[1].header.update({"PIXSCALE": 0.05, **header})
    hdus.append(fits.ImageHDU((star(21, 2.0) if psf is None else psf).astype(">f4"), name="PSF"))
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(path)
    return path


def galaxy(seed: int, size: int = 60) -> np.ndarray:
    return 50 * star(size, 8) + np.random.default_rng(seed).normal(0, 0.01, (size, size))


def settings(**content: Any) -> PairsSettings:
    return parse_settings(PairsSettings, content, "test")


def test_hubble_deep_field_is_the_default_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    metrics = pairs_run(tmp_path / "a", PairsSettings(), 1, resume=False)
    pairs = read_pairs(tmp_path / "a" / "pairs", "observed")
    assert len(pairs) == metrics["count"] == metrics["object_count"] >= 100
    assert pairs.hr.shape[1:] == (1, 48, 48)
    assert pairs.lr.shape[1:] == (1, 24, 24)
    assert pairs.kind == metrics["kind"] == KIND
    assert "JPEG" in metrics["caveat"]
    assert (pairs.label == -1).all()
    assert pairs.hr_mask.all()
    np.testing.assert_array_equal(pairs.hr, pairs.hr_noisy)
    # A galaxy is in the middle of most: brighter there than along the edge
    middle = pairs.hr[:, 0, 20:28, 20:28].mean((1, 2))
    assert (middle > 2 * np.abs(pairs.hr[:, 0, 0].mean(1))).mean() > 0.9
    assert pairs_run(tmp_path / "a", PairsSettings(), 1, resume=True) == metrics
    shards = [tmp_path / name / "pairs" / "observed" / "shard-00000.h5" for name in "abc"]
    pairs_run(tmp_path / "b", PairsSettings(), 1, resume=False)
    pairs_run(tmp_path / "c", PairsSettings(), 2, resume=False)
    again, other = (read_pairs(tmp_path / name / "pairs", "observed") for name in "bc")
    np.testing.assert_array_equal(again.lr, pairs.lr)
    np.testing.assert_array_equal(other.hr, pairs.hr)
    assert not np.array_equal(other.lr, pairs.lr)
    assert file_sha256(shards[0]) == file_sha256(shards[1]) != file_sha256(shards[2])
    assert verify_dataset(tmp_path / "a" / "pairs") == {"observed": len(pairs)}
    with pytest.raises(InputError, match="--fresh"):
        pairs_run(tmp_path / "a", PairsSettings(), 2, resume=True)


def test_cut_outs_of_the_deep_field_share_no_sky() -> None:
    picture = grey_picture()
    corners = find_galaxies(picture, 64, 5.0)
    visits = np.zeros(picture.shape, int)
    for y, x in corners:
        visits[y : y + 64, x : x + 64] += 1
    assert len(corners) > 80
    assert visits.max() == 1
    assert visits.sum() == len(corners) * 64**2


def test_folder_of_fits_becomes_pairs_and_says_what_it_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    first = write_fits(folder / "a_f814w.fits", galaxy(0), OBJECT="A", BKGRMS=0.01, EXPTIME=1000.0)
    write_fits(folder / "a_f555w.fits", galaxy(1), OBJECT="A")
    holed = galaxy(2)
    holed[28, 31] = np.nan
    write_fits(folder / "b.fits", holed, psf=3 * star(20, 2.2, (9.9, 9.1)), PIXSCALE=0.03)
    write_fits(folder / "broad.fits", galaxy(3), psf=star(41, 12))
    write_fits(folder / "coarse.fits", galaxy(3), PIXSCALE=0.2)
    write_fits(folder / "small.fits", galaxy(3, 20))
    (folder / "cut.fits").write_bytes(first.read_bytes()[:9000])
    chosen = settings(
        scale=2, hr_size=32, hr_pixel_scale_arcsec=0.05, sources=[{"kind": "fits", "path": str(folder), "unit": "e/s"}]
    )
    metrics = pairs_run(tmp_path, chosen, 0, resume=False)
    pairs = read_pairs(tmp_path / "pairs", "observed")
    assert sorted(pairs.name) == ["A", "A", "b"]
    assert metrics["objects"] == {"A": 2, "b": 1}
    assert metrics["object_count"] == 2
    reasons = {entry["file"]: entry["reason"] for entry in metrics["skipped"]}
    assert set(reasons) == {"broad.fits", "coarse.fits", "cut.fits", "small.fits"}
    assert "not sharper" in reasons["broad.fits"]
    assert "coarser" in reasons["coarse.fits"]
    assert "39% of its 32 x 32" in reasons["small.fits"]
    assert "cannot be read as FITS" in reasons["cut.fits"]
    row = pairs.name.index("b")
    assert 1 <= (~pairs.hr_mask[row]).sum() <= 4
    assert (pairs.hr[row][~pairs.hr_mask[row]] == 0).all()
    (notes,) = (entry["notes"] for entry in metrics["files"] if entry["file"] == "b.fits")
    assert any("normalised (the sum was 3)" in note for note in notes)
    assert any("re-centred by 0.57" in note for note in notes)
    assert pairs.unit == "e/s"
    assert pairs.hr_band.psf.shape[0] == 3
    assert pairs.hr_band.psf.sum((1, 2)) == pytest.approx(1)
    manifest = read_manifest(tmp_path / "pairs")
    assert {"file": "a_f814w.fits", "sha256": file_sha256(first)} in manifest["sources"]
    assert manifest["source"] == "images"
    # HR of the image that is not resampled: the crop itself
    row = [entry["file"] for entry in metrics["files"]].index("a_f814w.fits")
    np.testing.assert_array_equal(pairs.hr[row, 0], read_image(first)[0][14:46, 14:46].astype("f4"))


def test_cube_and_external_psf_and_manifest(tmp_path: Path) -> None:
    cube = np.stack([galaxy(seed) for seed in range(3)])
    folder = tmp_path / "images"
    folder.mkdir()
    fits.PrimaryHDU(cube.astype(">f4")).writeto(folder / "cube.fits")
    (tmp_path / "manifest.csv").write_text(
        "file,object,instrument,pixel_scale_arcsec\nimages/cube.fits,three,HST/ACS,0.05\n", encoding="utf-8"
    )
    fits.PrimaryHDU(np.stack([star(41, 8), star(41, 8.4)]).astype(">f4")).writeto(tmp_path / "psf.fits")
    psf = {"file": str(tmp_path / "psf.fits"), "pixel_scale_arcsec": 0.0125}
    source = {"kind": "fits", "path": str(folder / "cube.fits"), "psf": psf}
    metrics = pairs_run(tmp_path, settings(hr_size=32, sources=[source], lr_psf={"fwhm_arcsec": 0.2}), 0, resume=False)
    assert list(metrics["objects"]) == ["cube-0000", "cube-0001", "cube-0002"]
    assert metrics["hr_pixel_scale_arcsec"] == 0.05
    assert metrics["hr_instrument"] == "HST/ACS"
    assert metrics["files"][0]["hr_psf_fwhm_arcsec"] == pytest.approx(8.2 * 0.0125, rel=0.03)
    assert metrics["files"][0]["lr_psf_fwhm_arcsec"] == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hdu": "NOPE"}, r"image\.fits: no HDU 'NOPE'; it has PRIMARY, SCI, PSF"),
        ({"hdu": 0}, r"image\.fits \[PRIMARY\]: expected an image .* found no pixels"),
        ({"psf": {"hdu": "NOPE"}}, r"no HDU 'NOPE'"),
        ({"psf": {"hdu": 1}}, r"image\.fits \[SCI\]: not a PSF"),
        ({"psf": {"file": "nowhere.fits"}}, r"nowhere\.fits: no such FITS file"),
        ({"path": "nowhere.fits"}, r"nowhere\.fits: no such FITS file"),
        ({"psf": {"plane": 2}}, r"image\.fits \[PSF\]: expected a plane of an array of shape \(21, 21\)"),
    ],
)
def test_wrong_input_names_file_and_hdu(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_fits(tmp_path / "image.fits", galaxy(0) - 0.5)
    source = {"kind": "fits", "path": str(path), **change}
    with pytest.raises(InputError, match=message):
        pairs_run(tmp_path, settings(hr_size=32, sources=[source]), 0, resume=False)


def test_files_that_lack_something_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.fits"
    fits.PrimaryHDU(galaxy(0)).writeto(path)
    psf = PsfSettings(fwhm_arcsec=0.1)
    with pytest.raises(InputError, match=r"image.fits \[PRIMARY\]: no pixel scale .* set pixel_scale_arcsec"):
        read_real_images(path, FitsSettings(kind="fits", path=path, psf=psf))
    with pytest.raises(InputError, match=r"no HDU 'PSF'"):
        read_real_images(path, FitsSettings(kind="fits", path=path, pixel_scale_arcsec=0.05))
    fits.PrimaryHDU(np.ones((30, 30))).writeto(tmp_path / "flat.fits")
    with pytest.raises(InputError, match=r"flat.fits \[PRIMARY\]: no noise can be measured"):
        read_real_images(tmp_path / "flat.fits", FitsSettings(kind="fits", path=path, psf=psf, pixel_scale_arcsec=0.05))
    (tmp_path / "text.fits").write_text("no FITS", encoding="utf-8")
    with pytest.raises(InputError, match=r"text.fits: cannot be read as FITS"):
        read_image(tmp_path / "text.fits")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hr_size": 49}, "multiple of scale"),
        ({"sources": []}, "at least 1 item"),
        ({"lr_psf": {"fwhm_arcsec": 0.1, "file": "psf.fits"}}, "not both"),
        ({"sources": [{"kind": "fits", "path": "a", "pfs": {}}]}, "did you mean 'psf'"),
        ({"sources": [{"kind": "hst"}]}, "hubble_deep_field"),
        (
            {
                "sources": [
                    {"kind": "hubble_deep_field"},
                    {
                        "kind": "two_instrument",
                        "path": "a.fits",
                        "hr": {"hdu": 1, "psf": {"fwhm_arcsec": 0.1}, "instrument": "A"},
                        "lr": {"hdu": 2, "psf": {"fwhm_arcsec": 0.3}, "instrument": "B"},
                    },
                ]
            },
            "do not belong in one data set",
        ),
    ],
)
def test_wrong_settings_are_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**content)


def test_noise_comes_from_what_the_file_has() -> None:
    image, real = galaxy(5), np.ones((60, 60), bool)
    weight = np.full(image.shape, 700.0)
    weight[:, 30:] = 2800
    sigma, bad, _ = noise_map(image, real, {}, {"WHT": weight}, "a")
    assert not bad.any()
    assert sigma[0, 0] / sigma[0, 59] == pytest.approx(2)
    assert np.median(sigma) == pytest.approx(0.01, rel=0.15)
    exposure = np.full(image.shape, 500.0)
    exposure[3, 3] = 0
    sigma, bad, note = noise_map(image, real, {"BKGRMS": 0.02}, {"EXPMAP": exposure}, "a")
    assert note == "noise from BKGRMS and EXPMAP"
    assert sigma[30, 30] == pytest.approx(np.hypot(0.02, np.sqrt(image[30, 30] / 500)))
    assert np.argwhere(bad).tolist() == [[3, 3]]
    sentinels = np.full((8, 8), 0.004)
    sentinels[1, 2], sentinels[3, 4], sentinels[5, 6] = 1e16, 1e-4, np.nan
    mended, bad = mend_noise(sentinels, "a")
    assert np.argwhere(bad).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert (mended == 0.004).all()


def test_real_hst_images(observed_images: Path, tmp_path: Path) -> None:
    """A few real lenses and galaxies: flux and position survive, every trap of the files is met."""
    chosen = settings(
        hr_size=96,
        hr_pixel_scale_arcsec=0.05,
        lr_psf={
            "file": str(observed_images / "two_telescope" / "euclidQ1_example.fits"),
            "hdu": "VIS_PSF",
            "pixel_scale_arcsec": 0.1,
        },
        sources=[
            {"kind": "fits", "path": str(observed_images / "hst_lenses"), "pattern": pattern}
            for pattern in ("slacs*.fits", "lens_system3*.fits", "J0607*.fits", "J2344*.fits")
        ],
    )
    metrics = pairs_run(tmp_path, chosen, 0, resume=False)
    pairs = read_pairs(tmp_path / "pairs", "observed")
    assert metrics["objects"]["lens_system3"] == 2
    assert metrics["object_count"] == 6
    assert {entry["file"] for entry in metrics["skipped"]} == {"J0607_HSTF160W.fits", "J2344_HST_f814w.fits"}
    assert pairs.lr.sum((1, 2, 3)) == pytest.approx(pairs.hr.sum((1, 2, 3)), rel=0.03)
    binned = pairs.hr[:, 0].reshape(-1, 48, 2, 48, 2).sum((2, 4), dtype="f8")
    y, x = np.indices((48, 48))
    window = np.exp(-((y - 23.5) ** 2 + (x - 23.5) ** 2) / (2 * 6**2))
    for sharp, broad in zip(binned, pairs.lr[:, 0].astype("f8"), strict=True):
        for axis in (y, x):
            centres = [(image * window * axis).sum() / (image * window).sum() for image in (sharp, broad)]
            assert centres[0] == pytest.approx(centres[1], abs=0.15)


def test_whole_cube_of_hst_galaxies(observed_images: Path) -> None:
    path = observed_images / "hst_galaxies" / "cosmos_acs_f814w.fits"
    psf = PsfSettings(file=observed_images / "psf" / "acs_wfc_f814w_empirical.fits", pixel_scale_arcsec=0.0125)
    images = read_real_images(path, FitsSettings(kind="fits", path=path, psf=psf))
    assert len(images.images) == len(set(images.objects)) == 229
    assert images.pixel_scale_arcsec == 0.03
    assert 0.08 < images.psf.fwhm_arcsec < 0.11
    assert images.unit == "ELECTRONS/S"
    assert images.notes[0] == "average of 36 of 56 PSFs (others have strongly negative pixels)"
