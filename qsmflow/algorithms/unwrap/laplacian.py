"""Unwrapping by inverting a Laplacian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import scipy.fft

from qsmflow.algorithms.fourier import irfftn, padded_shape, rfftn
from qsmflow.algorithms.unwrap.wrapping import wrap


def laplacian(
    phase: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], solver: Literal["fft", "dct"] = "fft", pad: int = 12
) -> np.ndarray:
    """Unwrap phase by solving for the volume whose Laplacian is that of the wrapped phase.

    Parameters
    ----------
    phase : ndarray
        Wrapped phase, (X, Y, Z, E), rad.
    mask : ndarray of bool
        Where the result is wanted, (X, Y, Z).
    voxel_size : sequence of float
        Voxel size, mm.
    solver : {"fft", "dct"}
        Take the volume, padded, as periodic ("fft"), or let nothing flow through its faces ("dct").
    pad : int
        Zero voxels added along each axis, at least; with 0 the volume is taken as periodic, as it is. Only for "fft".

    Returns
    -------
    ndarray
        Unwrapped phase, (X, Y, Z, E), rad, float32; 0 outside the mask.

    Notes
    -----
    The Laplacian is summed from wrapped differences, ``sum_i [wrap(phi_+ - phi) - wrap(phi - phi_-)] / h_i^2``, which is exact
    where neighbours differ by less than pi, and divided by its own eigenvalues ``sum_i 2 (cos(2 pi k_i / N_i) - 1) / h_i^2`` on
    the padded periodic grid. With the discrete cosine transform, the steps through the faces of the volume count as 0 and the
    eigenvalues are ``sum_i 2 (cos(pi p_i / N_i) - 1) / h_i^2``: without padding, and right for phase that is not periodic. The
    whole volume takes part, the mask only cuts the result. The mean of a volume is lost with its
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
    solve = _periodic(mask.shape, voxel_size, pad) if solver == "fft" else _insulated(mask.shape, voxel_size)
    result = np.zeros(phase.shape, np.float32)
    for e in range(phase.shape[3]):
        smooth = solve(phase[..., e].astype(np.float32))[mask]
        lag = (phase[..., e][mask] - smooth).astype(np.float64)
        result[mask, e] = smooth + math.atan2(np.sin(lag).sum(), np.cos(lag).sum())
    return result


def _periodic(shape: Sequence[int], voxel_size: Sequence[float], pad: int) -> Callable[[np.ndarray], np.ndarray]:
    """Solver on the padded periodic grid."""
    grid = padded_shape(shape, pad) if pad else tuple(shape)
    inverse = _inverse_eigenvalues(grid, voxel_size, periods=1)

    def solve(phase: np.ndarray) -> np.ndarray:
        volume = np.pad(phase, [(0, n - m) for n, m in zip(grid, shape, strict=True)])
        total = np.zeros_like(volume)
        for axis, h in enumerate(voxel_size):
            step = wrap(np.roll(volume, -1, axis) - volume)
            total += (step - np.roll(step, 1, axis)) / np.float32(h**2)
        return irfftn(rfftn(total, grid) * inverse, grid, shape)

    return solve


def _insulated(shape: Sequence[int], voxel_size: Sequence[float]) -> Callable[[np.ndarray], np.ndarray]:
    """Solver with no flow through the faces of the volume (Neumann)."""
    inverse = _inverse_eigenvalues(shape, voxel_size, periods=0.5)

    def solve(phase: np.ndarray) -> np.ndarray:
        total = np.zeros_like(phase)
        for axis, h in enumerate(voxel_size):
            flow = np.pad(wrap(np.diff(phase, axis=axis)), [(int(a == axis),) * 2 for a in range(3)])
            total += np.diff(flow, axis=axis) / np.float32(h**2)
        return scipy.fft.idctn(scipy.fft.dctn(total) * inverse)

    return solve


def _inverse_eigenvalues(shape: Sequence[int], voxel_size: Sequence[float], periods: float) -> np.ndarray:
    """Inverse eigenvalues of the 7-point Laplacian, 0 for the mean, float32.

    Mode ``k`` makes ``k periods`` turns over the grid: 1 for the Fourier transform (last axis halved), 0.5 for cosines.
    """
    total = np.zeros((1, 1, 1))
    for axis, (n, h) in enumerate(zip(shape, voxel_size, strict=True)):
        k = np.arange(n // 2 + 1 if axis == 2 and periods == 1 else n)
        values = 2 * (np.cos(2 * math.pi * periods * k / n) - 1) / h**2
        total = total + values.reshape([-1 if a == axis else 1 for a in range(3)])
    total[0, 0, 0] = np.inf
    return (1 / total).astype(np.float32)
