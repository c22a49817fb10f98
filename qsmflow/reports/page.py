"""The page of a subject: one self-contained HTML file, made from the files of the output tree alone.

NiReports holds the report and renders the template. Its index of the figures folder is not used: it drops an acquisition
without entities where others have some, knows only the entities of its own list, and links pictures instead of embedding them.
The figures say themselves, in the JSON file beside each, where they belong.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup
from nireports.assembler.report import Report, SubReport
from PIL import Image

import qsmflow
from qsmflow.algorithms.multiorientation import POOR
from qsmflow.bids.outputs import atomic
from qsmflow.reports import boilerplate, quality, spread
from qsmflow.reports.gallery import COSMOS

_TEMPLATES = Path(__file__).parent / "templates"

#: Sections of an acquisition that show pictures: key in the figures' JSON files, title.
_PICTURES = {
    "chi": "Susceptibility",
    "sources": "Sources",
    "swi": "SWI",
    "r2star": "R2*",
    "fields": "Fields",
    "phase": "Phase",
    "masks": "Masks",
    "regions": "Regions",
}

#: Quality of the WebP pictures on the page; the PNG files in the figures folder are not touched.
_WEBP = {"format": "WEBP", "quality": 88, "method": 4}


@dataclass(frozen=True)
class Part:
    """A section of an acquisition: ``kind`` chooses the block of the template, ``content`` is what it shows."""

    name: str
    title: str
    kind: str
    content: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """A step that failed, as its crash file tells it."""

    acquisition: str
    step: str
    reason: str
    remedy: str
    crash_file: str


class SubjectReport(Report):
    """NiReports' report, filled from qsmflow's output tree."""

    def index(self, config: Mapping[str, object]) -> None:
        """Collect the summary, one sub-report per acquisition, and what failed."""
        output_dir, subject = Path(config["out_dir"]), config["metadata"]["subject"]
        found = _acquisitions(output_dir, subject)
        failures = _failures(output_dir / "logs", subject)
        unfinished = _unfinished(output_dir / "logs", subject, [name for name, _ in found])
        group = spread.read_group(output_dir)
        together = _combinations(output_dir, subject)
        several = len(found) + len(together) > 1
        reports = [_acquisition(output_dir, name, path, group, several=several) for name, path in found]
        reports += [_orientations(output_dir, name, path) for name, path in together]
        summary = _summary(subject, [(report.name, report.reportlets[0].content) for report in reports], failures, unfinished)
        self.title = f"sub-{subject} · qsmflow"
        self.sections = [SubReport("summary", reportlets=[summary], title=f"sub-{subject}"), *reports]


def build_subject_page(output_dir: Path, subject: str) -> Path:
    """Write the page of a subject.

    Parameters
    ----------
    output_dir : Path
        Root of the output tree; only files below it are read.
    subject : str
        Label of the subject, with or without ``sub-``.

    Returns
    -------
    Path
        ``sub-XX.html`` in the root; complete, or not there. The same files give the same bytes.
    """
    subject = subject.removeprefix("sub-")
    path = Path(output_dir) / f"sub-{subject}.html"
    with atomic(path) as temporary:
        SubjectReport(
            output_dir,
            None,
            bootstrap_file=_TEMPLATES / "page.yml",
            out_filename=temporary.absolute(),
            metadata={"templates": str(_TEMPLATES), "subject": subject},
        ).generate_report()
    return path


def _acquisitions(output_dir: Path, subject: str) -> list[tuple[str, Path]]:
    """Name and quality file of every acquisition that was finished, in the order of their names."""
    folder = output_dir / f"sub-{subject}"
    paths = [*folder.glob("anat/*_desc-qc_stats.json"), *folder.glob("ses-*/anat/*_desc-qc_stats.json")]
    return sorted((path.name.removesuffix("_desc-qc_stats.json"), path) for path in paths)


def _combinations(output_dir: Path, subject: str) -> list[tuple[str, Path]]:
    """Common name and sidecar of the map of every head that was scanned in several positions."""
    folder, end = output_dir / f"sub-{subject}", f"_desc-{COSMOS}_Chimap.json"
    paths = [*folder.glob(f"anat/*{end}"), *folder.glob(f"ses-*/anat/*{end}")]
    return sorted((path.name.removesuffix(end), path) for path in paths)


def _orientations(output_dir: Path, name: str, path: Path) -> SubReport:
    """What several positions of one head gave together, and how well they did."""
    told, prefix = json.loads(path.read_text(encoding="utf-8")), f"{name}-{COSMOS}"
    pictures = _figures(output_dir / name.split("_")[0] / "figures", name)
    shown = [picture for picture in pictures if picture["section"] == COSMOS]
    positions = told["Orientations"]
    matches = [position.get("RegistrationSimilarity") for position in positions]
    rows = [
        [
            position["Name"],
            f"{position['TiltDegrees']:.1f}°",
            "first" if index == 0 else "n/a" if match is None else f"{match:.2f}",
            _value("cosmos_fit", position["UnexplainedField"]),
            ", ".join(f"{round(b, 2) + 0.0:.2f}" for b in position["B0Direction"]).replace("-", "\N{MINUS SIGN}"),
        ]
        for index, (position, match) in enumerate(zip(positions, matches, strict=True))
    ]
    least = quality.metric("registration_t1w").low
    warnings = quality.warnings(told["Quality"])
    if told["PoorlyConditioned"]:
        remedy = "noise and streaks are raised; use three or more positions that tilt the head in two planes"
        warnings.append({"what": "the positions of the head are too alike", "remedy": remedy})
    for position, match in zip(positions, matches, strict=True):
        if match is not None and match < least:
            remedy = "compare the map with that of the first position; leave this one out if edges are doubled"
            warnings.append({"what": f"{position['Name']} matches the first position poorly", "remedy": remedy})
    facts = [
        ("Positions", len(positions)),
        ("Largest tilt", f"{max(position['TiltDegrees'] for position in positions):.1f}°"),
        ("Smallest kernel", f"{told['SmallestCombinedKernel']:.2f}"),
        ("Condition number", told["ConditionNumber"]),
        ("Unexplained fields", _value("cosmos_fit", told["Quality"]["cosmos_fit"])),
    ]
    overview = {"facts": facts, "warnings": warnings, "remedies": f"{prefix}-positions"}
    head = ["Position", "Tilt", "Match, nat", "Unexplained field", "Main field in the head"]
    values = _quality(told["Quality"], name, {})
    told = {"head": head, "rows": rows, "warnings": warnings, "least": least, "poor": POOR}
    parts = [
        Part(f"{prefix}-overview", "Overview", "overview", overview),
        Part(f"{prefix}-chi", "Susceptibility", "pictures", {"pictures": shown, "tables": [], "switch": len(shown) > 1}),
        Part(f"{prefix}-positions", "Positions of the head", "orientations", told),
        Part(f"{prefix}-quality", "Quality", "quality", values),
    ]
    return SubReport(prefix, reportlets=parts, title=f"{name}, all positions (COSMOS)", isnested=True)


def _acquisition(output_dir: Path, name: str, path: Path, group: Mapping[str, Mapping], *, several: bool) -> SubReport:
    content = json.loads(path.read_text(encoding="utf-8"))
    prefix = f"{name}-" if several else ""
    tables = sorted(path.parent.glob(f"{name}_atlas-*_stats.tsv"))
    pictures = _figures(output_dir / name.split("_")[0] / "figures", name)
    parts = [Part(f"{prefix}overview", "Overview", "overview", _overview(content, f"{prefix}inputs"))]
    for key, title in _PICTURES.items():
        shown = [picture for picture in pictures if picture["section"] == key]
        regions = [_region_table(table) for table in tables] if key == "regions" else []
        if shown or regions:
            # One map in several windows is compared best in one place.
            shows = {"pictures": shown, "tables": regions, "switch": key == "chi" and len(shown) > 1}
            parts.append(Part(f"{prefix}{key}", title, "pictures", shows))
    text = content["methods"]["text"]
    parts += [
        Part(f"{prefix}quality", "Quality", "quality", _quality(content["metrics"], name, group)),
        Part(f"{prefix}inputs", "Inputs and warnings", "inputs", content),
        Part(f"{prefix}reporting", "Reporting table", "reporting", {"rows": content["reporting_table"]}),
        methods_part(f"{prefix}methods", text, prefix),
        Part(f"{prefix}provenance", "Provenance", "provenance", {**content, **_timing(output_dir / "logs", name)}),
    ]
    return SubReport(name, reportlets=parts, title=name, isnested=several)


def _summary(
    subject: str, overviews: Sequence[tuple[str, Mapping]], failures: Sequence[Failed], unfinished: Sequence[str]
) -> Part:
    """The verdict: red where a step failed, amber where something needs a look, green otherwise."""
    flags = sum(len(overview["warnings"]) for _, overview in overviews)
    said = [_count(len(failures), "step") + " failed"] if failures else []
    said += [_count(len(unfinished), "acquisition") + " without results"] if unfinished else []
    if not overviews and not said:
        said = ["nothing was processed"]
    level = "bad" if said else "look" if flags else "good"
    said += [_count(flags, "flag") + " to look at before using the values"] if flags else []
    words = "; ".join(said or ["no flags"])
    words = words[0].upper() + words[1:]
    content = {
        "level": level, "words": words, "overviews": overviews, "failures": failures, "unfinished": unfinished,
        "version": qsmflow.__version__,
    }  # fmt: skip
    return Part("summary", f"sub-{subject}", "summary", content)


def _overview(content: Mapping, remedies: str) -> dict[str, object]:
    """A few facts and values for the top of an acquisition; ``remedies`` is the section that says what to do."""
    inputs, values = content["inputs"], content["metrics"]
    facts = [
        ("Field", f"{inputs['b0']:g} T" if inputs["b0"] else "not given"),
        ("Echo times", ", ".join(f"{1000 * te:.3g}" for te in inputs["echo_times"]) + " ms"),
        ("Voxel", " × ".join(f"{v:.3g}" for v in inputs["voxel_size"]) + " mm"),
        ("Recipe", content["recipe"]["name"]),
    ]
    shown = {
        "snr_echo1": "Signal to noise, echo 1", "mask_volume": "Volume", "coverage": "Coverage of the brain",
        "fit_residual": "Misfit over the echoes", "rim_chi": "Rim", "regions_plausible": "Plausible regions",
    }  # fmt: skip
    facts += [(title, _value(key, values[key])) for key, title in shown.items() if values.get(key) is not None]
    return {"facts": facts, "warnings": content["warnings"], "remedies": remedies}


def _quality(values: Mapping[str, float | None], name: str, group: Mapping[str, Mapping]) -> dict[str, object]:
    """One row per metric of the table, with its place in the group; the echoes of a metric share a row."""
    rows = []
    for row in quality.METRICS:
        mine = {key: value for key, value in values.items() if quality.metric(key) is row}
        if mine:
            flagged = any(value is not None and row.flagged(value) for value in mine.values())
            state = "look" if flagged else "good"
            shown = ", ".join(_value(key, value, unit=False) for key, value in mine.items())
            strips = [spread.strip(key, value, name, group, row.digits) for key, value in mine.items()]
            rows.append({"row": row, "value": shown, "state": state, "strips": [item for item in strips if item]})
    return {"rows": rows, "compared": spread.TABLE if any(row["strips"] for row in rows) else ""}


def _value(key: str, value: float | None, *, unit: bool = True) -> str:
    row = quality.metric(key)
    if value is None:
        return "n/a"
    return f"{value:.{row.digits}f}".replace("-", "\N{MINUS SIGN}") + (f" {row.unit}" if unit and row.unit else "")


def _figures(folder: Path, name: str) -> list[dict[str, object]]:
    """The pictures of an acquisition with their sidecars, in order, embedded."""
    pictures = []
    for path in folder.glob(f"{name}_desc-*.json"):
        picture = path.with_suffix(".png")
        if picture.is_file():
            sidecar = json.loads(path.read_text(encoding="utf-8"))
            source, size = embedded(picture)
            pictures.append({**sidecar, "file": picture.name, "source": source, "width": size[0], "height": size[1]})
    return sorted(pictures, key=lambda picture: (picture["order"], picture["file"]))


def embedded(path: Path) -> tuple[str, tuple[int, int]]:
    """A picture as a data URI, and its size."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, **_WEBP)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", image.size


def _region_table(path: Path) -> dict[str, object]:
    """A table of regions, numbers rounded for reading."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = list(csv.reader(file, delimiter="\t")) or [[]]
    return {"file": path.name, "head": head, "rows": [[_rounded(cell) for cell in row] for row in rows]}


def _rounded(cell: str) -> str:
    if re.fullmatch(r"-?\d+", cell):
        return cell
    try:
        return f"{float(cell):.4g}".replace("-", "\N{MINUS SIGN}")
    except ValueError:
        return cell


def methods_part(name: str, text: str, prefix: str = "") -> Part:
    """Methods text with numbered citations, and its references in every form that can be copied."""
    keys = boilerplate.cited(text)
    works = boilerplate.bibliography()
    numbers = {key: number for number, key in enumerate(keys, 1)}

    def link(match: re.Match) -> str:
        cited = [key for key in boilerplate.cited(match[0]) if key in numbers]
        return "[" + ", ".join(f'<a href="#{prefix}ref-{key}">{numbers[key]}</a>' for key in cited) + "]"

    paragraphs = [Markup(re.sub(r"\[@[^\]]*\]", link, html.escape(part))) for part in text.strip().split("\n\n")]
    references = [{"anchor": f"{prefix}ref-{key}", "text": works[key].text, "url": works[key].url} for key in keys]
    content = {
        "paragraphs": paragraphs, "references": references, "markdown": text, "latex": boilerplate.latex(text),
        "bibtex": boilerplate.bibtex(keys),
    }  # fmt: skip
    return Part(name, "Methods", "methods", content)


def _timing(logs: Path, name: str) -> dict[str, object]:
    """Seconds per step of the last run."""
    path = logs / f"{name}_timing.tsv"
    if not path.is_file():
        return {"timing": [], "seconds": 0.0}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    times = [{"node": row["node"], "seconds": float(row["seconds"]), "status": row["status"]} for row in rows]
    longest = max((row["seconds"] for row in times), default=0.0) or 1.0
    steps = [{**row, "share": f"{100 * row['seconds'] / longest:.1f}"} for row in times]
    return {"timing": steps, "seconds": sum(row["seconds"] for row in times)}


def _failures(logs: Path, subject: str) -> list[Failed]:
    """Crash files that belong to a subject: those of its acquisitions, and those of shared steps that name it."""
    found = []
    for path in sorted(logs.glob("crash_*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        head = dict(re.findall(r"^([a-z ]+?):[ \t]*(.*)$", text.split("\n\n", 1)[0], re.M))
        owner = head.get("acquisition", "")
        if _belongs(owner, subject) or (not owner and re.search(rf"\bsub[-_]{re.escape(subject)}(?![A-Za-z0-9])", text)):
            step = head.get("step", path.stem.removeprefix("crash_"))
            found.append(Failed(owner, step, head.get("reason", ""), head.get("what to do", ""), path.name))
    return found


def _unfinished(logs: Path, subject: str, finished: Iterable[str]) -> list[str]:
    """Acquisitions that were started and have no results."""
    started = {path.name.removesuffix("_timing.tsv") for path in logs.glob(f"sub-{subject}*_timing.tsv")}
    return sorted(name for name in started - set(finished) if _belongs(name, subject))


def _belongs(acquisition: str, subject: str) -> bool:
    return acquisition.split("_")[0] == f"sub-{subject}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
