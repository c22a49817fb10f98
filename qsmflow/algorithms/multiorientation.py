"""Susceptibility from several orientations of one head in the main field (COSMOS)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage as ndi

from qsmflow.algorithms import fourier, solvers
from qsmflow.algorithms.dipole import dipole_kernel
from qsmflow.algorithms.metrics import forward_fit
from qsmflow.algorithms.weights import error_weights

#: Below this smallest kernel of all orientations together, noise is raised more than tenfold somewhere in k-space.
POOR = 0.1


class Conditioning(NamedTuple):
    """How well orientations complement each other.

    ``minimum`` is the smallest ``sqrt(sum_i D_i(k)^2)`` over all directions of k (its inverse is the largest amplification of
    noise), ``condition`` the ratio of the largest to it (infinite where a cone of silence is left).
    """

    minimum: float
    condition: float

    @property
    def poor(self) -> bool:
        """Whether the orientations leave directions of k-space in which hardly anything is measured."""
        return self.minimum < POOR


def conditioning(directions: Sequence[Sequence[float]]) -> Conditioning:
    """Conditioning of a set of orientations.

    Parameters
    ----------
    directions : sequence of (3,) float
        Directions of the main field in one frame of the head.

    Returns
    -------
    Conditioning

    Notes
    -----
    ``sqrt(sum_i (1/3 - (k.b_i)^2)^2)`` at 200 x 400 directions k over half a sphere. Turning the head about the main field
    changes nothing in the head's frame and does not help.

    References
    ----------
    Liu et al., MRM 61:196, 2009, doi:10.1002/mrm.21828.

    Examples
    --------
    >>> turned = [(0, math.sin(a), math.cos(a)) for a in (0, math.pi / 3, 2 * math.pi / 3)]
    >>> [round(value, 2) for value in conditioning(turned)]
    [0.33, 2.03]
    >>> conditioning([(0, 0, 1), (0, 0, 1), (0, 0, 1)]).poor
    True
    """
    b = np.array(directions, float)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    cosine = (np.arange(200) + 0.5) / 200
    angle = np.arange(400) * math.pi / 200
    sine = np.sqrt(1 - cosine**2)[:, None]
    k = np.stack([sine * np.cos(angle), sine * np.sin(angle), np.broadcast_to(cosine[:, None], (200, 400))])
    total = np.sqrt(sum((1 / 3 - np.einsum("i,i...->...", axis, k) ** 2) ** 2 for axis in b))
    smallest = float(total.min())
    # On the cone of a single direction the sampled minimum is of the size of a step and not 0.
    smallest = smallest if smallest > 0.01 else 0.0
    return Conditioning(smallest, float(total.max()) / smallest if smallest else math.inf)


def continued(volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A volume continued beyond a mask with the value of the nearest voxel inside, so that interpolation meets no step.

    Examples
    --------
    >>> continued(np.array([[[0.0, 2.0, 9.0]]]), np.array([[[False, True, False]]]))
    array([[[2., 2., 2.]]])
    """
    nearest = ndi.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return volume[tuple(nearest)]


def cosmos(
    local_fields: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    directions: Sequence[Sequence[float]],
    field_errors: Sequence[np.ndarray],
    *,
    voxel_size: Sequence[float],
    iterations: int = 50,
    tolerance: float = 1e-4,
) -> tuple[np.ndarray, np.ndarray]:
    """Susceptibility by weighted least squares over several orientations.

    Parameters
    ----------
    local_fields : sequence of ndarray, (X, Y, Z)
        Local field of each orientation, ppm, all on the grid of one of them.
    masks : sequence of ndarray of bool, (X, Y, Z)
        Where each local field is valid.
    directions : sequence of (3,) float
        Unit vector of the main field in the voxel axes of the grid, for each orientation.
    field_errors : sequence of ndarray, (X, Y, Z)
        Standard deviation of each field, ppm (only ratios within an orientation matter).
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    iterations : int
        Largest number of conjugate-gradient iterations after the closed-form start; good positions take about 40.
    tolerance : float
        Stop when the residual of the normal equations has fallen by this factor.

    Returns
    -------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm, 0 outside the mask.
    mask : ndarray of bool, (X, Y, Z)
        Where at least two orientations have a field (one of one orientation).

    Raises
    ------
    ValueError
        If the numbers of fields, masks, directions and errors differ, or nothing is left in the mask.

    Notes
    -----
    ``min_chi sum_i ||W_i (D_i chi - f_i)||^2`` over susceptibility in the mask, W_i = 0 outside the mask of orientation i:
    where one mask ends the others decide. Without masks this has the closed form ``sum_i D_i F_i / sum_i D_i^2``, which is the
    start and the preconditioner of the conjugate gradients. Nothing is regularised. The grid is padded to twice its size, as
    in :func:`.forward_field`: an oblique dipole jumps at the Nyquist frequency, so that its field reaches far along the axes,
    and a margin of a few centimetres leaves an error of half a per cent.

    References
    ----------
    Liu et al., MRM 61:196, 2009, doi:10.1002/mrm.21828.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-12:12, -12:12, -12:12])
    >>> chi, directions = (r2 < 16).astype(np.float32), [(0, 0, 1), (0, 0.5, 0.75**0.5), (0.5, 0, 0.75**0.5)]
    >>> fields = [forward_field(chi, voxel_size=(1, 1, 1), b0_dir=b) for b in directions]
    >>> made, _ = cosmos(fields, [r2 < 121] * 3, directions, [np.ones_like(chi)] * 3, voxel_size=(1, 1, 1))
    >>> bool(abs(made[r2 < 9].mean() - made[(r2 > 25) & (r2 < 121)].mean() - 1) < 0.01)
    True
    """
    if len({len(local_fields), len(masks), len(directions), len(field_errors)}) > 1:
        raise ValueError("every orientation needs a field, a mask, a direction and an error")
    support = sum(mask.astype(np.uint8) for mask in masks) >= min(2, len(masks))
    if not support.any():
        raise ValueError("the masks of the orientations have nothing in common")
    shape = fourier.padded_shape(support.shape, support.shape)
    corner = tuple(slice(n) for n in support.shape)
    kernels = [dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b) for b in directions]
    squared = [error_weights(error, mask) ** 2 for error, mask in zip(field_errors, masks, strict=True)]
    power = sum(kernel**2 for kernel in kernels)
    power[0, 0, 0] = 0
    # Where no orientation measures anything, noise is not raised without end.
    inverse = 1 / np.maximum(power, np.float32(POOR**2 / 10))
    inverse[0, 0, 0] = 0

    def adjoint(parts):
        """``sum_i D_i x_i`` as a half spectrum."""
        total = 0
        for kernel, part in zip(kernels, parts, strict=True):
            spectrum = fourier.rfftn(part, shape)
            spectrum *= kernel
            total = total + spectrum
        return total

    def inside(spectrum):
        return fourier.irfftn(spectrum, shape, support.shape) * support

    def normal(chi):
        spectrum = fourier.rfftn(chi, shape)
        fields = (fourier.irfftn(kernel * spectrum, shape)[corner] for kernel in kernels)
        return inside(adjoint(weight * field for weight, field in zip(squared, fields, strict=True)))

    known = [np.where(mask, field, 0).astype(np.float32) for field, mask in zip(local_fields, masks, strict=True)]
    start = inside(adjoint(known) * inverse)
    right = inside(adjoint(weight * field for weight, field in zip(squared, known, strict=True)))
    chi = start + solvers.conjugate_gradients(
        normal, right - normal(start), iterations=iterations, tolerance=tolerance,
        preconditioner=lambda residual: inside(fourier.rfftn(residual, shape) * inverse),
    )  # fmt: skip
    return np.where(support, chi, 0).astype(np.float32), support


def unexplained(
    chi: np.ndarray,
    mask: np.ndarray,
    local_fields: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    directions: Sequence[Sequence[float]],
    *,
    voxel_size: Sequence[float],
) -> list[float]:
    """Part of the local field of each orientation that the map of all does not explain (lower is better).

    Parameters
    ----------
    chi, mask : ndarray, (X, Y, Z)
        Susceptibility in ppm, and where it is known, from :func:`cosmos`.
    local_fields, masks, directions, voxel_size
        What it was computed from.

    Returns
    -------
    list of float
        :func:`.forward_fit` of every orientation; above 1 where the map makes more of a field than it takes away.

    Notes
    -----
    Several orientations ask for more than one map can give, so that what is wrong in one of them shows: noise, background,
    motion, a wrong direction. Noise alone leaves ``sqrt(1 - 1 / n)`` of n orientations.

    Examples
    --------
    >>> from qsmflow.algorithms.dipole import forward_field
    >>> r2 = sum(np.square(a) for a in np.ogrid[-12:12, -12:12, -12:12])
    >>> ball, directions = r2 < 121, [(0, 0, 1), (0, 0.5, 0.75**0.5), (0.5, 0, 0.75**0.5)]
    >>> fields = [forward_field(0.1 * (r2 < 16), voxel_size=(1, 1, 1), b0_dir=b) for b in directions]
    >>> for given in (fields, [-fields[0], *fields[1:]]):
    ...     made, _ = cosmos(given, [ball] * 3, directions, [np.ones(r2.shape)] * 3, voxel_size=(1, 1, 1))
    ...     print([round(part, 1) for part in unexplained(made, ball, given, [ball] * 3, directions, voxel_size=(1, 1, 1))])
    [0.0, 0.0, 0.0]
    [1.1, 0.7, 0.7]
    """
    return [
        forward_fit(chi, field, mask, voxel_size=voxel_size, b0_dir=direction, known=known)
        for field, known, direction in zip(local_fields, masks, directions, strict=True)
    ]
