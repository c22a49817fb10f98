"""Conjugate gradients for the linear least-squares problems of the chain."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numba import njit, prange

_LOGGER = logging.getLogger("qsmflow")


def note_end(name: str, iterations: int, change: float, tolerance: float) -> None:
    """Log how an iteration ended: for the record where it reached its tolerance, as a warning where it did not."""
    if change <= tolerance:
        _LOGGER.info("%s settled after %d iterations", name, iterations)
    else:
        _LOGGER.warning("%s stopped after %d iterations at a change of %.2g, not %.2g", name, iterations, change, tolerance)


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product of two real arrays, accumulated in float64 (float32 sums over 1e7 voxels lose orthogonality)."""
    return float(_products(a.ravel(), b.ravel()).sum())


def conjugate_gradients(
    operator: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    *,
    iterations: int,
    tolerance: float,
    preconditioner: Callable[[np.ndarray], np.ndarray] | None = None,
    inner: Callable[[np.ndarray, np.ndarray], float] = dot,
) -> np.ndarray:
    """Solve ``A x = b`` for a symmetric positive (semi-)definite operator, from zero.

    Parameters
    ----------
    operator : callable
        Gives ``A x`` for an array shaped like ``right``; must return an array of its own, which is used up.
    right : ndarray
        ``b``; left alone.
    iterations : int
        Largest number of iterations.
    tolerance : float
        Stop when the (preconditioned) residual norm has fallen by this factor.
    preconditioner : callable, optional
        Symmetric positive approximation of the inverse of ``A``.
    inner : callable
        The inner product in which ``A`` is symmetric, for unknowns that are no plain real arrays (half spectra).

    Returns
    -------
    ndarray
        ``x``, in the dtype of ``right``.

    Notes
    -----
    Stopping early regularises ill-posed problems: the iterations bring in the well-conditioned directions first.

    Examples
    --------
    >>> conjugate_gradients(lambda x: np.array([2, 4]) * x, np.array([2.0, 8.0]), iterations=5, tolerance=1e-9)
    array([1., 2.])
    """
    x = np.zeros(right.shape, right.dtype)
    residual = right.copy("C")
    step = residual if preconditioner is None else preconditioner(residual)
    direction = step.copy("C")
    energy = start = inner(residual, step)
    for _ in range(iterations):
        if energy <= tolerance**2 * start:
            break
        applied = operator(direction)
        length = right.dtype.type(energy / inner(direction, applied))
        squares = _advance(x.ravel(), residual.ravel(), direction.ravel(), applied.ravel(), length)
        del applied  # frees a volume before the next transform
        step = residual if preconditioner is None else preconditioner(residual)
        known = step is residual and inner is dot
        energy, before = float(squares.sum()) if known else inner(residual, step), energy
        _turn(direction.ravel(), step.ravel(), right.dtype.type(energy / before))
    return x


def change(now: np.ndarray, before: np.ndarray, mask: np.ndarray) -> float:
    """Relative change ``||now - before|| / ||now||`` in the mask, accumulated in float64; infinite for a zero ``now``."""
    square, norm = _squares(now, before, mask).sum(axis=0)
    return float(np.sqrt(square / norm)) if norm else float("inf")


@njit(parallel=True, cache=True)
def _squares(now, before, mask):
    """Sums of squares of the difference and of ``now`` for each plane of the first axis, in an order of its own each."""
    nx, ny, nz = mask.shape
    sums = np.zeros((nx, 2))
    for i in prange(nx):
        square, norm = 0.0, 0.0
        for j in range(ny):
            for k in range(nz):
                if mask[i, j, k]:
                    step = np.float64(now[i, j, k] - before[i, j, k])
                    square += step * step
                    norm += np.float64(now[i, j, k]) ** 2
        sums[i, 0], sums[i, 1] = square, norm
    return sums


#: Elements summed in one go: sums do not depend on the number of threads.
_BLOCK = 1 << 14


@njit(parallel=True, cache=True)
def _products(a, b):
    """Sum of products of each block, float64."""
    blocks = (a.size + _BLOCK - 1) // _BLOCK
    sums = np.empty(blocks)
    for block in prange(blocks):
        total = 0.0
        for i in range(block * _BLOCK, min(a.size, (block + 1) * _BLOCK)):
            total += np.float64(a[i]) * np.float64(b[i])
        sums[block] = total
    return sums


@njit(parallel=True, cache=True)
def _advance(x, residual, direction, applied, length):
    """``x += length direction`` and ``residual -= length applied``, in place; the residual's energy in each block, float64."""
    blocks = (x.size + _BLOCK - 1) // _BLOCK
    sums = np.empty(blocks)
    for block in prange(blocks):
        total = 0.0
        for i in range(block * _BLOCK, min(x.size, (block + 1) * _BLOCK)):
            x[i] += length * direction[i]
            residual[i] -= length * applied[i]
            total += np.float64(residual[i].real) ** 2 + np.float64(residual[i].imag) ** 2
        sums[block] = total
    return sums


@njit(parallel=True, cache=True)
def _turn(direction, step, share):
    """``direction = step + share direction``, in place."""
    for i in prange(direction.size):
        direction[i] = step[i] + share * direction[i]
