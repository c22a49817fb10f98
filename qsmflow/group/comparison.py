"""Groups of participants compared in every region: analysis of covariance, effect sizes, ROC."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
from statsmodels.stats.meta_analysis import effectsize_smd

from qsmflow.errors import DatasetError
from qsmflow.group.linear import Design, NotFittedError, adjust, design, fit, partial_eta_squared
from qsmflow.group.model import Model
from qsmflow.group.prepare import Data
from qsmflow.group.roc import roc

#: Names that studies give their healthy group.
CONTROLS = ("control", "controls", "hc", "healthy", "healthy control", "healthy controls", "nc", "normal", "hv")

#: Fewest participants of a group.
FEWEST = 3


def reference_level(data: Data, model: Model, table: str) -> str:
    """The group that the others are compared with.

    Raises
    ------
    DatasetError
        If there is one group only, one of them is too small, or it is not clear which is the reference.
    """
    sizes = data.people.drop_duplicates("participant_id")[model.group].value_counts()
    shown = ", ".join(f"{level}: {size}" for level, size in sorted(sizes.items()))
    if len(sizes) < 2:
        raise DatasetError(
            f"{table}: one group only in '{model.group}' ({shown}); a comparison needs two: add the others, or name another "
            "column with 'group:' in a model file"
        )
    if sizes.min() < FEWEST:
        raise DatasetError(
            f"{table}: groups are too small to compare ({shown}); each needs at least {FEWEST} participants with region "
            "tables. Leave a small group out with 'select: {" + model.group + ": [LEVEL, LEVEL]}' in a model file"
        )
    found = [level for level in sizes.index if level.lower() in CONTROLS]
    if model.reference:
        found = [level for level in sizes.index if level == model.reference]
    if len(found) != 1:
        raise DatasetError(
            f"{table}: which group of '{model.group}' are the others compared with? Groups: {shown}; say 'reference: LEVEL' in "
            "a model file"
        )
    return found[0]


def check_size(people: pd.DataFrame, made: Design, model: Model, table: str) -> None:
    """Refuse models that the number of participants cannot carry, and covariates that say the same.

    Raises
    ------
    DatasetError
    """
    scans, parameters = made.matrix.shape
    if scans < parameters + 3:
        raise DatasetError(
            f"{table}: {scans} scans are too few for the {parameters} parameters of the model '{model.name}' "
            f"({', '.join(made.names)}); it needs at least {parameters + 3}: more participants or fewer covariates"
        )
    if made.deficient:
        raise DatasetError(
            f"{table}: the effects of {', '.join(made.names[1:])} cannot be told apart (a site with one group or one scan?); "
            f"take one of them out of the model '{model.name}'"
        )


def compare(data: Data, model: Model, reference: str) -> dict[str, pd.DataFrame]:
    """Compare the groups.

    Parameters
    ----------
    data : Data
    model : Model
    reference : str
        See :func:`reference_level`.

    Returns
    -------
    dict of DataFrame
        ``ancova`` one row per region, ``differences`` one per region and group against the reference, ``means`` one per region
        and group.

    Notes
    -----
    ``value ~ group + covariates`` by least squares with HC3 errors; F tests of type III, adjusted means at the mean of the
    covariates and all levels of the factors alike, partial eta squared from sums of squares. Where participants have several
    sessions, a mixed model with a random intercept per participant. ``slope_p`` tests whether the slopes
    of numeric covariates differ between groups, which the model takes for equal. q values by Benjamini and Hochberg over the
    regions. Hedges' g and ROC are of the values as measured (one mean per participant), without covariates.
    """
    whole = design(data.people, numeric=data.numeric, factors=data.factors, group=model.group, reference=reference)
    levels = [reference, *sorted(set(data.people[model.group]) - {reference})]
    rows: dict[str, list[Mapping[str, object]]] = {"ancova": [], "differences": [], "means": []}
    for region in data.values:
        y, keep = data.values[region].to_numpy(float), data.values[region].notna().to_numpy()
        label = {"region": region, "structure": data.names[region]}
        reason = _unfit(data, model, whole.rows(keep), keep, levels)
        try:
            if reason:
                raise NotFittedError(reason)
            _region(rows, label, data, model, whole, y, keep, levels)
        except NotFittedError as error:
            rows["ancova"].append({**label, "n": int(keep.sum()), "status": str(error)})
    ancova, differences = (pd.DataFrame(rows[name]) for name in ("ancova", "differences"))
    for table, tests in ((ancova, ("group_", *(f"{c}_" for c in (*data.numeric, *data.factors)))), (differences, ("",))):
        for test in tests:
            if f"{test}p" in table:
                place = table.columns.get_loc(f"{test}p") + 1
                table.insert(place, f"{test}q", adjust(table[f"{test}p"], model.fdr)[0])
    return {"ancova": ancova, "differences": differences, "means": pd.DataFrame(rows["means"])}


def _unfit(data: Data, model: Model, made: Design, keep: np.ndarray, levels: list[str]) -> str:
    """Why a region cannot be tested; empty when it can."""
    groups = data.people.loc[keep].drop_duplicates("participant_id")[model.group].value_counts()
    if any(groups.get(level, 0) < FEWEST for level in levels):
        return f"fewer than {FEWEST} participants of a group have a value"
    if made.matrix.shape[0] < made.matrix.shape[1] + 3 or made.deficient:
        return "too few values for the covariates"
    return ""


def _region(
    rows: Mapping[str, list], label: Mapping[str, str], data: Data, model: Model, whole: Design, y: np.ndarray,
    keep: np.ndarray, levels: list[str],
) -> None:  # fmt: skip
    """Add the rows of one region."""
    people, made, y = data.people.loc[keep], whole.rows(keep), y[keep]
    who = people["participant_id"].to_numpy()
    fitted = fit(y, made, who)
    group = made.columns(model.group)
    statistic, degrees, p = fitted.joint(group)
    row = {**label, "n": len(y), "status": "fitted", "group_f": statistic, "group_df": degrees, "group_p": p}
    row["group_eta2"] = partial_eta_squared(y, made, group) if fitted.between is None else np.nan
    for name in (*data.numeric, *data.factors):
        estimate = fitted.effect(made.columns(name)[0])
        row |= (
            {f"{name}_estimate": estimate[0], f"{name}_low": estimate[2], f"{name}_high": estimate[3]}
            if name in data.numeric
            else {}
        )
        row[f"{name}_p"] = fitted.joint(made.columns(name))[2]
    row["slope_p"] = _slopes_differ(y, made, people, data, model, who)
    if fitted.between is not None:
        row["between_participants"] = fitted.between
    rows["ancova"].append(row)
    one = pd.Series(y, people.index).groupby(people["participant_id"]).mean()
    group_of = people.drop_duplicates("participant_id").set_index("participant_id")[model.group].loc[one.index]
    sample = {level: one[(group_of == level).to_numpy()].to_numpy() for level in levels}
    intercept = made.columns("intercept")[0]
    for level in levels:
        at = intercept + (0 if level == levels[0] else _column(made, model.group, level))
        mean = fitted.effect(at)
        rows["means"].append({
            **label, "group": level, "n": len(sample[level]), "mean": sample[level].mean(), "sd": sample[level].std(ddof=1),
            "adjusted_mean": mean[0], "adjusted_low": mean[2], "adjusted_high": mean[3],
        })  # fmt: skip
        if level != levels[0]:
            change = fitted.effect(_column(made, model.group, level))
            rows["differences"].append({
                **label, "group": level, "reference": levels[0], "difference": change[0], "se": change[1], "low": change[2],
                "high": change[3], "p": change[4], **_hedges(sample[level], sample[levels[0]]),
                **_roc(sample[level], sample[levels[0]]),
            })  # fmt: skip


def _column(made: Design, group: str, level: str) -> np.ndarray:
    return np.eye(len(made.names))[made.names.index(f"{group}[{level}]")]


def _slopes_differ(y: np.ndarray, made: Design, people: pd.DataFrame, data: Data, model: Model, who: np.ndarray) -> float:
    """p of the joint test of all products of groups and numeric covariates."""
    groups = [i for i, name in enumerate(made.names) if name.startswith(f"{model.group}[")]
    slopes = [i for i, name in enumerate(made.names) if name in data.numeric]
    if not slopes:
        return np.nan
    extra = np.column_stack([made.matrix[:, a] * made.matrix[:, b] for a, b in product(groups, slopes)])
    larger = Design(np.column_stack([made.matrix, extra]), (*made.names, *["product"] * extra.shape[1]))
    if larger.deficient or len(y) < larger.matrix.shape[1] + 3:
        return np.nan
    try:
        return fit(y, larger, who).joint(larger.columns("product"))[2]
    except NotFittedError:  # the model without the products holds; only their test is missing
        return np.nan


def _hedges(sample: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Standardised mean difference, corrected for small samples, with its interval.

    References
    ----------
    Hedges, J Educ Stat 6:107, 1981, doi:10.3102/10769986006002107.
    """
    parts = [(values.mean(), values.std(ddof=1), values.size) for values in (sample, reference)]
    g, variance = effectsize_smd(*parts[0], *parts[1])
    half = 1.959963984540054 * np.sqrt(variance)
    return {"hedges_g": float(g), "g_low": float(g - half), "g_high": float(g + half)}


def _roc(sample: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    found = roc(sample, reference)
    return {
        "auc": found.auc, "auc_low": found.low, "auc_high": found.high, "cutoff": found.cutoff,
        "sensitivity": found.sensitivity, "specificity": found.specificity,
    }  # fmt: skip
