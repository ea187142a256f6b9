"""Postage stamps of galaxies from a FITS file."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Cube:
    """Stamps (N,H,W) and the name of the galaxy in each."""

    path: Path
    names: tuple[str, ...]
    stamps: np.ndarray


def read_cube(path: Path, hdu: int | str | None, id_column: str | None) -> Cube:
    """The stamps of a FITS file; read once in a process, and again when the file has changed.

    `hdu` None is the first HDU with a cube; `id_column` None names each galaxy by the SHA-256 of its pixels. Raises
    `InputError` if the file, HDU or column is missing or is no such thing.
    """
    try:
        changed_ns = path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return _read_cube(path.resolve(), hdu, id_column, changed_ns)


@lru_cache(maxsize=2)
def _read_cube(
    path: Path,
    hdu: int | str | None,
    id_column: str | None,
    changed_ns: int,  # noqa: ARG001 - tells versions of the file apart
) -> Cube:
    from astropy.io import fits

    try:
        with fits.open(path, memmap=False) as opened:
            cubes = [number for number, one in enumerate(opened) if one.is_image and one.header["NAXIS"] == 3]
            if hdu is None and not cubes:
                raise InputError(f"{path}: expected an HDU with a cube (galaxy, row, column), found none")
            try:
                chosen = opened[cubes[0] if hdu is None else hdu]
            except (KeyError, IndexError):
                raise InputError(f"{path}: has no HDU {hdu!r}; HDUs with a cube: {cubes}") from None
            if not chosen.is_image or chosen.header["NAXIS"] != 3:
                raise InputError(f"{path}: HDU {hdu!r} is no cube (galaxy, row, column); HDUs with a cube: {cubes}")
            stamps = np.asarray(chosen.data)
            if id_column is None:
                hashes = (hashlib.sha256(one.astype("<f8").tobytes()) for one in stamps)
                return Cube(path, tuple(one.hexdigest()[:16] for one in hashes), stamps)
            tables = [one for one in opened if getattr(one, "columns", None) is not None]
            for table in tables:
                if id_column in table.columns.names and len(table.data) == len(stamps):
                    return Cube(path, tuple(str(name).strip() for name in table.data[id_column]), stamps)
            columns = [name for table in tables for name in table.columns.names]
            raise InputError(f"{path}: has no column {id_column!r} with {len(stamps)} rows; columns: {columns}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read as FITS: {error}") from None
