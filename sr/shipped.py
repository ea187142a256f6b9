"""The trained models that come with the package: which there are, and which of them fits an image."""

from pathlib import Path
from typing import Any

from simulate.errors import InputError

from .domain import Observation, scale_fits
from .model_folder import CONFIG_NAME, read_config
from .models import find_architecture
from .telescopes import agrees, recognise
from .trained_model import ModelConfig

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
"""One model folder each, named as the model."""
HOW_TO = "train one (`pipeline train`) and give its folder with --model"


def shipped_models() -> dict[str, ModelConfig]:
    """Name and configuration of each shipped model. Raises `InputError` if one is damaged."""
    folders = sorted(path.parent for path in WEIGHTS_FOLDER.glob(f"*/{CONFIG_NAME}"))
    return {folder.name: read_config(folder) for folder in folders}


def describe_shipped(config: ModelConfig) -> str:
    """ "Euclid VIS 0.1", x2" and the validation PSNR: what one chooses a model by."""
    score = validation_psnr_db(config)
    quality = "" if score is None else f", {score:.2f} dB in validation"
    scales = " and ".join(f"x{scale}" for scale in config.scales)
    only = ", for one lens in a whole image" if find_architecture(config.architecture).whole_images else ""
    return f'{config.lr_instrument} {config.lr_pixel_scale_arcsec:g}", {scales}{quality}{only}'


def validation_psnr_db(config: ModelConfig) -> float | None:
    """Mean PSNR over the validation split when the model was saved; None if it was not measured."""
    score: Any = config.scores.get("validation", {}).get("psnr_db")
    return score["mean"] if isinstance(score, dict) else score


def find_model(model: str | Path) -> Path:
    """The folder of a model, given as that or as the name of a shipped one. Raises `InputError` if it is neither."""
    if Path(model).is_dir():
        return Path(model)
    if str(model) in shipped_models():
        return WEIGHTS_FOLDER / str(model)
    raise InputError(f"--model {model}: no such folder, and no shipped model of this name ({_listed()})")


def choose_model(found: Observation, where: str, scale: int | None = None, with_psf: bool = False) -> Path:
    """The folder of the shipped model for the image `where`: of its pixel scale (within 5 %) and no other instrument.

    One that sees a single lens in a whole image has to be asked for by its name.
    Of several, those whose instrument is known to be the image's go first, then the smallest enlargement (if `scale` is
    not given), then those that learnt from many PSFs (if the image's is given, `with_psf`), then the best PSNR in
    validation (which compares models that were validated on the same lenses). Raises `InputError` if none fits, and if
    the header does not say which instrument's to take.
    """
    shipped = shipped_models()
    if not shipped:
        raise InputError(f"{where}: no model is shipped with this installation (none in {WEIGHTS_FOLDER}); {HOW_TO}")
    if found.pixel_scale_arcsec is None:
        raise InputError(
            f"{where}: expected PIXSCALE or a WCS in the header to choose a model by, found neither; set PIXSCALE, or "
            f"give --model ({_listed()}) and --force"
        )
    wanted, agreement = [], {}
    for name, config in shipped.items():
        agreement[name] = agrees(found.telescope, recognise(config.lr_instrument))
        fits = scale_fits(found.pixel_scale_arcsec, config) and scale in (None, *config.scales)
        any_image = config.channels == 1 and not find_architecture(config.architecture).whole_images
        if fits and agreement[name] is not False and any_image:
            wanted.append(name)
    if not wanted:
        what = f'{found.telescope.text or "an unknown instrument"} with {found.pixel_scale_arcsec:.4g}" pixels'
        asked = f" and a scale of {scale}" if scale else ""
        raise InputError(f"{where}: no shipped model is for {what}{asked} ({_listed()}); {HOW_TO}")
    known = [name for name in wanted if agreement[name]]
    instruments = {shipped[name].lr_instrument for name in known or wanted}
    if not known and len(instruments) > 1:
        raise InputError(
            f"{where}: expected the instrument in the header (TELESCOP, INSTRUME, FILTER), as these pixels could be "
            f"those of {' or '.join(sorted(instruments))}; set it, or give --model ({_listed()})"
        )

    def rank(name: str) -> tuple[int, bool, float]:
        config, score = shipped[name], validation_psnr_db(shipped[name])
        many_psfs = config.training_range is not None and config.training_range.lr_fwhm_range_arcsec is not None
        return scale or min(config.scales), with_psf and not many_psfs, float("inf") if score is None else -score

    return WEIGHTS_FOLDER / min(known or wanted, key=rank)


def _listed() -> str:
    named = [f"{name}: {describe_shipped(config)}" for name, config in shipped_models().items()]
    return f"shipped are {'; '.join(named)}" if named else "none is shipped"
