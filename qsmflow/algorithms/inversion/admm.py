"""The alternating direction method of multipliers (ADMM) that the variational inversions share.

All of them minimise ``data(D chi) + penalty(grad chi)``. Both arguments are split off; an iteration is one division in
k-space for the susceptibility and one step voxel by voxel for each part:

- a *penalty* (:class:`Variation`, :class:`GeneralisedVariation`) owns the split gradient,
- a *data term* (:class:`Residual` with one of its steps, :class:`Anchor`) owns the split field.

Everything is in ppm and mm, whatever the field strength and voxel size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numba import njit, prange

from qsmflow.algorithms import fourier, operators, solvers
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.inversion import misfit, tuning
from qsmflow.algorithms.weights import error_weights

_MARGIN = 10.0  # mm; the susceptibility outside the mask is free, so that periodic copies only need to keep their distance

#: Gradient, ppm/mm, below which a difference is taken for noise in the first iterations. It sets the penalty of the split
#: gradient, hence how fast ADMM converges and not where to.
_SMALL_GRADIENT = np.float32(0.01)

#: The same for second derivatives, ppm/mm^2.
_SMALL_SECOND = np.float32(0.001)

#: Over-relaxation of the splits: each step goes this far beyond the fit, which saves a third of the iterations.
_RELAXATION = np.float32(1.6)

#: Iterations at each weight that is tried.
_TRIAL = 20

#: Keeps logarithms finite where there is no field.
_TINY = 1e-30

#: Mean of the absolute value and of the square of normal noise of unit deviation.
_MOMENTS = {1: math.sqrt(2 / math.pi), 2: 1.0}


@dataclass(frozen=True)
class Grid:
    """The padded grid of an inversion."""

    size: tuple[int, ...]
    voxel_size: tuple[float, ...]
    b0_dir: tuple[float, ...]
    space: Literal["kspace", "image"] = "kspace"

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Fast shape that keeps periodic copies apart."""
        return fourier.padded_shape(self.size, [math.ceil(_MARGIN / h) for h in self.voxel_size])

    @cached_property
    def kernel(self) -> np.ndarray:
        """Half spectrum of the dipole."""
        return dipole_kernel(self.shape, voxel_size=self.voxel_size, b0_dir=self.b0_dir, space=self.space)

    @cached_property
    def inverse_size(self) -> tuple[np.float32, ...]:
        """Voxels per mm."""
        return tuple(np.float32(1 / h) for h in self.voxel_size)

    def pad(self, volume: np.ndarray) -> np.ndarray:
        """``volume`` with zeros behind it, float32."""
        padded = np.zeros(self.shape, np.float32)
        padded[tuple(slice(n) for n in self.size)] = volume
        return padded

    def forward(self, chi: np.ndarray) -> np.ndarray:
        """Field of a padded susceptibility; its own adjoint."""
        return fourier.convolve(chi, self.kernel, self.shape)

    def crop(self, padded: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The volume back, 0 outside ``mask``."""
        return np.where(mask, padded[tuple(slice(n) for n in self.size)], np.float32(0))


def prepare(
    local_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    weighted: bool,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
) -> tuple[Grid, np.ndarray, np.ndarray]:
    """The grid of an inversion, and on it the field and its weights (0 outside the mask, the inverse error or 1 inside)."""
    grid = Grid(mask.shape, voxel_size, b0_dir)
    weight = grid.pad(error_weights(field_error, mask) if weighted else mask)
    return grid, grid.pad(np.where(mask, local_field, 0)), weight


class Variation:
    """``weight * ||grad chi||_1``: total variation, of whole vectors (``isotropic``) or of each component."""

    def __init__(self, grid: Grid, weight: float, isotropic: bool = True):
        self.grid, self.isotropic = grid, isotropic
        self.threshold, self.relaxation = _SMALL_GRADIENT, _RELAXATION
        self.weigh(weight)
        self.shifted = np.zeros((3, *grid.shape), np.float32)

    def weigh(self, weight: float) -> None:
        """Set the weight; the splits stay where they are."""
        self.strength = np.float32(weight / self.threshold)

    def step(self, chi: np.ndarray) -> None:
        """Shrink the gradient of ``chi``."""
        operators.shrink_gradient(chi, self.grid.inverse_size, self.threshold, self.isotropic, self.relaxation, self.shifted)

    def pull(self) -> np.ndarray:
        """Right-hand side of the quadratic step: ``strength`` times the adjoint gradient of the split less its dual."""
        out = np.empty(self.grid.shape, np.float32)
        size = tuple(self.strength * n for n in self.grid.inverse_size)
        operators.split_divergence(self.shifted, size, self.threshold, self.isotropic, out)
        return out


class GeneralisedVariation:
    """``weight * (||grad chi - v||_1 + ratio ||sym grad v||_1)``, smallest over v: second-order total generalised variation.

    The vector field v is stepped with a proximal term that makes its quadratic diagonal; minimising over it voxel by voxel
    then only weakens the penalty that the susceptibility sees, and no transform is added (semi-proximal ADMM).
    """

    def __init__(self, grid: Grid, weight: float, ratio: float):
        self.grid, self.threshold, self.relaxation = grid, _SMALL_GRADIENT, np.float32(1)
        norm = 4 * sum(1 / h**2 for h in grid.voxel_size)  # of sym grad, squared: what the proximal term needs
        self.inverse_norm = np.float32(1 / norm)
        # The second split has its own penalty; of what v is pulled by, this share comes from the first.
        second = ratio * self.threshold / _SMALL_SECOND
        self.second_threshold = np.float32(_SMALL_SECOND)
        self.share = np.float32(1 / (1 + second * norm))
        self.weigh(weight)
        self.vector, self.dual, self.target = (np.zeros((3, *grid.shape), np.float32) for _ in range(3))
        self.second_dual, self.second = (np.zeros((6, *grid.shape), np.float32) for _ in range(2))

    def weigh(self, weight: float) -> None:
        """Set the weight; the splits stay where they are."""
        self.strength = np.float32(weight / self.threshold * (1 - self.share))

    def step(self, chi: np.ndarray) -> None:
        """Shrink ``grad chi - v`` and ``sym grad v``; move v."""
        size = self.grid.inverse_size
        _shrink_difference(chi, size, self.threshold, self.share, self.vector, self.dual, self.target)
        _shrink_strain(self.vector, size, self.second_threshold, self.second_dual, self.second)
        operators.symmetric_divergence(self.second, size, -self.inverse_norm, self.vector)
        self.target += self.vector

    def pull(self) -> np.ndarray:
        """Right-hand side of the quadratic step."""
        out = np.empty(self.grid.shape, np.float32)
        operators.divergence(self.target, tuple(self.strength * n for n in self.grid.inverse_size), out)
        return out


class Residual:
    """A data term of ``D chi`` and a measured field (padded, with weights), by one of the steps of :mod:`.misfit`."""

    def __init__(self, grid: Grid, field: np.ndarray, weight: np.ndarray, step: Callable[..., None]):
        self.grid, self.field, self.weight, self.misfit = grid, field, weight, step
        self.dual, self.target = (np.zeros(grid.shape, np.float32) for _ in range(2))

    @property
    def power(self) -> np.ndarray:
        """Diagonal of the quadratic step in k-space."""
        return self.grid.kernel**2

    def solve(self, spectrum: np.ndarray, scale: np.ndarray) -> None:
        """Quadratic step, in place: from the penalty's right-hand side to the susceptibility; ``scale`` is 1 / diagonal."""
        _add_and_scale(spectrum, fourier.rfftn(self.target, self.grid.shape), self.grid.kernel, scale)

    def step(self, spectrum: np.ndarray, relaxation: np.float32) -> None:
        """Step the split field, given the spectrum of the susceptibility, which is used up."""
        spectrum *= self.grid.kernel
        self._take(fourier.irfftn(spectrum, self.grid.shape, overwrite=True), relaxation)

    def _take(self, forward: np.ndarray, relaxation: np.float32) -> None:
        self.misfit(self.field, self.weight, forward, self.dual, self.target, relaxation)


class HarmonicResidual(Residual):
    """A data term of ``D chi + h`` with ``beta/2 ||M lap h||^2``, smallest over h, a field that is harmonic where M is 1.

    ``lap h`` is split off as well, with ``penalty`` (mm^4), which decides how fast h settles; h itself is eliminated from the
    quadratic step and only lives in k-space. ``beta = inf`` makes h strictly harmonic. ``penalty`` is not ``beta``: the split
    would say nothing of its dual.
    """

    def __init__(self, grid: Grid, field, weight, step, inside: np.ndarray, *, penalty: float, beta: float):
        super().__init__(grid, field, weight, step)
        self.penalty = np.float32(penalty)
        self.symbols = operators.second_differences(grid.shape, grid.voxel_size)
        self.inside = np.zeros(grid.shape, bool)
        self.inside[tuple(slice(n) for n in grid.size)] = inside
        # Proximal step of the split Laplacian: this share of it goes to the dual.
        self.share = np.float32(1 / (1 + penalty / beta))
        self.second = np.zeros(grid.shape, np.float32)  # target of the split; its dual follows from it
        self.harmonic = np.zeros(grid.kernel.shape, np.complex64)

    @property
    def power(self) -> np.ndarray:
        """Diagonal of the quadratic step in k-space, h eliminated."""
        x, y, z = self.symbols
        stiffness = self.penalty * (x[:, None, None] + y[:, None] + z) ** 2
        return self.grid.kernel**2 * (stiffness / (1 + stiffness))

    def solve(self, spectrum: np.ndarray, scale: np.ndarray) -> None:
        """Quadratic step, in place: from the penalty's right-hand side to the susceptibility; keep what h will need."""
        self.harmonic = fourier.rfftn(self.target, self.grid.shape)
        second = fourier.rfftn(self.second, self.grid.shape)
        _eliminate(spectrum, self.harmonic, second, self.grid.kernel, self.symbols, self.penalty, scale)

    def step(self, spectrum: np.ndarray, relaxation: np.float32) -> None:
        """Step the split field and the split Laplacian, given the spectrum of the susceptibility, which is used up."""
        _restore(spectrum, self.harmonic, self.grid.kernel, self.symbols, self.penalty)
        self._take(fourier.irfftn(spectrum, self.grid.shape, overwrite=True), relaxation)
        laplacian = fourier.irfftn(self.harmonic, self.grid.shape, overwrite=True)
        self.harmonic = None
        _take_laplacian(laplacian, self.inside, self.share, self.second, relaxation)


class Anchor:
    """``1/2 ||sqrt(power) (F chi - anchor)||^2`` in k-space: nothing is split off."""

    def __init__(self, power: np.ndarray, anchor: np.ndarray):
        self.power, self.right = power, power * anchor

    def solve(self, spectrum: np.ndarray, scale: np.ndarray) -> None:
        """Quadratic step, in place: from the penalty's right-hand side to the susceptibility; ``scale`` is 1 / diagonal."""
        spectrum += self.right
        spectrum *= scale

    def step(self, spectrum: np.ndarray, relaxation: np.float32) -> None:
        """Nothing to do."""


def begin(grid: Grid, data: Residual | Anchor, penalty: Variation | GeneralisedVariation, chi: np.ndarray) -> None:
    """Take fresh splits to a susceptibility on the padded grid."""
    data.step(fourier.rfftn(chi, grid.shape), np.float32(1))
    penalty.step(chi)


def minimise(
    grid: Grid,
    data: Residual | Anchor,
    penalty: Variation | GeneralisedVariation,
    *,
    mask: np.ndarray,
    iterations: int,
    tolerance: float,
    name: str,
    start: np.ndarray | None = None,
    since: int = 0,
) -> np.ndarray:
    """Minimise ``data + penalty`` from where their splits stand, and log how it ended.

    Parameters
    ----------
    grid : Grid
        The padded grid.
    data : Residual or Anchor
        Data term; its state is changed.
    penalty : Variation or GeneralisedVariation
        Penalty; its state is changed.
    mask : ndarray of bool, (X, Y, Z)
        Where the susceptibility must settle.
    iterations : int
        Largest number of iterations.
    tolerance : float
        Stop when the susceptibility in the mask changes by less than this fraction of its norm.
    name : str
        Who asks, for the note.
    start : ndarray, optional
        Susceptibility on the padded grid that the splits belong to, 0 by default.
    since : int
        Iterations made before, for the note.

    Returns
    -------
    ndarray
        Susceptibility on the padded grid, ppm, mean 0.
    """
    scale = penalty.strength * operators.gradient_power(grid.shape, grid.voxel_size) + data.power
    scale = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    scale[0, 0, 0] = 0
    chi = np.zeros(grid.shape, np.float32) if start is None else start
    reached, iteration = np.inf, 0
    while iteration < iterations and reached >= tolerance:
        iteration += 1
        spectrum = fourier.rfftn(penalty.pull(), grid.shape)
        data.solve(spectrum, scale)
        previous, chi = chi, fourier.irfftn(spectrum, grid.shape)
        reached = solvers.change(chi, previous, mask)
        del previous  # and what the steps use up: volumes less at the peak
        data.step(spectrum, penalty.relaxation)
        del spectrum
        penalty.step(chi)
    if tolerance:
        solvers.note_end(name, since + iteration, reached, tolerance)
    return chi


def tune(
    grid: Grid,
    data: Residual,
    penalty: Variation | GeneralisedVariation,
    weight: float,
    how: str,
    *,
    power: int,
    field_error: np.ndarray,
    mask: np.ndarray,
    name: str,
) -> np.ndarray | None:
    """Give ``penalty`` a weight near ``weight``.

    ``how`` is ``"lcurve"``, where the L-curve of misfit and total variation straightens; ``"discrepancy"``, where the misfit is
    what noise of the field error would make; ``"frequency"``, where the map is as strong near the dipole's cone as far from it;
    or ``"none"``. ``power`` is that of the misfit, ``sum w |D chi - f|^power``. A few iterations per weight, each going on from
    the last; returns the susceptibility on the padded grid that the splits have come to (None: 0).
    """
    if how == "none":
        return None
    chi = None

    def solve(trial: float) -> np.ndarray:
        nonlocal chi
        penalty.weigh(trial)
        chi = minimise(grid, data, penalty, mask=mask, iterations=_TRIAL, tolerance=0.0, name=name, start=chi)
        return chi

    def measure(chi: np.ndarray) -> float:
        away = np.abs(grid.forward(chi) - data.field)
        return max(float(np.einsum("ijk,ijk->", data.weight, away**power, dtype=np.float64)), _TINY)

    def lcurve(trial: float) -> tuple[float, float]:
        left = measure(solve(trial))
        gradient = np.empty((3, *grid.shape), np.float32)
        operators.gradient(chi, grid.inverse_size, gradient)
        return left, float(np.sqrt(np.einsum("cijk,cijk->ijk", gradient, gradient)).sum(dtype=np.float64))

    if how == "lcurve":
        chosen = tuning.straight_weight(weight, lcurve, name)
    elif how == "discrepancy":
        error = np.where(mask & np.isfinite(field_error) & (field_error > 0), field_error, 0)
        noise = _MOMENTS[power] * max(float(np.sum(grid.crop(data.weight, mask) * error**power, dtype=np.float64)), _TINY)
        chosen = tuning.balanced_weight(weight, lambda trial: math.log(measure(solve(trial)) / noise), name)
    else:
        square = sum(k * k for k in fourier.frequencies(grid.shape, grid.voxel_size))
        zones = tuning.zones(grid.kernel, square, grid.voxel_size)

        def evenness(trial: float) -> float:
            spectrum = np.abs(fourier.rfftn(grid.crop(solve(trial), mask), grid.shape))
            near, far = (max(float(spectrum[zone].mean(dtype=np.float64)), _TINY) for zone in zones)
            return math.log(far / near)

        chosen = tuning.balanced_weight(weight, evenness, name)
    penalty.weigh(chosen)
    return chi


@njit(parallel=True, cache=True)
def _add_and_scale(spectrum, data, kernel, scale):
    """``scale (spectrum + kernel data)`` into ``spectrum``."""
    for i in prange(spectrum.shape[0]):
        for j in range(spectrum.shape[1]):
            for k in range(spectrum.shape[2]):
                spectrum[i, j, k] = scale[i, j, k] * (spectrum[i, j, k] + kernel[i, j, k] * data[i, j, k])


@njit(parallel=True, cache=True, error_model="numpy")
def _eliminate(spectrum, data, second, kernel, symbols, penalty, scale):
    """Right-hand side without h, added to ``spectrum`` and scaled; ``data`` becomes h for a field of 0."""
    x, y, z = symbols
    for i in prange(spectrum.shape[0]):
        for j in range(spectrum.shape[1]):
            for k in range(spectrum.shape[2]):
                laplacian = x[i] + y[j] + z[k]
                stiffness = penalty * laplacian * laplacian
                free = np.float32(1) / (np.float32(1) + stiffness)
                pulled = penalty * laplacian * free * second[i, j, k]
                pull = kernel[i, j, k] * (stiffness * free * data[i, j, k] - pulled)
                spectrum[i, j, k] = scale[i, j, k] * (spectrum[i, j, k] + pull)
                data[i, j, k] = free * data[i, j, k] + pulled


@njit(parallel=True, cache=True, error_model="numpy")
def _restore(spectrum, harmonic, kernel, symbols, penalty):
    """From the susceptibility to ``D chi + h`` in ``spectrum``, and from h for a field of 0 to ``lap h``."""
    x, y, z = symbols
    for i in prange(spectrum.shape[0]):
        for j in range(spectrum.shape[1]):
            for k in range(spectrum.shape[2]):
                laplacian = x[i] + y[j] + z[k]
                free = np.float32(1) / (np.float32(1) + penalty * laplacian * laplacian)
                field = kernel[i, j, k] * spectrum[i, j, k]
                h = harmonic[i, j, k] - free * field
                spectrum[i, j, k] = field + h
                harmonic[i, j, k] = laplacian * h


@njit(parallel=True, cache=True)
def _take_laplacian(laplacian, inside, share, target, relaxation):
    """Step of the split Laplacian, weakly or strictly 0 inside and free elsewhere.

    With ``t = z + u`` of the split and its dual, ``u = share t`` and ``target = z - u = (1 - 2 share) t`` inside.
    """
    ratio = share / (np.float32(1) - share - share)
    for i in prange(laplacian.shape[0]):
        for j in range(laplacian.shape[1]):
            for k in range(laplacian.shape[2]):
                dual = ratio * target[i, j, k] if inside[i, j, k] else np.float32(0)
                t = misfit.relaxed(laplacian[i, j, k], dual, target[i, j, k], relaxation)
                u = share * t if inside[i, j, k] else np.float32(0)
                target[i, j, k] = t - u - u


@njit(parallel=True, cache=True, error_model="numpy")
def _shrink_difference(x, inverse_size, threshold, share, vector, dual, target):
    """Step of ``grad x - v``, in place: ``vector`` goes from its proximal centre to v, ``target`` becomes ``z - dual``.

    On entry ``target`` holds the last ``z - dual`` plus the centre.
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
                gx, gy, gz = (x[after_i, j, k] - here) * hx, (x[i, after_j, k] - here) * hy, (x[i, j, after_k] - here) * hz
                vector[0, i, j, k] += share * (gx - target[0, i, j, k])
                vector[1, i, j, k] += share * (gy - target[1, i, j, k])
                vector[2, i, j, k] += share * (gz - target[2, i, j, k])
                t0 = gx - vector[0, i, j, k] + dual[0, i, j, k]
                t1 = gy - vector[1, i, j, k] + dual[1, i, j, k]
                t2 = gz - vector[2, i, j, k] + dual[2, i, j, k]
                size = np.float32(math.sqrt(t0 * t0 + t1 * t1 + t2 * t2))
                scale = np.float32(1) if size <= threshold else threshold / size
                rest = np.float32(1) - scale - scale
                dual[0, i, j, k], target[0, i, j, k] = t0 * scale, t0 * rest
                dual[1, i, j, k], target[1, i, j, k] = t1 * scale, t1 * rest
                dual[2, i, j, k], target[2, i, j, k] = t2 * scale, t2 * rest


@njit(parallel=True, cache=True, error_model="numpy")
def _shrink_strain(vector, inverse_size, threshold, dual, change):
    """Step of ``sym grad v``, in place: ``change`` becomes its difference to its target, twice the new dual minus the old."""
    _, nx, ny, nz = vector.shape
    for i in prange(nx):
        for j in range(ny):
            for k in range(nz):
                e = operators._strain(vector, inverse_size, i, j, k)
                square = np.float32(0)
                for c in range(6):
                    t = e[c] + dual[c, i, j, k]
                    square += t * t if c < 3 else t * t + t * t
                size = np.float32(math.sqrt(square))
                scale = np.float32(1) if size <= threshold else threshold / size
                for c in range(6):
                    old = dual[c, i, j, k]
                    new = (e[c] + old) * scale
                    dual[c, i, j, k], change[c, i, j, k] = new, new + new - old
