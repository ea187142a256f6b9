"""One lens in physical numbers: drawn from priors, written as lenstronomy model lists that anyone can render again."""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from .cosmology import CosmologySettings, LensGeometry
from .deflectors import MacroSettings, draw_macro
from .errors import InputError
from .lensing import (
    DoubleSourcePlaneSettings,
    GalaxyGalaxySettings,
    LensingSettings,
    QuasarSettings,
    draw_additions,
    quasar_images,
)
from .populations import PopulationSettings, SubstructureContext, draw_substructure
from .priors import Prior, uniform
from .settings import Settings
from .sources import SersicSettings, SourceSettings, Split, draw_source
from .sources.sersic import draw_sersic


class SceneSettings(Settings):
    """Priors of everything that is the same for all kinds of dark matter, and of the kinds themselves."""

    preset: Literal["deeplensesim-model-1", "deeplensesim-model-2", "deeplensesim-model-3"] | None = None
    """The distributions of a published simulator, flaws included, in place of all priors below."""
    cosmology: CosmologySettings = CosmologySettings()
    z_lens: Prior = uniform(0.3, 0.7)
    z_source: Prior = uniform(1.0, 2.5)
    macro: MacroSettings = MacroSettings()
    source: SourceSettings = SersicSettings()
    lens_light: SersicSettings | None = None
    lensing: LensingSettings = GalaxyGalaxySettings()
    populations: PopulationSettings = PopulationSettings()
    compensate_mean_mass: bool = True
    supersampling: int = Field(4, ge=1, le=16)
    """Rays along one axis of an HR pixel. With 2, cusps of small sources are off by up to 6 % of the peak."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.preset is not None:
            fields = type(self).model_fields
            priors = [name for name in fields if name not in ("preset", "supersampling")]
            unused = [name for name in priors if getattr(self, name) != fields[name].default]
            if unused:
                raise ValueError(f"preset {self.preset} has its own distributions; take out {', '.join(unused)}")
        self.z_lens.require("z_lens", 0.01)
        self.z_source.require("z_source", 0.02)
        farthest_lens, nearest_source = self.z_lens.bounds()[1], self.z_source.bounds()[0]
        if farthest_lens >= nearest_source:
            raise ValueError(
                f"lenses must lie before sources: z_lens up to {farthest_lens}, z_source from {nearest_source}"
            )
        if isinstance(self.lensing, DoubleSourcePlaneSettings):
            farthest_source, nearest_second = self.z_source.bounds()[1], self.lensing.z_source_2.bounds()[0]
            if farthest_source >= nearest_second:
                raise ValueError(
                    "the second source must lie behind the first: "
                    f"z_source up to {farthest_source}, lensing.z_source_2 from {nearest_second}"
                )
        return self


@dataclass(frozen=True)
class Scene:
    """One lens: lenstronomy's model lists and arguments, redshifts, and the physical draw behind them."""

    kind: str
    lens_model_list: list[str]
    kwargs_lens: list[dict[str, float]]
    """Deflections are reduced ones, those of a source at `z_source`."""
    source_model_list: list[str]
    kwargs_source: list[dict[str, Any]]
    lens_light_model_list: list[str]
    kwargs_lens_light: list[dict[str, Any]]
    z_lens: float
    z_source: float
    cosmology: dict[str, float]
    draw: dict[str, Any]
    lens_redshift_list: list[float] = field(default_factory=list)
    """Empty: all lens models at `z_lens`. Else one redshift a lens model, for lenstronomy's multi-plane equation."""
    source_deflection_scaling: list[float] = field(default_factory=list)
    """Empty: all 1. Else one factor a source light model on the deflection: lenstronomy's `deflection_scaling_list`."""
    point_source_model_list: list[str] = field(default_factory=list)
    kwargs_ps: list[dict[str, Any]] = field(default_factory=list)
    """'LENSED_POSITION': ra_image and dec_image (arcsec) and point_amp (nJy), each a list with an entry an image."""
    lr_peak_signal_to_noise: float | None = None
    """Where it is highest; None: the exposure is the LR instrument's."""
    lr_psf_fwhm_arcsec: float | None = None
    """None: the PSF is the LR instrument's."""

    def to_json(self) -> str:
        """The scene as stored beside its images; `amp` is in nJy per square arcsecond, angles in arcsec."""
        return json.dumps({key: value for key, value in vars(self).items() if value is not None}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """The inverse of `to_json`, exact to the last bit."""
        return cls(**json.loads(text))


def draw_scene(
    kind: str, settings: SceneSettings, field_radius_arcsec: float, rng: np.random.Generator, split: Split = "train"
) -> Scene:
    """Draw one lens. All that the kinds share is drawn first, so it has the same distribution for each of them.

    Sources with a library of real galaxies take one of `split`'s. Raises `InputError` if the population has redshifts
    of its own (line-of-sight halos) and there are two source planes, which lenstronomy's scenes cannot say.
    """
    if settings.preset is not None:
        from .legacy import draw_legacy_scene

        return draw_legacy_scene(settings.preset, kind, rng)
    z_lens, z_source = settings.z_lens.draw(rng), settings.z_source.draw(rng)
    geometry = LensGeometry(settings.cosmology, z_lens, z_source)
    smooth = draw_macro(settings.macro, rng)
    theta_e_arcsec = smooth[0][1]["theta_E"]
    source = draw_source(settings.source, split, rng)
    lens_light = [] if settings.lens_light is None else [draw_sersic(settings.lens_light, rng)]
    added = draw_additions(settings.lensing, settings.lens_light, geometry, theta_e_arcsec, split, rng)
    smooth += added.lens_models
    lens_light += added.lens_light
    sources = source.light_models + added.sources

    centre = smooth[0][1]["center_x"], smooth[0][1]["center_y"]
    context = SubstructureContext(geometry, theta_e_arcsec, field_radius_arcsec, *centre)
    substructure = draw_substructure(kind, settings.populations, context, rng)
    if settings.compensate_mean_mass and substructure.mean_convergence > 0:
        smooth.append(("CONVERGENCE", {"kappa": -substructure.mean_convergence, "ra_0": 0.0, "dec_0": 0.0}))
    if substructure.redshifts and added.sources:
        raise InputError(
            f"class {kind!r} has halos along the line of sight, which cannot be combined with lensing "
            "double-source-plane; take another class or another kind of lensing"
        )
    lens_models = smooth + substructure.lens_models
    scene = Scene(
        kind=kind,
        lens_model_list=[name for name, _ in lens_models],
        kwargs_lens=[kwargs for _, kwargs in lens_models],
        source_model_list=[name for name, _ in sources],
        kwargs_source=[kwargs for _, kwargs in sources],
        lens_light_model_list=["SERSIC_ELLIPSE"] * len(lens_light),
        kwargs_lens_light=lens_light,
        z_lens=z_lens,
        z_source=z_source,
        cosmology={"H0": settings.cosmology.h0_km_s_mpc, "Om0": settings.cosmology.omega_m},
        draw={
            "lensing": settings.lensing.kind,
            "mean_substructure_convergence": substructure.mean_convergence,
            "critical_surface_density_msun_arcsec2": geometry.critical_surface_density_msun_arcsec2,
            **source.draw,
            **added.draw,
            **substructure.draw,
        },
        lens_redshift_list=[z_lens] * len(smooth) + substructure.redshifts if substructure.redshifts else [],
        source_deflection_scaling=[1.0] * len(source.light_models) + [added.deflection_scaling] * len(added.sources)
        if added.sources
        else [],
    )
    return _with_quasar(scene, settings.lensing) if isinstance(settings.lensing, QuasarSettings) else scene


def _with_quasar(scene: Scene, settings: QuasarSettings) -> Scene:
    """The scene with the images of a point at the centre of its source, deflected by all of the scene's mass."""
    from .torch_engine.direct_sum import scene_deflection

    host = scene.kwargs_source[0]
    place = host.get("center_x", 0.0), host.get("center_y", 0.0)
    theta_e_arcsec = scene.kwargs_lens[0]["theta_E"]
    magnitude = scene.draw["quasar_magnitude"]
    images = quasar_images(settings, partial(scene_deflection, scene), *place, magnitude, theta_e_arcsec)
    return replace(scene, point_source_model_list=["LENSED_POSITION"], kwargs_ps=[images])


SMOOTH_MODELS = ("EPL", "SIE", "SHEAR", "MULTIPOLE")
"""What `draw_macro`, the kinds of lensing and the presets make a lens of, besides substructure."""


def without_substructure(scene: Scene, lensing: LensingSettings) -> Scene:
    """The same lens, source and light without the substructure and without what compensates its mean mass.

    That is the lens that a scene of the class "none" would have had. `lensing` is the setting that the scene was drawn
    with: the images of a quasar are sought again.
    """
    smooth = [row for row, name in enumerate(scene.lens_model_list) if name in SMOOTH_MODELS]
    bare = replace(
        scene,
        lens_model_list=[scene.lens_model_list[row] for row in smooth],
        kwargs_lens=[scene.kwargs_lens[row] for row in smooth],
        lens_redshift_list=[],
    )
    return _with_quasar(bare, lensing) if isinstance(lensing, QuasarSettings) else bare
