"""TGV-QSM: the Laplacian of the total field, second-order total generalised variation, and no Fourier transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit, prange
from scipy import ndimage as ndi

from qsmflow.algorithms.solvers import change
from qsmflow.algorithms.weights import error_weights

#: Iterations between two looks at how much the susceptibility still changes.
_LOOK = 50

#: Expected size of susceptibility over that of the first-order dual, in units of 1 ppm over ``lambda_``: balances the steps.
_BALANCE = 0.001


def tgv(
    total_field: np.ndarray,
    mask: np.ndarray,
    field_error: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    lambda_: float = 1e-4,
    ratio: float = 3.0,
    iterations: int = 1000,
    tolerance: float = 5e-3,
    weighted: bool = True,
) -> np.ndarray:
    """Susceptibility from the Laplacian of the total field with total generalised variation (TGV-QSM).

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
    iterations : int
        Largest number of primal-dual iterations.
    tolerance : float
        Stop when the susceptibility changes by less than this fraction of its norm in 50 iterations.
    weighted : bool
        Weight voxels with the inverse of their field error instead of equally.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.

    Raises
    ------
    ValueError
        If no voxel of the mask has all its neighbours in it.

    Notes
    -----
    ``min 1/2 ||W psi||^2 + lambda ||grad chi - v|| + ratio lambda ||sym grad v||`` under
    ``lap psi = (lap/3 - (b.grad)^2) chi - lap f`` wherever all six neighbours are in the mask: the background is harmonic and
    has no part in it, and psi is what is left of the field after the harmonic field that fits best. The stencils are those of
    finite differences, with mixed derivatives for a tilted main field. The susceptibility is free at the mask's edge and one
    voxel beyond, so that the mask keeps every voxel; its mean over the mask is set to 0.

    Primal-dual iterations of Chambolle and Pock with diagonal step sizes, entirely in image space.

    References
    ----------
    Langkammer et al., NeuroImage 111:622, 2015, doi:10.1016/j.neuroimage.2015.02.041.
    Chambolle & Pock, J Math Imaging Vis 40:120, 2011, doi:10.1007/s10851-010-0251-1.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-16:16, -16:16, -16:16])
    >>> field = forward_field(0.1 * (r2 < 25), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> field += np.linspace(0, 3, 32, dtype=np.float32)  # background
    >>> chi = tgv(field, r2 < 196, np.ones_like(field), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(chi[r2 < 16].mean() - chi[(r2 > 49) & (r2 < 144)].mean() - 0.1) < 0.015)
    True
    """
    box = _box(mask)
    inside = np.pad(mask[box], 2)
    weight = error_weights(field_error, mask)[box] if weighted else mask[box]
    problem = _problem(
        np.pad(np.where(mask, total_field, 0).astype(np.float32)[box], 2), inside,
        np.pad(weight.astype(np.float32) ** 2, 2), voxel_size, b0_dir,
    )  # fmt: skip
    state = _start(inside.shape)
    previous, everywhere = state.chi.copy(), np.ones(inside.shape, bool)
    for iteration in range(1, iterations + 1):
        _iterate(problem, state, lambda_, ratio)
        if iteration % _LOOK == 0:
            if change(state.chi, previous, everywhere) < tolerance:
                break
            previous[:] = state.chi
    result = np.zeros(mask.shape, np.float32)
    chi = state.chi[2:-2, 2:-2, 2:-2]
    result[box] = np.where(mask[box], chi - chi[mask[box]].mean(), 0)
    return result


class _Problem(NamedTuple):
    """What stays the same: where things live, what was measured, stencils and step sizes."""

    domain: np.ndarray  # where the susceptibility lives
    inner: np.ndarray  # where the Laplacian is known
    mask: np.ndarray
    laplacian: np.ndarray  # of the field
    squared: np.ndarray  # weights
    size: tuple  # inverse voxel sizes
    offsets: np.ndarray  # of the stencil that gives the Laplacian of the field of a susceptibility
    weights: np.ndarray
    steps: tuple  # of chi, v, psi, and of the duals of gradient, tensor and constraint


class _State(NamedTuple):
    """Primal variables, their extrapolation, and duals; vectors and tensors have their components last."""

    chi: np.ndarray
    v: np.ndarray
    psi: np.ndarray
    chi_bar: np.ndarray
    v_bar: np.ndarray
    psi_bar: np.ndarray
    p: np.ndarray
    q: np.ndarray
    eta: np.ndarray


def dipole_stencil(voxel_size: Sequence[float], b0_dir: Sequence[float]) -> np.ndarray:
    """``lap/3 - (b.grad)^2`` as weights of the 27 nearest voxels, 1/mm^2.

    Examples
    --------
    >>> stencil = dipole_stencil((1, 1, 1), (0, 0, 1))
    >>> [round(float(stencil[i]), 4) for i in ((1, 1, 1), (0, 1, 1), (1, 1, 0))]
    [0.0, 0.3333, -0.6667]
    >>> bool(abs(dipole_stencil((1, 1, 2), (0.6, 0, 0.8)).sum()) < 1e-12)
    True
    """
    b = np.array(b0_dir, float) / np.linalg.norm(b0_dir)
    stencil = np.zeros((3, 3, 3))
    for axis in range(3):
        second = (1 / 3 - b[axis] ** 2) / voxel_size[axis] ** 2
        for step in (0, 2):
            stencil[tuple(step if a == axis else 1 for a in range(3))] += second
        stencil[1, 1, 1] -= 2 * second
    for i, j in ((0, 1), (0, 2), (1, 2)):
        mixed = b[i] * b[j] / (2 * voxel_size[i] * voxel_size[j])
        for one in (0, 2):
            for other in (0, 2):
                place = [1, 1, 1]
                place[i], place[j] = one, other
                stencil[tuple(place)] -= mixed if one == other else -mixed
    return stencil


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds the mask."""
    if not mask.any():
        raise ValueError("the mask is empty")
    return ndi.find_objects(mask.astype(np.uint8))[0]


def _problem(field, mask, squared, voxel_size, b0_dir) -> _Problem:
    inner = ndi.binary_erosion(mask)
    if not inner.any():
        raise ValueError("the mask is so thin that no voxel of it has all its neighbours in it; give a larger mask")
    laplacian = np.zeros_like(field)
    _laplacian(field, inner, tuple(np.float32(1 / h) for h in voxel_size), laplacian)
    stencil = dipole_stencil(voxel_size, b0_dir)
    places = np.argwhere(np.abs(stencil) > 1e-9)
    inverse = [1 / h for h in voxel_size]
    second, reach = 4 * sum(i * i for i in inverse), float(np.abs(stencil).sum())
    # Sums over the rows and columns of the operator, which bound its norm.
    steps = (
        1 / (2 * sum(inverse) + reach), 1 / (1 + 2 * sum(inverse)), 1 / second,
        1 / (2 * max(inverse) + 1), 1 / (2 * max(inverse)), 1 / (second + reach),
    )  # fmt: skip
    return _Problem(
        ndi.binary_dilation(mask, np.ones((3, 3, 3))), inner, mask, laplacian, squared, tuple(np.float32(i) for i in inverse),
        places - 1, stencil[tuple(places.T)].astype(np.float32), steps,
    )  # fmt: skip


def _start(shape) -> _State:
    kinds = [(), (3,), (), (), (3,), (), (3,), (6,), ()]
    return _State(*(np.zeros((*shape, *kind), np.float32) for kind in kinds))


def _iterate(problem: _Problem, state: _State, lambda_: float, ratio: float) -> None:
    """One iteration, in place."""
    balance = _BALANCE / lambda_
    s = problem
    tau = tuple(np.float32(step * balance) for step in s.steps[:3])
    sigma = tuple(np.float32(step / balance) for step in s.steps[3:])
    bounds = (np.float32(lambda_), np.float32(lambda_ * ratio))
    _dual_step(
        state.chi_bar, state.v_bar, state.psi_bar, s.domain, s.inner, s.laplacian, s.size, s.offsets, s.weights, sigma, bounds,
        state.p, state.q, state.eta,
    )  # fmt: skip
    _primal_step(
        state.p, state.q, state.eta, s.domain, s.mask, s.squared, s.size, s.offsets, s.weights, tau,
        state.chi, state.v, state.psi, state.chi_bar, state.v_bar, state.psi_bar,
    )  # fmt: skip


@njit(parallel=True, cache=True)
def _laplacian(x, where, size, out):
    """Seven-point Laplacian of ``x`` at the voxels of ``where``; 0 elsewhere."""
    hx, hy, hz = size[0] * size[0], size[1] * size[1], size[2] * size[2]
    for i in prange(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            for k in range(1, x.shape[2] - 1):
                if where[i, j, k]:
                    out[i, j, k] = _laplace_at(x, i, j, k, hx, hy, hz)
                else:
                    out[i, j, k] = 0


@njit(inline="always")
def _laplace_at(x, i, j, k, hx, hy, hz):
    here = x[i, j, k] + x[i, j, k]
    return (
        (x[i + 1, j, k] + x[i - 1, j, k] - here) * hx
        + (x[i, j + 1, k] + x[i, j - 1, k] - here) * hy
        + (x[i, j, k + 1] + x[i, j, k - 1] - here) * hz
    )


@njit(parallel=True, cache=True)
def _dual_step(chi, v, psi, domain, inner, laplacian, size, offsets, weights, sigma, bounds, p, q, eta):
    """Ascent of the duals, projected on their bounds; a difference that leaves the domain is none."""
    hx, hy, hz = size
    first, second, constraint = sigma
    half, two = np.float32(0.5), np.float32(2)
    for i in prange(1, chi.shape[0] - 1):
        for j in range(1, chi.shape[1] - 1):
            for k in range(1, chi.shape[2] - 1):
                if not domain[i, j, k]:
                    continue
                to_x, to_y, to_z = domain[i + 1, j, k], domain[i, j + 1, k], domain[i, j, k + 1]
                x, y, z = v[i, j, k, 0], v[i, j, k, 1], v[i, j, k, 2]
                px = p[i, j, k, 0] + first * ((chi[i + 1, j, k] - chi[i, j, k]) * hx - x) if to_x else np.float32(0)
                py = p[i, j, k, 1] + first * ((chi[i, j + 1, k] - chi[i, j, k]) * hy - y) if to_y else np.float32(0)
                pz = p[i, j, k, 2] + first * ((chi[i, j, k + 1] - chi[i, j, k]) * hz - z) if to_z else np.float32(0)
                over = max(np.float32(1), np.sqrt(px * px + py * py + pz * pz) / bounds[0])
                p[i, j, k, 0], p[i, j, k, 1], p[i, j, k, 2] = px / over, py / over, pz / over
                xx, yy, zz, xy, xz, yz = (
                    np.float32(0),
                    np.float32(0),
                    np.float32(0),
                    np.float32(0),
                    np.float32(0),
                    np.float32(0),
                )
                if to_x:
                    xx = q[i, j, k, 0] + second * (v[i + 1, j, k, 0] - x) * hx
                if to_y:
                    yy = q[i, j, k, 1] + second * (v[i, j + 1, k, 1] - y) * hy
                if to_z:
                    zz = q[i, j, k, 2] + second * (v[i, j, k + 1, 2] - z) * hz
                if to_x and to_y:
                    xy = q[i, j, k, 3] + second * half * ((v[i + 1, j, k, 1] - y) * hx + (v[i, j + 1, k, 0] - x) * hy)
                if to_x and to_z:
                    xz = q[i, j, k, 4] + second * half * ((v[i + 1, j, k, 2] - z) * hx + (v[i, j, k + 1, 0] - x) * hz)
                if to_y and to_z:
                    yz = q[i, j, k, 5] + second * half * ((v[i, j + 1, k, 2] - z) * hy + (v[i, j, k + 1, 1] - y) * hz)
                norm = np.sqrt(xx * xx + yy * yy + zz * zz + two * (xy * xy + xz * xz + yz * yz))
                over = max(np.float32(1), norm / bounds[1])
                q[i, j, k, 0], q[i, j, k, 1], q[i, j, k, 2] = xx / over, yy / over, zz / over
                q[i, j, k, 3], q[i, j, k, 4], q[i, j, k, 5] = xy / over, xz / over, yz / over
                if inner[i, j, k]:
                    misfit = _laplace_at(psi, i, j, k, hx * hx, hy * hy, hz * hz) + laplacian[i, j, k]
                    for n in range(offsets.shape[0]):
                        misfit -= weights[n] * chi[i + offsets[n, 0], j + offsets[n, 1], k + offsets[n, 2]]
                    eta[i, j, k] += constraint * misfit


@njit(parallel=True, cache=True)
def _primal_step(p, q, eta, domain, mask, squared, size, offsets, weights, tau, chi, v, psi, chi_bar, v_bar, psi_bar):
    """Descent of the primal variables, the residual field with its quadratic term, and their extrapolation."""
    hx, hy, hz = size
    two = np.float32(2)
    for i in prange(1, chi.shape[0] - 1):
        for j in range(1, chi.shape[1] - 1):
            for k in range(1, chi.shape[2] - 1):
                if not domain[i, j, k]:
                    continue
                slope = (
                    (p[i - 1, j, k, 0] - p[i, j, k, 0]) * hx
                    + (p[i, j - 1, k, 1] - p[i, j, k, 1]) * hy
                    + (p[i, j, k - 1, 2] - p[i, j, k, 2]) * hz
                )
                for n in range(offsets.shape[0]):
                    slope -= weights[n] * eta[i + offsets[n, 0], j + offsets[n, 1], k + offsets[n, 2]]
                new = chi[i, j, k] - tau[0] * slope
                chi_bar[i, j, k], chi[i, j, k] = two * new - chi[i, j, k], new
                xy, xz, yz = q[i, j, k, 3], q[i, j, k, 4], q[i, j, k, 5]
                slope = (q[i - 1, j, k, 0] - q[i, j, k, 0]) * hx + (q[i, j - 1, k, 3] - xy) * hy + (q[i, j, k - 1, 4] - xz) * hz
                new = v[i, j, k, 0] - tau[1] * (slope - p[i, j, k, 0])
                v_bar[i, j, k, 0], v[i, j, k, 0] = two * new - v[i, j, k, 0], new
                slope = (q[i - 1, j, k, 3] - xy) * hx + (q[i, j - 1, k, 1] - q[i, j, k, 1]) * hy + (q[i, j, k - 1, 5] - yz) * hz
                new = v[i, j, k, 1] - tau[1] * (slope - p[i, j, k, 1])
                v_bar[i, j, k, 1], v[i, j, k, 1] = two * new - v[i, j, k, 1], new
                slope = (q[i - 1, j, k, 4] - xz) * hx + (q[i, j - 1, k, 5] - yz) * hy + (q[i, j, k - 1, 2] - q[i, j, k, 2]) * hz
                new = v[i, j, k, 2] - tau[1] * (slope - p[i, j, k, 2])
                v_bar[i, j, k, 2], v[i, j, k, 2] = two * new - v[i, j, k, 2], new
                if mask[i, j, k]:
                    slope = _laplace_at(eta, i, j, k, hx * hx, hy * hy, hz * hz)
                    new = (psi[i, j, k] - tau[2] * slope) / (np.float32(1) + tau[2] * squared[i, j, k])
                    psi_bar[i, j, k], psi[i, j, k] = two * new - psi[i, j, k], new
