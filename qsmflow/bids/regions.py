"""The columns of the tables of region values, and what they mean."""

from __future__ import annotations

from qsmflow.algorithms.regions import STATISTICS

#: What tells the regions apart, in the order of the table.
COLUMNS = {
    "index": "label of the region in the segmentation",
    "name": "name of the region",
    "hemisphere": "L, R or n/a",
    "n_voxels": "voxels of the region that have a susceptibility",
    "volume_mm3": "their volume, mm^3",
}

#: Maps of which a table can hold the statistics.
MAPS = {
    "chi": "susceptibility relative to the chosen reference, ppm",
    "chi_brain": "susceptibility relative to the mean of the whole brain mask, ppm",
    "r2star": "R2*, 1/s",
    "para": "susceptibility of the paramagnetic sources, ppm",
    "dia": "susceptibility of the diamagnetic sources, ppm",
}


def column_meaning(column: str) -> str:
    """What a column of a table of regions means; empty for what is neither one of :data:`COLUMNS` nor a statistic of a map.

    Examples
    --------
    >>> column_meaning("r2star_p95"), column_meaning("perfusion_mean"), column_meaning("age")
    ('95th percentile of R2*, 1/s', 'mean of perfusion', '')
    """
    if column in COLUMNS:
        return COLUMNS[column]
    for name in sorted(STATISTICS, key=len, reverse=True):  # trimmed_mean before mean
        if column.endswith(f"_{name}"):
            what = column.removesuffix(f"_{name}")
            return f"{STATISTICS[name]} of {MAPS.get(what, what)}"
    return ""
