"""Draw the pictures of the simulator's pages, with the simulator's own functions.

    python docs/make_simulator_figures.py conventions docs/figures/conventions.png
    python docs/make_simulator_figures.py gallery docs/figures/gallery.png
    python docs/make_simulator_figures.py sources docs/figures/sources.png GALAXIES.fits

The first shows what the numbers of a scene mean, the second every kind of dark matter before one lens at its default
amplitude, the third the kinds of sources (real galaxies from a FITS cube) and of lensing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from simulate.errors import InputError
from simulate.instruments import load_instrument, noise_sigma_njy, pixel_psf, psf_kernel
from simulate.populations import POPULATIONS
from simulate.profiles.light import light_sum, sersic, sersic_ellipse
from simulate.profiles.macro import epl_deflection, shear_deflection
from simulate.scene import Scene, SceneSettings, draw_scene
from simulate.settings import parse_settings
from simulate.torch_engine.ray_shooting import RayGrid
from simulate.torch_engine.render import View, render_batch
from simulate.torch_engine.truth import truth_maps

INK, ACCENT, PALE = "#1f3a5f", "#c8553d", "#9aa5b1"
SIZE, SEED = 128, 12
VIEW = View(load_instrument("hst-acs-f814w"), load_instrument("euclid-vis"), SIZE, 2, 4)
PIXEL_ARCSEC = VIEW.hr_instrument.pixel_scale_arcsec
HALF_ARCSEC = SIZE * PIXEL_ARCSEC / 2
QUARTERS = ((-1.0, 1.0), (1.0, 1.0), (-1.0, -1.0), (1.0, -1.0))


def number(value: float) -> torch.Tensor:
    """A parameter of a profile."""
    return torch.tensor(value, dtype=torch.float64)


def grid(half_arcsec: float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y (count,count), from -half_arcsec to half_arcsec."""
    axis = torch.linspace(-half_arcsec, half_arcsec, count, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def square(axes: Axes, half: float, title: str) -> None:
    """A panel of the sky around the origin, x to the right and y up."""
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xlabel="x (arcsec)", ylabel="y (arcsec)")
    axes.set_title(title, fontsize=11)


def draw_pixels(axes: Axes) -> None:
    """Centres of HR and LR pixels, and the rays of one HR pixel."""
    cpu = torch.device("cpu")
    hr, lr, rays = (RayGrid(*shape, torch.float64, cpu) for shape in ((8, 0.05), (4, 0.1), (32, 0.0125)))
    for one, color, width in ((hr, "#d5dae0", 0.8), (lr, PALE, 1.5)):
        edges = one.axis - one.spacing_arcsec / 2
        for place in (*edges.tolist(), one.half_width_arcsec):
            axes.plot([-0.2, 0.2], [place, place], zorder=1, color=color, linewidth=width)
            axes.plot([place, place], [-0.2, 0.2], zorder=1, color=color, linewidth=width)
    centres = hr.axis
    parts = (
        (centres, "o", INK, 4, "HR centres"),
        (lr.axis, "s", ACCENT, 6, "LR centres"),
        (rays.axis[28:], ".", "black", 3, "rays, in one pixel"),
        (torch.zeros(1), "+", "black", 14, "origin"),
    )
    for axis, marker, color, size, label in parts:
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        if axis is centres:  # the last pixel shows its rays instead
            x, y = x.flatten()[:-1], y.flatten()[:-1]
        axes.plot(x.flatten(), y.flatten(), marker, color=color, markersize=size, label=label)
    axes.legend(fontsize=9, ncols=2, loc="lower center", frameon=False, handletextpad=0.1, columnspacing=0.4)
    square(axes, 0.27, "pixels: HR 8 × 8, LR 4 × 4")
    axes.set(ylim=(-0.37, 0.24), xticks=[-0.2, -0.1, 0, 0.1, 0.2], yticks=[-0.2, -0.1, 0, 0.1, 0.2])


def four(axes: Axes, labels: Sequence[str], radius: float) -> None:
    """Names of four shapes, each with a dashed circle."""
    for (x, y), label in zip(QUARTERS, labels, strict=True):
        axes.add_patch(Circle((x, y), radius, fill=False, edgecolor=PALE, linestyle="--", linewidth=1.2))
        axes.text(x, y, label, ha="center", va="center", fontsize=9)


def draw_ellipses(axes: Axes) -> None:
    """Contours of Sersic profiles at their half-light radius."""
    x, y = grid(2, 400)
    for place, e1, e2 in zip(QUARTERS, (0.3, -0.3, 0, 0), (0, 0, 0.3, -0.3), strict=True):
        light = sersic_ellipse(x, y, 1.0, 0.6, 1.0, e1, e2, *place)
        axes.contour(x, y, light, [1.0], colors=INK, linewidths=1.8)
    four(axes, ("e1\n= 0.3", "e1\n= −0.3", "e2\n= 0.3", "e2\n= −0.3"), 0.6)
    square(axes, 2, "ellipticity: same area as the circle")


def draw_shear(axes: Axes) -> None:
    """Round sources, dashed, as they look through external shear; arrows from points of a source to their images."""
    x, y = grid(2, 400)
    for place, gamma in zip(QUARTERS, (0.2, -0.2, 0.2j, -0.2j), strict=True):
        shear = [number(value) for value in (complex(gamma).real, complex(gamma).imag, *place)]
        alpha_x, alpha_y = shear_deflection(x, y, *shear)
        source_radius = torch.hypot(x - alpha_x - place[0], y - alpha_y - place[1])
        near = torch.hypot(x - place[0], y - place[1]) < 0.95
        axes.contour(x, y, source_radius.where(near, 9.0), [0.6], colors=INK, linewidths=1.8)
        source = 0.6 * np.sqrt(gamma / abs(gamma) + 0j) * 1j ** np.arange(4)
        image = (source + gamma * source.conj()) / (1 - abs(gamma) ** 2)
        for start, end in zip(source + complex(*place), image + complex(*place), strict=True):
            arrow = {"arrowstyle": "->", "color": ACCENT, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.6}
            axes.annotate("", (end.real, end.imag), (start.real, start.imag), arrowprops=arrow)
    four(axes, ("gamma1\n= 0.2", "gamma1\n= −0.2", "gamma2\n= 0.2", "gamma2\n= −0.2"), 0.6)
    square(axes, 2, "shear: round sources, lensed")


def critical_curve(parameters: Sequence[torch.Tensor]) -> np.ndarray:
    """(N,2) points x, y of an elliptical power law's critical curve."""
    x, y = grid(1.8, 1201)
    step = float(x[0, 1] - x[0, 0])
    (xy, xx), (yy, yx) = (torch.gradient(alpha, spacing=step) for alpha in epl_deflection(x, y, *parameters))
    determinant = ((1 - xx) * (1 - yy) - xy * yx).where(torch.hypot(x, y) > 0.2, -1.0)
    paths = Figure().subplots().contour(x, y, determinant, [0.0]).get_paths()
    return np.asarray(paths[0].vertices)


def draw_critical_curve(axes: Axes) -> None:
    """Critical curve and caustic of an elliptical power law, and the circle of its theta_E."""
    parameters = [number(value) for value in (1.0, 2.0, 0.3, 0.0, 0.0, 0.0)]
    curve = critical_curve(parameters)
    x, y = torch.from_numpy(curve).unbind(1)
    alpha_x, alpha_y = epl_deflection(x, y, *parameters)
    area = 0.5 * abs(np.sum(curve[:-1, 0] * curve[1:, 1] - curve[1:, 0] * curve[:-1, 1]))
    axes.plot(x, y, color=INK, linewidth=1.8, label=f"critical curve, area {area / np.pi:.3f} π")
    axes.plot(x - alpha_x, y - alpha_y, color=ACCENT, linewidth=1.5, label="caustic")
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    axes.plot(circle.real, circle.imag, "--", color=PALE, linewidth=1.4, label="circle of radius theta_E = 1″")
    axes.legend(fontsize=9, loc="lower center", frameon=False, handlelength=1.4)
    square(axes, 1.8, "theta_E of an EPL, e1 = 0.3")
    axes.set(ylim=(-2.6, 1.5), yticks=[-1, 0, 1])


def draw_sersic(axes: Axes) -> None:
    """Surface brightness of two Sersic profiles along a radius."""
    radius = torch.linspace(0.005, 1.0, 400, dtype=torch.float64)
    for index, color in ((1.0, INK), (4.0, ACCENT)):
        light = sersic(radius, torch.zeros_like(radius), 10.0, 0.4, index)
        axes.semilogy(radius, light, color=color, linewidth=1.8, label=f"n_sersic = {index:.0f}")
    axes.plot([0.4, 0.4, 0], [1.2, 10, 10], linestyle="--", color=PALE, linewidth=1.2)
    axes.plot(0.4, 10, "o", color="black", markersize=5)
    axes.text(0.03, 8.3, "amp", fontsize=10, va="top")
    axes.text(0.42, 1.35, "R_sersic", fontsize=10)
    axes.legend(fontsize=9, frameon=False)
    axes.set(xlim=(0, 1), ylim=(1.2, 1000), xlabel="radius (arcsec)", ylabel="nJy / arcsec²")
    axes.set_title("Sérsic: amp = 10, R_sersic = 0.4", fontsize=11)


def draw_psf(axes: Axes) -> None:
    """A star in the middle of a pixel: the PSF of the optics, and what the pixels hold of it."""
    instrument = VIEW.lr_instrument
    pixel = instrument.pixel_scale_arcsec
    fine = pixel / 50
    kernel = psf_kernel(instrument.psf, fine)[len(psf_kernel(instrument.psf, fine)) // 2] / fine**2
    seen = pixel_psf(instrument)[len(pixel_psf(instrument)) // 2] / pixel**2
    place = (np.arange(len(kernel)) - len(kernel) // 2) * fine
    axes.plot(place, kernel / kernel.max(), color=INK, linewidth=1.8, label=f"psf: FWHM {instrument.psf.fwhm_arcsec}″")
    edges = (np.arange(len(seen) + 1) - len(seen) / 2) * pixel
    axes.stairs(seen / kernel.max(), edges, color=ACCENT, linewidth=1.8, label="its pixels")
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    axes.set(xlim=(-0.35, 0.35), ylim=(0, 1.4), xlabel="x (arcsec)", ylabel="surface brightness / peak of psf")
    axes.set_title(f"PSF and pixel: {instrument.name}", fontsize=11)


PANELS = (draw_pixels, draw_ellipses, draw_shear, draw_critical_curve, draw_sersic, draw_psf)


def conventions(target: Path) -> None:
    """What the numbers of a scene mean."""
    figure = Figure(figsize=(10, 6.9), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        panel(axes)
    figure.savefig(target, dpi=110)


def draw(kind: str, seed: int = SEED, **settings: Any) -> Scene:
    """A scene with these scene settings, else the default ones."""
    parsed = parse_settings(SceneSettings, settings, "scene")
    return draw_scene(kind, parsed, SIZE * PIXEL_ARCSEC / np.sqrt(2), np.random.default_rng(seed))


def render(scene: Scene) -> np.ndarray:
    """(SIZE,SIZE) noiseless HR image, nJy per pixel."""
    return render_batch([scene], VIEW, torch.float64, torch.device("cpu"))[0][0].numpy()


def show(axes: Axes, image: np.ndarray, half_arcsec: float = HALF_ARCSEC, **style: Any) -> Any:
    """An image of the sky, without ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(image, origin="lower", extent=(-half_arcsec, half_arcsec) * 2, **style)


def show_light(axes: Axes, image: np.ndarray, unit: float, half_arcsec: float = HALF_ARCSEC) -> None:
    """In an asinh stretch that is linear below `unit`."""
    show(axes, np.arcsinh(image / unit), half_arcsec, cmap="inferno", vmin=0, vmax=np.arcsinh(image.max() / unit))


def draw_if_installed(kind: str) -> Scene | None:
    """A scene with this kind of dark matter; None if it needs a package that is not there (pyHalo)."""
    try:
        return draw(kind)
    except InputError as error:
        print(f"{kind} is left out: {error}")
        return None


def gallery(target: Path) -> None:
    """Every kind of dark matter in front of one lens, at its default amplitude."""
    kinds = ["none", *(kind for kind in POPULATIONS if kind != "none")]
    scenes = {kind: scene for kind in kinds if (scene := draw_if_installed(kind))}
    figure = Figure(figsize=(10.4, 1 + 26 / len(scenes)), layout="constrained")
    panels = figure.subplots(3, len(scenes))
    smooth = render(scenes["none"])
    sigma = noise_sigma_njy(VIEW.hr_instrument, smooth)
    for column, (kind, scene) in zip(panels.T, scenes.items(), strict=True):
        image = render(scene)
        convergence = truth_maps(scene, SIZE, PIXEL_ARCSEC)["convergence_substructure"][0]
        show_light(column[0], image, 2 * VIEW.hr_instrument.background_sigma_njy)
        column[0].set_title(kind, fontsize=11)
        kappa = show(column[1], convergence, cmap="PuOr_r", norm=SymLogNorm(1e-3, vmin=-1, vmax=1))
        residual = show(column[2], (image - smooth) / sigma, cmap="RdBu_r", vmin=-5, vmax=5)
    for axes, label in zip(panels[:, 0], ("HR, noiseless", "convergence", "HR − HR of none"), strict=True):
        axes.set_ylabel(label, fontsize=10)
    bar = figure.colorbar(kappa, ax=panels[1], extend="both", pad=0.01)
    bar.set_ticks([-1, -0.1, -0.01, 0, 0.01, 0.1, 1], labels=["−1", "−0.1", "−0.01", "0", "0.01", "0.1", "1"])
    bar.set_label("κ of the substructure", fontsize=9)
    figure.colorbar(residual, ax=panels[2], extend="both", pad=0.01).set_label("σ of an HR pixel", fontsize=9)
    figure.savefig(target, dpi=110)


def sources(target: Path, galaxies: Path) -> None:
    """The kinds of sources, without and with a lens, and the kinds of lensing."""
    real = {"kind": "galaxy", "path": galaxies, "electrons_per_unit": 2028}
    clumpy = {"kind": "clumpy"}
    light = {"magnitude": 19.5, "radius_arcsec": 0.5, "sersic_index": 4}
    kinds_of_source: tuple[tuple[int, str, dict[str, Any]], ...] = (
        (1, "sersic", {}),
        (1, "clumpy", clumpy),
        (2, "clumpy", clumpy),
        (1, "galaxy", real),
        (2, "galaxy", real),
    )
    kinds_of_lensing: tuple[tuple[int, str, dict[str, Any]], ...] = (
        (13, "galaxy-galaxy", {}),
        (13, "with lens_light", {"lens_light": light}),
        (13, "quasar", {"lensing": {"kind": "quasar", "magnitude": 22}}),
        (13, "double-source-plane", {"lensing": {"kind": "double-source-plane"}}),
        (6, "group, lens_light", {"lensing": "group", "lens_light": light}),
    )
    figure = Figure(figsize=(10.4, 6.6), layout="constrained")
    panels = figure.subplots(3, 5)
    sky = 2 * VIEW.hr_instrument.background_sigma_njy
    for column, (seed, title, source) in zip(panels[:2].T, kinds_of_source, strict=True):
        scene = draw("none", seed, source=source)
        x, y = grid(0.8, 320)
        unlensed = light_sum(x, y, scene.source_model_list, scene.kwargs_source).numpy()
        show_light(column[0], unlensed, unlensed.max() / 20, 0.8)
        show_light(column[1], render(scene), sky)
        column[0].set_title(title, fontsize=11)
    for axes, (seed, title, settings) in zip(panels[2], kinds_of_lensing, strict=True):
        show_light(axes, render(draw("none", seed, **settings)), sky)
        axes.set_title(title, fontsize=11)
    for axes, label in zip(panels[:, 0], ("source, 1.6″ wide", "HR, 6.4″ wide", "HR, kinds of lensing"), strict=True):
        axes.set_ylabel(label, fontsize=10)
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pictures = parser.add_subparsers(dest="picture", required=True)
    for name in ("conventions", "gallery", "sources"):
        pictures.add_parser(name).add_argument("target", type=Path)
    pictures.choices["sources"].add_argument("galaxies", type=Path)
    arguments = parser.parse_args()
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    if arguments.picture == "sources":
        sources(arguments.target, arguments.galaxies)
    else:
        {"conventions": conventions, "gallery": gallery}[arguments.picture](arguments.target)


if __name__ == "__main__":
    main()
