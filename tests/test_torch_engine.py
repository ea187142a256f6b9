"""The fast engine against lenstronomy called directly: deflections, images, batches, populations of any size."""

import pickle
import timeit
from dataclasses import replace

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from scipy.integrate import quad
from scipy.special import erf

from simulate.errors import InputError
from simulate.instruments import load_instrument, psf_kernel
from simulate.lenstronomy_engine import lens_model, render_reference
from simulate.profiles.macro import MACRO_PROFILES
from simulate.profiles.radial import RADIAL_PROFILES
from simulate.scene import Scene, SceneSettings, draw_scene
from simulate.torch_engine.direct_sum import scene_deflection
from simulate.torch_engine.gaussian_expansion import chebyshev_interpolation, chebyshev_nodes
from simulate.torch_engine.packing import compact, pack_perturbers, perturber_count
from simulate.torch_engine.ray_shooting import deflection_field
from simulate.torch_engine.render import View, render_batch
from simulate.torch_engine.truth import truth_maps

CPU = torch.device("cpu")
HR, LR = load_instrument("hst-acs-f814w"), load_instrument("euclid-vis")
VIEW = View(HR, LR, hr_size=64, scale=2, supersampling=2)
ELLIPSE = {"e1": 0.12, "e2": -0.2, "center_x": 0.02, "center_y": -0.01}
MODELS = [
    ("EPL", {"theta_E": 1.1, "gamma": 2.07, **ELLIPSE}),
    ("EPL", {"theta_E": 1.1, "gamma": 1.6, "e1": 0.5, "e2": -0.33, "center_x": 0.02, "center_y": -0.01}),
    ("EPL", {"theta_E": 1.1, "gamma": 2.0, "e1": 0.0, "e2": 0.0, "center_x": 0.0, "center_y": 0.0}),
    ("SIE", {"theta_E": 1.1, **ELLIPSE}),
    ("SIE", {"theta_E": 1.1, "e1": 1e-7, "e2": 0.0, "center_x": 0.02, "center_y": -0.01}),
    ("SHEAR", {"gamma1": 0.03, "gamma2": -0.02, "ra_0": 0.1, "dec_0": 0.2}),
    ("CONVERGENCE", {"kappa": -0.01, "ra_0": 0.1, "dec_0": 0.2}),
    ("MULTIPOLE", {"m": 3, "a_m": 0.01, "phi_m": 0.3, "center_x": 0.02, "center_y": -0.01}),
    ("MULTIPOLE", {"m": 4, "a_m": 0.02, "phi_m": -1.1, "center_x": 0.02, "center_y": -0.01}),
    ("TNFW", {"Rs": 0.3, "alpha_Rs": 0.02, "r_trunc": 0.5, "center_x": 0.3, "center_y": 0.1}),
    ("TNFW", {"Rs": 0.03, "alpha_Rs": 0.001, "r_trunc": 4.0, "center_x": 0.3, "center_y": 0.1}),
    ("TNFW", {"Rs": 0.2, "alpha_Rs": 0.02, "r_trunc": 0.05, "center_x": 0.3, "center_y": 0.1}),
    ("NFW", {"Rs": 0.3, "alpha_Rs": 0.02, "center_x": 0.3, "center_y": 0.1}),
    ("SIS", {"theta_E": 0.02, "center_x": 0.3, "center_y": 0.1}),
    ("POINT_MASS", {"theta_E": 0.05, "center_x": 0.3, "center_y": 0.1}),
    ("GAUSSIAN", {"amp": 0.03, "sigma": 0.05, "center_x": 0.3, "center_y": 0.1}),
    ("ULDM", {"kappa_0": 0.2, "theta_c": 0.1, "slope": 8.0, "center_x": 0.3, "center_y": 0.1}),
    ("TNFWC", {"Rs": 0.3, "alpha_Rs": 0.02, "r_core": 0.05, "r_trunc": 0.5, "center_x": 0.3, "center_y": 0.1}),
]


def scene_of(lens_models: list[tuple[str, dict[str, float]]], **changes: object) -> Scene:
    """A scene of these lens models with a drawn source."""
    scene = draw_scene("none", SceneSettings(), 2.3, np.random.default_rng(1))
    names, kwargs = zip(*lens_models, strict=True)
    return replace(scene, lens_model_list=list(names), kwargs_lens=list(kwargs), **changes)


def smooth_models(theta_e_arcsec: float = 1.0) -> list[tuple[str, dict[str, float]]]:
    """A power law in shear."""
    return [("EPL", {"theta_E": theta_e_arcsec, "gamma": 2.05, **ELLIPSE}), MODELS[5]]


def halo_models(count: int, seed: int = 0, radius_arcsec: float = 2.2) -> list[tuple[str, dict[str, float]]]:
    """Exactly `count` TNFW halos of 10^6 to 10^10 solar masses, with the sizes that such halos have."""
    rng = np.random.default_rng(seed)
    mass = 1e6 * (1 - rng.uniform(size=count) * (1 - 1e4**-0.9)) ** (-1 / 0.9)
    scale = 0.02 * (mass / 1e6) ** 0.4
    distance, azimuth = radius_arcsec * np.sqrt(rng.uniform(size=count)), rng.uniform(0, 2 * np.pi, count)
    table = {
        "Rs": scale,
        "alpha_Rs": 3e-5 * (mass / 1e6) ** 0.65,
        "r_trunc": scale * rng.uniform(1, 6, count),
        "center_x": distance * np.cos(azimuth),
        "center_y": distance * np.sin(azimuth),
    }
    return [("TNFW", {key: float(column[row]) for key, column in table.items()}) for row in range(count)]


def relative_l2(image: torch.Tensor, reference: torch.Tensor) -> float:
    """The worst of a batch."""
    difference = (image.double() - reference.double()).flatten(1).norm(dim=1)
    return float((difference / reference.double().flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize(("name", "kwargs"), MODELS, ids=[f"{row}-{name}" for row, (name, _) in enumerate(MODELS)])
def test_every_profile_deflects_as_in_lenstronomy(name: str, kwargs: dict[str, float]) -> None:
    x, y = np.random.default_rng(3).uniform(-2.5, 2.5, (2, 4000))
    ours = scene_deflection(scene_of([(name, kwargs)]), x, y)
    theirs = LensModel([name]).alpha(x, y, [kwargs])
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)
    # in float32, at the rounding of deflections of an arcsecond
    single = [torch.tensor(one, dtype=torch.float32) for one in (x, y)]
    if name in MACRO_PROFILES:
        profile = MACRO_PROFILES[name]
        found = profile.deflection(*single, *(torch.tensor(float(kwargs[key])) for key in profile.parameters))
        for one, other in zip(found, theirs, strict=True):
            np.testing.assert_allclose(one.numpy(), other, atol=2e-6)


@pytest.mark.parametrize(("name", "kwargs"), MODELS, ids=[f"{row}-{name}" for row, (name, _) in enumerate(MODELS)])
def test_convergence_is_half_the_divergence_of_the_deflection(name: str, kwargs: dict[str, float]) -> None:
    x, y = np.random.default_rng(4).uniform(0.35, 2.5, (2, 200))
    step, scene = 1e-4, scene_of([(name, kwargs)])
    along = scene_deflection(scene, x + step, y)[0] - scene_deflection(scene, x - step, y)[0]
    across = scene_deflection(scene, x, y + step)[1] - scene_deflection(scene, x, y - step)[1]
    tensors = [torch.from_numpy(one) for one in (x, y)]
    if name in MACRO_PROFILES:
        profile = MACRO_PROFILES[name]
        values = (torch.tensor(float(kwargs[key]), dtype=torch.float64) for key in profile.parameters)
        kappa = profile.convergence(*tensors, *values)
    else:
        radial = RADIAL_PROFILES[name]
        radius = torch.hypot(tensors[0] - kwargs["center_x"], tensors[1] - kwargs["center_y"])
        kappa = radial.convergence(
            radius, *(torch.tensor(kwargs[key], dtype=torch.float64) for key in radial.parameters)
        )
    np.testing.assert_allclose(kappa.numpy(), (along + across) / (4 * step), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 25, 100, 300, 4500])
def test_approximation_stays_within_its_bounds(count: int) -> None:
    """Deflection within 2e-4" anywhere, images within 1e-5 (L2), float32 within 1e-4 of the peak of float64."""
    scenes = [scene_of(smooth_models() + halo_models(count, seed)) for seed in range(1 if count > 1000 else 2)]
    view = replace(VIEW, supersampling=1) if count > 1000 else VIEW
    grid = view.grid(torch.float64, CPU)
    exact, fast = (deflection_field(scenes, grid, exact=exact) for exact in (True, False))
    assert float(torch.hypot(fast[0] - exact[0], fast[1] - exact[1]).max()) < 2e-4
    reference = render_batch(scenes, view, torch.float64, CPU, exact=True)
    double = render_batch(scenes, view, torch.float64, CPU)
    single = render_batch(scenes, view, torch.float32, CPU)
    for one, other, truth in zip(single, double, reference, strict=True):
        assert relative_l2(other, truth) < 1e-5
        assert relative_l2(one, truth) < 1e-5
        assert float((one.double() - other).abs().max() / other.max()) < 1e-4
    if count:
        smooth = render_batch([scene_of(smooth_models())] * len(scenes), view, torch.float64, CPU)
        assert relative_l2(smooth[0], reference[0]) > 1e-3  # the halos do something


@pytest.mark.parametrize("kind", ["none", "cdm", "axion", "fdm", "sidm", "wdm"])
def test_images_are_lenstronomys(kind: str) -> None:
    """Exact sums to 1e-9 of the peak; the approximation to 1e-5; lens light included."""
    settings = SceneSettings(lens_light={"magnitude": 20.0})
    scene = draw_scene(kind, settings, 2.3, np.random.default_rng([11, 0]))
    for instrument, size, side in ((HR, 64, 0), (LR, 32, 1)):
        reference = render_reference(scene, instrument, size, 2 * (side + 1))
        exact = render_batch([scene], VIEW, torch.float64, CPU, exact=True)[side][0].numpy()
        np.testing.assert_allclose(exact, reference, atol=1e-9 * reference.max())
        fast = render_batch([scene], VIEW, torch.float32, CPU)[side][0].numpy()
        assert np.linalg.norm(fast - reference) < 1e-5 * np.linalg.norm(reference)


def test_a_batch_of_different_scenes_is_the_scenes_one_by_one() -> None:
    """Other numbers of halos, other models, other sources: padding adds nothing."""
    scenes = [
        draw_scene(kind, SceneSettings(), 2.3, np.random.default_rng([5, row]))
        for row, kind in enumerate(["cdm", "none", "axion", "cdm"])
    ]
    scenes.append(scene_of([*smooth_models(), ("SIS", {"theta_E": 0.02, "center_x": 0.5, "center_y": 0.7})]))
    scenes.append(
        replace(scenes[0], lens_light_model_list=scenes[0].source_model_list, kwargs_lens_light=scenes[0].kwargs_source)
    )
    together = render_batch(scenes, VIEW, torch.float64, CPU)
    for row, scene in enumerate(scenes):
        for batch, alone in zip(together, render_batch([scene], VIEW, torch.float64, CPU), strict=True):
            np.testing.assert_allclose(batch[row].numpy(), alone[0].numpy(), atol=1e-6 * float(alone.max()))


def test_compact_scenes_are_the_same_lenses_and_quick_to_send() -> None:
    """What worker processes send to a GPU's: a tenth of the time of a scene's models, and the same bytes of image."""
    scenes = [scene_of(smooth_models() + halo_models(100, seed)) for seed in range(3)]
    scenes += [draw_scene("axion", SceneSettings(), 2.3, np.random.default_rng(0)), scene_of(smooth_models())]
    compacted = [compact(scene) for scene in scenes]
    assert [perturber_count(one) for one in compacted] == [perturber_count(one) for one in scenes]
    for whole, small in zip(
        render_batch(scenes, VIEW, torch.float32, CPU), render_batch(compacted, VIEW, torch.float32, CPU), strict=True
    ):
        assert torch.equal(whole, small)

    def seconds(sent: Scene) -> float:
        data = pickle.dumps(sent)
        return min(timeit.repeat(lambda: pack_perturbers([pickle.loads(data)]), number=20, repeat=5))

    assert seconds(compacted[0]) < 0.5 * seconds(scenes[0])
    planes = scene_of(smooth_models(), lens_redshift_list=[0.5, 0.5])
    assert compact(planes) is planes


def test_memory_bound_does_not_change_the_field() -> None:
    scenes = [scene_of(smooth_models() + halo_models(120))]
    grid = VIEW.grid(torch.float64, CPU)
    whole = deflection_field(scenes, grid)
    in_parts = deflection_field(scenes, replace(grid, elements=grid.rays**2 // 3))
    for one, other in zip(whole, in_parts, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-13)


def test_perturbers_outside_the_reach_of_the_fit_are_summed_exactly() -> None:
    grid = VIEW.grid(torch.float64, CPU)
    far = [("TNFW", {"Rs": 0.5, "alpha_Rs": 0.1, "r_trunc": 2.0, "center_x": 12.0, "center_y": -3.0})]
    scene = scene_of(far)
    y, x = np.meshgrid(grid.axis.numpy(), grid.axis.numpy(), indexing="ij")
    theirs = LensModel(["TNFW"]).alpha(x.ravel(), y.ravel(), scene.kwargs_lens)
    for ours, reference in zip(deflection_field([scene], grid), theirs, strict=True):
        np.testing.assert_allclose(ours[0].numpy().ravel(), reference, atol=1e-10)


def test_several_lens_planes_are_lenstronomys() -> None:
    halos = [MODELS[9], *halo_models(20)]
    redshifts = [0.5, 0.5, 0.8, *np.random.default_rng(0).choice([0.1, 0.3, 0.5, 0.8, 1.2], 20).tolist()]
    scene = scene_of(smooth_models() + halos, lens_redshift_list=redshifts, z_lens=0.5, z_source=1.7)
    x, y = np.random.default_rng(1).uniform(-2, 2, (2, 300))
    theirs = lens_model(scene).alpha(x, y, scene.kwargs_lens)
    single = LensModel(scene.lens_model_list).alpha(x, y, scene.kwargs_lens)
    assert np.abs(single[0] - theirs[0]).max() > 1e-3
    for ours, reference in zip(scene_deflection(scene, x, y), theirs, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-8)
    reference = render_reference(scene, HR, 64, 2)
    image = render_batch([scene], VIEW, torch.float64, CPU)[0][0].numpy()
    assert np.linalg.norm(image - reference) < 1e-5 * np.linalg.norm(reference)


def test_sources_behind_the_source_are_deflected_more() -> None:
    scene = scene_of(smooth_models())
    second = {**scene.kwargs_source[0], "center_x": 0.3, "amp": 2 * scene.kwargs_source[0]["amp"]}
    scene = replace(
        scene,
        source_model_list=["SERSIC_ELLIPSE", "SERSIC_ELLIPSE"],
        kwargs_source=[scene.kwargs_source[0], second],
        source_deflection_scaling=[1.0, 1.3],
    )
    reference = render_reference(scene, HR, 64, 2)
    image = render_batch([scene], VIEW, torch.float64, CPU)[0][0].numpy()
    np.testing.assert_allclose(image, reference, atol=1e-9 * reference.max())
    plain = render_batch([replace(scene, source_deflection_scaling=[])], VIEW, torch.float64, CPU)[0][0].numpy()
    assert np.abs(plain - reference).max() > 0.01 * reference.max()


def test_a_point_of_light_is_the_psf_summed_over_pixels() -> None:
    """Closed form: a Gaussian PSF integrated over each pixel (error functions), at places between rays."""
    view = replace(VIEW, supersampling=8)  # a pixel is the sum of its rays, not yet the integral
    points = {"ra_image": [0.313, -0.9], "dec_image": [-0.127, 0.55], "point_amp": [50.0, 20.0]}
    scene = scene_of(
        smooth_models(), source_model_list=[], kwargs_source=[], point_source_model_list=["LENSED_POSITION"],
        kwargs_ps=[points],
    )  # fmt: skip
    for image, instrument, size in zip(
        render_batch([scene], view, torch.float64, CPU), (HR, LR), (64, 32), strict=True
    ):
        sigma = instrument.psf.fwhm_arcsec / np.sqrt(8 * np.log(2))
        edges = (np.arange(size + 1) - size / 2) * instrument.pixel_scale_arcsec
        expected = np.zeros((size, size))
        for x, y, flux in zip(*points.values(), strict=True):
            across, along = (np.diff(erf((edges - one) / (np.sqrt(2) * sigma))) / 2 for one in (x, y))
            expected += flux * np.outer(along, across)
        np.testing.assert_allclose(image[0].numpy(), expected, atol=2e-3 * expected.max())
        assert float(image.sum()) == pytest.approx(70.0, rel=1e-3)


def test_models_that_the_engine_lacks_are_named() -> None:
    with pytest.raises(InputError, match=r"lens model 'CHAMELEON' is not in the torch engine .* --engine lenstronomy"):
        render_batch([scene_of([("CHAMELEON", {})])], VIEW, torch.float32, CPU)
    with pytest.raises(InputError, match=r"parameter 'gamma' is missing"):
        render_batch([scene_of([("EPL", {"theta_E": 1.0})])], VIEW, torch.float32, CPU)
    with pytest.raises(InputError, match=r"light model 'SHAPELETS' is not in the torch engine"):
        render_batch([scene_of(smooth_models(), source_model_list=["SHAPELETS"])], VIEW, torch.float32, CPU)


def test_chebyshev_interpolation_is_exact_for_polynomials() -> None:
    targets = np.linspace(-1, 1, 37)
    matrix = chebyshev_interpolation(9, targets)
    np.testing.assert_allclose(matrix @ chebyshev_nodes(9) ** 8, targets**8, atol=1e-13)
    on_nodes = chebyshev_interpolation(9, chebyshev_nodes(9))
    np.testing.assert_allclose(on_nodes, np.eye(9), atol=1e-13)


def test_truth_maps_add_up() -> None:
    """Convergence by lenstronomy, and the unlensed source has its drawn flux."""
    settings = SceneSettings(source={"center_x_arcsec": 0.0, "center_y_arcsec": 0.0, "radius_arcsec": 0.15})
    scene = draw_scene("cdm", settings, 2.3, np.random.default_rng(8))
    maps = truth_maps(scene, 64, 0.05)
    y, x = np.meshgrid(*[(np.arange(64) - 31.5) * 0.05] * 2, indexing="ij")
    total = LensModel(scene.lens_model_list).kappa(x.ravel(), y.ravel(), scene.kwargs_lens).reshape(64, 64)
    np.testing.assert_allclose(maps["convergence_macro"][0] + maps["convergence_substructure"][0], total, rtol=1e-5)
    assert maps["convergence_substructure"].max() > 0.01
    alpha = LensModel(scene.lens_model_list).alpha(x.ravel(), y.ravel(), scene.kwargs_lens)
    np.testing.assert_allclose(maps["deflection"][0].ravel(), alpha[0], atol=1e-6)
    own = scene.kwargs_source[0]

    def ring(radius: float) -> float:
        b = 1.9992 * own["n_sersic"] - 0.3271
        return 2 * np.pi * radius * own["amp"] * np.exp(-b * ((radius / own["R_sersic"]) ** (1 / own["n_sersic"]) - 1))

    assert maps["source"].sum() == pytest.approx(quad(ring, 0, 1.6)[0], rel=0.03)
    assert maps["lens_light"].max() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_images_are_the_cpus() -> None:
    scenes = [draw_scene(kind, SceneSettings(), 2.3, np.random.default_rng(9)) for kind in ("cdm", "axion", "none")]
    cuda = render_batch(scenes, VIEW, torch.float32, torch.device("cuda"))
    cpu = render_batch(scenes, VIEW, torch.float64, CPU)
    for one, other in zip(cuda, cpu, strict=True):
        assert relative_l2(one.cpu(), other) < 1e-4


def test_psf_wider_than_the_frame_keeps_its_shape() -> None:
    """The kernel is cut where it reaches no ray from any other; what is left is not renormalised."""
    wide = LR.model_copy(update={"psf": LR.psf.model_copy(update={"fwhm_arcsec": 2.0})})
    view = View(HR, wide, hr_size=16, scale=2, supersampling=1)
    scene = scene_of(smooth_models(0.2))
    assert len(psf_kernel(wide.psf, 0.05)) > 2 * 16
    reference = render_reference(scene, wide, 8, 2)
    image = render_batch([scene], view, torch.float64, CPU)[1][0].numpy()
    np.testing.assert_allclose(image, reference, atol=1e-9 * reference.max())
