"""Inversions that compare phases: nonlinear data terms with total variation or total generalised variation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from qsmflow.algorithms.inversion import admm, misfit
from qsmflow.algorithms.inversion.admm import (
    GeneralisedVariation,
    Grid,
    HarmonicResidual,
    Residual,
    Variation,
    minimise,
    prepare,
)
from qsmflow.algorithms.units import radians_per_ppm

#: Misfit, ppm, that an absolute data term takes in one step at full weight. It sets how fast ADMM converges, not where to.
SMALL_MISFIT = 0.01

#: Iterations with the linear data term before the nonlinear one.
LINEAR_START = 20

#: Weight of a weakly harmonic field over the penalty of its split.
_HARMONIC_RATIO = 50.0


def fansi(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    penalty: Literal["tv", "tgv"] = "tv",
    lambda_: float = 1e-4,
    ratio: float = 4.0,
    iterations: int = 100,
    tolerance: float = 5e-3,
    weighted: bool = True,
    tune: Literal["none", "lcurve", "discrepancy", "frequency"] = "none",
) -> np.ndarray:
    """Susceptibility by nonlinear inversion with total (generalised) variation, as in the toolbox FANSI.

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter, unless ``tune`` is ``"discrepancy"``).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    b0 : float
        Main field strength, T.
    echo_times : sequence of float
        Echo times, s; their mean turns the field into a phase.
    penalty : {"tv", "tgv"}
        Total variation, or second-order total generalised variation, which has slopes besides steps.
    lambda_ : float
        Weight of the penalty, ppm mm.
    ratio : float
        Weight of the second derivatives relative to the first ("tgv"), mm.
    iterations : int
        Largest number of ADMM iterations.
    tolerance : float
        Stop when the susceptibility in the mask changes by less than this fraction of its norm.
    weighted : bool
        Weight voxels of the mask with the inverse of their field error instead of equally.
    tune : {"none", "lcurve", "discrepancy", "frequency"}
        Take ``lambda_`` as it is, or a weight between a tenth and ten times it: where the L-curve straightens below its corner
        (takes 220 iterations more), where the misfit is what the field error lets expect (which must then be that of the
        field, in ppm), or where the map is as strong near the dipole's cone as far from it (both up to 220 iterations).

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    ``min 1/(2 s^2) ||W (exp(i s D chi) - exp(i s f))||^2 + lambda P(chi)`` with s the phase of one ppm
    (:func:`qsmflow.algorithms.units.radians_per_ppm`): where the fit is good it is the objective of
    :func:`qsmflow.algorithms.inversion.tv.tv` with the same weight, at any field strength, but a field that is off by more
    than half a turn pulls no harder. P is ``||grad chi||_1`` or, smallest over all vector fields v,
    ``||grad chi - v||_1 + ratio ||sym grad v||_1``. W = 0 outside the mask, where the susceptibility is free. The data
    step is the root of ``x + w sin(x) = y`` in every voxel, by Newton's method.

    References
    ----------
    Milovic et al., MRM 85:480, 2021, doi:10.1002/mrm.28435 (choice of the weight).
    Milovic et al., MRM 80:814, 2018, doi:10.1002/mrm.27073.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1)}
    >>> field = forward_field(np.float32(0.1) * (r2 < 64), **context)
    >>> chi = fansi(field, r2 < 196, np.ones_like(field), **context, b0=3.0, echo_times=(0.02,))
    >>> bool(abs(chi[r2 < 36].mean() - chi[(r2 > 100) & (r2 < 196)].mean() - 0.1) < 0.005)
    True
    """
    grid, field, weight = prepare(local_field, mask, field_error, weighted, voxel_size, b0_dir)
    weight *= weight
    data = Residual(grid, field, weight, misfit.squares)
    gradient = GeneralisedVariation(grid, lambda_, ratio) if penalty == "tgv" else Variation(grid, lambda_)
    options = {"mask": mask, "name": "fansi"}
    start = admm.tune(grid, data, gradient, lambda_, tune, power=2, field_error=field_error, **options)
    options |= {"start": start, "iterations": iterations, "tolerance": tolerance}
    return grid.crop(_minimise(grid, data, gradient, _in_radians(misfit.phase_squares, b0, echo_times), **options), mask)


def whqsm(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    lambda_: float = 2e-4,
    beta: float = 150.0,
    iterations: int = 100,
    tolerance: float = 5e-3,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility by nonlinear inversion with total variation and a weak harmonic field beside it (WH-QSM).

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    b0 : float
        Main field strength, T.
    echo_times : sequence of float
        Echo times, s; their mean turns the field into a phase.
    lambda_ : float
        Weight of the total variation, ppm mm.
    beta : float
        Weight that keeps the additional field harmonic in the mask, mm^4.
    iterations : int
        Largest number of ADMM iterations.
    tolerance : float
        Stop when the susceptibility in the mask changes by less than this fraction of its norm.
    weighted : bool
        Weight voxels of the mask with the inverse of their field error instead of equally.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Raises
    ------
    ValueError
        If ``beta`` is not positive: a field without bounds would take everything.

    Notes
    -----
    The objective of :func:`fansi` with ``D chi + h`` for ``D chi``, plus ``beta/2 ||M lap h||^2``: what background removal
    left behind may go to h. Susceptibility and h are solved for together in k-space. W = 0 outside the mask, where both are
    free.

    References
    ----------
    Milovic et al., MRM 81:1399, 2019, doi:10.1002/mrm.27483.

    Examples
    --------
    A linear field is harmonic and leaves no susceptibility to speak of:

    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = np.float32(0.01) * np.arange(-16, 16, dtype=np.float32)[:, None, None] * (r2 < 144)
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1), "b0": 3.0, "echo_times": (0.02,)}
    >>> error = np.ones_like(field)
    >>> chi, plain = whqsm(field, r2 < 144, error, **context), fansi(field, r2 < 144, error, **context)
    >>> bool(chi[r2 < 144].std() < 0.5 * plain[r2 < 144].std())
    True
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, not {beta:g}: a field without bounds would take everything")
    grid, field, weight = prepare(local_field, mask, field_error, weighted, voxel_size, b0_dir)
    weight *= weight
    data = HarmonicResidual(grid, field, weight, misfit.squares, mask, penalty=beta / _HARMONIC_RATIO, beta=beta)
    gradient = Variation(grid, lambda_)
    options = {"mask": mask, "iterations": iterations, "tolerance": tolerance, "name": "whqsm"}
    return grid.crop(_minimise(grid, data, gradient, _in_radians(misfit.phase_squares, b0, echo_times), **options), mask)


def l1qsm(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    lambda_: float = 5e-2,
    iterations: int = 100,
    tolerance: float = 5e-3,
    weighted: bool = True,
    tune: Literal["none", "lcurve", "discrepancy", "frequency"] = "none",
) -> np.ndarray:
    """Susceptibility by nonlinear inversion with an L1 data term and total variation (L1-QSM).

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter, unless ``tune`` is ``"discrepancy"``).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    b0 : float
        Main field strength, T.
    echo_times : sequence of float
        Echo times, s; their mean turns the field into a phase.
    lambda_ : float
        Weight of the total variation against the absolute misfit, mm.
    iterations : int
        Largest number of ADMM iterations.
    tolerance : float
        Stop when the susceptibility in the mask changes by less than this fraction of its norm.
    weighted : bool
        Weight voxels of the mask with the inverse of their field error instead of equally.
    tune : {"none", "lcurve", "discrepancy", "frequency"}
        Take ``lambda_`` as it is, or a weight between a tenth and ten times it: where the L-curve straightens below its corner
        (takes 220 iterations more), where the misfit is what the field error lets expect (which must then be that of the
        field, in ppm), or where the map is as strong near the dipole's cone as far from it (both up to 220 iterations).

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    ``min 1/s ||W (exp(i s D chi) - exp(i s f))||_1 + lambda ||grad chi||_1`` with s the phase of one ppm
    (:func:`qsmflow.algorithms.units.radians_per_ppm`): a voxel whose field is wrong pulls with its weight and no harder,
    however wrong it is, and one that is off by a whole turn is not wrong at all. W = 0 outside the mask, where the
    susceptibility is free. The data step minimises ``2 w |sin(x/2)| + (x - y)^2/2`` in every voxel, which spares the method's
    second split.

    References
    ----------
    Milovic et al., MRM 85:480, 2021, doi:10.1002/mrm.28435 (choice of the weight).
    Milovic et al., MRM 87:457, 2022, doi:10.1002/mrm.28957.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1)}
    >>> field = forward_field(np.float32(0.1) * (r2 < 64), **context)
    >>> chi = l1qsm(field, r2 < 196, np.ones_like(field), **context, b0=3.0, echo_times=(0.02,))
    >>> bool(abs(chi[r2 < 36].mean() - chi[(r2 > 100) & (r2 < 196)].mean() - 0.1) < 0.005)
    True
    """
    grid, field, weight = prepare(local_field, mask, field_error, weighted, voxel_size, b0_dir)
    weight *= np.float32(SMALL_MISFIT)
    data = Residual(grid, field, weight, misfit.absolute)
    gradient = Variation(grid, SMALL_MISFIT * lambda_)
    options = {"mask": mask, "name": "l1qsm"}
    start = admm.tune(grid, data, gradient, SMALL_MISFIT * lambda_, tune, power=1, field_error=field_error, **options)
    options |= {"start": start, "iterations": iterations, "tolerance": tolerance}
    return grid.crop(_minimise(grid, data, gradient, _in_radians(misfit.phase_absolute, b0, echo_times), **options), mask)


def _minimise(
    grid: Grid, data: Residual, gradient: Variation | GeneralisedVariation, nonlinear, *, iterations: int, start=None, **options
) -> np.ndarray:
    """Susceptibility on the padded grid: a few iterations with the linear step of ``data``, the rest with the nonlinear one.

    The field is unwrapped, so that the linear misfit leads to the right turn; the nonlinear one then starts near its minimum.
    """
    linear = min(LINEAR_START, iterations)
    chi = minimise(grid, data, gradient, iterations=linear, start=start, **options | {"tolerance": 0.0})
    data.misfit = nonlinear
    return minimise(grid, data, gradient, iterations=iterations - linear, start=chi, since=linear, **options)


def _in_radians(step, b0: float, echo_times: Sequence[float]):
    """A step of :mod:`.misfit` with its phase of one ppm."""
    return partial(step, scale=np.float32(radians_per_ppm(b0=b0, echo_times=echo_times)))
