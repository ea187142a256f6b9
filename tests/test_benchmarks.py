"""The benchmark of simulators: the lenses it asks for, the images it accepts, and the table it prints."""

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from lenstronomy.LensModel.Profiles.tnfw import TNFW

from benchmarks.peers import SYSTEMS, SystemEntry, make_system
from benchmarks.peers.base import Pairs, Task, draw_lens
from benchmarks.peers.lenstronomy import ImageModelTwice, RaysOnce
from benchmarks.peers.measure import Request, compare, make_reference, measure
from benchmarks.simulate import HEADER, LIMIT, main, measure_row
from simulate.cosmology import CosmologySettings, LensGeometry
from simulate.instruments import noise_sigma_njy
from simulate.lenstronomy_engine import render_pair, render_reference
from simulate.scene import Scene

SMALL = Task.from_name("25", 32)


def test_lenses_have_exactly_the_subhalos_of_the_case_and_a_sheet_of_minus_their_mass() -> None:
    task = Task.from_name("100@3")
    scene = draw_lens(task, 0, 4)
    assert scene == draw_lens(task, 0, 4)
    assert scene.kwargs_lens[0] != draw_lens(task, 0, 5).kwargs_lens[0]
    assert (task.rays, task.supersampling, scene.lens_model_list.count("TNFW")) == (384, 3, 100)
    halos = [one for name, one in zip(scene.lens_model_list, scene.kwargs_lens, strict=True) if name == "TNFW"]
    assert np.abs([(one["center_x"], one["center_y"]) for one in halos]).max() < 3.2
    area_of_masses = sum(
        TNFW().mass_2d(1e4, one["Rs"], TNFW.alpha2rho0(one["alpha_Rs"], one["Rs"]), one["r_trunc"]) for one in halos
    )
    sheet = scene.kwargs_lens[scene.lens_model_list.index("CONVERGENCE")]["kappa"]
    assert sheet * 6.4**2 == pytest.approx(-area_of_masses, rel=1e-4)
    geometry = LensGeometry(CosmologySettings(), scene.z_lens, scene.z_source)
    total_msun = area_of_masses * geometry.critical_surface_density_msun_arcsec2
    assert 1e10 < total_msun < 1e12  # a hundred of 1e8 to 1e10 solar masses


@pytest.mark.parametrize("supersampling", [1, 3])
def test_baselines_make_the_images_and_noise_of_lenstronomy(supersampling: int) -> None:
    task = replace(SMALL, supersampling=supersampling)
    scene = draw_lens(task, 0, 0)
    hr, lr = render_pair(scene, task.hr_instrument, task.lr_instrument, 32, 2, supersampling)
    reference = render_reference(scene, task.hr_instrument, 32, supersampling)
    for system in (ImageModelTwice(task, 0), RaysOnce(task, 0), RaysOnce(task, 0, "EPL_NUMBA")):
        own_hr, own_lr = system.noiseless(scene)
        np.testing.assert_allclose(own_hr, reference, atol=1e-12 * reference.max())
        np.testing.assert_allclose(own_hr, hr, atol=1e-12 * hr.max())
        np.testing.assert_allclose(own_lr, lr, atol=1e-12 * lr.max())
        hr_sigma, lr_sigma = system.optics.sigma(hr, lr)
        np.testing.assert_allclose(hr_sigma, noise_sigma_njy(task.hr_instrument, hr), rtol=1e-9)
        np.testing.assert_allclose(lr_sigma, noise_sigma_njy(task.lr_instrument, lr), rtol=1e-9)


class Wrong(RaysOnce):
    """Makes one mistake."""

    def __init__(self, mistake: str) -> None:
        super().__init__(SMALL, 1)
        self.mistake = mistake

    def render(self, prepared: list[Scene]) -> Pairs:
        pairs = super().render(prepared)
        if self.mistake == "shifted":
            return replace(pairs, hr=np.roll(pairs.hr, 1, 2))
        if self.mistake == "LR of another PSF":
            return replace(pairs, lr_noise=(pairs.lr_noise + np.roll(pairs.lr_noise, 1, 1)) / 2)
        if self.mistake == "without HR noise":
            return replace(pairs, hr_noisy=pairs.hr)
        return pairs


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("none", ""),
        ("shifted", "images differ by"),
        ("LR of another PSF", "LR noise map differs by"),
        ("without HR noise", "HR noise has a chi^2 of 0.000"),
    ],
)
def test_a_system_that_makes_another_pair_is_found_out(mistake: str, message: str) -> None:
    complaint = compare(Wrong(mistake), SMALL, 0, make_reference(SMALL, 0, 2)).complaint(LIMIT)
    assert message in complaint
    assert bool(message) == bool(complaint)


@pytest.mark.parametrize("name", ["caustics-torch", "caustics-jax", "jaxtronomy"])
@pytest.mark.filterwarnings("ignore")
def test_installed_peers_make_the_same_pair(name: str) -> None:
    if SYSTEMS[name].missing:
        pytest.skip(f"{SYSTEMS[name].missing} not installed: {SYSTEMS[name].install}")
    for task in (SMALL, Task.from_name("0@3", 32)):
        agreement = compare(make_system(name, task, 1), task, 0, make_reference(task, 0, 3))
        assert agreement.complaint(LIMIT) == ""
        assert agreement.image_l2 < 2e-5


def test_workers_are_timed_together() -> None:
    request = Request("lenstronomy-best", SMALL, 0, 0.1, 1000)
    agreement, speed = measure(request, 2, make_reference(SMALL, 0, 1), LIMIT)
    assert agreement.image_l2 < 1e-12
    assert speed is not None
    assert speed.lenses % 2 == 0
    assert speed.lenses_per_second == pytest.approx(speed.lenses / speed.seconds)
    assert 0 < speed.busy < 1.1


def test_what_cannot_be_timed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make_reference(SMALL, 0, 1)
    absent = SystemEntry("lenstronomy", "RaysOnce", packages=("no_such_package",), install="pip install it")
    monkeypatch.setattr("benchmarks.simulate.SYSTEMS", {**SYSTEMS, "absent": absent})
    row = measure_row(Request("absent", SMALL, 0, 0.1, 10), 0, reference, LIMIT)
    assert row["note"] == "no_such_package not installed: pip install it"
    row = measure_row(Request("lenstronomy-best", SMALL, 0, 0.1, 10, {"colour": 1}), 0, reference, LIMIT)
    assert row["note"].startswith("failed: TypeError")
    assert "speed" not in row


def test_quick_table_has_finite_numbers_and_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(["--quick", "--json", str(tmp_path / "speed.json")])
    printed = capsys.readouterr().out
    assert " | ".join(HEADER) in printed
    assert [row["system"] for row in rows] == [
        "lenstronomy", "lenstronomy-best", "sharplens", "sharplens-float64-exact"
    ]  # fmt: skip
    for row in rows:
        assert f"| {row['case']} | {row['system']} |" in printed
        numbers = [*row["speed"].values(), *row["agreement"].values(), *row["ratio"].values()]
        assert all(math.isfinite(one) for one in numbers)
        assert row["speed"]["lenses_per_second"] > 0
    fast, exact = (row["agreement"] for row in rows[2:])
    assert fast["image_l2"] < 1e-5
    assert fast["deflection_max_arcsec"] < 2e-4
    assert exact["deflection_max_arcsec"] < 1e-8
    assert exact["image_l2"] < 1e-9
    stored = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert stored["rows"] == rows
    assert stored["environment"]["versions"]["lenstronomy"].startswith("1.14")
    assert ("caustics" in stored["environment"]["versions"]) == (find_spec("caustics") is not None)
