"""The page of a study: one self-contained HTML file with distributions, outliers and what the model found."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from nireports.assembler.report import Report, SubReport

import qsmflow
from qsmflow.bids.outputs import atomic
from qsmflow.group.collect import Cohort
from qsmflow.group.roc import roc_curve
from qsmflow.group.study import Study
from qsmflow.group.tables import WIDE, meaning, outliers
from qsmflow.group.voxelwise import Voxels
from qsmflow.reports import plots
from qsmflow.reports.page import Part, embedded, methods_part
from qsmflow.reports.quality import metric_title, structure

_TEMPLATES = Path(__file__).parent / "templates"

#: Most outliers, quality metrics and ROC curves that are shown; the tables hold all.
_MOST_OUTLIERS, _MOST_METRICS, _MOST_CURVES = 40, 24, 8

#: Columns of a study's tables that the page shows, by table; the files hold all.
_SHOWN = {
    "differences": (
        "structure", "group", "difference", "low", "high", "q", "hedges_g", "g_low", "g_high", "auc", "auc_low",
        "auc_high",
    ),
    "ancova": ("structure", "n", "status", "group_f", "group_p", "group_q", "group_eta2", "slope_p"),
    "means": ("structure", "group", "n", "mean", "sd", "adjusted_mean", "adjusted_low", "adjusted_high"),
    "ageing": ("structure", "n", "status", "slope", "slope_low", "slope_high", "slope_q", "curve", "plateau", "rate", "r2"),
    "reliability": (
        "structure", "n", "status", "mean", "icc_consistency", "icc_consistency_low", "icc_consistency_high", "icc_agreement",
        "cov_percent", "bias", "loa_low", "loa_high",
    ),
    "calibration": (
        "scan", "n", "slope", "slope_low", "slope_high", "intercept", "expected", "ratio", "r2", "loa_low", "loa_high",
    ),
    "expected": ("structure", "group", "expected", "found"),
}  # fmt: skip
_HEADS = {
    "structure": "Region", "low": "from", "high": "to", "hedges_g": "g", "g_low": "from", "g_high": "to", "auc": "AUC",
    "auc_low": "from", "auc_high": "to", "group_f": "F", "group_p": "p", "group_q": "q", "group_eta2": "partial η²",
    "slope_p": "p, equal slopes", "n": "n", "p": "p", "q": "q", "adjusted_mean": "adjusted", "adjusted_low": "from",
    "adjusted_high": "to", "slope_low": "from", "slope_high": "to", "slope_q": "q", "icc_consistency": "ICC(3,1)",
    "icc_consistency_low": "from",
    "icc_consistency_high": "to", "icc_agreement": "ICC(2,1)", "cov_percent": "CoV, %", "loa_low": "limits, from",
    "loa_high": "to", "r2": "r²",
}  # fmt: skip
_TITLES = {
    "differences": "Differences between groups", "ancova": "Analysis of covariance", "means": "Means", "ageing": "Age",
    "reliability": "Agreement of sessions", "calibration": "Calibration", "expected": "What earlier studies found",
}  # fmt: skip


class GroupReport(Report):
    """NiReports' report, filled with a study."""

    def index(self, config: Mapping[str, object]) -> None:
        """Take the sections that were made."""
        made = config["metadata"]["page"]
        self.title = f"{made['title']} · qsmflow"
        self.sections = [SubReport("group", reportlets=[made["summary"], *made["parts"]], title=made["title"])]


def build_group_page(output_dir: Path, cohort: Cohort, study: Study | None, maps: Voxels | None = None) -> Path:
    """Write the page of a study.

    Parameters
    ----------
    output_dir : Path
        Root of the output tree; pictures go to its ``figures``.
    cohort : Cohort
    study : Study or None
        None: the tables alone.
    maps : Voxels, optional
        What the comparison voxel by voxel found.

    Returns
    -------
    Path
        ``group.html``, or ``group_<name>.html`` for a study; complete, or not there. The same tables give the same bytes.
    """
    name = f"group_{study.model.name}" if study else "group"
    far = outliers(cohort)
    parts = [_regions(cohort, far, study), _outliers(far, output_dir, cohort), _quality(cohort, far)]
    if study:
        parts = [
            *_study_parts(study),
            *_voxel_parts(maps),
            *parts,
            methods_part("methods", "\n\n".join([study.methods, *([maps.methods] if maps else [])])),
        ]
        parts.append(Part("model", "Model", "model", {"yaml": study.model.to_yaml()}))
    parts.append(Part("files", "Files", "files", {"files": _files(output_dir, name)}))
    shown = [part for part in parts if part is not None]
    for part in shown:
        for picture in part.content.get("pictures", ()):
            _save_picture(output_dir / "figures" / f"{name}_{picture['key']}.png", picture)
    page = {
        "title": study.model.name if study else "All participants",
        "summary": _summary(cohort, study, far, maps),
        "parts": shown,
    }
    path = output_dir / f"{name}.html"
    with atomic(path) as temporary:
        GroupReport(
            output_dir, None, bootstrap_file=_TEMPLATES / "group.yml", out_filename=temporary.absolute(),
            metadata={"templates": str(_TEMPLATES), "page": page},
        ).generate_report()  # fmt: skip
    return path


def _summary(cohort: Cohort, study: Study | None, far: pd.DataFrame, maps: Voxels | None) -> Part:
    """Who was studied, what was found, and what is missing."""
    scans = cohort.scans
    facts = [("Participants", str(scans["participant_id"].nunique())), ("Acquisitions", str(len(scans)))]
    if "age" in scans:
        ages = pd.to_numeric(scans["age"], errors="coerce").dropna()
        if len(ages):
            facts.append(("Age", f"{ages.min():g} to {ages.max():g}, mean {ages.mean():.1f}"))
    for column in ("sex", "group", "site"):
        if column in scans:
            counts = scans.drop_duplicates("participant_id")[column].value_counts().sort_index()
            if 0 < len(counts) < 7:
                facts.append((column.capitalize(), ", ".join(f"{level} {count}" for level, count in counts.items())))
    facts.append(("Outlying values", str(len(far))))
    notices = [*cohort.notices, *(study.notices if study else ()), *(maps.notices if maps else ())]
    findings = list(study.findings) if study else []
    if maps is not None:
        findings += [
            f"voxelwise, {r.effect}: {r.significant} of {r.voxels} voxels with p < 0.05 (corrected)"
            for r in maps.table.itertuples()
        ]
    words = f"{scans['participant_id'].nunique()} participants, {len(scans)} acquisitions"
    content = {
        "facts": facts, "notices": notices, "findings": findings, "words": words, "version": qsmflow.__version__,
        "level": "look" if _incomplete(cohort, study) else "good",
    }  # fmt: skip
    return Part("summary", study.model.name if study else "All participants", "summary", content)


def _incomplete(cohort: Cohort, study: Study | None) -> bool:
    """Whether something is missing or shifts the values."""
    if cohort.notices or study is None:
        return bool(cohort.notices)
    told = any(notice.startswith(("the reference region differs", "no result")) for notice in study.notices)
    return told or bool(study.data.left_out) or bool(study.data.values.isna().any(axis=None))


def _regions(cohort: Cohort, far: pd.DataFrame, study: Study | None) -> Part | None:
    """Values of all scans in all regions; a study's own selection when there is one."""
    measure = study.model.measure if study else next((name for name in WIDE if name in cohort.measures), None)
    if measure is None:
        return None
    groups: list[str] = []
    if study:
        table = study.data.values.rename_axis("scan").reset_index().melt("scan", var_name="region", value_name="value")
        table["structure"] = table["region"].map(study.data.names)
        if study.reference:
            table["group"] = table["scan"].map(study.data.people[study.model.group])
            groups = [study.reference, *sorted(set(table["group"]) - {study.reference})]
        ringed: Sequence[str] = ()
    else:
        table = cohort.regions.rename(columns={"acquisition": "scan", "name": "region", measure: "value"})
        side = table["hemisphere"].map({"L": ", left", "R": ", right"}).fillna("")
        table = table.assign(structure=table["structure"] + side, order=table["structure"].map(_order(table["structure"])))
        table = table.sort_values(["order", "region"], kind="stable")
        ringed = list(far.loc[far["z"].abs() > 5, "acquisition"].unique()) if len(far) < 100 else ()
    caption = f"{_sentence(measure)}. One dot per scan, spread for legibility."
    png = plots.distributions(table, value=measure, label=_axis(measure), groups=groups, highlight=ringed)
    return Part("regions", "Regions", "plots", {"pictures": [_picture("regions", "Values in every region", caption, png)]})


def _outliers(far: pd.DataFrame, output_dir: Path, cohort: Cohort) -> Part:
    """Values far from the others, with links to the subjects' pages where these are."""
    rows = []
    for row in far.head(_MOST_OUTLIERS).itertuples():
        page = next((p for p in (output_dir, cohort.results_dir) if (p / f"{row.participant_id}.html").is_file()), None)
        link = "" if page is None else _relative(page / f"{row.participant_id}.html", output_dir)
        numbers = {name: _cell(getattr(row, name)) for name in ("value", "median", "z")}
        rows.append({"scan": row.acquisition, "link": link, "what": _what(row.what), **numbers})
    return Part("outliers", "Outliers", "outliers", {"rows": rows, "number": len(far)})


def _what(name: str) -> str:
    """An outlying value in words: the side and the measure of a region, or a quality metric."""
    if not (region := re.fullmatch(r"(.+) \((\w+)\)", name)):
        return metric_title(name)
    return f"{structure(region[1])} {region[1][-1]}, {region[2]}" if region[1][-2:] in ("_L", "_R") else name


def _quality(cohort: Cohort, far: pd.DataFrame) -> Part | None:
    metrics = [
        name for name in cohort.quality.columns[1:] if pd.to_numeric(cohort.quality[name], errors="coerce").notna().sum() > 1
    ]
    if not metrics:
        return None
    rings = {name: list(far.loc[far["what"] == name, "acquisition"]) for name in metrics}
    png = plots.quality(cohort.quality, metrics[:_MOST_METRICS], rings)
    caption = "One dot per acquisition; line: median; dashed: limit beyond which a subject's page raises a flag; ring: outlier."
    return Part("quality", "Quality", "plots", {"pictures": [_picture("quality", "Quality metrics", caption, png)]})


def _study_parts(study: Study) -> list[Part]:
    """Pictures and tables of the analysis."""
    tables, model = study.tables, study.model
    pictures = []
    label = _axis(model.measure)
    if model.analysis == "case-control" and not tables["differences"].empty:
        png = plots.differences_plot(tables["differences"], label, model.fdr)
        words = "Adjusted differences with 95 % intervals; g: Hedges' g of the unadjusted values; q: Benjamini-Hochberg."
        pictures.append(_picture("differences", "Differences between groups", words, png))
        png = plots.roc_plots(_roc_samples(study))
        words = "Regions whose area under the curve (AUC, with DeLong interval) is farthest from 0.5, without adjustment."
        pictures.append(_picture("roc", "Receiver operating characteristics", words, png))
    if model.analysis == "ageing" and not tables["curves"].empty:
        groups = study.data.people[model.group].to_dict() if model.group in study.data.factors else {}
        png = plots.age_plots(tables["ageing"], tables["curves"], tables["adjusted"], groups, label)
        words = (
            "Values without the part of the covariates, the curve with the lowest AICc and its bootstrap band. *: the slope of "
            "the straight line differs from 0 (q < 0.05)."
        )
        if "iron" in tables["curves"]:
            words += " Dashed: iron by age after Hallgren and Sourander, scaled and shifted onto the fit, for its shape."
        pictures.append(_picture("ageing", "Values against age", words, png))
    if model.analysis == "test-retest":
        png = plots.agreement_plots(tables["reliability"], tables["pairs"], label)
        pictures.append(_picture("agreement", "Bland-Altman plots", "Bias and limits of agreement.", png))
    if model.analysis == "phantom":
        png = plots.calibration_plot(tables["calibration"], tables["vials"])
        pictures.append(_picture("calibration", "Calibration", "Measured susceptibility of the vials.", png))
    shown = [_grid(name, tables[name], model.name) for name in _SHOWN if name in tables and not tables[name].empty]
    return [Part("results", "Results", "plots", {"pictures": pictures, "tables": shown})]


def _voxel_parts(maps: Voxels | None) -> list[Part]:
    if maps is None:
        return []
    keys = [re.sub(r"\W+", "-", title.lower()) for title, _, _ in maps.pictures]
    pictures = [_picture(f"voxelwise-{key}", *part) for key, part in zip(keys, maps.pictures, strict=True)]
    return [Part("voxelwise", "Voxel by voxel", "plots", {"pictures": pictures, "tables": []})]


def _roc_samples(study: Study) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Curves of the regions that tell the groups apart best."""
    table = study.tables["differences"]
    best = (
        table.assign(apart=(table["auc"] - 0.5).abs()).sort_values("apart", ascending=False, kind="stable").head(_MOST_CURVES)
    )
    who = study.data.people["participant_id"]
    group = study.data.people.drop_duplicates("participant_id").set_index("participant_id")[study.model.group]
    several = table["group"].nunique() > 1
    samples = []
    for row in best.itertuples():
        one = study.data.values[row.region].groupby(who.to_numpy()).mean().dropna()
        sample, reference = (one[(group[one.index] == level).to_numpy()].to_numpy() for level in (row.group, row.reference))
        title = row.structure + (f", {row.group}" if several else "")
        samples.append((f"{title}\n{row.auc:.2f} [{row.auc_low:.2f}, {row.auc_high:.2f}]", *roc_curve(sample, reference)))
    return samples


def _grid(name: str, table: pd.DataFrame, study: str) -> dict[str, object]:
    """A table as the page shows it."""
    columns = [column for column in _SHOWN[name] if column in table]
    head = [(_HEADS.get(column, column.replace("_", " ").capitalize()), meaning(column)) for column in columns]
    rows = [
        [_cell(value, column) for column, value in zip(columns, row, strict=True)]
        for row in table[columns].itertuples(index=False)
    ]
    return {"title": _TITLES[name], "file": f"group_{study}_{name}.tsv", "head": head, "rows": rows}


def _cell(value: object, column: str = "") -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        if np.isnan(value):
            return "n/a"
        small = column[-2:] in ("p", "q", "_p", "_q") and value < 1e-4
        return "< 0.0001" if small else _three_digits(value).replace("-", "\N{MINUS SIGN}")
    return "" if value is None else str(value)


def _three_digits(value: float) -> str:
    """A number with three significant digits, all of them written, without exponent.

    Examples
    --------
    >>> [_three_digits(value) for value in (0.0048, 1.0, -6.46e-05, 12345.6, 0.0)]
    ['0.00480', '1.00', '-0.0000646', '12346', '0.00']
    """
    if abs(value) >= 100 or not np.isfinite(value):
        return f"{value:.0f}"
    digits = 2 - int(f"{value:.2e}".rpartition("e")[2])
    return f"{value:.{digits}f}"


def _picture(key: str, title: str, caption: str, png: bytes) -> dict[str, object]:
    return {"key": key, "title": title, "caption": caption, "png": png}


def _save_picture(path: Path, picture: dict[str, object]) -> None:
    """Write a picture as a file of its own, and give the page its embedded form."""
    with atomic(path) as temporary:
        temporary.write_bytes(picture.pop("png"))
    picture["source"], (picture["width"], picture["height"]) = embedded(path)
    picture["file"] = path.name


def _files(output_dir: Path, name: str) -> list[str]:
    collected = sorted(
        path.name
        for path in output_dir.glob("group_*.tsv")
        if path.name in ("group_rois.tsv", "group_rois_wide.tsv", "group_qc.tsv")
    )
    own = (
        sorted(path.name for path in output_dir.glob(f"{name}_*") if path.suffix in (".tsv", ".yml", ".gz"))
        if name != "group"
        else []
    )
    return [*collected, *own]


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(path, start)).as_posix()


def _axis(measure: str) -> str:
    words = {
        "chi": "susceptibility, ppm",
        "para": "paramagnetic susceptibility, ppm",
        "dia": "diamagnetic susceptibility, ppm",
        "r2star": "R2*, 1/s",
    }
    return words.get(measure.split("_")[0], measure)


def _order(names: pd.Series) -> dict[str, int]:
    """Places of names by their first appearance, which brings the sides of a structure together."""
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def _sentence(measure: str) -> str:
    text = meaning(measure)
    return text[0].upper() + text[1:]
