"""Second-order total generalised variation: the symmetrised gradient, its adjoint, and the steps that ADMM takes with it.

All differences are forward, so that the two parts of a mixed derivative lie at the same place, periodic and per mm. A symmetric
tensor has six components, in the order xx, yy, zz, xy, xz, yz; its norms count the last three twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, prange

from qsmflow.algorithms import fourier


def difference_symbols(shape: Sequence[int], voxel_size: Sequence[float]) -> tuple[np.ndarray, ...]:
    """Symbols of the forward differences along each axis of the half spectrum, 1/mm, complex64.

    Examples
    --------
    >>> [float(abs(e[1])) for e in difference_symbols((2, 2, 2), (1, 1, 2))]
    [2.0, 2.0, 1.0]
    """
    axes = fourier.frequencies(shape, voxel_size)
    return tuple(
        ((np.exp(2j * np.pi * k.ravel() * h) - 1) / h).astype(np.complex64) for k, h in zip(axes, voxel_size, strict=True)
    )


@njit(parallel=True, cache=True)
def symmetrised_gradient(v, inverse_size, out):
    """Symmetric part of the gradient of ``v`` (3, X, Y, Z) into ``out`` (6, X, Y, Z)."""
    _, nx, ny, nz = v.shape
    hx, hy, hz = inverse_size
    half = np.float32(0.5)
    for i in prange(nx):
        a = i + 1 if i + 1 < nx else 0
        for j in range(ny):
            b = j + 1 if j + 1 < ny else 0
            for k in range(nz):
                c = k + 1 if k + 1 < nz else 0
                x, y, z = v[0, i, j, k], v[1, i, j, k], v[2, i, j, k]
                out[0, i, j, k] = (v[0, a, j, k] - x) * hx
                out[1, i, j, k] = (v[1, i, b, k] - y) * hy
                out[2, i, j, k] = (v[2, i, j, c] - z) * hz
                out[3, i, j, k] = half * ((v[1, a, j, k] - y) * hx + (v[0, i, b, k] - x) * hy)
                out[4, i, j, k] = half * ((v[2, a, j, k] - z) * hx + (v[0, i, j, c] - x) * hz)
                out[5, i, j, k] = half * ((v[2, i, b, k] - z) * hy + (v[1, i, j, c] - y) * hz)


@njit(parallel=True, cache=True)
def tensor_divergence(t, inverse_size, out):
    """Adjoint of :func:`symmetrised_gradient`, for the product that counts mixed components twice."""
    _, nx, ny, nz = out.shape
    hx, hy, hz = inverse_size
    for i in prange(nx):
        a = i - 1 if i > 0 else nx - 1
        for j in range(ny):
            b = j - 1 if j > 0 else ny - 1
            for k in range(nz):
                c = k - 1 if k > 0 else nz - 1
                xy, xz, yz = t[3, i, j, k], t[4, i, j, k], t[5, i, j, k]
                out[0, i, j, k] = (t[0, a, j, k] - t[0, i, j, k]) * hx + (t[3, i, b, k] - xy) * hy + (t[4, i, j, c] - xz) * hz
                out[1, i, j, k] = (t[3, a, j, k] - xy) * hx + (t[1, i, b, k] - t[1, i, j, k]) * hy + (t[5, i, j, c] - yz) * hz
                out[2, i, j, k] = (t[4, a, j, k] - xz) * hx + (t[5, i, b, k] - yz) * hy + (t[2, i, j, c] - t[2, i, j, k]) * hz


@njit(parallel=True, cache=True)
def shrink_first(x, v, inverse_size, threshold, dual, target):
    """ADMM step of ``|grad x - v|``, in place, as :func:`qsmflow.algorithms.operators.shrink_gradient` does it for v = 0."""
    nx, ny, nz = x.shape
    hx, hy, hz = inverse_size
    for i in prange(nx):
        a = i + 1 if i + 1 < nx else 0
        for j in range(ny):
            b = j + 1 if j + 1 < ny else 0
            for k in range(nz):
                c = k + 1 if k + 1 < nz else 0
                here = x[i, j, k]
                t = (x[a, j, k] - here) * hx - v[0, i, j, k] + dual[0, i, j, k]
                u = min(max(t, -threshold), threshold)
                dual[0, i, j, k], target[0, i, j, k] = u, t - u - u
                t = (x[i, b, k] - here) * hy - v[1, i, j, k] + dual[1, i, j, k]
                u = min(max(t, -threshold), threshold)
                dual[1, i, j, k], target[1, i, j, k] = u, t - u - u
                t = (x[i, j, c] - here) * hz - v[2, i, j, k] + dual[2, i, j, k]
                u = min(max(t, -threshold), threshold)
                dual[2, i, j, k], target[2, i, j, k] = u, t - u - u


@njit(parallel=True, cache=True)
def shrink_second(t, threshold, dual):
    """ADMM step of the tensor ``t = sym grad v``, in place: ``t`` becomes ``shrink(t + dual) - dual`` with the new dual."""
    for i in prange(t.shape[1]):
        for n in range(6):
            for j in range(t.shape[2]):
                for k in range(t.shape[3]):
                    value = t[n, i, j, k] + dual[n, i, j, k]
                    u = min(max(value, -threshold), threshold)
                    dual[n, i, j, k], t[n, i, j, k] = u, value - u - u


@njit(parallel=True, cache=True)
def solve_jointly(x, v, symbols, data, first, second):
    """Quadratic step of ADMM for x and v in k-space, in place: right-hand sides become solutions.

    The normal equations are ``(data + first |e|^2) x - first e^H v = r_x`` and ``-first e x + (first + second S^H S) v = r_v``
    with ``S^H S = (|e|^2 + e e^H) / 2``, which a rank-one inverse solves. Both are 0 at the origin.
    """
    ex, ey, ez = symbols
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            for k in range(x.shape[2]):
                if i == 0 and j == 0 and k == 0:
                    x[i, j, k], v[0, i, j, k], v[1, i, j, k], v[2, i, j, k] = 0, 0, 0, 0
                    continue
                e0, e1, e2 = ex[i], ey[j], ez[k]
                power = _square(e0) + _square(e1) + _square(e2)
                v0, v1, v2 = v[0, i, j, k], v[1, i, j, k], v[2, i, j, k]
                along = np.conj(e0) * v0 + np.conj(e1) * v1 + np.conj(e2) * v2
                stiff = first + second * power
                solution = (x[i, j, k] + first / stiff * along) / (data[i, j, k] + first * second * power * power / stiff)
                pull = first * solution
                across = first + np.float32(0.5) * second * power
                shared = np.float32(0.5) * second * (along + power * pull) / stiff
                x[i, j, k] = solution
                v[0, i, j, k] = (v0 + e0 * (pull - shared)) / across
                v[1, i, j, k] = (v1 + e1 * (pull - shared)) / across
                v[2, i, j, k] = (v2 + e2 * (pull - shared)) / across


@njit(inline="always")
def _square(z):
    return z.real * z.real + z.imag * z.imag
