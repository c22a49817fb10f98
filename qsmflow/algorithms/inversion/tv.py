"""Inversion with total variation: weighted data, split by the alternating direction method of multipliers (ADMM)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, prange

from qsmflow.algorithms import fourier, operators
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.weights import error_weights

_MARGIN = 10.0  # mm; the susceptibility outside the mask is free, so that periodic copies only need to keep their distance


def tv(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    lambda_: float = 2e-4,
    iterations: int = 100,
    tolerance: float = 1e-2,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility by total-variation regularised inversion.

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
    lambda_ : float
        Weight of the total variation, ppm mm.
    iterations : int
        Largest number of ADMM iterations.
    tolerance : float
        Stop when the susceptibility changes by less than this fraction of its norm.
    weighted : bool
        Weight voxels of the mask with the inverse of their field error instead of equally.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Notes
    -----
    ``min 1/2 ||W (D chi - f)||^2 + lambda ||grad chi||_1``, W = 0 outside the mask: nothing is claimed about the field there,
    and the susceptibility outside may take up what is left of the background. Both ``grad chi`` and ``D chi`` are split off,
    with penalties ``100 lambda`` and 1, so that each iteration is one division in k-space and two steps voxel by voxel; four
    transforms in all. Gradients are per mm. The mean over the grid is set to 0.

    References
    ----------
    Bilgic et al., MRM 72:1444, 2014, doi:10.1002/mrm.25029 (total variation by ADMM).
    Milovic et al., MRM 80:814, 2018, doi:10.1002/mrm.27073 (the split of the data term that admits weights).

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field((r2 < 64).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> chi = tv(field, r2 < 196, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(chi[r2 < 36].mean() - chi[(r2 > 100) & (r2 < 196)].mean() - 1) < 0.05)
    True
    """
    shape = fourier.padded_shape(mask.shape, [int(np.ceil(_MARGIN / h)) for h in voxel_size])
    corner = tuple(slice(n) for n in mask.shape)
    field, squared = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    field[corner] = np.where(mask, local_field, 0)
    squared[corner] = error_weights(field_error, mask) ** 2 if weighted else mask
    kernel = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir)
    rho = np.float32(100 * lambda_)
    scale = rho * _quadratic_inverse(shape, voxel_size, kernel, rho)
    weighted_kernel = kernel / rho
    inverse_size = tuple(np.float32(1 / h) for h in voxel_size)

    chi, forward = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    dual, target = np.zeros((3, *shape), np.float32), np.zeros((3, *shape), np.float32)
    data_dual = np.zeros(shape, np.float32)
    data_target = field * squared / (squared + 1)
    right = np.empty(shape, np.float32)
    for _ in range(iterations):
        operators.divergence(target, inverse_size, right)
        spectrum = fourier.rfftn(right, shape)
        data_spectrum = fourier.rfftn(data_target, shape)
        data_spectrum *= weighted_kernel
        spectrum += data_spectrum
        spectrum *= scale
        previous, chi = chi, fourier.irfftn(spectrum, shape)
        spectrum *= kernel
        forward = fourier.irfftn(spectrum, shape)
        operators.shrink_gradient(chi, inverse_size, np.float32(lambda_ / rho), dual, target)
        _data_step(forward, field, squared, data_dual, data_target)
        if change(chi, previous) < tolerance:
            break
    return np.where(mask, chi[corner], 0).astype(np.float32)


def _quadratic_inverse(shape, voxel_size, kernel, rho):
    """Spectrum ``1 / (rho |E|^2 + D^2)`` of the quadratic step, 0 at the origin."""
    power = rho * operators.gradient_power(shape, voxel_size) + kernel**2
    return np.divide(1, power, out=np.zeros_like(power), where=power > 0)


def change(now: np.ndarray, before: np.ndarray) -> float:
    """Relative change ``||now - before|| / ||now||``, accumulated in float64; infinite for a zero ``now``."""
    square, norm = _squares(now, before).sum(axis=0)
    return float(np.sqrt(square / norm)) if norm else float("inf")


@njit(parallel=True, cache=True)
def _squares(now, before):
    """Sums of squares of the difference and of ``now`` for each plane of the first axis, in an order of its own each."""
    sums = np.empty((now.shape[0], 2))
    for i in prange(now.shape[0]):
        square, norm = 0.0, 0.0
        for j in range(now.shape[1]):
            for k in range(now.shape[2]):
                step = np.float64(now[i, j, k] - before[i, j, k])
                square += step * step
                norm += np.float64(now[i, j, k]) ** 2
        sums[i, 0], sums[i, 1] = square, norm
    return sums


@njit(parallel=True, cache=True)
def _data_step(forward, field, squared, dual, target):
    """ADMM step of the split data term (penalty 1), in place: ``target`` becomes ``z - dual`` for the next right-hand side."""
    nx, ny, nz = forward.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                t = forward[i, j, k] + dual[i, j, k]
                w = squared[i, j, k]
                z = (w * field[i, j, k] + t) / (w + np.float32(1))
                dual[i, j, k] = t - z
                target[i, j, k] = z - (t - z)
