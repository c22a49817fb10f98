"""RESHARP: regularised inversion of the spherical mean value filter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from qsmflow.algorithms import fourier, morphology, solvers
from qsmflow.algorithms.background import smv
from qsmflow.algorithms.dipole import dipole_kernel

#: Prior of the local field: frequency up to which its sources are taken as uncorrelated, 1/mm, and the square of the field
#: that a source makes at the dipole's cone, where in a periodic grid it would make none.
_CORNER, _CONE = 0.02, 0.01


def resharp(
    total_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    radius: float = 2.4,
    lambda_: float = 1e-5,
    prior: Literal["dipole", "energy"] = "dipole",
    tolerance: float = 3e-4,
    iterations: int = 30,
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
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes; read by the prior "dipole" alone.
    radius : float
        Radius of the sphere, mm (never below the largest voxel side); the mask shrinks by as much.
    lambda_ : float
        Weight of the penalty.
    prior : {"dipole", "energy"}
        What is penalised: the energy of the local field over what sources in tissue would make of it at each frequency, an
        extension of this package that leaves more of the field near the edge, or that energy itself, as published.
    tolerance : float
        Conjugate gradients stop when the (preconditioned) residual has fallen by this factor.
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
    ``min_x ||H (x - f)||^2 + lambda ||P x||^2`` with ``H = M (delta - S) *``: M the shrunken mask, S the mean over a sphere. P
    is 1 or, with ``prior="dipole"``, ``P^2 = 0.1 (1 + (k / k0)^2)^(1/2) / (D^2 + 0.01)`` with the dipole kernel D and
    k0 = 0.02/mm: susceptibility in tissue is correlated over centimetres, and a field at the cone of D is background. Solved by
    conjugate gradients for the spectrum of x, so that an iteration takes two transforms, preconditioned with
    ``1 / ((1 - F(S))^2 + lambda P^2)``.

    References
    ----------
    Sun & Wilman, MRM 71:1151, 2014, doi:10.1002/mrm.24765.

    Examples
    --------
    A linear field is background everywhere:

    >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)[:, None, None] * np.ones((1, 32, 32), np.float32)
    >>> local, inside = resharp(ramp, np.ones(ramp.shape, bool), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(local[inside]).max() < 1e-3)
    True
    """
    radius = max(radius, *voxel_size)
    valid = smv.room(mask, radius, voxel_size)
    box = morphology.bounding_box(mask)
    window = valid[box].astype(np.float32)
    shape = fourier.padded_shape(window.shape, smv.reach(radius, voxel_size))
    kernel = 1 - smv.sphere_spectrum(radius, voxel_size, shape)
    penalty = np.float32(lambda_)
    if prior == "dipole":
        penalty = penalty * _dipole_penalty(shape, voxel_size, b0_dir)
    inverse = 1 / (kernel**2 + penalty)

    def filtered_twice(spectrum):
        product = spectrum * kernel
        volume = fourier.irfftn(product, shape, window.shape, overwrite=True) * window
        product = fourier.rfftn(volume, shape)
        product *= kernel
        return product

    def normal(spectrum):
        result = filtered_twice(spectrum)
        result += penalty * spectrum
        return result

    right = filtered_twice(fourier.rfftn(smv.without_mean(total_field[box], mask[box]), shape))
    spectrum = solvers.conjugate_gradients(
        normal, right, iterations=iterations, tolerance=tolerance, preconditioner=lambda residual: residual * inverse,
        inner=partial(fourier.inner, last=shape[-1]),
    )  # fmt: skip
    local = np.zeros(mask.shape, np.float32)
    local[box] = np.where(valid[box], fourier.irfftn(spectrum, shape, window.shape), 0)
    return local, valid


def _dipole_penalty(shape: Sequence[int], voxel_size: Sequence[float], b0_dir: Sequence[float]) -> np.ndarray:
    """Inverse of the power that a local field is expected to have at each frequency, half spectrum, float32."""
    square = sum(k * k for k in fourier.frequencies(shape, voxel_size)).astype(np.float32)
    power = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir) ** 2 + np.float32(_CONE)
    return np.float32(0.1) * np.sqrt(1 + square / np.float32(_CORNER**2)) / power
