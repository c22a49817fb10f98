"""Nonlinear dipole inversion: gradient descent that stops before the noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, prange

from qsmflow.algorithms.inversion.admm import prepare
from qsmflow.algorithms.units import radians_per_ppm

#: Steps with the linear misfit before the nonlinear one.
_LINEAR_START = 20


def ndi(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    iterations: int = 200,
    step: float = 2.0,
    alpha: float = 1e-5,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility by gradient descent on the misfit of phases (nonlinear dipole inversion, NDI).

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
    iterations : int
        Number of steps; few are smooth, many bring in noise and streaks.
    step : float
        Length of a step, below 4.5.
    alpha : float
        Weight of the squared susceptibility.
    weighted : bool
        Weight voxels of the mask with the inverse of their field error instead of equally.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Raises
    ------
    ValueError
        If ``step`` is so long that the iteration would not settle.

    Notes
    -----
    ``min 1/(2 s^2) ||W (exp(i s D chi) - exp(i s f))||^2 + alpha/2 ||chi||^2`` with s the phase of one ppm
    (:func:`qsmflow.algorithms.units.radians_per_ppm`), from 0 by ``chi <- chi - step (D W^2 sin(s (D chi - f)) / s + alpha
    chi)``. Stopping early is what regularises. The first steps are linear (without the sine), so that no voxel starts a turn
    away. The curvature is at most ``4/9 + alpha``: steps below twice its inverse lower the objective. W = 0 outside the mask.

    References
    ----------
    Polak et al., NMR Biomed 33:e4271, 2020, doi:10.1002/nbm.4271.

    Examples
    --------
    Contrast comes back in part:

    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1)}
    >>> field = forward_field(np.float32(0.1) * (r2 < 64), **context)
    >>> chi = ndi(field, r2 < 196, np.ones_like(field), **context, b0=3.0, echo_times=(0.02,))
    >>> bool(0.05 < chi[r2 < 36].mean() - chi[(r2 > 100) & (r2 < 196)].mean() < 0.1)
    True
    """
    if not 0 < step * (4 / 9 + alpha) < 2:
        raise ValueError(f"a step of {step:g} does not settle: it must be between 0 and {2 / (4 / 9 + alpha):.3g}")
    grid, field, weight = prepare(local_field, mask, field_error, weighted, voxel_size, b0_dir)
    weight *= weight
    scale = np.float32(radians_per_ppm(b0=b0, echo_times=echo_times))
    chi = np.zeros(grid.shape, np.float32)
    for iteration in range(iterations):
        forward = grid.forward(chi)
        if iteration < _LINEAR_START:
            forward = weight * (forward - field)
        else:
            slope(forward, field, weight, scale)
        gradient = grid.forward(forward)
        gradient *= np.float32(step)
        chi *= np.float32(1 - step * alpha)
        chi -= gradient
    return grid.crop(chi, mask)


@njit(parallel=True, cache=True)
def slope(forward, field, weight, scale):
    """Derivative of the misfit by the field, ``w sin(s (forward - f)) / s``, into ``forward``."""
    nx, ny, nz = forward.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                w = weight[i, j, k]
                difference = scale * (forward[i, j, k] - field[i, j, k])
                forward[i, j, k] = w * np.float32(np.sin(difference)) / scale if w > 0 else np.float32(0)
