"""Single-step inversions with spherical mean values in the data term, regularised by total (generalised) variation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from qsmflow.algorithms import fourier, operators
from qsmflow.algorithms.background import smv
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.singlestep import second_order
from qsmflow.algorithms.solvers import change, note_end
from qsmflow.algorithms.weights import error_weights

#: Ratio of successive radii: few transforms, and no voxel is left to a sphere much smaller than the one that fits.
_RATIO = 2.0

#: Border around the grid, voxels: periodic copies need no distance (their field is harmonic), only no common face.
_MARGIN = 2

#: How far the parabola stands above the envelope of the kernels: the masks of the spheres mix frequencies.
_ABOVE = np.float32(1.1)

#: Gradient (ppm/mm) and second derivative (ppm/mm^2) below which :func:`sstgv` takes a difference for noise in the first
#: iterations. They set the penalties of its splits: how fast it converges, not where to. Second derivatives are small, and with
#: the threshold of a gradient v would be free for tens of iterations.
_SMALL_GRADIENT, _SMALL_SECOND = np.float32(0.003), np.float32(0.0003)


def sstv(
    total_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    lambda_: float = 1e-4,
    max_radius: float = 12.0,
    min_radius: float = 1.5,
    iterations: int = 200,
    tolerance: float = 5e-3,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility from the total field in a single step, regularised by total variation.

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    lambda_ : float
        Weight of the total variation, ppm mm.
    max_radius : float
        Radius of the largest sphere, mm; each next one has half of it.
    min_radius : float
        Radius of the smallest sphere, mm (never below the smallest voxel side).
    iterations : int
        Largest number of ADMM iterations.
    tolerance : float
        Stop when the susceptibility changes by less than this fraction of its norm.
    weighted : bool
        Weight voxels with the inverse of their field error instead of equally.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Raises
    ------
    ValueError
        If no sphere fits into the mask.

    Notes
    -----
    ``min 1/2 sum_r ||W M_r (1 - S_r) (f - D chi)||^2 + lambda ||grad chi||_1``: S_r is the mean over a sphere of radius r, in
    which harmonic fields (the background) stay as they are, and M_r holds the voxels around which it is the largest sphere
    that fits into the mask. The susceptibility is free everywhere. In the outermost voxels, where no sphere fits,
    it is still seen by the spheres of their neighbours, so that the mask keeps every voxel; what lies outside makes a harmonic
    field and is not seen at all.

    Linearised ADMM: the masks M_r forbid a division in k-space, so that the data term is replaced in each iteration by a
    parabola above it, whose curvature ``max_r |1 - S_r|^2 D^2`` is diagonal there.

    References
    ----------
    Chatnuntawech et al., NMR Biomed 30:e3570, 2017, doi:10.1002/nbm.3570.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field(0.1 * (r2 < 25), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> field += np.linspace(0, 3, 32, dtype=np.float32)  # background
    >>> chi = sstv(field, r2 < 225, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(chi[r2 < 16].mean() - chi[(r2 > 49) & (r2 < 169)].mean() - 0.1) < 0.015)
    True
    """
    data = _spheres(
        total_field, mask, field_error if weighted else None, voxel_size, b0_dir, max_radius, min_radius
    )  # fmt: skip
    shape, size = data.shape, _inverse(voxel_size)
    rho = np.float32(100 * lambda_)
    curvature = data.curvature + rho * operators.gradient_power(shape, voxel_size)
    inverse = np.divide(1, curvature, out=np.zeros_like(curvature), where=curvature > 0)
    inverse[0, 0, 0] = 0
    chi, right = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    threshold, shifted = np.float32(lambda_ / rho), np.zeros((3, *shape), np.float32)
    spectrum, everywhere = fourier.rfftn(chi, shape), np.ones(shape, bool)
    count, reached = 0, np.inf
    for _ in range(iterations):
        count += 1
        step = data.step(spectrum)
        operators.split_divergence(shifted, size, threshold, True, right)
        spectrum = fourier.rfftn(right, shape)
        spectrum *= rho
        spectrum += step
        spectrum *= inverse
        previous, chi = chi, fourier.irfftn(spectrum, shape)
        operators.shrink_gradient(chi, size, threshold, True, np.float32(1), shifted)
        reached = change(chi, previous, everywhere)
        if reached <= tolerance:
            break
    note_end("sstv", count, reached, tolerance)
    return data.cropped(chi, mask)


def sstgv(
    total_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    lambda_: float = 1e-4,
    ratio: float = 3.0,
    max_radius: float = 12.0,
    min_radius: float = 1.5,
    iterations: int = 100,
    tolerance: float = 5e-3,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility from the total field in a single step, regularised by second-order total generalised variation.

    Parameters
    ----------
    total_field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the total field is known.
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, ppm (only ratios matter).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.
    lambda_ : float
        Weight of the first order, ppm mm.
    ratio : float
        Weight of the second order as a multiple of ``lambda_`` times 1 mm.
    max_radius : float
        Radius of the largest sphere, mm; each next one has half of it.
    min_radius : float
        Radius of the smallest sphere, mm (never below the smallest voxel side).
    iterations : int
        Largest number of ADMM iterations.
    tolerance : float
        Stop when the susceptibility in the mask changes by less than this fraction of its norm.
    weighted : bool
        Weight voxels with the inverse of their field error instead of equally.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Raises
    ------
    ValueError
        If no sphere fits into the mask.

    Notes
    -----
    The data term of :func:`sstv` with ``min_v lambda ||grad chi - v||_1 + ratio lambda ||sym grad v||_1``: a constant slope
    costs nothing, so that smooth variation does not break into steps. The mask keeps every voxel, as there. In each iteration
    chi and v are found together in k-space, where the 4 x 4 system has a rank-one inverse. Beyond the mask chi may go on with
    a slope, which takes its mean over the grid anywhere; its mean over the mask is set to 0.

    References
    ----------
    Chatnuntawech et al., NMR Biomed 30:e3570, 2017, doi:10.1002/nbm.3570.
    Bredies, Kunisch & Pock, SIAM J Imaging Sci 3:492, 2010, doi:10.1137/090769521.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field(0.1 * (r2 < 25), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> field += np.linspace(0, 3, 32, dtype=np.float32)  # background
    >>> chi = sstgv(field, r2 < 225, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(chi[r2 < 16].mean() - chi[(r2 > 49) & (r2 < 169)].mean() - 0.1) < 0.015)
    True
    """
    data = _spheres(
        total_field, mask, field_error if weighted else None, voxel_size, b0_dir, max_radius, min_radius
    )  # fmt: skip
    shape, size = data.shape, _inverse(voxel_size)
    rho, rho_second = np.float32(lambda_) / _SMALL_GRADIENT, np.float32(ratio * lambda_) / _SMALL_SECOND
    symbols = second_order.difference_symbols(shape, voxel_size)
    chi, right = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    slope, rightward = np.zeros((3, *shape), np.float32), np.empty((3, *shape), np.float32)
    dual, target = np.zeros((3, *shape), np.float32), np.zeros((3, *shape), np.float32)
    dual_second, tensor = np.zeros((6, *shape), np.float32), np.zeros((6, *shape), np.float32)
    spectrum = fourier.rfftn(chi, shape)
    slope_spectrum = np.empty((3, *spectrum.shape), np.complex64)
    count, reached = 0, np.inf
    for _ in range(iterations):
        count += 1
        step = data.step(spectrum)
        operators.divergence(target, size, right)
        spectrum = fourier.rfftn(right, shape)
        spectrum *= rho
        spectrum += step
        second_order.tensor_divergence(tensor, size, rightward)
        for axis in range(3):
            slope_spectrum[axis] = fourier.rfftn(rho_second * rightward[axis] - rho * target[axis], shape)
        second_order.solve_jointly(spectrum, slope_spectrum, symbols, data.curvature, rho, rho_second)
        previous, chi = chi, fourier.irfftn(spectrum, shape)
        for axis in range(3):
            slope[axis] = fourier.irfftn(slope_spectrum[axis], shape)
        second_order.shrink_first(chi, slope, size, _SMALL_GRADIENT, dual, target)
        second_order.symmetrised_gradient(slope, size, tensor)
        second_order.shrink_second(tensor, _SMALL_SECOND, dual_second)
        reached = change(chi, previous, mask)
        if reached <= tolerance:
            break
    note_end("sstgv", count, reached, tolerance)
    chi = data.cropped(chi, mask)
    return np.where(mask, chi - np.float32(chi[mask].mean(dtype=np.float64)), np.float32(0))


@dataclass(frozen=True)
class _Data:
    """The data term on the padded grid: filtered field, squared weights and number of the sphere of each voxel (0: none)."""

    filtered: np.ndarray
    squared: np.ndarray
    sphere: np.ndarray
    kernels: list[np.ndarray]
    curvature: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.filtered.shape

    def step(self, spectrum: np.ndarray) -> np.ndarray:
        """Curvature times the susceptibility minus the gradient there, both as half spectra: what a parabola step takes."""
        total = self.curvature * spectrum
        for number, kernel in enumerate(self.kernels, 1):
            residual = fourier.irfftn(kernel * spectrum, self.shape)
            _residual(residual, self.filtered, self.squared, self.sphere, number)
            part = fourier.rfftn(residual, self.shape)
            part *= kernel
            total += part
        return total

    def cropped(self, chi: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The susceptibility on the grid of the mask, 0 outside."""
        return np.where(mask, chi[tuple(slice(n) for n in mask.shape)], 0).astype(np.float32)


def _spheres(total_field, mask, field_error, voxel_size, b0_dir, max_radius, min_radius) -> _Data:
    """Filter the field with the largest sphere that fits around each voxel; kernels ``(1 - S_r) D`` and their envelope."""
    distance = smv.distance_inside(mask, voxel_size)
    smallest = max(min_radius, min(voxel_size))
    steps = max(0, round(np.log(max_radius / smallest) / np.log(_RATIO)))
    radii = [max_radius / _RATIO**i for i in range(steps)] + [smallest]
    radii = [r for r in radii if smv.fits(distance, r, voxel_size).any()]
    if not radii:
        raise ValueError(f"the mask holds no sphere of radius {smallest:g} mm; give a larger mask or a smaller min_radius")
    shape = fourier.padded_shape(mask.shape, _MARGIN)
    corner = tuple(slice(n) for n in mask.shape)
    dipole = dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir)
    spectrum = fourier.rfftn(np.where(mask, total_field - total_field[mask].mean(), 0).astype(np.float32), shape)
    filtered, squared = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    sphere, kernels, envelope = np.zeros(shape, np.uint8), [], np.float32(0)
    for number, radius in enumerate(radii, 1):
        kernel = 1 - smv.sphere_spectrum(radius, voxel_size, shape)
        new = smv.fits(distance, radius, voxel_size) & (sphere[corner] == 0)
        filtered[corner][new] = fourier.irfftn(kernel * spectrum, shape, mask.shape)[new]
        sphere[corner][new] = number
        envelope = np.maximum(envelope, np.abs(kernel))
        kernels.append(kernel * dipole)
    squared[corner] = (mask if field_error is None else error_weights(field_error, mask) ** 2) * (sphere[corner] > 0)
    return _Data(filtered, squared, sphere, kernels, _ABOVE * (envelope * dipole) ** 2)


def _inverse(voxel_size: Sequence[float]) -> tuple[np.float32, ...]:
    return tuple(np.float32(1 / h) for h in voxel_size)


@njit(parallel=True, cache=True)
def _residual(model, filtered, squared, sphere, number):
    """Weighted misfit of the voxels of one sphere, 0 elsewhere, in place of the model."""
    nx, ny, nz = model.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                if sphere[i, j, k] == number:
                    model[i, j, k] = squared[i, j, k] * (filtered[i, j, k] - model[i, j, k])
                else:
                    model[i, j, k] = 0
