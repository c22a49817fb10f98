"""Binary morphology in millimetres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, prange
from scipy import ndimage as ndi


def dilate(mask: np.ndarray, radius: float, voxel_size: Sequence[float]) -> np.ndarray:
    """All voxels within ``radius`` mm of the mask.

    Examples
    --------
    >>> dilate(np.array([[[0, 0, 1, 0, 0]]], bool), 2, (1, 1, 2)).astype(int)
    array([[[0, 1, 1, 1, 0]]])
    """
    return _near(mask, radius, voxel_size)


def erode(mask: np.ndarray, radius: float, voxel_size: Sequence[float]) -> np.ndarray:
    """All mask voxels more than ``radius`` mm away from every voxel outside; the grid's border does not erode.

    Examples
    --------
    >>> erode(np.array([[[0, 1, 1, 1, 0]]], bool), 1, (1, 1, 1)).astype(int)
    array([[[0, 0, 1, 0, 0]]])
    """
    return ~_near(~mask, radius, voxel_size)


def close(mask: np.ndarray, radius: float, voxel_size: Sequence[float]) -> np.ndarray:
    """Dilation by ``radius`` mm, then erosion by as much: gaps and holes narrower than twice the radius are filled."""
    margin = [int(np.ceil(radius / h)) + 1 for h in voxel_size]
    grown = dilate(np.pad(mask, [(m, m) for m in margin]), radius, voxel_size)
    kept = erode(grown, radius, voxel_size)
    return mask | kept[tuple(slice(m, -m) for m in margin)]


def open_(mask: np.ndarray, radius: float, voxel_size: Sequence[float]) -> np.ndarray:
    """Erosion by ``radius`` mm, then dilation by as much: bridges and specks narrower than twice the radius go."""
    return dilate(erode(mask, radius, voxel_size), radius, voxel_size) & mask


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest block of the grid that holds the mask; work on it instead of the whole grid is cheaper.

    Raises
    ------
    ValueError
        If the mask is empty.

    Examples
    --------
    >>> bounding_box(np.array([[[0, 0, 1, 1, 0]]], bool))
    (slice(0, 1, None), slice(0, 1, None), slice(2, 4, None))
    """
    lines = [mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)).nonzero()[0] for axis in range(mask.ndim)]
    if not lines[0].size:
        raise ValueError("the mask is empty")
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in lines)


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest component of voxels that share faces (the first one, if several are as large).

    Examples
    --------
    >>> largest(np.array([[[1, 0, 1, 1, 0]]], bool)).astype(int)
    array([[[0, 0, 1, 1, 0]]])
    """
    labels, count = ndi.label(mask)
    if not count:
        return mask.copy()
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def fill(mask: np.ndarray, most: int) -> np.ndarray:
    """The mask with holes of up to ``most`` voxels filled; what is open to the grid's border by faces is no hole.

    Examples
    --------
    >>> ring = np.ones((3, 3, 3), bool)
    >>> ring[1, 1, 1] = False
    >>> int(fill(ring, 1).sum()), int(fill(ring, 0).sum())
    (27, 26)
    """
    holes, count = ndi.label(ndi.binary_fill_holes(mask) & ~mask)
    small = np.bincount(holes.ravel(), minlength=count + 1) <= most
    small[0] = False
    return mask | small[holes]


def _near(mask: np.ndarray, radius: float, voxel_size: Sequence[float]) -> np.ndarray:
    """Voxels with one of the mask within ``radius`` mm; axis by axis, so that a radius of n voxels costs 3 n steps."""
    squares = np.empty(mask.shape)
    sizes = np.array([float(h) for h in voxel_size])
    reach = np.array([int(np.ceil(radius / h)) for h in sizes])
    _within_planes(np.ascontiguousarray(mask, dtype=bool), squares, sizes, reach)
    return _across_planes(squares, sizes[0], reach[0], float(radius))


@njit(parallel=True, cache=True)
def _within_planes(mask, squares, sizes, reach):
    """Squared distance to the nearest voxel of the mask in the same plane of the first axis, mm2; infinite beyond reach."""
    nx, ny, nz = mask.shape
    for i in prange(nx):
        lines = np.full((ny, nz), np.inf)
        for j in range(ny):
            for k in range(nz):
                for n in range(max(0, k - reach[2]), min(nz, k + reach[2] + 1)):
                    if mask[i, j, n]:
                        lines[j, k] = min(lines[j, k], ((n - k) * sizes[2]) ** 2)
        squares[i] = lines
        for j in range(ny):
            for n in range(max(0, j - reach[1]), min(ny, j + reach[1] + 1)):
                away = ((n - j) * sizes[1]) ** 2
                for k in range(nz):
                    squares[i, j, k] = min(squares[i, j, k], lines[n, k] + away)


@njit(parallel=True, cache=True)
def _across_planes(squares, size, reach, radius):
    """Where the nearest voxel of the mask in any plane is within the radius."""
    nx, ny, nz = squares.shape
    result = np.empty(squares.shape, np.bool_)
    for i in prange(nx):
        for j in range(ny):
            nearest = squares[i, j].copy()
            for n in range(max(0, i - reach), min(nx, i + reach + 1)):
                away = ((n - i) * size) ** 2
                for k in range(nz):
                    nearest[k] = min(nearest[k], squares[n, j, k] + away)
            for k in range(nz):
                result[i, j, k] = np.sqrt(nearest[k]) <= radius
    return result
