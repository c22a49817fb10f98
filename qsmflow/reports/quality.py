"""What the quality metrics mean: the one table behind the page's values, its flags and the group's outliers.

A limit is where a reader should look, not where a scan fails; every flag says what to do.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

#: Works that the plausible ranges lean on; the ranges themselves are in ``plausible_chi.tsv``.
RANGE_SOURCES = ("treit2021", "li2021")

#: Slack around a plausible range, ppm: the reference moves all values by up to this much.
SLACK = 0.02


@dataclass(frozen=True)
class Metric:
    """One metric: key in ``desc-qc_stats.json``, unit, where good values lie and what to do about others.

    ``key`` may end in ``*`` for one value per echo (``snr_echo1``, ``snr_echo2``, …). ``good`` says the direction in words;
    a value below ``low`` or above ``high`` is flagged, by itself or (``alone`` false) only together with others.
    """

    key: str
    title: str
    unit: str
    good: str
    meaning: str
    low: float | None = None
    high: float | None = None
    remedy: str = ""
    digits: int = 2
    alone: bool = True

    def flagged(self, value: float) -> bool:
        """Whether a value lies outside the limits."""
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)

    @property
    def limit(self) -> str:
        """The limits in words."""
        low, high = (None if v is None else f"{v:g}" for v in (self.low, self.high))
        if low and high:
            return f"{low} to {high}"
        return f"at least {low}" if low else f"at most {high}" if high else ""


METRICS = (
    Metric(
        "snr_*", "Signal-to-noise ratio", "", "higher", "Median magnitude in the mask over the noise, for every echo.", low=5,
        remedy="look at the magnitude of this echo; fewer or shorter echoes, or larger voxels, give more signal", digits=0,
    ),
    Metric(
        "residues_*", "Phase residues", "per 1000 voxels", "lower",
        "Points around which the phase cannot be unwrapped consistently, for every echo.", high=60, digits=1,
        remedy="look at the wrapped phase for fringe lines that end inside the brain; they come from the coil combination",
    ),
    Metric(
        "coil_matching", "Matching of the coils", "%", "near 100",
        "Mean matching quality of the receive coils in the mask: 100 where the phases of all agree.", low=90,
        remedy="look at the matching quality and at the wrapped phase; another method (--coils) may match the coils better",
        digits=1,
    ),
    Metric(
        "unwrapping_walls", "Walls in the unwrapped phase", "", "near 0",
        "Area of jumps between regions that are whole turns apart, in cross-sections of the mask; the worst echo.", high=0.25,
        remedy="look at the unwrapped phase for patches with sharp edges; try another --unwrap, or a tighter mask",
    ),
    Metric(
        "unwrapping_bent", "Echoes off the line", "", "near 0",
        "Share of voxels in which an echo's unwrapped phase is more than pi off the line through all.", high=0.05, digits=3,
        remedy="look at the unwrapped phase of every echo; flow, a bipolar readout or strong sources also bend the line",
    ),
    Metric(
        "fit_residual", "Misfit over the echoes", "rad", "lower",
        "Median deviation of the unwrapped phase from a straight line over the echoes.", high=0.4,
        remedy="look at the unwrapped phase for errors, and at the echo times; a bipolar readout or motion also bends the line",
    ),
    Metric(
        "field_range", "Range of the field", "ppm", "lower", "1st to 99th percentile of the total field in the mask.", high=3,
        remedy="the shim was poor or the phase is wrongly unwrapped; look at the total field",
    ),
    Metric(
        "mask_volume", "Volume of the mask", "ml", "800 to 2000 in adults", "Volume in which susceptibility is given.",
        low=800, high=2000, remedy="look at the mask outline; a scan of part of the brain is smaller by itself", digits=0,
    ),
    Metric(
        "coverage", "Coverage", "", "near 1", "Share of the brain mask in which susceptibility is given.", low=0.75,
        remedy="look at the mask outline: lower the phase-quality threshold, or choose a background method that keeps the edge",
    ),
    Metric(
        "rim_local", "Rim of the local field", "", "near 1", "Spread in the outer 3 mm relative to the interior.", high=2.5,
        remedy="background field is left at the edge: a tighter mask or another background method helps",
    ),
    Metric(
        "brain_sd", "Spread of the susceptibility", "ppm", "0.02 to 0.06",
        "Standard deviation over all voxels that have a susceptibility.", low=0.01, high=0.12, digits=4,
        remedy="a wide spread is noise, streaks or background that is left; a narrow one too strong a regularisation",
    ),
    Metric(
        "rim_chi", "Rim of the susceptibility", "", "near 1", "Spread in the outer 3 mm relative to the interior.", high=2.5,
        remedy="look at the edge of the map: a tighter mask or another background method helps",
    ),
    Metric(
        "streaks", "Streaks", "", "near 1", "Spectral power on the dipole's zero cone relative to the power beside it.", high=2,
        remedy="raise the regularisation of the inversion, or choose a regularised method",
    ),
    Metric(
        "forward_fit", "Unexplained local field", "", "lower", "Part of the local field that the map does not reproduce.",
        high=0.8, remedy="the inversion is over-regularised or the local field holds errors",
    ),
    Metric(
        "cosmos_fit", "Unexplained part of all local fields", "", "lower",
        "Part of the local fields that the map from all positions together does not reproduce.", high=0.5,
        remedy="the positions contradict each other: look whether their masks hold bone or air (a tighter mask, or --background"
        " resharp), at the match of every position, and for motion",
    ),
    Metric(
        "reference_mean", "Reference region, mean", "ppm", "near 0",
        "Mean of the reference region relative to the whole brain.", low=-0.06, high=0.06, digits=4,
        remedy="look where the reference region lies; values relative to the whole brain are in the table too",
    ),
    Metric(
        "reference_sd", "Reference region, spread", "ppm", "lower", "Standard deviation in the reference region.", high=0.04,
        remedy="the reference region is small or mixed; use the values relative to the whole brain", digits=4,
    ),
    Metric(
        "tail_asymmetry", "Polarity: tails", "", "positive",
        "Whether strong sources inside the brain are paramagnetic (−1 to 1).", low=0, alone=False,
    ),
    Metric(
        "iron_contrast", "Polarity: high R2*", "ppm", "positive",
        "Susceptibility where R2* is high, relative to the brain's median.", low=0, alone=False, digits=4,
    ),
    Metric(
        "nuclei_contrast", "Polarity: nuclei", "ppm", "positive", "Iron-rich nuclei minus their surroundings.",
        low=0, alone=False, digits=4,
    ),
    Metric(
        "polarity", "Polarity", "", "positive",
        "What the three checks of the sign say together: 1 all paramagnetic, −1 all inverted.", low=0, alone=False,
    ),
    Metric(
        "registration_template", "Match with the template", "nat", "higher",
        "Mutual information of the template and the image that was registered to it.", low=0.4,
        remedy="look at the atlas outline: where it is off, the values of the regions must not be used",
    ),
    Metric(
        "registration_t1w", "Match with the T1-weighted image", "nat", "higher",
        "Mutual information of the T1-weighted image and the magnitude that was registered to it.", low=0.3,
        remedy="look at the atlas outline: where it is off, the values of the regions must not be used",
    ),
    Metric(
        "regions_plausible", "Plausible regions", "", "near 1",
        f"Share of the regions with a known range whose mean lies in it, give or take {SLACK} ppm.", low=0.7,
        remedy="look at the regions and at the atlas outline; age, disease and the reference also move these values",
    ),
    Metric(
        "left_right", "Left-right difference", "ppm", "lower",
        "Largest difference between the two sides of a nucleus with a known range.", high=0.05, digits=4,
        remedy="look at the atlas outline on both sides and for one-sided artefacts",
    ),
)  # fmt: skip

#: Metrics that are negative where the sign of the phase was taken the wrong way round.
_SIGNED = ("tail_asymmetry", "iron_contrast", "nuclei_contrast")

_INVERTED = {
    "what": "susceptibility looks inverted: deep nuclei and veins come out diamagnetic",
    "remedy": "run again with the other --phase-sign; vendors differ in the sign of the phase",
}


def metric(key: str) -> Metric | None:
    """The row of a metric by its key in the JSON file; None for a key that the table does not know.

    Examples
    --------
    >>> metric("snr_echo3").title
    'Signal-to-noise ratio'
    """
    return next((row for row in METRICS if row.key == key or (row.key[-1] == "*" and key.startswith(row.key[:-1]))), None)


def metric_title(key: str) -> str:
    """What a metric is called, by its key in the JSON file.

    Examples
    --------
    >>> metric_title("snr_echo3"), metric_title("forward_fit"), metric_title("another_one")
    ('Signal-to-noise ratio, echo 3', 'Unexplained local field', 'another one')
    """
    row, (_, _, echo) = metric(key), key.rpartition("_echo")
    return (row.title if row else key.replace("_", " ")) + (f", echo {echo}" if echo != key else "")


def warnings(metrics: Mapping[str, float | None]) -> list[dict[str, str]]:
    """What in the metrics needs a look, with what to do.

    Parameters
    ----------
    metrics : mapping
        Value by key; None where a value could not be formed.

    Returns
    -------
    list of {"what", "remedy"}

    Examples
    --------
    >>> warnings({"coverage": 0.5})[0]["what"]
    'coverage is 0.50 (expected: at least 0.75)'
    """
    found = []
    for key, value in metrics.items():
        row = metric(key)
        if row and row.alone and value is not None and row.flagged(value):
            echo = re.search(r"_echo(\d+)$", key)
            where = f" of echo {echo[1]}" if echo else ""
            unit = f" {row.unit}" if row.unit else ""
            title = row.title[0].lower() + row.title[1:]
            what = f"{title}{where} is {value:.{row.digits}f}{unit} (expected: {row.limit})"
            found.append({"what": what, "remedy": row.remedy})
    if polarity(metrics).get("polarity", 0) < 0:
        found.insert(0, _INVERTED)
    return found


def rounded(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as they are saved: with six digits, None for what is no number.

    Examples
    --------
    >>> rounded({"streaks": 1.23456789, "rim_chi": math.nan})
    {'streaks': 1.23457, 'rim_chi': None}
    """
    return {key: float(f"{value:.6g}") if math.isfinite(value) else None for key, value in metrics.items()}


def polarity(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """``polarity`` from the metrics that tell the sign of the susceptibility: the mean of their signs, the majority decides.

    Examples
    --------
    >>> polarity({"tail_asymmetry": -0.3, "iron_contrast": 0.05, "nuclei_contrast": 0.1, "streaks": 1.0})
    {'polarity': 0.3333333333333333}
    """
    votes = [metrics[key] for key in _SIGNED if metrics.get(key) is not None and not math.isnan(metrics[key])]
    return {"polarity": sum(math.copysign(1, vote) for vote in votes) / len(votes)} if votes else {}


#: What a reader must know where the inversion took the middle of the plausible ranges as prior.
PRIOR = {
    "what": "the map was drawn towards the plausible ranges, because its inversion took their middle as prior:"
    " that regions lie in their ranges says less here than for other maps",
    "remedy": "compare with a map without prior (--inversion tgv) before you draw conclusions from the values of the nuclei",
}


@dataclass(frozen=True)
class Plausible:
    """A structure and its plausible range of susceptibility in adults, ppm."""

    structure: str
    low: float
    high: float

    @property
    def middle(self) -> float:
        """Middle of the range, ppm."""
        return (self.low + self.high) / 2

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range, give or take :data:`SLACK`."""
        return self.low - SLACK <= value <= self.high + SLACK


def plausible(region: str) -> Plausible | None:
    """The plausible range of a region by its name in an atlas; None when none is known.

    Examples
    --------
    >>> plausible("Pu_L")
    Plausible(structure='Putamen', low=0.03, high=0.11)
    >>> plausible("Left-Caudate").structure
    'Caudate'
    """
    return _ranges().get(_stem(region))


def structure(region: str) -> str:
    """A region's name in words, without its side.

    Examples
    --------
    >>> structure("GPe_R"), structure("left-claustrum"), structure("region7")
    ('Globus pallidus externus', 'claustrum', 'region7')
    """
    known = plausible(region)
    return _long_names().get(_stem(region)) or (known.structure if known else "") or " ".join(_words(region))


def region_metrics(regions: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """``regions_plausible`` and ``left_right`` from the means of regions, relative to the whole brain.

    Parameters
    ----------
    regions : sequence of mapping
        ``name``, ``hemisphere`` and ``mean`` (ppm) of every region.

    Returns
    -------
    dict
        Empty when no region has a known range.
    """
    known = [(plausible(str(region["name"])), region) for region in regions]
    known = [(row, region) for row, region in known if row]
    if not known:
        return {}
    result = {"regions_plausible": sum(row.holds(float(region["mean"])) for row, region in known) / len(known)}
    sides: dict[str, dict[str, float]] = {}
    for _, region in known:
        sides.setdefault(_stem(str(region["name"])), {})[str(region["hemisphere"])] = float(region["mean"])
    pairs = [abs(side["L"] - side["R"]) for side in sides.values() if {"L", "R"} <= set(side)]
    return result | ({"left_right": max(pairs)} if pairs else {})


@cache
def _long_names() -> dict[str, str]:
    """Names in words of the regions of the packaged atlases."""
    tables = sorted(
        path for path in resources.files("qsmflow.data").joinpath("atlas").iterdir() if path.name.endswith("_dseg.tsv")
    )
    rows = [row for table in tables for row in csv.DictReader(table.read_text().splitlines(), delimiter="\t")]
    return {_stem(row["name"]): row["longname"].split(",")[0] for row in rows}


@cache
def _ranges() -> dict[str, Plausible]:
    text = resources.files("qsmflow.data").joinpath("plausible_chi.tsv").read_text()
    rows = csv.DictReader(text.splitlines(), delimiter="\t")
    return {
        _stem(name): Plausible(row["structure"], float(row["low"]), float(row["high"]))
        for row in rows
        for name in row["names"].split(",")
    }


def _stem(name: str) -> str:
    """A region's name without its side, in small letters and without separators."""
    return "".join(_words(name)).lower()


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_ .]+", name) if word.lower() not in ("l", "r", "left", "right", "lh", "rh")]
