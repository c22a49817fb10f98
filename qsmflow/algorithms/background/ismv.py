"""iSMV: iterated spherical means with the field at the edge held fixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms import fourier, morphology
from qsmflow.algorithms.background import smv
from qsmflow.algorithms.solvers import dot


def ismv(
    total_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    radius: float = 3.0,
    tolerance: float = 3e-5,
    iterations: int = 500,
) -> tuple[np.ndarray, np.ndarray]:
    """Local field by iterative spherical mean values (iSMV).

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    radius : float
        Radius of the sphere, mm (never below the largest voxel side); the mask shrinks by as much.
    tolerance : float
        Stop when the background field changes by less than this fraction of the total field's norm.
    iterations : int
        Largest number of iterations.

    Returns
    -------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm, 0 outside the returned mask.
    mask : ndarray of bool, (X, Y, Z)
        Where the sphere fits into the given mask.

    Raises
    ------
    ValueError
        If the sphere fits nowhere into the mask.

    Notes
    -----
    ``g_0 = f``, ``g_{k+1} = M' S g_k + (M - M') f`` with the mean S over a sphere and M' the shrunken mask;
    ``f_local = M' (f - g)``. The limit is the harmonic continuation of the field in the rim ``M - M'``, where the mask was
    shrunk: all field there is taken as background. n iterations reach ``radius sqrt(n / 5)`` far; stopping early keeps what
    is smoother in the background. Where voxels are long and the sphere is small, F(S) falls below -1 and steps are shortened
    accordingly.

    References
    ----------
    Wen et al., MRM 72:1065, 2014, doi:10.1002/mrm.24998.

    Examples
    --------
    A linear field is background everywhere:

    >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    >>> local, inside = ismv(ramp, np.ones(ramp.shape, bool), voxel_size=(1, 1, 1))
    >>> bool(abs(local[inside]).max() < 1e-4)
    True
    """
    radius = max(radius, *voxel_size)
    valid = smv.room(mask, radius, voxel_size)
    box = morphology.bounding_box(mask)
    inside, field = valid[box], smv.without_mean(total_field[box], mask[box])
    shape = fourier.padded_shape(field.shape)  # a sphere around a valid voxel never leaves the box
    kernel = smv.sphere_spectrum(radius, voxel_size, shape)
    relaxation = np.float32(min(1, 1.9 / (1 - float(kernel.min()))))
    background, limit = field.copy(), tolerance**2 * dot(field, field)
    for _ in range(iterations):
        step = fourier.convolve(background, kernel, shape)
        step -= background
        step *= relaxation * inside
        background += step
        if dot(step, step) <= limit:
            break
    local = np.zeros(mask.shape, np.float32)
    local[box] = np.where(inside, field - background, 0)
    return local, valid
