"""iLSQR and STAR: least squares, and what keeps or takes streaks away."""

import numpy as np
import pytest

from qsmflow.algorithms import fourier
from qsmflow.algorithms.dipole import dipole_kernel, forward_field
from qsmflow.algorithms.inversion import ilsqr as parts
from qsmflow.algorithms.inversion.ilsqr import ilsqr
from qsmflow.algorithms.inversion.star import star
from qsmflow.algorithms.inversion.tv import tv

SIZE = 32
AXES = np.ogrid[tuple(slice(-(SIZE - 1) / 2, (SIZE + 1) / 2) for _ in range(3))]
R = np.sqrt(sum(axis**2 for axis in AXES))
BALL = (R < 5).astype(np.float32)
MASK = R < 14
EVEN = np.ones(R.shape, np.float32)
TILTED = (0, np.sin(np.deg2rad(35)), np.cos(np.deg2rad(35)))
CONTEXT = {"voxel_size": (1, 1, 1), "b0_dir": TILTED}
FIELD = forward_field(BALL, **CONTEXT)
SHAPE = fourier.padded_shape(MASK.shape)
KERNEL = dipole_kernel(SHAPE, **CONTEXT)
CONE = np.abs(KERNEL) < 0.1
STOP = {"iterations": 50, "tolerance": 1e-2}


def contrast(chi):
    return chi[R < 3].mean() - chi[(R > 8) & (R < 13)].mean()


def spread(error):
    return float((error - error.mean()).std())


def test_ilsqr_sphere():
    chi = ilsqr(FIELD, MASK, **CONTEXT)
    assert contrast(chi) == pytest.approx(0.9, abs=0.05)
    assert not chi[~MASK].any()
    assert np.abs(ilsqr(-FIELD, MASK, **CONTEXT) + chi).max() < 1e-4
    assert np.array_equal(ilsqr(FIELD, MASK, voxel_size=(1, 1, 1), b0_dir=tuple(-b for b in TILTED)), chi)


def test_subtracting_streaks_improves_on_least_squares():
    first = parts.least_squares((FIELD * MASK).astype(np.float32), MASK, KERNEL, SHAPE, (1, 1, 1), **STOP)
    errors = [spread((chi - BALL)[R < 12]) for chi in (first, ilsqr(FIELD, MASK, **CONTEXT))]
    assert errors[1] < 0.7 * errors[0]


def test_streaks_are_found_and_lie_in_the_cone():
    """Noise with frequencies of the cone alone goes, structure stays."""
    rng = np.random.default_rng(0)
    noise = 0.2 * fourier.convolve(rng.normal(size=SHAPE).astype(np.float32), CONE, SHAPE)
    fast = parts.fast_estimate((FIELD * MASK).astype(np.float32), MASK, KERNEL, SHAPE, (1, 1, 1))
    streaks = parts.streak_estimate((BALL + noise) * MASK, fast, MASK, CONE, SHAPE, (1, 1, 1), **STOP)
    left = (noise - streaks)[MASK]
    assert spread(left) ** 2 < 0.2 * spread(noise[MASK]) ** 2
    spectrum = np.abs(fourier.rfftn(streaks, SHAPE))
    assert spectrum[~CONE].max() < 1e-4 * spectrum.max()


def test_least_squares_reach_their_tolerance():
    """With more iterations, ``D W (D chi - f)`` gets smaller; with a coarser tolerance, it stops earlier."""
    field = (FIELD * MASK).astype(np.float32)
    few, many, coarse = (
        parts.least_squares(field, MASK, KERNEL, SHAPE, (1, 1, 1), iterations=n, tolerance=t)
        for n, t in ((3, 1e-3), (60, 1e-3), (60, 0.5))
    )
    misfits = [np.linalg.norm((fourier.convolve(chi, KERNEL, SHAPE) - field)[R < 10]) for chi in (few, many, coarse)]
    assert misfits[1] < 0.7 * misfits[0]
    assert misfits[1] < 0.7 * misfits[2]


def test_weights_fall_between_their_percentiles():
    values = np.linspace(0, 1, 101, dtype=np.float32).reshape(101, 1, 1)
    inside = np.ones(values.shape, bool)
    inside[-1] = False
    weights = parts._falling(values, inside, (50.0, 70.0)).ravel()
    assert (weights[:50] == 1).all()
    assert not weights[70:].any()
    assert weights[59] == pytest.approx(0.525, abs=0.01)


def test_laplacian_does_not_look_outside():
    """A linear field has none, also at the mask's edge, whatever lies beyond; anisotropic voxels count by their size."""
    x, y, z = np.meshgrid(*3 * [np.arange(12.0)], indexing="ij")
    inside = np.zeros(x.shape, bool)
    inside[3:9, 3:9, 3:9] = True
    rough = parts._roughness((x**2).astype(np.float32), inside, (2.0, 1.0, 1.0))
    assert np.allclose(rough[4:8, 3:9, 3:9], 2 / 4)
    assert np.allclose(parts._roughness(np.where(inside, y + z, 50).astype(np.float32), inside, (1, 1, 1))[4:8, 4:8, 4:8], 0)


def test_star_keeps_streaks_of_a_strong_source_from_a_weak_one():
    """Within a strong source the field is noise: with one level, total variation spreads it over the surroundings."""
    weak = 0.05 * (np.sqrt((AXES[0] - 8) ** 2 + AXES[1] ** 2 + AXES[2] ** 2) < 3)
    strong = R < 3
    chi = np.where(strong, 1, weak).astype(np.float32)
    noise = 0.2 * np.random.default_rng(0).normal(size=chi.shape) * strong
    field = (forward_field(chi, **CONTEXT, space="image") + noise).astype(np.float32)
    around = (R > 5) & (R < 13)
    one_level, two_levels = (method(field, MASK, EVEN, lambda_=1e-4, **CONTEXT) for method in (tv, star))
    assert spread((two_levels - chi)[around]) < 0.5 * spread((one_level - chi)[around])
    assert two_levels[R < 2].mean() - two_levels[around].mean() == pytest.approx(1, abs=0.15)
    turned = star(field, MASK, EVEN, voxel_size=(1, 1, 1), b0_dir=tuple(-b for b in TILTED))
    assert np.array_equal(turned, two_levels)
    assert np.abs(star(-field, MASK, EVEN, **CONTEXT) + two_levels).max() < 1e-3
