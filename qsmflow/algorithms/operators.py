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
    x, y, z = second_differences(shape, voxel_size)
    return -(x[:, None, None] + y[:, None] + z)


def second_differences(shape: Sequence[int], voxel_size: Sequence[float]) -> tuple[np.ndarray, ...]:
    """Symbols of the second differences along each axis of the half spectrum, 1/mm^2, float32; their sum is the Laplacian's.

    Examples
    --------
    >>> [s.tolist() for s in second_differences((2, 2, 2), (1, 1, 2))]
    [[0.0, -4.0], [0.0, -4.0], [0.0, -1.0]]
    """
    axes = fourier.frequencies(shape, voxel_size)
    return tuple(
        ((2 * np.cos(2 * math.pi * k.ravel() * h) - 2) / h**2).astype(np.float32) for k, h in zip(axes, voxel_size, strict=True)
    )


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


@njit(cache=True, error_model="numpy")
def _clip(a, b, c, threshold, isotropic, out):
    """Projection of a row of vectors onto the ball (``isotropic``) or the cube of radius ``threshold``, into ``out`` (3, N)."""
    u, v, w = out[0], out[1], out[2]
    if isotropic:
        for k in range(a.size):
            scale = threshold / max(threshold, np.float32(math.sqrt(a[k] * a[k] + b[k] * b[k] + c[k] * c[k])))
            u[k], v[k], w[k] = a[k] * scale, b[k] * scale, c[k] * scale
    else:
        for k in range(a.size):
            u[k] = min(max(a[k], -threshold), threshold)
            v[k] = min(max(b[k], -threshold), threshold)
            w[k] = min(max(c[k], -threshold), threshold)


@njit(parallel=True, cache=True, error_model="numpy")
def shrink_gradient(x, inverse_size, threshold, isotropic, relaxation, shifted):
    """One step of the split gradient in ADMM, in place; all of its state is ``shifted`` (3, X, Y, Z).

    ``shifted`` holds t = z + u, the split and its dual: ``u = clip(t, threshold)``, the whole vector (``isotropic``) or each
    component on its own, and ``z = t - u``. It becomes ``r grad x + (1 - r) z + u`` with r the over-relaxation. All differences
    are periodic and per mm. Row by row, so that the inner loops are vectorised.
    """
    nx, ny, nz = x.shape
    hx, hy, hz = inverse_size[0] * relaxation, inverse_size[1] * relaxation, inverse_size[2] * relaxation
    rest = np.float32(1) - relaxation
    for i in prange(nx):
        dual, after = np.empty((3, nz), np.float32), np.empty(nz, np.float32)
        u0, u1, u2 = dual[0], dual[1], dual[2]
        for j in range(ny):
            here, after_i, after_j = x[i, j], x[i + 1 if i + 1 < nx else 0, j], x[i, j + 1 if j + 1 < ny else 0]
            after[: nz - 1], after[nz - 1] = here[1:], here[0]
            t0, t1, t2 = shifted[0, i, j], shifted[1, i, j], shifted[2, i, j]
            _clip(t0, t1, t2, threshold, isotropic, dual)
            for k in range(nz):
                t0[k] = (after_i[k] - here[k]) * hx + rest * (t0[k] - u0[k]) + u0[k]
                t1[k] = (after_j[k] - here[k]) * hy + rest * (t1[k] - u1[k]) + u1[k]
                t2[k] = (after[k] - here[k]) * hz + rest * (t2[k] - u2[k]) + u2[k]


@njit(parallel=True, cache=True, error_model="numpy")
def split_divergence(shifted, inverse_size, threshold, isotropic, out):
    """:func:`divergence` of ``z - u``, what the quadratic step of ADMM is pulled to; see :func:`shrink_gradient`."""
    nx, ny, nz = out.shape
    hx, hy, hz = inverse_size
    for i in prange(nx):
        before_i = i - 1 if i > 0 else nx - 1
        dual, dual_before, last = np.empty((3, nz), np.float32), np.empty((3, nz), np.float32), np.empty(nz, np.float32)
        u0, u1, u2, p0 = dual[0], dual[1], dual[2], dual_before[0]
        _clip(shifted[0, i, ny - 1], shifted[1, i, ny - 1], shifted[2, i, ny - 1], threshold, isotropic, dual)
        for k in range(nz):
            last[k] = shifted[1, i, ny - 1, k] - u1[k] - u1[k]
        for j in range(ny):
            t0, t1, t2, b0 = shifted[0, i, j], shifted[1, i, j], shifted[2, i, j], shifted[0, before_i, j]
            _clip(b0, shifted[1, before_i, j], shifted[2, before_i, j], threshold, isotropic, dual_before)
            _clip(t0, t1, t2, threshold, isotropic, dual)
            row = out[i, j]
            for k in range(nz):
                along = t1[k] - u1[k] - u1[k]
                row[k] = ((b0[k] - p0[k] - p0[k]) - (t0[k] - u0[k] - u0[k])) * hx + (last[k] - along) * hy
                last[k] = along
                u2[k] = t2[k] - u2[k] - u2[k]
            row[0] += (u2[nz - 1] - u2[0]) * hz
            for k in range(1, nz):
                row[k] += (u2[k - 1] - u2[k]) * hz


@njit(cache=True)
def _strain(v, inverse_size, i, j, k):
    """The six components (xx, yy, zz, xy, xz, yz) of the symmetrised backward differences of ``v`` at one voxel."""
    hx, hy, hz = inverse_size
    half = np.float32(0.5)
    p, q, r = i - 1, j - 1, k - 1  # -1 is the last plane: periodic
    x, y, z = v[0, i, j, k], v[1, i, j, k], v[2, i, j, k]
    return (
        (x - v[0, p, j, k]) * hx,
        (y - v[1, i, q, k]) * hy,
        (z - v[2, i, j, r]) * hz,
        ((x - v[0, i, q, k]) * hy + (y - v[1, p, j, k]) * hx) * half,
        ((x - v[0, i, j, r]) * hz + (z - v[2, p, j, k]) * hx) * half,
        ((y - v[1, i, j, r]) * hz + (z - v[2, i, q, k]) * hy) * half,
    )


@njit(parallel=True, cache=True)
def symmetric_gradient(v, inverse_size, out):
    """Symmetrised backward differences of a vector field ``v`` (3, X, Y, Z), per mm, into ``out`` (6, X, Y, Z); periodic.

    Components are xx, yy, zz, xy, xz, yz; the last three stand for two entries of the symmetric tensor each and count twice
    in inner products and norms. The norm is at most that of the gradient, ``2 sqrt(sum(1 / h^2))``.
    """
    for i in prange(v.shape[1]):
        for j in range(v.shape[2]):
            for k in range(v.shape[3]):
                e = _strain(v, inverse_size, i, j, k)
                for c in range(6):
                    out[c, i, j, k] = e[c]


@njit(parallel=True, cache=True)
def symmetric_divergence(u, inverse_size, scale, out):
    """Add ``scale`` times the adjoint of :func:`symmetric_gradient` of ``u`` (6, X, Y, Z) to ``out`` (3, X, Y, Z)."""
    _, nx, ny, nz = u.shape
    hx, hy, hz = inverse_size[0] * scale, inverse_size[1] * scale, inverse_size[2] * scale
    for i in prange(nx):
        p = i + 1 if i + 1 < nx else 0
        for j in range(ny):
            q = j + 1 if j + 1 < ny else 0
            for k in range(nz):
                r = k + 1 if k + 1 < nz else 0
                xy, xz, yz = u[3, i, j, k], u[4, i, j, k], u[5, i, j, k]
                out[0, i, j, k] -= (u[0, p, j, k] - u[0, i, j, k]) * hx + (u[3, i, q, k] - xy) * hy + (u[4, i, j, r] - xz) * hz
                out[1, i, j, k] -= (u[3, p, j, k] - xy) * hx + (u[1, i, q, k] - u[1, i, j, k]) * hy + (u[5, i, j, r] - yz) * hz
                out[2, i, j, k] -= (u[4, p, j, k] - xz) * hx + (u[5, i, q, k] - yz) * hy + (u[2, i, j, r] - u[2, i, j, k]) * hz


@njit(parallel=True, cache=True, error_model="numpy")
def lagged_diffusivity(x, edges, inverse_size, smoothing, out):
    """Weights ``edges / sqrt(|d x|^2 + smoothing^2)`` of each component of the gradient, into ``out`` (3, X, Y, Z); periodic.

    With them :func:`diffuse` is the derivative of the smoothed ``||edges grad x||_1``. ``edges`` is uint8.
    """
    nx, ny, nz = x.shape
    hx, hy, hz = inverse_size
    square = smoothing * smoothing
    for i in prange(nx):
        after_i = i + 1 if i + 1 < nx else 0
        for j in range(ny):
            after_j = j + 1 if j + 1 < ny else 0
            for k in range(nz):
                after_k = k + 1 if k + 1 < nz else 0
                here = x[i, j, k]
                d = (x[after_i, j, k] - here) * hx
                out[0, i, j, k] = np.float32(edges[0, i, j, k]) / np.sqrt(d * d + square)
                d = (x[i, after_j, k] - here) * hy
                out[1, i, j, k] = np.float32(edges[1, i, j, k]) / np.sqrt(d * d + square)
                d = (x[i, j, after_k] - here) * hz
                out[2, i, j, k] = np.float32(edges[2, i, j, k]) / np.sqrt(d * d + square)


@njit(parallel=True, cache=True)
def diffuse(x, weights, inverse_size, factor, out):
    """``out += factor E^H (weights E x)`` with E the :func:`gradient`, in one pass."""
    nx, ny, nz = x.shape
    hx, hy, hz = inverse_size
    ax, ay, az = factor * hx * hx, factor * hy * hy, factor * hz * hz
    for i in prange(nx):
        after_i = i + 1 if i + 1 < nx else 0
        before_i = i - 1 if i > 0 else nx - 1
        for j in range(ny):
            after_j = j + 1 if j + 1 < ny else 0
            before_j = j - 1 if j > 0 else ny - 1
            for k in range(nz):
                after_k = k + 1 if k + 1 < nz else 0
                before_k = k - 1 if k > 0 else nz - 1
                here = x[i, j, k]
                out[i, j, k] += (
                    ax
                    * (
                        weights[0, i, j, k] * (here - x[after_i, j, k])
                        + weights[0, before_i, j, k] * (here - x[before_i, j, k])
                    )
                    + ay
                    * (
                        weights[1, i, j, k] * (here - x[i, after_j, k])
                        + weights[1, i, before_j, k] * (here - x[i, before_j, k])
                    )
                    + az
                    * (
                        weights[2, i, j, k] * (here - x[i, j, after_k])
                        + weights[2, i, j, before_k] * (here - x[i, j, before_k])
                    )
                )
