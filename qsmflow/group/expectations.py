"""What earlier studies found in some diseases, beside what this one found."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from qsmflow.group.collect import region_key


@dataclass(frozen=True)
class Expected:
    """The direction (+1: higher than in controls) that a nucleus has been found to take, and the works that found it."""

    structure: str
    regions: tuple[str, ...]
    direction: int
    citations: tuple[str, ...]


_NIGRA = ("SN", "SNc", "SNr", "SNc_PBP_VTA", "SubstantiaNigra")
_PALLIDUM = ("GP", "GPe", "GPi", "Pallidum", "GlobusPallidus")

_PARKINSON = (Expected("substantia nigra", _NIGRA, 1, ("azuma2016", "pyatigorskaya2020")),)
_HUNTINGTON = (
    Expected("caudate", ("Ca", "Caudate", "CN"), 1, ("vanbergen2016",)),
    Expected("putamen", ("Pu", "Putamen"), 1, ("vanbergen2016",)),
    Expected("globus pallidus", _PALLIDUM, 1, ("vanbergen2016",)),
    Expected("substantia nigra", _NIGRA, -1, ("vanbergen2016",)),
)

#: Labels of groups, in small letters, and what is expected of them.
_DISEASES = {
    **dict.fromkeys(("pd", "parkinson", "parkinsons", "parkinson's", "parkinson's disease", "parkinson disease"), _PARKINSON),
    **dict.fromkeys(
        (
            "hd",
            "huntington",
            "huntingtons",
            "huntington's",
            "huntington's disease",
            "huntington disease",
            "prehd",
            "premanifest hd",
        ),
        _HUNTINGTON,
    ),
}


def expectations(differences: pd.DataFrame, fdr: float) -> pd.DataFrame:
    """Regions of which something is expected, and whether it was found.

    Parameters
    ----------
    differences : DataFrame
        Of the comparison: ``region``, ``structure``, ``group``, ``difference``, ``q``.
    fdr : float
        Limit of ``q``.

    Returns
    -------
    DataFrame
        ``region``, ``structure``, ``group``, ``expected`` and ``found`` (higher, lower, no difference), ``citations``; empty
        where nothing is known of the groups.

    Examples
    --------
    >>> found = {"region": ["SNr"], "structure": ["Substantia nigra"], "group": ["PD"], "difference": [0.03], "q": [0.001]}
    >>> expectations(pd.DataFrame(found), 0.05)[["expected", "found"]].values.tolist()
    [['higher', 'higher']]
    """
    rows = []
    for row in differences.itertuples():
        for known in _DISEASES.get(str(row.group).lower(), ()):
            if region_key(row.region) in known.regions:
                found = "no difference" if not row.q < fdr else "higher" if row.difference > 0 else "lower"
                rows.append({
                    "region": row.region, "structure": row.structure, "group": row.group,
                    "expected": "higher" if known.direction > 0 else "lower", "found": found,
                    "citations": "; ".join(f"@{key}" for key in known.citations),
                })  # fmt: skip
    return pd.DataFrame(rows)
