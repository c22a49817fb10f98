"""Separation of sources against spheres that hold known amounts of both signs."""

import numpy as np
import pytest

from qsmflow.algorithms import simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.separation.chisep import chisep
from qsmflow.algorithms.separation.rates import r2starqsm, source_rate

SHAPE, GRID = (36, 34, 30), {"voxel_size": (1.0, 1.0, 1.2)}
CONTEXT = GRID | {"b0_dir": (0.0, 0.6, 0.8)}
MASK = simulation.sphere(SHAPE, radius=14.5, **GRID) > 0.5
#: Centre (voxels), paramagnetic and diamagnetic strength (ppm) of three spheres of 4 mm.
SPHERES = {"iron": ((12, 12, 15), 0.1, 0.0), "myelin": ((24, 14, 15), 0.0, 0.06), "both": ((18, 24, 15), 0.1, 0.07)}
INSIDE = {name: simulation.sphere(SHAPE, radius=2.5, centre=centre, **GRID) > 0.5 for name, (centre, *_) in SPHERES.items()}
REST, B0 = 13.0, 3.0


def strengths():
    """The truth: how much there is of either sign."""
    balls = {name: simulation.sphere(SHAPE, radius=4, centre=row[0], **GRID) for name, row in SPHERES.items()}
    return tuple(sum(balls[name] * row[i] for name, row in SPHERES.items()).astype(np.float32) for i in (1, 2))


def acquired(relaxivity=(45.7, 45.7), b0=B0):
    """Susceptibility, field, R2* and R2 of the spheres."""
    para, dia = strengths()
    rate = b0 * (relaxivity[0] * para + relaxivity[1] * dia) + REST
    r2 = np.full(SHAPE, REST, np.float32)
    return para - dia, forward_field(para - dia, **CONTEXT), rate.astype(np.float32), r2


def separate(chi, field, r2star, r2, b0=B0, **parameters):
    error = np.full(SHAPE, 1e-3, np.float32)
    return chisep(chi, field * MASK, MASK, error, r2star, r2, b0=b0, **CONTEXT, **parameters)


def test_closed_form_is_exact():
    para, dia = strengths()
    chi, _, rate, r2 = acquired((91.3, 91.3))
    found = r2starqsm(chi, MASK, rate, r2, b0=B0)
    np.testing.assert_allclose(found[0], para * MASK, atol=1e-6)
    np.testing.assert_allclose(found[1], -dia * MASK, atol=1e-6)
    assert found[2] == REST
    outside = r2starqsm(chi - 1, MASK, rate, r2, b0=B0)  # susceptibility beyond the mask is none of ours, its sign neither
    assert not any(values[~MASK].any() or np.signbit(values[~MASK]).any() for values in outside[:2])


def test_closed_form_is_the_smallest_misfit_within_the_bounds():
    """Where the rate cannot be had with sources of the right signs, no neighbour within the bounds is better."""
    rng = np.random.default_rng(0)
    chi, both = (0.1 * rng.normal(size=(20, 1, 1))).astype(np.float32), (0.05 * rng.random((20, 1, 1))).astype(np.float32)
    whole = np.ones(chi.shape, bool)
    para, dia, _ = r2starqsm(chi, whole, 10 + 3 * 91.3 * both, np.full(chi.shape, 10.0), b0=3.0)

    def misfit(p, d):
        return (p + d - chi) ** 2 + (p - d - both) ** 2

    assert ((np.abs(chi) > both) & ((para == 0) | (dia == 0))).any()
    for step in (-1e-4, 1e-4):
        assert (misfit(np.maximum(para + step, 0), dia) >= misfit(para, dia) - 1e-9).all()
        assert (misfit(para, np.minimum(dia + step, 0)) >= misfit(para, dia) - 1e-9).all()


def test_a_higher_baseline_lowers_both_by_half_of_it():
    chi, _, rate, r2 = acquired((91.3, 91.3))
    low, high = (r2starqsm(chi, MASK, rate, 0 * r2, b0=B0, baseline=value) for value in (8.0, 10.0))
    moved = 2.0 / (2 * 91.3 * B0)
    where = INSIDE["both"]
    np.testing.assert_allclose((low[0] - high[0])[where], moved, rtol=1e-3)
    np.testing.assert_allclose((high[1] - low[1])[where], moved, rtol=1e-3)


def test_baseline_is_found_where_it_was_not_measured():
    chi, _, rate, r2 = acquired((91.3, 91.3))
    assert r2starqsm(chi, MASK, rate, 0 * r2, b0=B0)[2] == pytest.approx(REST, abs=1e-4)
    half = np.where(np.arange(SHAPE[0])[:, None, None] < 18, r2, 0)
    found, rest = source_rate(rate, half, chi, MASK, relaxivity=91.3 * B0, baseline=5.0)
    assert np.median(found[:18][MASK[:18] & (chi[:18] == 0)]) == pytest.approx(0)
    assert np.median(found[18:][MASK[18:] & (chi[18:] == 0)]) == pytest.approx(REST - 5, abs=1e-4)
    assert rest in (5.0, REST)


@pytest.mark.parametrize(("relaxivity", "b0"), [((45.7, 45.7), 3.0), ((45.7, 20.0), 7.0)])
def test_chi_separation_finds_both(relaxivity, b0):
    chi, field, rate, r2 = acquired(relaxivity, b0)
    names = dict(zip(("relaxivity_para", "relaxivity_dia"), relaxivity, strict=True))
    para, dia, _ = separate(chi, field, rate, r2, b0, **names)
    for name, (_, true_para, true_dia) in SPHERES.items():
        assert para[INSIDE[name]].mean() == pytest.approx(true_para, abs=0.008), name
        assert -dia[INSIDE[name]].mean() == pytest.approx(true_dia, abs=0.008), name
    for found in (para, dia):
        assert not found[~MASK].any()
        assert not np.signbit(found[found == 0]).any()
    assert para.min() == 0
    assert dia.max() == 0


def test_chi_separation_listens_to_the_field_and_to_the_rate():
    """The field turned round swaps the signs; with no weight on the rate it has no say."""
    chi, field, rate, r2 = acquired()
    para, dia, _ = separate(chi, field, rate, r2)
    swapped = separate(-chi, -field, rate, r2)
    assert np.abs(swapped[0] + dia).max() < 2e-3
    assert np.abs(swapped[1] + para).max() < 2e-3
    without = separate(chi, field, rate, r2, balance=0.0)
    assert np.array_equal(without[0], separate(chi, field, 2 * rate, r2, balance=0.0)[0])
    assert without[0][INSIDE["both"]].mean() < 0.6 * para[INSIDE["both"]].mean()  # only the sum, 0.03, is known


def test_noise_of_the_field_is_smoothed():
    rng = np.random.default_rng(2)
    chi, field, rate, r2 = acquired()
    noisy = (field + 2e-3 * rng.normal(size=SHAPE)).astype(np.float32)
    quiet = MASK & ~np.any([simulation.sphere(SHAPE, radius=6, centre=c, **GRID) > 0 for c, *_ in SPHERES.values()], axis=0)
    weak, strong = (separate(chi, noisy, rate, r2, lambda_=weight)[0][quiet].std() for weight in (1e-5, 5e-4))
    assert strong < 0.6 * weak
