"""Spherical mean values: kernels that are right for anisotropic voxels, and the erosion that goes with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage as ndi

from qsmflow.algorithms import morphology

_SUBSAMPLES = 10


def sphere(radius: float, voxel_size: Sequence[float]) -> np.ndarray:
    """A sphere on the voxel grid, each voxel with the fraction of its volume inside, unit sum.

    Parameters
    ----------
    radius : float
        Radius, mm.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.

    Returns
    -------
    ndarray
        float64, odd shape, centred. At least the six neighbours of the centre are part of it.

    Notes
    -----
    The second moments along the three axes are made equal by moving weight between the centre and its six neighbours.
    The mean over the kernel of every harmonic polynomial of degree three or less is then its value at the centre, also on
    anisotropic grids, where the fractions alone fail from degree two on.

    Examples
    --------
    >>> kernel = sphere(5, (1, 1, 3))
    >>> x, y, z = (a.reshape(s) for a, s in zip(
    ...     [np.arange(n) - n // 2 for n in kernel.shape], [(-1, 1, 1), (1, -1, 1), (1, 1, -1)]))
    >>> bool(abs((kernel * (2 * (3 * z) ** 2 - x**2 - y**2)).sum()) < 1e-12)
    True
    """
    reach = [max(1, int(np.ceil(radius / h + 0.5)) - 1) for h in voxel_size]
    squares = []
    for n, h in zip(reach, voxel_size, strict=True):  # one octant; the others mirror it
        fine = (np.arange((n + 1) * _SUBSAMPLES) + 0.5) / _SUBSAMPLES - 0.5
        squares.append((fine * h) ** 2)
    inside = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :] <= radius**2
    blocks = [v for n in reach for v in (n + 1, _SUBSAMPLES)]
    octant = inside.reshape(blocks).mean(axis=(1, 3, 5))
    kernel = octant[np.ix_(*[abs(np.arange(-n, n + 1)) for n in reach])]
    kernel /= kernel.sum()
    moments = []
    for axis, (n, h) in enumerate(zip(reach, voxel_size, strict=True)):
        offsets = ((np.arange(2 * n + 1) - n) * h) ** 2
        moments.append(float((kernel.sum(axis=tuple(a for a in range(3) if a != axis)) * offsets).sum()))
    for axis, (moment, h) in enumerate(zip(moments, voxel_size, strict=True)):
        share = (max(moments) - moment) / (2 * h * h)
        for step in (-1, 1):
            neighbour = list(reach)
            neighbour[axis] += step
            kernel[tuple(neighbour)] += share
        kernel[tuple(reach)] -= 2 * share
    return kernel


def sphere_spectrum(radius: float, voxel_size: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Half spectrum (real, float32) of :func:`sphere` centred at voxel 0 of a periodic grid."""
    kernel = sphere(radius, voxel_size)
    octant = kernel[tuple(slice(n // 2, None) for n in kernel.shape)]
    # The kernel is even along every axis, so that its transform is a sum of cosines, even as well. Without BLAS, the sums do
    # not depend on the number of threads.
    for size in shape:
        turns = np.outer(np.arange(size // 2 + 1), np.arange(octant.shape[0])) / size
        cosines = 2 * np.cos(2 * np.pi * turns)
        cosines[:, 0] = 1
        octant = np.einsum("ki,iab->abk", cosines, octant)
    mirrored = [np.minimum(np.arange(size), size - np.arange(size)) for size in shape[:2]]
    return octant.astype(np.float32).take(mirrored[1], axis=1).take(mirrored[0], axis=0)


def reach(radius: float, voxel_size: Sequence[float]) -> list[int]:
    """How many voxels :func:`sphere` extends from its centre along each axis; the margin a convolution needs."""
    return [n // 2 for n in sphere(radius, voxel_size).shape]


def distance_inside(mask: np.ndarray, voxel_size: Sequence[float]) -> np.ndarray:
    """Distance of every mask voxel to the nearest voxel outside (beyond the grid counts as outside), mm, float32."""
    distance = np.zeros(mask.shape, np.float32)
    if mask.any():
        box = morphology.bounding_box(mask)
        distance[box] = ndi.distance_transform_edt(np.pad(mask[box], 1), sampling=voxel_size)[1:-1, 1:-1, 1:-1]
    return distance


def fits(distance: np.ndarray, radius: float, voxel_size: Sequence[float]) -> np.ndarray:
    """Where every voxel of :func:`sphere` lies within the mask, given :func:`distance_inside`."""
    kernel = sphere(radius, voxel_size)
    squares = [((np.arange(n) - n // 2) * h) ** 2 for n, h in zip(kernel.shape, voxel_size, strict=True)]
    farthest = np.sqrt((squares[0][:, None, None] + squares[1][:, None] + squares[2])[kernel != 0].max())
    return distance > np.float32(farthest * (1 + 1e-5))


def room(mask: np.ndarray, radius: float, voxel_size: Sequence[float]) -> np.ndarray:
    """Where the sphere of one radius fits into the mask.

    Raises
    ------
    ValueError
        If it fits nowhere.
    """
    valid = fits(distance_inside(mask, voxel_size), radius, voxel_size)
    if not valid.any():
        raise no_room(radius)
    return valid


def no_room(radius: float) -> ValueError:
    """What to raise when a sphere fits nowhere."""
    return ValueError(f"the mask holds no sphere of radius {radius:g} mm; give a larger mask or a smaller radius")


def without_mean(field: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The field less its mean in the mask, 0 outside, float32."""
    return np.where(mask, field - np.mean(field[mask], dtype=np.float64), 0).astype(np.float32)
