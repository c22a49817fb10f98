"""Conjugate gradients for the linear least-squares problems of the chain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product of two real arrays, accumulated in float64 (float32 sums over 1e7 voxels lose orthogonality)."""
    return float(np.einsum("i,i->", a.ravel(), b.ravel(), dtype=np.float64))


def conjugate_gradients(
    operator: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    *,
    iterations: int,
    tolerance: float,
    preconditioner: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Solve ``A x = b`` for a symmetric positive (semi-)definite operator, from zero.

    Parameters
    ----------
    operator : callable
        Gives ``A x`` for an array shaped like ``right``; may reuse neither its argument nor its result.
    right : ndarray
        ``b``, real; left alone.
    iterations : int
        Largest number of iterations.
    tolerance : float
        Stop when the (preconditioned) residual norm has fallen by this factor.
    preconditioner : callable, optional
        Symmetric positive approximation of the inverse of ``A``.

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
    x = np.zeros_like(right)
    residual = right.copy()
    step = residual if preconditioner is None else preconditioner(residual)
    direction = step.copy()
    energy = start = dot(residual, step)
    for _ in range(iterations):
        if energy <= tolerance**2 * start:
            break
        applied = operator(direction)
        length = right.dtype.type(energy / dot(direction, applied))
        x += length * direction
        residual -= length * applied
        step = residual if preconditioner is None else preconditioner(residual)
        energy, before = dot(residual, step), energy
        direction *= right.dtype.type(energy / before)
        direction += step
    return x
