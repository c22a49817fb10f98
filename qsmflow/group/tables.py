"""The group level's files: tables with a dictionary beside each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from qsmflow.bids.outputs import json_text, sidecar_path, write_text
from qsmflow.bids.regions import column_meaning
from qsmflow.group.collect import Cohort
from qsmflow.group.study import Study
from qsmflow.reports.quality import metric

#: Measures that the wide table holds.
WIDE = ("chi_mean", "chi_brain_mean", "r2star_mean", "para_mean", "dia_mean")

_MEANINGS = {
    "acquisition": "name of the acquisition, as in the names of its files",
    "participant_id": "participant",
    "session_id": "session",
    "acq": "acq- label of the acquisition",
    "rec": "rec- label of the acquisition",
    "run": "run of the acquisition",
    "atlas": "atlas of the regions",
    "structure": "name of the region in words",
    "region": "region (without its side where the sides were averaged)",
    "scan": "participant and session",
    "n": "scans (of a group: participants; of a phantom: vials) that were used",
    "status": "fitted or compared, or why not",
    "group": "group of the participants",
    "reference": "group that it is compared with",
    "group_f": "F of the group effect (type III; HC3 errors, or those of a mixed model)",
    "group_df": "degrees of freedom of its numerator",
    "group_eta2": "partial eta squared of the group effect",
    "slope_p": "p of the slope against age; in a comparison of groups: p that slopes of covariates differ between them",
    "slope_q": "Benjamini-Hochberg q of slope_p over the regions",
    "between_participants": "share of the remaining variance that lies between participants (mixed model)",
    "mean": "mean (unadjusted), in the unit of the measure",
    "sd": "standard deviation between participants",
    "adjusted_mean": "mean at the mean of the covariates and all levels of the factors alike",
    "adjusted_low": "lower limit of its 95 % interval",
    "adjusted_high": "upper limit of its 95 % interval",
    "difference": "adjusted mean minus that of the reference group, in the unit of the measure",
    "se": "standard error",
    "low": "lower limit of the 95 % interval",
    "high": "upper limit of the 95 % interval",
    "p": "p of the difference, two-sided",
    "q": "Benjamini-Hochberg q over the regions (and groups)",
    "hedges_g": "Hedges' g of the values without adjustment",
    "g_low": "lower limit of its 95 % interval",
    "g_high": "upper limit of its 95 % interval",
    "auc": "area under the receiver operating characteristic: chance that a value of the group is above one of the reference",
    "auc_low": "lower limit of its 95 % interval (DeLong)",
    "auc_high": "upper limit of its 95 % interval (DeLong)",
    "cutoff": "value with the largest sensitivity + specificity, chosen on the same data (optimistic)",
    "sensitivity": "sensitivity at the cut-off",
    "specificity": "specificity at the cut-off",
    "expected": "direction that earlier studies found; of a phantom: molar susceptibility by Curie's law, ppm/mM",
    "found": "direction that this study found (q below the limit)",
    "citations": "works that the expectation leans on",
    "slope": "slope of the straight line, unit of the measure per year; of a phantom: ppm/mM",
    "slope_se": "standard error of the slope",
    "slope_low": "lower limit of the 95 % interval of the slope",
    "slope_high": "upper limit of the 95 % interval of the slope",
    "aicc_linear": "AICc of the straight line",
    "aicc_quadratic": "AICc of the parabola",
    "aicc_exponential": "AICc of a (1 - exp(-b age)) + c",
    "exponential_identified": "whether ages and rate allow the exponential to be told from a line or a step",
    "curve": "identified curve with the lowest AICc",
    "plateau": "value that the exponential approaches",
    "start": "value of the exponential at age 0",
    "rate": "rate of the exponential, 1/year",
    "peak_age": "age at the parabola's turning point, years",
    "curvature": "coefficient of the squared age, unit of the measure per year squared",
    "r2": "share of the variance that curve and covariates explain",
    "sd_residual": "standard deviation of the residuals",
    "age": "age, years",
    "fit": "the curve at the mean of the covariates",
    "iron": "iron after Hallgren and Sourander, mg per 100 g wet tissue",
    "value": "value of the measure",
    "adjusted": "value without the part of the covariates",
    "icc_consistency": "ICC(3,1)",
    "icc_consistency_low": "lower limit of the 95 % interval of ICC(3,1)",
    "icc_consistency_high": "upper limit of the 95 % interval of ICC(3,1)",
    "icc_agreement": "ICC(2,1)",
    "icc_agreement_low": "lower limit of the 95 % interval of ICC(2,1)",
    "icc_agreement_high": "upper limit of the 95 % interval of ICC(2,1)",
    "within_sd": "standard deviation within participants",
    "cov_percent": "within-subject coefficient of variation, %",
    "repeatability": "repeatability coefficient, 1.96 sqrt(2) within_sd",
    "bias": "mean of the second minus the first session; of a phantom: of measured minus expected susceptibility",
    "bias_low": "lower limit of the 95 % interval of the bias",
    "bias_high": "upper limit of the 95 % interval of the bias",
    "sd_change": "standard deviation of the differences",
    "loa_low": "lower limit of agreement",
    "loa_low_from": "lower limit of the 95 % interval of loa_low",
    "loa_low_to": "upper limit of the 95 % interval of loa_low",
    "loa_high": "upper limit of agreement",
    "loa_high_from": "lower limit of the 95 % interval of loa_high",
    "loa_high_to": "upper limit of the 95 % interval of loa_high",
    "first": "value of the first session",
    "second": "value of the second session",
    "intercept": "intercept of the regression, ppm",
    "intercept_low": "lower limit of the 95 % interval of the intercept",
    "intercept_high": "upper limit of the 95 % interval of the intercept",
    "ratio": "slope over the expected molar susceptibility",
    "concentration": "concentration, mM",
    "chi": "susceptibility, ppm",
    "effect": "effect that was tested voxel by voxel",
    "voxels": "voxels that were tested",
    "t_min": "lowest t",
    "t_max": "highest t",
    "t_limit": "size that t must exceed for a corrected p below 0.05 (largest t of the map, without enhancement of clusters)",
    "significant": "voxels with a corrected p below 0.05",
}
_ENDINGS = {
    "_p": "p of the effect of {} (type III)",
    "_q": "Benjamini-Hochberg q of {}_p over the regions",
    "_estimate": "slope against {}, in the unit of the measure per unit of the column",
    "_low": "lower limit of the 95 % interval of the slope against {}",
    "_high": "upper limit of the 95 % interval of the slope against {}",
}


def write_collected(cohort: Cohort, output_dir: Path) -> list[Path]:
    """Write ``group_rois.tsv`` (a row per acquisition and region), ``group_rois_wide.tsv`` and ``group_qc.tsv`` (a row per
    acquisition), each with the columns of who was scanned, and their dictionaries."""
    own = {name: "as in participants.tsv or the sessions' files" for name in cohort.columns}
    wide, words = _wide(cohort)
    metrics = {name: metric(name) for name in cohort.quality.columns[1:]}
    quality = {
        name: f"{row.title}: {row.meaning} {row.unit}".strip() if row else "quality metric" for name, row in metrics.items()
    }
    tables = {
        "rois": (cohort.scans.merge(cohort.regions, on="acquisition"), own),
        "rois_wide": (cohort.scans.merge(wide, on="acquisition"), own | words),
        "qc": (cohort.scans.merge(cohort.quality, on="acquisition"), own | quality),
    }
    return [write_table(output_dir / f"group_{name}.tsv", table, texts) for name, (table, texts) in tables.items()]


def write_study(study: Study, output_dir: Path) -> list[Path]:
    """Write ``group_<name>_<table>.tsv`` for every table of a study, and its model; older ones of the same name go."""
    prefix = f"group_{study.model.name}_"
    for old in [*output_dir.glob(f"{prefix}*.tsv"), *output_dir.glob(f"{prefix}*.json")]:
        old.unlink()
    write_text(output_dir / f"{prefix}model.yml", study.model.to_yaml())
    return [
        write_table(output_dir / f"{prefix}{name}.tsv", table, {}) for name, table in study.tables.items() if not table.empty
    ]


def write_table(path: Path, table: pd.DataFrame, own: Mapping[str, str]) -> Path:
    """Write a table (six digits, ``n/a`` for what is missing) and what its columns mean."""
    text = table.to_csv(sep="\t", index=False, na_rep="n/a", float_format=_number, lineterminator="\n")
    write_text(path, text)
    write_text(sidecar_path(path), json_text({name: {"Description": own.get(name) or meaning(name)} for name in table.columns}))
    return path


def meaning(column: str) -> str:
    """What a column of any of the tables means.

    Examples
    --------
    >>> meaning("r2star_p95"), meaning("sex_p")
    ('95th percentile of R2*, 1/s', 'p of the effect of sex (type III)')
    """
    if known := _MEANINGS.get(column) or column_meaning(column):
        return known
    for ending, text in _ENDINGS.items():
        if column.endswith(ending):
            return text.format(column.removesuffix(ending))
    return column


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.6g}"


def _wide(cohort: Cohort) -> tuple[pd.DataFrame, dict[str, str]]:
    """One row per acquisition, one column per region and measure; sides apart."""
    several = cohort.regions["atlas"].nunique() > 1
    label = cohort.regions["atlas"] + "_" + cohort.regions["name"] if several else cohort.regions["name"]
    parts, words = [], {}
    for measure in (name for name in WIDE if name in cohort.measures):
        table = cohort.regions.assign(label=label).pivot_table(
            index="acquisition", columns="label", values=measure, dropna=False
        )
        table = table.reindex(columns=list(dict.fromkeys(label)))
        words |= {f"{name}_{measure}": f"{name}: {meaning(measure)}" for name in table}
        parts.append(table.rename(columns=lambda name, measure=measure: f"{name}_{measure}"))
    wide = pd.concat(parts, axis=1) if parts else pd.DataFrame(index=cohort.scans["acquisition"])
    wide.columns.name = None
    return wide.rename_axis("acquisition").reset_index(), words


def outliers(cohort: Cohort, limit: float = 3.5) -> pd.DataFrame:
    """Values and metrics of acquisitions that lie far from those of the others.

    Parameters
    ----------
    cohort : Cohort
    limit : float
        Least robust z.

    Returns
    -------
    DataFrame
        ``acquisition``, ``participant_id``, ``what``, ``value``, ``median``, ``z``; the farthest first.

    Notes
    -----
    ``z = 0.6745 (value - median) / MAD`` over all acquisitions, where there are at least five and the MAD is not 0. Sides are
    looked at separately. Ages and groups are not taken into account: an outlier is a place to look, not an error.

    References
    ----------
    Iglewicz & Hoaglin, How to detect and handle outliers, 1993.
    """
    measure = next((name for name in WIDE if name in cohort.measures), None)
    frames = (
        [] if measure is None else [cohort.regions.pivot_table(index="acquisition", columns=["atlas", "name"], values=measure)]
    )
    rows = []
    if frames:
        names = {column: f"{column[1]} ({measure})" for column in frames[0]}
        frames[0].columns = [names[column] for column in frames[0]]
    for frame in (*frames, cohort.quality.set_index("acquisition")):
        numbers = frame.apply(pd.to_numeric, errors="coerce")
        median = numbers.median()
        spread = (numbers - median).abs().median()
        z = 0.6745 * (numbers - median) / spread.where((spread > 0) & (numbers.notna().sum() >= 5))
        for column in numbers:
            for scan in z.index[z[column].abs() >= limit]:
                value = numbers.at[scan, column]
                rows.append(
                    {"acquisition": scan, "what": column, "value": value, "median": median[column], "z": z.at[scan, column]}
                )
    table = pd.DataFrame(rows, columns=["acquisition", "what", "value", "median", "z"])
    table.insert(1, "participant_id", table["acquisition"].str.split("_").str[0])
    return table.iloc[np.argsort(-table["z"].abs().to_numpy(float), kind="stable")].reset_index(drop=True)
