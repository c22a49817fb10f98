"""Data terms: how far a field may be from the measured one, as the proximal steps that ADMM takes voxel by voxel.

Each step has penalty 1 and works in place, for the split ``z = forward``: with ``t = r forward + (1 - r) z + dual``, r the
over-relaxation, the new z minimises ``misfit(z) + (z - t)^2 / 2``; ``dual`` becomes ``t - z`` and ``target`` becomes
``z - dual``, the next right-hand side. Where the weight is 0 the misfit is nothing and ``z = t``. Fields are in ppm;
``scale`` is the phase of one ppm, rad. Divisors are positive and not checked (``error_model``): checks would keep the loops
from being vectorised.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

_NEWTON = 20  # steps, halving the bracket at least: enough for float32

#: Angle, rad, below which one step of Newton's method from the series of the root is exact to float32.
_SMALL_ANGLE = np.float32(0.5)

#: Coefficients of sine and cosine after the first, in powers of the squared angle; exact to float32 below _SMALL_ANGLE.
_SINE = tuple(np.float32(c) for c in (-1 / 6, 1 / 120, -1 / 5040))
_COSINE = tuple(np.float32(c) for c in (-1 / 2, 1 / 24, -1 / 720))


@njit(cache=True, inline="always")
def relaxed(forward, dual, target, relaxation):
    """``r forward + (1 - r) z + dual`` with the last split ``z = target + dual``."""
    return target + dual + dual + relaxation * (forward - target - dual)


@njit(parallel=True, cache=True, error_model="numpy")
def squares(field, weight, forward, dual, target, relaxation):
    """Step of ``weight/2 (z - f)^2``."""
    nx, ny, nz = forward.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                t = relaxed(forward[i, j, k], dual[i, j, k], target[i, j, k], relaxation)
                w = weight[i, j, k]
                z = (w * field[i, j, k] + t) / (w + np.float32(1))
                dual[i, j, k] = t - z
                target[i, j, k] = z - (t - z)


@njit(parallel=True, cache=True, error_model="numpy")
def absolute(field, weight, forward, dual, target, relaxation):
    """Step of ``weight |z - f|``."""
    nx, ny, nz = forward.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                t = relaxed(forward[i, j, k], dual[i, j, k], target[i, j, k], relaxation)
                w = weight[i, j, k]
                u = min(max(t - field[i, j, k], -w), w)
                dual[i, j, k] = u
                target[i, j, k] = t - u - u


@njit(parallel=True, cache=True, error_model="numpy")
def phase_squares(field, weight, forward, dual, target, relaxation, scale):
    """Step of ``weight/2 |exp(i scale z) - exp(i scale f)|^2 / scale^2``, weights at most 1 (the step is then convex)."""
    nx, ny, nz = forward.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                t = relaxed(forward[i, j, k], dual[i, j, k], target[i, j, k], relaxation)
                w, u = weight[i, j, k], np.float32(0)
                if w > 0:
                    y = (t - field[i, j, k]) * scale
                    u = (y - root_of_sine(y, w)) / scale
                dual[i, j, k] = u
                target[i, j, k] = t - u - u


@njit(parallel=True, cache=True, error_model="numpy")
def phase_absolute(field, weight, forward, dual, target, relaxation, scale):
    """Step of ``weight |exp(i scale z) - exp(i scale f)| / scale``, weights at most ``2 / scale``; the nearest minimum."""
    nx, ny, nz = forward.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                t = relaxed(forward[i, j, k], dual[i, j, k], target[i, j, k], relaxation)
                w, u = weight[i, j, k] * scale, np.float32(0)
                if w > 0:
                    y = (t - field[i, j, k]) * scale
                    y -= np.float32(2 * math.pi) * np.float32(np.rint(y / (2 * math.pi)))
                    u = (y - root_of_chord(y, w)) / scale
                dual[i, j, k] = u
                target[i, j, k] = t - u - u


@njit(cache=True, error_model="numpy")
def root_of_sine(y, w):
    """The root x of ``x + w sin(x) = y`` for 0 <= w <= 1: Newton's method, kept in a bracket.

    Small roots take a single step from the series ``x = a + w a^3 / (6 (1 + w))``, with polynomials for sine and cosine.
    """
    a = y / (np.float32(1) + w)
    if abs(a) < _SMALL_ANGLE:
        x = a + w / (np.float32(6) * (np.float32(1) + w)) * a * a * a
        square = x * x
        sine = x * (np.float32(1) + square * (_SINE[0] + square * (_SINE[1] + square * _SINE[2])))
        cosine = np.float32(1) + square * (_COSINE[0] + square * (_COSINE[1] + square * _COSINE[2]))
        return x - (x + w * sine - y) / (np.float32(1) + w * cosine)
    low, high = y - w, y + w
    x = a if abs(y) < 1 else y
    for _ in range(_NEWTON):
        value = x + w * np.float32(math.sin(x)) - y
        if value > 0:
            high = x
        else:
            low = x
        slope = np.float32(1) + w * np.float32(math.cos(x))
        after = x - value / slope if slope > np.float32(1e-3) else low
        if not low < after < high:
            after = np.float32(0.5) * (low + high)
        if abs(after - x) <= np.float32(1e-6) * max(abs(x), np.float32(1)):
            return after
        x = after
    return x


@njit(cache=True)
def root_of_chord(y, w):
    """The minimum x of ``2 w |sin(x / 2)| + (x - y)^2 / 2`` for ``|y| <= pi`` and 0 <= w <= 2: 0 for ``|y| <= w``."""
    size = abs(y)
    if size <= w:
        return np.float32(0)
    x = size - w
    for _ in range(_NEWTON):
        value = x + w * np.float32(math.cos(np.float32(0.5) * x)) - size
        step = value / (np.float32(1) - np.float32(0.5) * w * np.float32(math.sin(np.float32(0.5) * x)))
        x -= step
        if abs(step) <= np.float32(1e-6):
            break
    return x if y > 0 else -x
