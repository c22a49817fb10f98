"""The variational and nonlinear inversions against their own equations."""

import logging
from functools import partial

import numpy as np
import pytest

from qsmflow.algorithms import fourier, operators
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.inversion import misfit
from qsmflow.algorithms.inversion.admm import Anchor, GeneralisedVariation, Grid, Residual, Variation, begin, minimise
from qsmflow.algorithms.inversion.direct import tikhonov
from qsmflow.algorithms.inversion.fansi import fansi, l1qsm, whqsm
from qsmflow.algorithms.inversion.hdqsm import hdqsm
from qsmflow.algorithms.inversion.ndi import ndi, slope
from qsmflow.algorithms.inversion.tuning import balanced_weight, zero_curvature, zones
from qsmflow.algorithms.inversion.tv import tv
from qsmflow.algorithms.units import GAMMA_BAR, radians_per_ppm

SIZE = 24
AXIS = np.arange(SIZE) - (SIZE - 1) / 2
R = np.sqrt(sum((AXIS**2).reshape(s) for s in [(-1, 1, 1), (1, -1, 1), (1, 1, -1)]))
MASK = R < 10.5
GEOMETRY = {"voxel_size": (1.0, 1.0, 1.0), "b0_dir": (0.0, 0.6, 0.8)}
NONLINEAR = GEOMETRY | {"b0": 3.0, "echo_times": (0.01,)}
ERROR = np.ones(R.shape, np.float32)
FIELD = (forward_field((0.1 * (R < 4)).astype(np.float32), **GEOMETRY) * MASK).astype(np.float32)
NOISY = (FIELD + 0.003 * np.random.default_rng(1).normal(size=R.shape) * MASK).astype(np.float32)
SCALE = 7.0
VALUES = {
    "squares": lambda d, w: w * d**2 / 2,
    "absolute": lambda d, w: w * np.abs(d),
    "phase_squares": lambda d, w: w * (1 - np.cos(SCALE * d)) / SCALE**2,
    "phase_absolute": lambda d, w: 2 * w * np.abs(np.sin(SCALE * d / 2)) / SCALE,
}


def contrast(chi):
    return chi[R < 3].mean() - chi[(R > 6) & MASK].mean()


def proximal(name, t, field, weight):
    """The minimiser of misfit and (z - t)^2 / 2 that a step finds."""
    step = getattr(misfit, name)
    options = {"scale": np.float32(SCALE)} if name.startswith("phase") else {}
    dual, target = np.zeros_like(t), np.zeros_like(t)
    step(field, weight, t, dual, target, np.float32(1), **options)
    assert np.allclose(target + dual, t - dual, atol=1e-5)
    return target + dual


@pytest.mark.parametrize("name", VALUES)
def test_data_steps_minimise(name):
    """No value of a fine grid around it (half a turn to each side) is better than what the step finds."""
    rng = np.random.default_rng(2)
    reach = np.pi / SCALE
    field = rng.uniform(-1, 1, (5, 6, 7)).astype(np.float32)
    t = (field + rng.uniform(-0.99 * reach, 0.99 * reach, field.shape)).astype(np.float32)
    weight = (rng.uniform(0, 1, field.shape) * (rng.random(field.shape) > 0.2)).astype(np.float32)
    if "absolute" in name:
        weight *= np.float32(0.2)
    z = proximal(name, t, field, weight)

    def cost(z):
        return VALUES[name](z - field, weight) + (z - t) ** 2 / 2

    others = np.linspace(-reach, reach, 801).reshape(-1, 1, 1, 1) + field
    assert (cost(z) <= cost(others.astype(float)).min(axis=0) + 1e-6).all()
    assert np.array_equal(z[weight == 0], t[weight == 0])


@pytest.mark.parametrize("name", ["squares", "phase_squares"])
def test_smooth_data_steps_are_stationary(name):
    """The derivative of the misfit, by finite differences, balances the pull to t."""
    rng = np.random.default_rng(3)
    field, t, weight = (rng.uniform(low, 1, (6, 6, 6)).astype(np.float32) for low in (-1, -1, 0))
    z, h = proximal(name, t, field, weight).astype(float), 1e-4
    derivative = (VALUES[name](z - field + h, weight) - VALUES[name](z - field - h, weight)) / (2 * h)
    assert np.abs(derivative + z - t).max() < 5e-6


def test_ndi_descends_along_its_gradient():
    rng = np.random.default_rng(4)
    field, weight, forward = (rng.uniform(low, 1, (5, 5, 5)).astype(np.float32) for low in (-1, 0, -1))
    got, h, d = forward.copy(), 1e-4, (forward - field).astype(float)
    slope(got, field, weight, np.float32(SCALE))
    expected = (VALUES["phase_squares"](d + h, weight) - VALUES["phase_squares"](d - h, weight)) / (2 * h)
    assert np.abs(got - expected).max() < 1e-5


def phase_misfit(chi, field=NOISY):
    scale = radians_per_ppm(b0=3.0, echo_times=(0.01,))
    return ((1 - np.cos(scale * (forward_field(chi, **GEOMETRY) - field)))[MASK]).sum() / scale**2


def variation(chi):
    gradient = np.empty((3, *chi.shape), np.float32)
    operators.gradient(chi, (np.float32(1),) * 3, gradient)
    return np.sqrt((gradient**2).sum(axis=0)).sum()


def test_ndi_lowers_its_misfit_and_refuses_to_overshoot():
    misfits = [phase_misfit(ndi(NOISY, MASK, ERROR, **NONLINEAR, iterations=n)) for n in (1, 5, 25, 125)]
    assert misfits[0] > misfits[1] > misfits[2] > misfits[3]
    assert misfits[3] < 0.2 * misfits[0]
    with pytest.raises(ValueError, match="does not settle"):
        ndi(NOISY, MASK, ERROR, **NONLINEAR, step=5.0)


@pytest.mark.parametrize("name", VALUES)
def test_the_objective_falls(name):
    """On the padded grid, where nothing is cut off."""
    grid = Grid(R.shape, GEOMETRY["voxel_size"], GEOMETRY["b0_dir"])
    field, weight = grid.pad(NOISY), grid.pad(MASK) * np.float32(0.01 if "absolute" in name else 1)
    step = getattr(misfit, name)
    step = partial(step, scale=np.float32(SCALE)) if name.startswith("phase") else step

    def objective(n):
        data, penalty = Residual(grid, field, weight, step), Variation(grid, 1e-3)
        chi = minimise(grid, data, penalty, mask=MASK, iterations=n, tolerance=0.0, name="test")
        return VALUES[name](grid.forward(chi) - field, weight).sum() + 1e-3 * variation(chi)

    values = [objective(n) for n in (2, 10, 60)]
    assert values[0] > values[1] > values[2]
    assert values[2] < 0.9 * objective(0)


@pytest.mark.parametrize("method", [fansi, l1qsm, whqsm])
def test_whole_turns_of_one_voxel_do_not_matter(method):
    """A voxel whose field was unwrapped wrongly by one turn after the linear start."""
    turn = 2 * np.pi / radians_per_ppm(b0=3.0, echo_times=(0.2,))
    where = (SIZE // 2 + 4, SIZE // 2, SIZE // 2)
    wrong = FIELD.copy()
    wrong[where] += np.float32(turn)
    context = GEOMETRY | {"b0": 3.0, "echo_times": (0.2,)}
    clean, spoiled = (method(f, MASK, ERROR, **context) for f in (FIELD, wrong))
    linear = tv(wrong, MASK, ERROR, **GEOMETRY)
    assert np.abs(spoiled - clean)[MASK].max() < 0.2 * np.abs(linear - tv(FIELD, MASK, ERROR, **GEOMETRY))[MASK].max()


def test_fansi_is_tv_where_phases_are_small():
    context = GEOMETRY | {"b0": 3.0, "echo_times": (1e-4,)}
    options = {"lambda_": 5e-4, "iterations": 60, "tolerance": 0.0}
    assert np.abs(fansi(NOISY, MASK, ERROR, **context, **options) - tv(NOISY, MASK, ERROR, **GEOMETRY, **options)).max() < 1e-3


def test_the_weight_holds_at_any_field_strength():
    """The same tissue at 3 and 7 T, with echo times as each is scanned."""
    maps = [
        fansi(NOISY, MASK, ERROR, **GEOMETRY, b0=b0, echo_times=times, lambda_=1e-3)
        for b0, times in ((3.0, (0.01, 0.02)), (7.0, (0.005, 0.01)))
    ]
    assert contrast(maps[0]) == pytest.approx(contrast(maps[1]), rel=0.01)


@pytest.mark.parametrize("method", ["l1qsm", "hdqsm"])
def test_an_outlier_is_recognised(method):
    """One voxel that is off by 2 rad changes the map elsewhere less than with squares."""
    wrong = FIELD.copy()
    wrong[SIZE // 2 + 4, SIZE // 2, SIZE // 2] += np.float32(2 / radians_per_ppm(b0=3.0, echo_times=(0.01,)))
    run = partial(l1qsm, **NONLINEAR) if method == "l1qsm" else partial(hdqsm, **GEOMETRY)
    run = partial(run, iterations=200, tolerance=1e-3)
    squares = partial(tv, **GEOMETRY)
    moved, with_squares = (
        np.abs(invert(wrong, MASK, ERROR) - invert(FIELD, MASK, ERROR))[R < 3].mean() for invert in (run, squares)
    )
    assert moved < 0.25 * with_squares


def converged(penalty, field, iterations=60):
    grid = Grid(R.shape, GEOMETRY["voxel_size"], GEOMETRY["b0_dir"])
    data = Residual(grid, grid.pad(field), grid.pad(MASK), misfit.squares)
    chi = minimise(grid, data, penalty(grid), mask=MASK, iterations=iterations, tolerance=0.0, name="test")
    return grid.crop(chi, MASK)


def test_a_large_ratio_turns_generalised_variation_into_variation():
    """Where v may not bend it is constant on the periodic grid, and its mean is 0."""
    plain, general = (
        converged(penalty, NOISY) for penalty in (lambda g: Variation(g, 1e-3), lambda g: GeneralisedVariation(g, 1e-3, 1e4))
    )
    assert np.abs(plain - general)[MASK].max() < 0.02 * np.ptp(plain)


def test_rts_keeps_what_is_well_conditioned():
    grid = Grid(R.shape, GEOMETRY["voxel_size"], GEOMETRY["b0_dir"])
    first = grid.pad(NOISY)
    spectrum = fourier.rfftn(first, grid.shape)
    kept = (np.abs(grid.kernel) > 0.15).astype(np.float32)
    data, penalty = Anchor(kept, spectrum), Variation(grid, 1e-5)
    begin(grid, data, penalty, first)
    chi = minimise(grid, data, penalty, mask=MASK, iterations=30, tolerance=0.0, name="rts", start=first)
    kept[0, 0, 0] = 0
    difference = kept * (fourier.rfftn(chi, grid.shape) - spectrum)
    assert np.linalg.norm(difference) < 1e-2 * np.linalg.norm(kept * spectrum)
    assert variation(chi) < variation(first)


def test_whqsm_takes_up_a_harmonic_field():
    """A quadratic harmonic field on top of the source's changes the map less than without the additional field."""
    x, y = AXIS.reshape(-1, 1, 1), AXIS.reshape(1, -1, 1)
    added = (NOISY + 5e-4 * (x**2 - y**2) * MASK).astype(np.float32)
    moved = [
        np.abs(method(added, MASK, ERROR, **NONLINEAR) - method(NOISY, MASK, ERROR, **NONLINEAR))[MASK].mean()
        for method in (whqsm, fansi)
    ]
    assert moved[0] < 0.75 * moved[1]


def test_whqsm_refuses_a_field_without_bounds():
    with pytest.raises(ValueError, match="beta must be positive"):
        whqsm(FIELD, MASK, ERROR, **NONLINEAR, beta=0.0)


def test_the_end_of_an_iteration_is_told(caplog):
    with caplog.at_level(logging.INFO, "qsmflow"):
        tv(FIELD, MASK, ERROR, **GEOMETRY, iterations=3)
        tv(FIELD, MASK, ERROR, **GEOMETRY, tolerance=0.1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "stopped after 3 iterations" in caplog.text
    assert "settled after" in caplog.text


def test_radians_per_ppm():
    assert radians_per_ppm(b0=7.0, echo_times=(0.004, 0.008)) == pytest.approx(2 * np.pi * GAMMA_BAR * 7 * 0.006)


def test_tikhonov_finds_the_corner():
    """The chosen weight does not hang on where the search starts, and noise raises it."""
    rng = np.random.default_rng(5)
    noise = rng.normal(size=R.shape).astype(np.float32) * MASK

    def chosen(level, start):
        field = FIELD + np.float32(level) * noise
        found = tikhonov(field, MASK, **GEOMETRY, lambda_=start, penalty="gradient", tune="lcurve")
        grid = np.logspace(-6, 0, 61)
        maps = [tikhonov(field, MASK, **GEOMETRY, lambda_=w, penalty="gradient") for w in grid]
        return grid[np.argmin([np.linalg.norm(found - one) for one in maps])]

    assert chosen(0.01, 0.01) == pytest.approx(chosen(0.01, 0.02), rel=0.4)
    assert chosen(0.03, 0.01) > chosen(0.003, 0.01)


@pytest.mark.parametrize(("method", "level"), [(tv, 0.001), (tv, 0.01), (partial(fansi, b0=3.0, echo_times=(0.01,)), 0.001)])
def test_known_noise_tells_the_weight(method, level):
    """Whatever the given weight: the map is nearly as good as that of the best weight, which is not near the given ones."""
    noise = np.random.default_rng(5).normal(size=R.shape)
    field = (FIELD + level * noise * MASK).astype(np.float32)
    truth = 0.1 * (R[MASK] < 4)

    def away(weight, **settings):
        found = method(field, MASK, level * ERROR, **GEOMETRY, lambda_=weight, **settings)[MASK]
        return np.linalg.norm(found - found.mean() - truth + truth.mean())

    best = min(away(weight) for weight in np.logspace(-4.5, -2, 6))
    for given in (1.5 * level, 0.05 * level):
        assert away(given, tune="discrepancy") < 1.2 * best < away(given)


def test_even_frequencies():
    """The chosen weight does not depend on the given one, and smooths noise away that is as strong as the field."""
    rough = (FIELD + 0.02 * np.random.default_rng(6).normal(size=R.shape) * MASK).astype(np.float32)
    grid = Grid(R.shape, (1.0,) * 3, GEOMETRY["b0_dir"])
    near, far = zones(grid.kernel, sum(k * k for k in fourier.frequencies(grid.shape, (1.0,) * 3)), (1.0,) * 3)

    def unevenness(weight, how):
        found = tv(rough, MASK, ERROR, **GEOMETRY, lambda_=weight, tune=how, iterations=200, tolerance=1e-3)
        spectrum = np.abs(fourier.rfftn(found, grid.shape))
        return abs(np.log(spectrum[near].mean() / spectrum[far].mean()))

    for given in (3e-4, 1e-3):
        assert unevenness(given, "frequency") < 0.1
    assert unevenness(3e-5, "none") > 0.3


def test_a_balance_that_cannot_be_reached_leaves_the_weight(caplog):
    assert balanced_weight(2.0, lambda weight: 1.0, "tv") == 2.0
    assert balanced_weight(2.0, lambda weight: -1.0, "tv") == 2.0
    assert caplog.text.count("it stays") == 2


def test_the_inflection_of_a_known_curve():
    """``log penalty = -arctan(log misfit)`` bends at the corner and straightens at 0."""
    x = np.linspace(4, -4, 41)
    index = zero_curvature(np.exp(x), np.exp(-np.arctan(x)), np.exp(x))
    assert abs(x[index]) < 0.3
