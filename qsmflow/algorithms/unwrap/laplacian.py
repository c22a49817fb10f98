"""Unwrapping by inverting a Laplacian."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms.fourier import irfftn, padded_shape, rfftn
from qsmflow.algorithms.unwrap.wrapping import wrap


def laplacian(phase: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], pad: int = 12) -> np.ndarray:
    """Unwrap phase by solving for the volume whose Laplacian is that of the wrapped phase.

    Parameters
    ----------
    phase : ndarray
        Wrapped phase, (X, Y, Z, E), rad.
    mask : ndarray of bool
        Where the result is wanted, (X, Y, Z).
    voxel_size : sequence of float
        Voxel size, mm.
    pad : int
        Zero voxels added along each axis, at least; with 0 the volume is taken as periodic, as it is.

    Returns
    -------
    ndarray
        Unwrapped phase, (X, Y, Z, E), rad, float32; 0 outside the mask.

    Notes
    -----
    The Laplacian is summed from wrapped differences, ``sum_i [wrap(phi_+ - phi) - wrap(phi - phi_-)] / h_i^2``, which is exact
    where neighbours differ by less than pi, and divided by its own eigenvalues ``sum_i 2 (cos(2 pi k_i / N_i) - 1) / h_i^2`` on
    the padded periodic grid. The whole volume takes part, the mask only cuts the result. The mean of a volume is lost with its
    Laplacian; every echo is set to the mean angle by which it differs from the wrapped phase inside the mask. The result is not
    the input plus whole turns: it is smoothed near strong sources and where the phase is noise.

    Examples
    --------
    >>> x = 2 * np.pi * np.arange(32) / 32
    >>> true = np.broadcast_to(8 * np.sin(x)[:, None, None, None], (32, 4, 4, 1)).astype(np.float32)
    >>> unwrapped = laplacian(wrap(true), np.ones((32, 4, 4), bool), voxel_size=(1, 1, 2), pad=0)
    >>> bool(np.allclose(unwrapped, true, atol=1e-4))
    True

    References
    ----------
    Schofield MA, Zhu Y. Fast phase unwrapping algorithm for interferometric applications. Opt Lett 2003;28:1194-1196.
    doi:10.1364/OL.28.001194
    """
    mask = np.asarray(mask, dtype=bool)
    shape = padded_shape(mask.shape, pad) if pad else mask.shape
    inverse = _inverse_eigenvalues(shape, voxel_size)
    result = np.zeros(phase.shape, np.float32)
    for e in range(phase.shape[3]):
        volume = np.zeros(shape, np.float32)
        volume[tuple(slice(n) for n in mask.shape)] = phase[..., e]
        smooth = irfftn(rfftn(_wrapped_laplacian(volume, voxel_size), shape) * inverse, shape, mask.shape)[mask]
        lag = (phase[..., e][mask] - smooth).astype(np.float64)
        result[mask, e] = smooth + math.atan2(np.sin(lag).sum(), np.cos(lag).sum())
    return result


def _wrapped_laplacian(phase: np.ndarray, voxel_size: Sequence[float]) -> np.ndarray:
    """Periodic 7-point Laplacian from wrapped differences, rad/mm^2."""
    total = np.zeros_like(phase)
    for axis, h in enumerate(voxel_size):
        step = wrap(np.roll(phase, -1, axis) - phase)
        total += (step - np.roll(step, 1, axis)) / np.float32(h**2)
    return total


def _inverse_eigenvalues(shape: Sequence[int], voxel_size: Sequence[float]) -> np.ndarray:
    """Inverse eigenvalues of that Laplacian on the halved spectrum, 0 for the mean, float32."""
    total = np.zeros((1, 1, 1))
    for axis, (n, h) in enumerate(zip(shape, voxel_size, strict=True)):
        k = np.arange(n // 2 + 1 if axis == 2 else n)
        values = 2 * (np.cos(2 * math.pi * k / n) - 1) / h**2
        total = total + values.reshape([-1 if a == axis else 1 for a in range(3)])
    total[0, 0, 0] = np.inf
    return (1 / total).astype(np.float32)
