"""RESHARP: regularised inversion of the spherical mean value filter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qsmflow.algorithms import fourier, solvers
from qsmflow.algorithms.background import smv


def resharp(
    total_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    radius: float = 4.0,
    lambda_: float = 1e-4,
    tolerance: float = 1e-3,
    iterations: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """Local field by RESHARP.

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    radius : float
        Radius of the sphere, mm; the mask shrinks by as much.
    lambda_ : float
        Tikhonov weight of the local field's energy.
    tolerance : float
        Conjugate gradients stop when the residual has fallen by this factor.
    iterations : int
        Largest number of conjugate-gradient iterations.

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
    ``min_x ||H (x - f)||^2 + lambda ||x||^2`` with ``H = M (delta - S) *``: M the shrunken mask, S the mean over a sphere.
    Solved by conjugate gradients, preconditioned in k-space with ``1 / ((1 - F(S))^2 + lambda)``.

    References
    ----------
    Sun & Wilman, MRM 71:1151, 2014, doi:10.1002/mrm.24765.

    Examples
    --------
    A linear field is background everywhere:

    >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    >>> local, inside = resharp(ramp, np.ones(ramp.shape, bool), voxel_size=(1, 1, 1))
    >>> bool(abs(local[inside]).max() < 1e-3)
    True
    """
    valid = smv.fits(smv.distance_inside(mask, voxel_size), radius, voxel_size)
    if not valid.any():
        raise ValueError(f"the mask holds no sphere of radius {radius:g} mm; give a larger mask or a smaller radius")
    shape = fourier.padded_shape(mask.shape, smv.reach(radius, voxel_size))
    corner = tuple(slice(n) for n in mask.shape)
    kernel = 1 - smv.sphere_spectrum(radius, voxel_size, shape)
    window = np.zeros(shape, np.float32)
    window[corner] = valid

    def filtered(x):
        return fourier.convolve(x, kernel, shape)

    def normal(x):
        return filtered(window * filtered(x)) + np.float32(lambda_) * x

    field = np.zeros(shape, np.float32)
    field[corner] = np.where(mask, total_field - total_field[mask].mean(), 0)
    right = filtered(window * filtered(field))
    inverse = 1 / (kernel**2 + np.float32(lambda_))
    local = solvers.conjugate_gradients(
        normal, right, iterations=iterations, tolerance=tolerance,
        preconditioner=lambda r: fourier.convolve(r, inverse, shape),
    )  # fmt: skip
    return local[corner] * valid, valid
