"""Where an acquisition stands among the others of its study: read from the group's table of metrics, where there is one."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

#: The group's table: a row per acquisition, its name in ``acquisition``, a column per metric.
TABLE = "group_qc.tsv"

#: With fewer acquisitions there is nothing to compare with.
_FEWEST = 4

#: Free space at both ends of a strip, as a share of its length.
_MARGIN = 0.04


@dataclass(frozen=True)
class Strip:
    """One metric of all acquisitions on a line: places are per cent of its length.

    ``dots`` are the others, ``middle`` is their median, ``mine`` the acquisition itself; ``words`` say the same.
    """

    dots: tuple[float, ...]
    mine: float
    middle: float
    words: str


def read_group(output_dir: Path) -> dict[str, dict[str, float]]:
    """Metrics of every acquisition of the group's table by acquisition and key; empty where there is no such table."""
    path = Path(output_dir, TABLE)
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {
        row["acquisition"]: {key: number for key, text in row.items() if math.isfinite(number := _number(text))}
        for row in rows
        if row.get("acquisition")
    }


def strip(key: str, value: float | None, name: str, group: Mapping[str, Mapping[str, float]], digits: int) -> Strip | None:
    """A metric of an acquisition among those of the group.

    Parameters
    ----------
    key : str
        The metric.
    value : float or None
        Its value in this acquisition.
    name : str
        The acquisition; its own row in the group's table, which may be older, does not count.
    group : mapping
        What :func:`read_group` gives.
    digits : int
        Decimals in words.

    Returns
    -------
    Strip or None
        None where the value is missing or fewer than four others have one.

    Examples
    --------
    >>> group = {f"sub-{n}": {"coverage": 0.9 + n / 100} for n in range(5)}
    >>> found = strip("coverage", 0.95, "sub-9", group, 2)
    >>> found.words, found.mine
    ('5 others, median 0.92; above all', 96.0)
    """
    others = sorted(metrics[key] for other, metrics in group.items() if other != name and key in metrics)
    if value is None or len(others) < _FEWEST:
        return None
    low, high = min(others[0], value), max(others[-1], value)
    width = (high - low) or 1.0
    middle = median(others)

    def place(number: float) -> float:
        return round(100 * (_MARGIN + (1 - 2 * _MARGIN) * (number - low) / width), 1)

    below = sum(other < value for other in others)
    stands = {0: "below all", len(others): "above all"}.get(below, f"above {below}")
    if value == others[0]:
        stands = "as low as the lowest" if value < others[-1] else "all the same"
    shown = f"{middle:.{digits}f}".replace("-", "\N{MINUS SIGN}")
    words = f"{len(others)} others, median {shown}; {stands}"
    return Strip(tuple(map(place, others)), place(value), place(middle), words)


def _number(text: object) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
