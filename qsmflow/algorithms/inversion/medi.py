"""MEDI: morphology-enabled dipole inversion, and its variant that makes the ventricles' fluid uniform and zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from qsmflow.algorithms import fourier
from qsmflow.algorithms.background import smv
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.inversion.gauss_newton import Fit, morphology_edges
from qsmflow.algorithms.reference import ventricles
from qsmflow.algorithms.units import radians_per_ppm
from qsmflow.algorithms.weights import error_weights

_MARGIN = 10.0  # mm; the susceptibility outside the mask is free, so that periodic copies only need to keep their distance


def medi(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    magnitude: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    data: Literal["nonlinear", "linear"] = "nonlinear",
    lambda_: float = 1e-4,
    edges: float = 0.3,
    merit: float = 0.0,
    smv_radius: float = 0.0,
    iterations: int = 20,
    cg_iterations: int = 10,
    tolerance: float = 1e-2,
) -> np.ndarray:
    """Susceptibility by morphology-enabled dipole inversion.

    Parameters
    ----------
    local_field : ndarray, (X, Y, Z)
        Local field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the local field is valid.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter).
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    b0 : float
        Main field strength, T (for the nonlinear data term).
    echo_times : sequence of float
        Echo times, s (for the nonlinear data term).
    data : {"nonlinear", "linear"}
        Compare the complex signals that go with measured and modelled field, where a wrong turn of the unwrapping does no
        harm, or the fields themselves.
    lambda_ : float
        Weight of the smoothness, ppm mm.
    edges : float
        Share of the magnitude's gradient components in the mask that are taken for edges, where the susceptibility may jump.
    merit : float
        Weigh down voxels whose residual is beyond this many standard deviations after each step (MERIT, usually 6);
        0 for none.
    smv_radius : float
        Compare fields without their mean over spheres of this radius, mm, which leaves what remains of the background out of
        account; 0 compares the fields as they are.
    iterations : int
        Largest number of Gauss-Newton steps.
    cg_iterations : int
        Largest number of conjugate-gradient iterations in each step.
    tolerance : float
        Stop when a step is smaller than this fraction of the susceptibility.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Raises
    ------
    ValueError
        If ``smv_radius`` is so large that the sphere fits nowhere into the mask.

    Notes
    -----
    ``min 1/2 ||W (e^{ik D chi} - e^{ik f})||^2 / k^2 + lambda ||M_G grad chi||_1`` with M_G = 0 at the edges of the magnitude
    and k the phase per ppm over the echo spacing. W is the inverse field error and 0 outside the mask: the susceptibility there
    is free and may take up what is left of the background, and the mask's border is an edge. The norm is smoothed below
    1e-3 ppm/mm. With spheres, D and f are both replaced by what they are beyond the spherical mean, and W is 0 where the sphere
    does not fit into the mask; the susceptibility there follows from the field farther inside.

    References
    ----------
    Liu T et al., MRM 66:777, 2011, doi:10.1002/mrm.22816 (morphology).
    Liu J et al., NeuroImage 59:2560, 2012, doi:10.1016/j.neuroimage.2011.08.082 (L1 norm).
    Liu T et al., MRM 69:467, 2013, doi:10.1002/mrm.24272 (nonlinear data term, MERIT).

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field((r2 < 25).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> magnitude = 1 + (r2 < 25)[..., None].astype(np.float32)
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1), "b0": 3, "echo_times": (0.005, 0.01)}
    >>> chi = medi(field, r2 < 196, np.ones_like(field), magnitude, **context)
    >>> bool(abs(chi[r2 < 9].mean() - chi[(r2 > 64) & (r2 < 169)].mean() - 1) < 0.02)
    True
    """
    radians = radians_per_ppm(b0=b0, echo_times=echo_times) if data == "nonlinear" else 0.0
    fit = _fit(local_field, mask, field_error, magnitude, voxel_size, b0_dir, radians, lambda_, edges, smv_radius)
    chi = fit.solve(iterations=iterations, cg_iterations=cg_iterations, tolerance=tolerance, merit=merit, name="medi")
    return np.where(mask, chi[tuple(slice(n) for n in mask.shape)], np.float32(0))


def medi0(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    magnitude: np.ndarray,
    r2star: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    b0: float,
    echo_times: Sequence[float],
    fluid_weight: float = 0.1,
    fluid_r2star: float = 5.0,
    fluid_radius: float = 30.0,
    data: Literal["nonlinear", "linear"] = "nonlinear",
    lambda_: float = 1e-4,
    edges: float = 0.3,
    merit: float = 0.0,
    smv_radius: float = 0.0,
    iterations: int = 20,
    cg_iterations: int = 10,
    tolerance: float = 1e-2,
) -> np.ndarray:
    """Susceptibility by morphology-enabled dipole inversion with the ventricles' fluid made uniform and zero (MEDI+0).

    Parameters
    ----------
    local_field, mask, field_error, magnitude
        As for :func:`medi`.
    r2star : ndarray, (X, Y, Z)
        R2*, 1/s; tells the fluid.
    voxel_size, b0_dir, b0, echo_times
        As for :func:`medi`.
    fluid_weight : float
        Weight of the susceptibility's variation within the fluid, against the data.
    fluid_r2star : float
        Fluid has an R2* below this value, 1/s.
    fluid_radius : float
        Only fluid within this distance of the brain's centre counts, mm.
    data : {"nonlinear", "linear"}
        Compare the complex signals that go with measured and modelled field, or the fields themselves.
    lambda_ : float
        Weight of the smoothness, ppm mm.
    edges : float
        Share of the magnitude's gradient components in the mask that are taken for edges.
    merit : float
        Weigh down voxels whose residual is beyond this many standard deviations after each step (MERIT, usually 6);
        0 for none.
    smv_radius : float
        Compare fields without their mean over spheres of this radius, mm; 0 compares the fields as they are.
    iterations : int
        Largest number of Gauss-Newton steps.
    cg_iterations : int
        Largest number of conjugate-gradient iterations in each step.
    tolerance : float
        Stop when a step is smaller than this fraction of the susceptibility.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility relative to the mean of the fluid, ppm, 0 outside the mask.

    Raises
    ------
    ValueError
        If no fluid is found in the mask.

    Notes
    -----
    The objective of :func:`medi` plus ``mu/2 ||chi - mean(chi)||^2`` over the fluid, which is found as for the reference
    ``csf``: low R2* near the centre of the mask, its three largest components. The mean of the fluid is then subtracted.

    References
    ----------
    Liu Z et al., MRM 79:2795, 2018, doi:10.1002/mrm.26946.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field((r2 < 25).astype(np.float32), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> magnitude, r2star = 1 + (r2 < 25)[..., None].astype(np.float32), np.where(r2 < 16, 1, 20).astype(np.float32)
    >>> context = {"voxel_size": (1, 1, 1), "b0_dir": (0, 0, 1), "b0": 3, "echo_times": (0.005, 0.01)}
    >>> chi = medi0(field, r2 < 196, np.ones_like(field), magnitude, r2star, **context)
    >>> bool(abs(chi[r2 < 16].mean()) < 1e-5), bool(abs(chi[(r2 > 64) & (r2 < 169)].mean() + 1) < 0.02)
    (True, True)
    """
    fluid = ventricles(r2star, mask, voxel_size=voxel_size, max_r2star=fluid_r2star, radius=fluid_radius)
    if not fluid.any():
        raise ValueError("no ventricular fluid (low R2* near the brain's centre) lies inside the mask; choose medi")
    radians = radians_per_ppm(b0=b0, echo_times=echo_times) if data == "nonlinear" else 0.0
    fit = _fit(local_field, mask, field_error, magnitude, voxel_size, b0_dir, radians, lambda_, edges, smv_radius)
    fit.uniform, fit.uniform_weight = np.ravel_multi_index(np.nonzero(fluid), fit.measured.shape), fluid_weight
    chi = fit.solve(iterations=iterations, cg_iterations=cg_iterations, tolerance=tolerance, merit=merit, name="medi0")
    chi = chi[tuple(slice(n) for n in mask.shape)]
    return np.where(mask, chi - np.float32(chi[fluid].mean(dtype=np.float64)), np.float32(0))


def _fit(local_field, mask, field_error, magnitude, voxel_size, b0_dir, radians, lambda_, edges, radius) -> Fit:
    """The least-squares problem on its padded grid."""
    radius = max(radius, *voxel_size) if radius else 0.0  # a smaller sphere is a single voxel
    margin = np.maximum([int(np.ceil(_MARGIN / h)) for h in voxel_size], smv.reach(radius, voxel_size) if radius else 0)
    shape = fourier.padded_shape(mask.shape, margin.tolist())
    corner = tuple(slice(n) for n in mask.shape)
    kernel = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir)
    measured, squared = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    measured[corner] = np.where(mask, local_field, 0)
    if radius:
        # D, f and the noise go through the same filter; half of it would be an inconsistent model
        sphere = smv.sphere_spectrum(radius, voxel_size, shape)
        fits = smv.fits(smv.distance_inside(mask, voxel_size), radius, voxel_size)
        if not fits.any():
            raise ValueError(f"the mask holds no sphere of radius {radius:g} mm; give a smaller smv_radius")
        variance = np.where(mask, field_error, 0).astype(np.float32) ** 2
        variance += np.maximum(fourier.convolve(variance, sphere, shape), 0)
        field_error, mask = np.sqrt(variance), fits
        measured -= fourier.convolve(measured, sphere, shape)
        kernel *= 1 - sphere
    squared[corner] = error_weights(field_error, mask) ** 2
    inverse_size = tuple(np.float32(1 / h) for h in voxel_size)
    jumps = np.ones((3, *shape), np.uint8)
    jumps[:, *corner] = morphology_edges(magnitude, mask, inverse_size=inverse_size, fraction=edges)
    return Fit(measured, squared, kernel, jumps, inverse_size, lambda_, radians)
