"""Which telescope, camera and filter an image is from, and whether a model was trained for them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEYWORDS = ("TELESCOP", "INSTRUME", "FILTER", "FILTER1", "FILTER2", "FILTER01", "FILTNAM1", "PUPIL", "BAND")
NOT_GIVEN = ("", "UNKNOWN", "NONE", "N/A")
CAMERAS = {
    "HST": "HST|HUBBLE",
    "HST ACS": "ACS",
    "HST WFC3": "WFC3",
    "HST WFPC2": "WFPC2",
    "HST NICMOS": "NICMOS",
    "JWST": "JWST",
    "JWST NIRCAM": "NIRCAM|NRC[AB]",
    "JWST NIRISS": "NIRISS",
    "JWST MIRI": "MIRI",
    "EUCLID": "EUCLID",
    "EUCLID VIS": "VIS",
    "EUCLID NISP": "NISP|NIR_[YJH]",
    "ROMAN WFI": "ROMAN",
    "RUBIN LSST": "LSST|LSSTCAM|RUBIN|SIMONYI",
    "SUBARU": "SUBARU",
    "SUBARU HSC": "HSC|HYPER SUPRIME-CAM",
    "BLANCO DECAM": "DES|DECAM|CTIO|BLANCO",
    "CFHT": "CFHT",
    "CFHT MEGACAM": "MEGACAM|MEGAPRIME",
}
"""A telescope, or a telescope and its camera: how headers and our configurations write it (upper case, whole words)."""
BAND = re.compile(r"(?<![A-Z0-9])(F\d{3,4}(?:LP|[WMNX]2?)?|VIS|[UGRIZYJH])(?![A-Z])")


@dataclass(frozen=True)
class Telescope:
    """What words say about where an image is from; empty sets where they say nothing."""

    text: str
    cameras: frozenset[str]
    bands: frozenset[str]


def recognise(text: str) -> Telescope:
    """From the name of an instrument, as `lr_instrument` of a model or the words of a header."""
    words = text.upper()
    found = {name for name, pattern in CAMERAS.items() if re.search(rf"(?<![A-Z])(?:{pattern})(?![A-Z])", words)}
    cameras = {one for one in found if not any(other.startswith(f"{one} ") for other in found)}
    return Telescope(text, frozenset(cameras), frozenset(BAND.findall(words)))


def telescope_of(header: Mapping[str, Any]) -> Telescope:
    """From TELESCOP, INSTRUME and FILTER (or what a telescope has in its place) of a FITS header.

    A camera that is not in our list is itself: it agrees with no other.
    """
    words = {key: header[key].strip() for key in KEYWORDS if isinstance(header.get(key), str)}
    words = {key: word for key, word in words.items() if word.upper() not in NOT_GIVEN}
    telescope = recognise(" ".join(words.values()))
    camera_found = any(" " in one for one in telescope.cameras)
    given = " ".join(words[key].upper() for key in ("TELESCOP", "INSTRUME") if key in words)
    if given and not camera_found and ("INSTRUME" in words or not telescope.cameras):
        return Telescope(telescope.text, frozenset({given}), telescope.bands)
    return telescope


def agrees(image: Telescope, model: Telescope) -> bool | None:
    """Whether an image is from a telescope of the model's: None if what is known of them cannot be compared.

    Where only the telescope is known ("HST"), all its cameras agree with it; a filter that is not known agrees.
    """
    answers = set()
    if image.cameras and model.cameras:
        answers.add(any(_same(one, other) for one in image.cameras for other in model.cameras))
    if image.bands and model.bands:
        answers.add(image.bands <= model.bands)
    return all(answers) if answers else None


def _same(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other} ") or other.startswith(f"{one} ")
