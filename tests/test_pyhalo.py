"""Realisations by pyHalo; all but one test are skipped where the optional package is missing."""

import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM

from simulate.cosmology import CosmologySettings, LensGeometry
from simulate.errors import InputError
from simulate.populations import Substructure, SubstructureContext
from simulate.populations.pyhalo import PyHaloSettings, _load, draw_pyhalo

GEOMETRY = LensGeometry(CosmologySettings(), 0.5, 1.5)
CONTEXT = SubstructureContext(GEOMETRY, 1.0, 3.0)
SETTINGS = PyHaloSettings(mass_min_msun=1e8, host_mass_msun=2e13, sigma_sub_kpc2=0.1)


def draw(seed: int, context: SubstructureContext = CONTEXT) -> Substructure:
    if find_spec("pyHalo") is None:
        pytest.skip("the optional package pyHalo is not installed")
    return draw_pyhalo(SETTINGS, context, np.random.default_rng([2, seed]))


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _load.cache_clear()
    monkeypatch.setitem(sys.modules, "colossus.settings", None)
    monkeypatch.setitem(sys.modules, "colossus", None)
    with pytest.raises(InputError, match=r"needs pyHalo 1.3.5 .* pip install 'sharplens\[pyhalo\]'"):
        draw_pyhalo(SETTINGS, CONTEXT, np.random.default_rng(0))
    far = SubstructureContext(LensGeometry(CosmologySettings(), 0.5, 5.0), 1.0, 3.0)
    with pytest.raises(InputError, match=r"out to redshift 3.9, found a source at 5"):
        draw_pyhalo(SETTINGS, far, np.random.default_rng(0))


def test_draws_follow_the_generator_and_leave_numpys_state_alone() -> None:
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one = draw(0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert draw(0) == one
    assert draw(1).lens_models != one.lens_models


def test_halos_and_sheets_fill_the_line_of_sight() -> None:
    one = draw(0)
    names = [name for name, _ in one.lens_models]
    assert len(names) == len(one.redshifts)
    assert set(names) == {"TNFW", "CONVERGENCE"}
    assert 0 < min(one.redshifts) < 0.1
    assert 1.4 < max(one.redshifts) < 1.5
    assert names.count("TNFW") == len(one.draw["subhalo_mass_msun"] + one.draw["line_of_sight_halo_mass_msun"])
    for name, kwargs in one.lens_models:
        assert all(np.isfinite(value) for value in kwargs.values())
        if name == "TNFW":
            assert kwargs["r_trunc"] > 1e-3 * kwargs["Rs"]
            assert np.hypot(kwargs["center_x"], kwargs["center_y"]) <= 3.001
        else:
            assert kwargs["kappa"] < 0


def test_mean_mass_is_compensated() -> None:
    """Through lenstronomy's multi-plane equation, with an isothermal sphere as the lens: its ring stays as large as it
    is. pyHalo's own sheets would make it smaller by 3.5 %."""
    from lenstronomy.LensModel.lens_model import LensModel

    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x, y = np.cos(angle), np.sin(angle)
    radial, sheets = [], []
    for i in range(9):
        one = draw(i)
        models = [
            ("SIS", {"theta_E": 1.0, "center_x": 0, "center_y": 0}),
            ("CONVERGENCE", {"kappa": -one.mean_convergence, "ra_0": 0, "dec_0": 0}),
            *one.lens_models,
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lenstronomy warns whenever it is given a cosmology
            lens = LensModel(
                [name for name, _ in models],
                lens_redshift_list=[0.5, 0.5, *one.redshifts],
                z_source=1.5,
                multi_plane=True,
                cosmo=FlatLambdaCDM(H0=70, Om0=0.3),
            )
        alpha = lens.alpha(x, y, [kwargs for _, kwargs in models])
        radial.append(np.mean(alpha[0] * x + alpha[1] * y) - 1)
        sheets.append(one.mean_convergence - sum(kwargs.get("kappa", 0) for _, kwargs in one.lens_models))
    error = np.std(radial) / 3
    assert abs(np.mean(radial)) < 3 * error
    assert np.mean(sheets) > 5 * error


def test_lenses_right_behind_one_of_pyhalos_planes_are_drawn() -> None:
    """Its planes are at 0.01, 0.03, ...; a lens at 0.493 is 0.003 behind one, and pyHalo takes that for nothing."""
    close = SubstructureContext(LensGeometry(CosmologySettings(), 0.493, 1.5), 1.0, 3.0)
    assert not draw(0, close).draw["two_halo_term"]
    assert draw(0).draw["two_halo_term"]
