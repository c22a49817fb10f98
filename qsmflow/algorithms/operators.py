"""Finite differences on a periodic grid: the gradient, its adjoint and its spectrum, fused with the steps solvers need."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import njit, prange

from qsmflow.algorithms import fourier


def gradient_power(shape: Sequence[int], voxel_size: Sequence[float]) -> np.ndarray:
    """Spectrum of the negative Laplacian ``E^H E`` of :func:`gradient`, 1/mm^2, half spectrum, float32.

    Examples
    --------
    >>> float(gradient_power((4, 4, 4), (1, 1, 2))[2, 0, 2])
    5.0
    """
    axes = fourier.frequencies(shape, voxel_size)
    return sum(((2 - 2 * np.cos(2 * math.pi * k * h)) / h**2 for k, h in zip(axes, voxel_size, strict=True))).astype(np.float32)


@njit(parallel=True, cache=True)
def gradient(x, inverse_size, out):
    """Forward differences of ``x`` along the three axes, per mm, into ``out`` (3, X, Y, Z); periodic."""
    nx, ny, nz = x.shape
    hx, hy, hz = inverse_size
    for i in prange(nx):
        after_i = i + 1 if i + 1 < nx else 0
        for j in range(ny):
            after_j = j + 1 if j + 1 < ny else 0
            for k in range(nz):
                after_k = k + 1 if k + 1 < nz else 0
                here = x[i, j, k]
                out[0, i, j, k] = (x[after_i, j, k] - here) * hx
                out[1, i, j, k] = (x[i, after_j, k] - here) * hy
                out[2, i, j, k] = (x[i, j, after_k] - here) * hz


@njit(parallel=True, cache=True)
def divergence(v, inverse_size, out):
    """Adjoint of :func:`gradient` (minus the backward divergence) of ``v`` (3, X, Y, Z) into ``out``."""
    nx, ny, nz = out.shape
    hx, hy, hz = inverse_size
    for i in prange(nx):
        before_i = i - 1 if i > 0 else nx - 1
        for j in range(ny):
            before_j = j - 1 if j > 0 else ny - 1
            for k in range(nz):
                before_k = k - 1 if k > 0 else nz - 1
                out[i, j, k] = (
                    (v[0, before_i, j, k] - v[0, i, j, k]) * hx
                    + (v[1, i, before_j, k] - v[1, i, j, k]) * hy
                    + (v[2, i, j, before_k] - v[2, i, j, k]) * hz
                )


@njit(parallel=True, cache=True)
def shrink_gradient(x, inverse_size, threshold, dual, target):
    """One step of the split gradient in ADMM, in place.

    With ``t = grad x + dual``: ``dual`` becomes ``clip(t, threshold)`` and ``target`` becomes ``shrink(t, threshold) - dual``,
    each component on its own (anisotropic total variation). All differences are periodic and per mm.
    """
    nx, ny, nz = x.shape
    hx, hy, hz = inverse_size
    for i in prange(nx):
        after_i = i + 1 if i + 1 < nx else 0
        for j in range(ny):
            after_j = j + 1 if j + 1 < ny else 0
            for k in range(nz):
                after_k = k + 1 if k + 1 < nz else 0
                here = x[i, j, k]
                t = (x[after_i, j, k] - here) * hx + dual[0, i, j, k]
                u = min(max(t, -threshold), threshold)
                dual[0, i, j, k], target[0, i, j, k] = u, t - u - u
                t = (x[i, after_j, k] - here) * hy + dual[1, i, j, k]
                u = min(max(t, -threshold), threshold)
                dual[1, i, j, k], target[1, i, j, k] = u, t - u - u
                t = (x[i, j, after_k] - here) * hz + dual[2, i, j, k]
                u = min(max(t, -threshold), threshold)
                dual[2, i, j, k], target[2, i, j, k] = u, t - u - u
