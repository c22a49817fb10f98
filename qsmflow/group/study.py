"""A study from its model: which analysis runs, what it found in a sentence, how to write it up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from qsmflow.errors import DatasetError
from qsmflow.group.ageing import age_curves
from qsmflow.group.calibration import calibrate
from qsmflow.group.collect import Cohort
from qsmflow.group.comparison import check_size, compare, reference_level
from qsmflow.group.expectations import expectations
from qsmflow.group.linear import design
from qsmflow.group.model import Model
from qsmflow.group.prepare import Data, prepare
from qsmflow.group.reliability import compare_sessions


@dataclass(frozen=True, eq=False)
class Study:
    """What came out: ``tables`` by name, ``findings`` and ``methods`` in sentences (with citation keys), ``notices``."""

    model: Model
    data: Data
    tables: dict[str, pd.DataFrame]
    findings: tuple[str, ...]
    methods: str
    notices: tuple[str, ...]
    reference: str = ""


def run_study(cohort: Cohort, model: Model) -> Study:
    """Prepare the data and run the model's analysis.

    Parameters
    ----------
    cohort : Cohort
    model : Model

    Returns
    -------
    Study

    Raises
    ------
    UsageError, DatasetError
        If the model and the tables do not go together; the message names the file and says what to do.
    """
    table = str(cohort.bids_dir / "participants.tsv")
    data = prepare(cohort, model)
    notices = [*data.notices, *_missing(data)]
    if model.analysis == "case-control":
        return _case_control(cohort, model, data, table, notices)
    if model.analysis == "ageing":
        if model.age not in data.numeric:
            raise DatasetError(f"{table}: '{model.age}' cannot be used as an age")
        check_size(data.people, design(data.people, numeric=data.numeric, factors=data.factors), model, table)
        tables = age_curves(data, model)
        notices += _unfitted(tables["ageing"])
        methods = _ageing_methods(data, model, iron="iron" in tables["curves"])
        return Study(model, data, tables, _ageing_findings(tables["ageing"], model), methods, tuple(notices))
    if model.analysis == "test-retest":
        tables = compare_sessions(data, str(cohort.results_dir))
        notices += _unfitted(tables["reliability"])
        return Study(model, data, tables, _retest_findings(tables["reliability"]), _RETEST, tuple(notices))
    tables = calibrate(cohort, data, model)
    return Study(model, data, tables, _phantom_findings(tables["calibration"], model), _PHANTOM, tuple(notices))


def _case_control(cohort: Cohort, model: Model, data: Data, table: str, notices: list[str]) -> Study:
    reference = reference_level(data, model, table)
    if not model.reference:
        notices.append(f"'{reference}' is taken as the reference group by its name")
    made = design(data.people, numeric=data.numeric, factors=data.factors, group=model.group, reference=reference)
    check_size(data.people, made, model, table)
    tables = compare(data, model, reference)
    if model.of_iron and not tables["differences"].empty:
        expected = expectations(tables["differences"], model.fdr)
        tables |= {"expected": expected} if not expected.empty else {}
    notices += _unfitted(tables["ancova"])
    notices += _reference_region(cohort, data, model, reference)
    findings = _group_findings(tables["differences"], model)
    return Study(model, data, tables, findings, _group_methods(data, model, reference), tuple(notices), reference)


def _missing(data: Data) -> list[str]:
    """What is not used, and why."""
    notices = []
    reasons: dict[str, list[str]] = {}
    for row, reason in data.left_out:
        reasons.setdefault(reason, []).append(row)
    notices += [f"not used ({reason}): {', '.join(rows)}" for reason, rows in sorted(reasons.items())]
    gaps = data.values.isna().sum()
    if gaps.any():
        told = ", ".join(f"{region} {count}" for region, count in gaps[gaps > 0].items())
        notices.append(f"missing values, whose scans are left out of these regions only: {told} of {len(data.values)}")
    return notices


def _unfitted(table: pd.DataFrame) -> list[str]:
    """Regions without a result, and why."""
    rows = table[~table["status"].isin(("fitted", "compared"))]
    return [f"no result ({reason}): {', '.join(part['region'])}" for reason, part in rows.groupby("status")]


def _reference_region(cohort: Cohort, data: Data, model: Model, reference: str) -> list[str]:
    """Whether the zero of the susceptibility itself differs between the groups."""
    if "reference_mean" not in cohort.quality or not model.measure.startswith("chi_") or model.measure.startswith("chi_brain"):
        return []
    means = cohort.quality.set_index("acquisition")["reference_mean"]
    values = pd.Series({row: means.reindex(scans).mean() for row, scans in data.scans.items()}).reindex(data.people.index)
    if values.isna().any() or values.std() < 1e-9:
        return []
    alone = replace(data, values=values.to_frame("reference"), names={"reference": "reference region"})
    tested = compare(alone, model, reference)["ancova"].iloc[0]
    if tested["status"] == "fitted" and tested["group_p"] < 0.05:
        return [
            f"the reference region differs between the groups (p = {tested['group_p']:.2g}), which shifts all values: compare "
            "'measure: chi_brain_mean' as well"
        ]
    return []


def _group_findings(table: pd.DataFrame, model: Model) -> tuple[str, ...]:
    if table.empty:
        return ("no region could be compared",)
    found, unit = [], " ppm" if model.measure.split("_")[0] in ("chi", "para", "dia") else ""
    for group, rows in table.groupby("group"):
        hits = rows[rows["q"] < model.fdr].sort_values("p")
        head = f"{group} against {rows['reference'].iloc[0]}: {len(hits)} of {len(rows)} regions differ (q < {model.fdr:g})"
        parts = [
            f"{r.structure} {r.difference:+.4f} [{r.low:.4f}, {r.high:.4f}]{unit}, g {r.hedges_g:.2f}"
            for r in hits.head(4).itertuples()
        ]
        found.append("; ".join([head, *parts]))
    return tuple(found)


def _ageing_findings(table: pd.DataFrame, model: Model) -> tuple[str, ...]:
    fitted = table[table["status"] == "fitted"]
    if fitted.empty:
        return ("no region could be fitted",)
    up, down = (fitted[(fitted["slope_q"] < model.fdr) & (fitted["slope"] * sign > 0)] for sign in (1, -1))
    curves = ", ".join(f"{form} in {count}" for form, count in fitted["curve"].value_counts().sort_index().items())
    return (
        f"of {len(fitted)} regions {len(up)} rise with age and {len(down)} fall (q < {model.fdr:g})",
        f"the curve with the lowest AICc is {curves}",
    )


def _retest_findings(table: pd.DataFrame) -> tuple[str, ...]:
    known = table[table["status"] == "compared"]
    if known.empty:
        return ("no region could be compared",)
    icc, cov = known["icc_consistency"], known["cov_percent"]
    return (
        f"ICC(3,1) from {icc.min():.2f} to {icc.max():.2f}, median {icc.median():.2f}",
        f"within-subject coefficient of variation, median {cov.median():.1f} %",
    )


def _phantom_findings(table: pd.DataFrame, model: Model) -> tuple[str, ...]:
    return tuple(
        f"{r.scan}: {r.slope:.3f} [{r.slope_low:.3f}, {r.slope_high:.3f}] ppm/mM, {100 * r.ratio:.0f} % of what Curie's law "
        f"gives for {model.compound} at {model.temperature:g} °C ({r.expected:.3f}); r2 {r.r2:.4f}"
        for r in table.itertuples()
    )


def _common(data: Data, model: Model) -> str:
    people = data.people["participant_id"].nunique()
    sides = " averaged over both sides" if model.hemispheres == "average" else ""
    text = (
        f"Values ({model.measure}) of {data.values.shape[1]} regions{sides} of {people} participants ({len(data.people)} scans)"
        " were analysed with qsmflow on statsmodels [@seabold2010]."
    )
    if model.harmonise == "combat":
        text += " Differences between sites were removed by ComBat [@johnson2007; @fortin2018]."
    return text


def _adjusted(data: Data, *without: str) -> str:
    names = [name for name in (*data.numeric, *data.factors) if name not in without]
    if not names:
        return ""
    *others, last = names
    return f" adjusted for {', '.join(others)} and {last}" if others else f" adjusted for {last}"


def _group_methods(data: Data, model: Model, reference: str) -> str:
    kind = "analysis of covariance (type III tests, heteroscedasticity-consistent HC3 errors [@mackinnon1985])"
    if data.repeated:
        kind = "a linear mixed model with a random intercept per participant (restricted maximum likelihood)"
    return (
        f"{_common(data, model)} Groups were compared with {reference}{_adjusted(data)} by {kind}, with the false discovery "
        f"rate controlled at {model.fdr:g} over the regions [@benjamini1995]. Effect sizes are Hedges' g [@hedges1981]; areas "
        "under the receiver operating characteristic have DeLong intervals [@delong1988]."
    )


def _ageing_methods(data: Data, model: Model, *, iron: bool) -> str:
    slopes = (
        "a linear mixed model with a random intercept per participant"
        if data.repeated
        else "least squares with HC3 errors [@mackinnon1985]"
    )
    return (
        f"{_common(data, model)} Age slopes{_adjusted(data, model.age)} were estimated by {slopes}, with the false discovery "
        f"rate controlled at {model.fdr:g} over the regions [@benjamini1995]. Straight line, parabola and saturating "
        f"exponential were compared by AICc [@hurvich1989]; bands are percentiles of {model.bootstrap} bootstrap resamples of "
        "the participants [@efron1979]."
    ) + (" Iron curves are those of Hallgren and Sourander [@hallgren1958]." if iron else "")


_RETEST = (
    "Two sessions were compared by intraclass correlations, ICC(3,1) and ICC(2,1) [@shrout1979], and limits of agreement "
    "[@bland1999], with statsmodels and SciPy [@seabold2010; @virtanen2020]."
)
_PHANTOM = (
    "The susceptibility of the vials was regressed on their concentration by weighted least squares (weights n/sd²) with "
    "statsmodels [@seabold2010] and compared with Curie's law, as for the multi-centre gadolinium phantom [@deh2019]."
)
