"""Statistics of a map in the regions of a segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Statistics of one region, in the order of the table, with their names in words.
STATISTICS = {
    "mean": "mean",
    "sd": "standard deviation",
    "median": "median",
    "trimmed_mean": "mean without the lowest and the highest tenth",
    "p05": "5th percentile",
    "p95": "95th percentile",
}


def region_statistics(values: np.ndarray) -> dict[str, float]:
    """Location and spread of the values of one region.

    Parameters
    ----------
    values : ndarray, (N,)
        Values of the region's voxels.

    Returns
    -------
    dict of str to float
        :data:`STATISTICS`; NaN where there are too few values (sd needs two, everything else one). The trimmed mean leaves
        out the lowest and the highest tenth.

    Examples
    --------
    >>> region_statistics(np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 100]))["trimmed_mean"]
    5.5
    """
    if values.size == 0:
        return dict.fromkeys(STATISTICS, float("nan"))
    ordered = np.sort(values.astype(np.float64))
    cut = ordered.size // 10
    return {
        "mean": float(ordered.mean()),
        "sd": float(ordered.std(ddof=1)) if ordered.size > 1 else float("nan"),
        "median": float(np.median(ordered)),
        "trimmed_mean": float(ordered[cut : ordered.size - cut].mean()),
        "p05": float(np.percentile(ordered, 5)),
        "p95": float(np.percentile(ordered, 95)),
    }


def region_voxels(labels: np.ndarray, mask: np.ndarray, indices: Sequence[int] = ()) -> dict[int, np.ndarray]:
    """Flat indices of the voxels of each region inside a mask.

    Parameters
    ----------
    labels : ndarray of int, (X, Y, Z)
        Segmentation, 0 for none.
    mask : ndarray of bool, (X, Y, Z)
        Where values are known.
    indices : sequence of int
        Regions wanted, also if they have no voxel; all that occur if empty.

    Returns
    -------
    dict of int to ndarray of int

    Examples
    --------
    >>> found = region_voxels(np.array([[[0, 1, 1, 2]]]), np.array([[[True, True, False, True]]]), [1, 2, 3])
    >>> {region: voxels.tolist() for region, voxels in found.items()}
    {1: [1], 2: [3], 3: []}
    """
    flat = np.where(mask, labels, 0).ravel()
    inside = np.flatnonzero(flat)
    inside = inside[np.argsort(flat[inside], kind="stable")]
    regions, starts = np.unique(flat[inside], return_index=True)
    found = dict(zip(regions.tolist(), np.split(inside, starts[1:]), strict=True)) if regions.size else {}
    wanted = indices or np.unique(labels[labels > 0]).tolist()
    return {int(index): found.get(index, np.empty(0, int)) for index in wanted}
