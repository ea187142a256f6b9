"""Scenes as they are drawn: kinds of lensing, multipoles, and nothing but substructure that tells the classes apart."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver
from lenstronomy.PointSource.point_source import PointSource
from scipy import stats

from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.populations import POPULATIONS, Population, Substructure
from simulate.scene import Scene, SceneSettings, draw_scene
from simulate.settings import parse_settings
from simulate.sources.sersic import sersic_flux

LENSING = ("galaxy-galaxy", "quasar", "double-source-plane", "group")
KINDS = ("axion", "cdm", "none")
ROUND = {"e1": 0.0, "e2": 0.0, "gamma1": 0.0, "gamma2": 0.0, "center_x_arcsec": 0.0, "center_y_arcsec": 0.0}


def draw(kind: str = "none", seed: int = 0, **settings: Any) -> Scene:
    return draw_scene(kind, SceneSettings(**settings), 2.4, np.random.default_rng([17, seed]))


def lens_of(scene: Scene) -> LensModel:
    return LensModel(scene.lens_model_list)


@pytest.mark.parametrize("lensing", LENSING)
def test_scene_reads_back_to_the_last_bit(lensing: str) -> None:
    scene = draw("cdm", lensing=lensing, lens_light={}, macro={"multipoles": {}})
    assert scene.draw["lensing"] == lensing
    assert Scene.from_json(scene.to_json()) == scene


def test_scenes_of_older_data_still_read() -> None:
    scene = draw("cdm")
    content = json.loads(scene.to_json())
    for name in ("lens_redshift_list", "source_deflection_scaling", "point_source_model_list", "kwargs_ps"):
        assert content.pop(name) == []
    assert Scene.from_json(json.dumps(content)) == scene


@pytest.mark.parametrize("lensing", LENSING)
def test_classes_share_all_but_the_substructure(lensing: str) -> None:
    """For every kind of lensing the same random numbers give the same lens, neighbours, sources and lens light."""
    settings = {"lensing": lensing, "lens_light": {}, "macro": {"multipoles": {}}}
    scenes = {kind: draw(kind, 3, **settings) for kind in KINDS}
    smooth = len(scenes["none"].lens_model_list)
    for scene in scenes.values():
        assert scene.kwargs_lens[:smooth] == scenes["none"].kwargs_lens
        for name in ("kwargs_source", "kwargs_lens_light", "source_deflection_scaling", "z_lens", "z_source"):
            assert getattr(scene, name) == getattr(scenes["none"], name)
        assert scene.draw.get("quasar_magnitude") == scenes["none"].draw.get("quasar_magnitude")
    assert scenes["cdm"].lens_model_list[smooth : smooth + 2] == ["CONVERGENCE", "TNFW"]


def test_multipoles_shape_the_contours_of_the_convergence() -> None:
    """On a round isothermal lens the contour kappa = 1/2 is r / theta_E = 1 + sum of a_m/a cos(m (phi - phi_m))."""
    macro = {**ROUND, "theta_e_arcsec": 1.2, "slope": 2.0, "multipoles": {"a3_over_a": 0.02, "a4_over_a": -0.03}}
    scene = draw(macro=macro)
    assert scene.lens_model_list == ["EPL", "SHEAR", "MULTIPOLE", "MULTIPOLE"]
    third, fourth = scene.kwargs_lens[2:]
    phi = np.linspace(0, 2 * np.pi, 60)
    # kappa = f(phi) / r is scale-free: the radius of the contour kappa = 1/2 is 2 r kappa at any r.
    contour = 2 * 0.7 * lens_of(scene).kappa(0.7 * np.cos(phi), 0.7 * np.sin(phi), scene.kwargs_lens) / 1.2
    expected = 1 + 0.02 * np.cos(3 * (phi - third["phi_m"])) - 0.03 * np.cos(4 * (phi - fourth["phi_m"]))
    np.testing.assert_allclose(contour, expected, atol=1e-9)
    assert draw().lens_model_list == ["EPL", "SHEAR"]


def test_positive_fourth_order_is_disky() -> None:
    """Matter is added on the major and minor axes and taken away between them; order 3 points anywhere."""
    turns = []
    for seed in range(40):
        scene = draw(seed=seed, macro={"multipoles": {"a4_over_a": 0.05}})
        main, _, third, fourth = scene.kwargs_lens
        major_axis = np.arctan2(main["e2"], main["e1"]) / 2
        along = major_axis + np.array([0, 0.25, 0.5]) * np.pi
        x, y = main["center_x"] + np.cos(along), main["center_y"] + np.sin(along)
        kappa = LensModel(["MULTIPOLE"]).kappa(x, y, [fourth])
        assert (np.sign(kappa) == [1, -1, 1]).all()
        turns.append(third["phi_m"])
    assert stats.kstest(np.array(turns) / (2 * np.pi / 3), "uniform").pvalue > 0.01


def test_group_has_companions_around_the_main_galaxy() -> None:
    lensing = {"kind": "group", "companions": {"count": [2, 4], "distance_arcsec": {"uniform": [1.5, 2.5]}}}
    scenes = [draw("cdm", seed, lensing=lensing) for seed in range(150)]
    counts = np.bincount([scene.lens_model_list.count("SIE") for scene in scenes], minlength=5)
    assert counts[:2].sum() == 0
    assert stats.chisquare(counts[2:]).pvalue > 0.01
    assert all(scene.lens_model_list[:3] == ["EPL", "SHEAR", "SIE"] for scene in scenes)
    companions = [kwargs for one in scenes for kwargs in one.kwargs_lens[2 : 2 + one.lens_model_list.count("SIE")]]
    distance = np.array([np.hypot(one["center_x"], one["center_y"]) for one in companions])
    azimuth = np.array([np.arctan2(one["center_y"], one["center_x"]) for one in companions])
    assert stats.kstest(distance - 1.5, "uniform").pvalue > 0.01
    assert stats.kstest(azimuth / (2 * np.pi) + 0.5, "uniform").pvalue > 0.01
    assert all(0.1 <= one["theta_E"] <= 0.5 for one in companions)


def test_companions_shine_as_faber_and_jackson_say() -> None:
    """L ~ sigma^4 and theta_E ~ sigma^2: with one magnitude in the prior, flux / theta_E^2 is the same for all."""
    light = {"magnitude": 20.0, "center_x_arcsec": 0.0, "center_y_arcsec": 0.0}
    scene = draw(lensing={"kind": "group", "companions": {"count": [4, 4]}}, lens_light=light)
    masses = [kwargs for kwargs in scene.kwargs_lens if "theta_E" in kwargs]
    assert len(scene.kwargs_lens_light) == len(scene.lens_light_model_list) == len(masses) == 5
    flux = [one["amp"] * sersic_flux(one["R_sersic"], one["n_sersic"]) for one in scene.kwargs_lens_light]
    theta_e = np.array([one["theta_E"] for one in masses])
    np.testing.assert_allclose(flux / theta_e**2, flux[0] / theta_e[0] ** 2)
    for mass, shine in zip(masses[1:], scene.kwargs_lens_light[1:], strict=True):
        assert (mass["center_x"], mass["center_y"]) == (shine["center_x"], shine["center_y"])
    assert draw(lensing="group").kwargs_lens_light == []


@pytest.mark.filterwarnings("ignore:Cosmology is provided")
def test_second_source_is_deflected_as_the_multi_plane_equation_says() -> None:
    """The stored factor against lenstronomy's multi-plane ray shooting, which uses distances and no factor."""
    scene = draw("cdm", lensing="double-source-plane")
    first, second = scene.source_deflection_scaling
    assert len(scene.kwargs_source) == len(scene.source_model_list) == 2
    assert first == 1
    assert 1 < second < 2
    cosmology = FlatLambdaCDM(H0=scene.cosmology["H0"], Om0=scene.cosmology["Om0"])
    lens = LensModel(
        scene.lens_model_list,
        multi_plane=True,
        lens_redshift_list=[scene.z_lens] * len(scene.lens_model_list),
        z_source=scene.draw["z_source_2"],
        z_source_convention=scene.z_source,
        cosmo=cosmology,
    )
    x, y = np.random.default_rng(0).uniform(-2, 2, (2, 20))
    beta_x, beta_y = lens.ray_shooting(x, y, scene.kwargs_lens)
    alpha_x, alpha_y = lens_of(scene).alpha(x, y, scene.kwargs_lens)
    np.testing.assert_allclose(x - second * alpha_x, beta_x, atol=1e-8)
    np.testing.assert_allclose(y - second * alpha_y, beta_y, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_quasar_images_are_lenstronomys(kind: str) -> None:
    """They meet at the centre of the host, are all that lenstronomy's solver finds, and as bright as it says."""
    scene = draw(kind, 5, lensing={"kind": "quasar", "magnitude": 23.9})
    assert scene.point_source_model_list == ["LENSED_POSITION"]
    images, host = scene.kwargs_ps[0], scene.kwargs_source[0]
    lens = lens_of(scene)
    points = PointSource(scene.point_source_model_list, lens_model=lens)
    x, y = (one[0] for one in points.image_position(scene.kwargs_ps, scene.kwargs_lens))
    beta_x, beta_y = lens.ray_shooting(x, y, scene.kwargs_lens)
    np.testing.assert_allclose(beta_x, host["center_x"], atol=1e-8)
    np.testing.assert_allclose(beta_y, host["center_y"], atol=1e-8)
    magnification = np.abs(lens.magnification(x, y, scene.kwargs_lens))
    np.testing.assert_allclose(images["point_amp"], 1000 * magnification, rtol=1e-5)  # 23.9 AB is one microjansky
    expected = LensEquationSolver(lens).image_position_from_source(
        host["center_x"],
        host["center_y"],
        scene.kwargs_lens,
        min_distance=0.02,
        search_window=5,
        magnification_limit=0.01,
    )
    distance = np.abs((x + 1j * y)[:, None] - (expected[0] + 1j * expected[1]))
    assert distance.shape[0] == distance.shape[1] >= 2
    assert distance.min(0).max() < 1e-6


def test_substructure_changes_the_flux_ratios_of_a_quasar() -> None:
    smooth, clumpy = (draw(kind, 2, lensing="quasar").kwargs_ps[0]["point_amp"] for kind in ("none", "cdm"))
    assert len(smooth) == len(clumpy)
    assert 1e-3 < np.abs(np.divide(clumpy, smooth) - 1).max() < 1


def _line_of_sight(settings: None, context: Any, rng: np.random.Generator) -> Substructure:
    halos = [("SIS", {"theta_E": 0.05, "center_x": x, "center_y": -0.2}) for x in (0.9, -0.8)]
    return Substructure(lens_models=halos, mean_convergence=0.01, redshifts=[0.2, 0.8])


def test_populations_with_redshifts_make_a_multi_plane_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POPULATIONS, "los", Population(_line_of_sight))
    scene = draw("los", lensing="group")
    smooth = len(scene.lens_model_list) - 2
    assert scene.lens_model_list[-3:] == ["CONVERGENCE", "SIS", "SIS"]
    assert scene.lens_redshift_list == [scene.z_lens] * smooth + [0.2, 0.8]
    assert draw("cdm").lens_redshift_list == []
    with pytest.raises(InputError, match=r"'los' has halos along the line of sight.*double-source-plane"):
        draw("los", lensing="double-source-plane")


@pytest.mark.filterwarnings("ignore:Cosmology is provided")
def test_quasar_behind_several_planes_meets_at_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POPULATIONS, "los", Population(_line_of_sight))
    scene = draw("los", lensing="quasar")
    lens = LensModel(
        scene.lens_model_list,
        multi_plane=True,
        lens_redshift_list=scene.lens_redshift_list,
        z_source=scene.z_source,
        cosmo=FlatLambdaCDM(H0=scene.cosmology["H0"], Om0=scene.cosmology["Om0"]),
    )
    images, host = scene.kwargs_ps[0], scene.kwargs_source[0]
    x, y = np.array(images["ra_image"]), np.array(images["dec_image"])
    beta_x, beta_y = lens.ray_shooting(x, y, scene.kwargs_lens)
    np.testing.assert_allclose(beta_x, host["center_x"], atol=1e-6)
    np.testing.assert_allclose(beta_y, host["center_y"], atol=1e-6)
    single = replace(scene, lens_redshift_list=[])
    assert np.abs(lens_of(single).ray_shooting(x, y, scene.kwargs_lens)[0] - host["center_x"]).max() > 1e-3


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        (
            {"lensing": {"kind": "double-source-plane", "z_source_2": {"uniform": [2, 4]}}},
            r"second source must lie behind the first: z_source up to 2.5, lensing.z_source_2 from 2.0",
        ),
        ({"z_lens": 1.2}, r"lenses must lie before sources: z_lens up to 1.2, z_source from 1.0"),
        ({"lensing": "cluster"}, r"'scene.lensing': expected a kind of lensing: galaxy-galaxy, .*'kind': 'cluster'"),
        ({"lensing": {}}, r"'scene.lensing': expected a kind of lensing: galaxy-galaxy, quasar"),
        ({"lensing": {"kind": "group", "companions": {"count": [3, 2]}}}, r"1 <= fewest <= most <= 20, found \[3, 2\]"),
        ({"lensing": {"kind": "quasar", "magnitud": 22}}, r"unknown key .*magnitud' \(did you mean 'magnitude'\?\)"),
        ({"lensing": {"kind": "quasar", "minimum_magnification": 0}}, r"minimum_magnification.*greater than 0"),
        ({"macro": {"multipoles": {"a4_over_a": 0.5}}}, r"a4_over_a must lie between -0.2 and 0.2, found 0.5 to 0.5"),
    ],
)
def test_impossible_settings_are_refused(scene: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_settings(SimulateSettings, {"scene": scene}, "a.yaml")
