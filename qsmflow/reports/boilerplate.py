"""Methods text, bibliography and the consensus paper's reporting table, from the recipe that ran and what was measured.

Nothing here is free-hand about a method: sentences, parameters and citations come from the registry.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources

from qsmflow.config import RECIPES, Recipe
from qsmflow.registry import STAGES, find

#: What the table says where neither the metadata nor the run knows.
UNKNOWN = "not given in the metadata"

#: Reason for leaving a stage out that needs no words.
NOT_ASKED = "not asked for"

#: Reason for leaving coil combination out that needs no words either.
COMBINED = "the images are combined"

#: How the atlas came to the gradient-echo images: sentence and citations.
REGISTRATIONS = {
    "t1w": (
        "The T1-weighted image was registered to the ICBM 152 2009c template with SyN and the gradient-echo magnitude to the"
        " T1-weighted image with a rigid transform, both with ANTs; the labels were taken to the gradient-echo images in one"
        " resampling.",
        ("avants2011", "fonov2011"),
    ),
    "magnitude": (
        "There was no T1-weighted image: the gradient-echo magnitude was registered to the ICBM 152 2009c template directly,"
        " with SyN (ANTs), and the labels were taken back.",
        ("avants2011", "fonov2011"),
    ),
    "native": ("The labels were given in the space of the gradient-echo images.", ()),
}

_REGION_VALUES = " Mean, standard deviation, median, trimmed mean and percentiles were computed in every region."

#: Citations of atlases that come with the package.
_ATLASES = {"CIT168": ("pauli2018",)}

#: What the reference region is called where no user named one.
_REFERENCES = {"brain": "whole brain mask", "csf": "ventricular cerebrospinal fluid", "none": "none"}

#: Rows of the acquisition part of the reporting table: item, metadata keys (the first one present counts), format, factor.
_ACQUISITION = (
    ("Scanner", ("Manufacturer", "ManufacturersModelName"), "{}", 1),
    ("Scanner software", ("SoftwareVersions",), "{}", 1),
    ("Receive coil", ("ReceiveCoilName",), "{}", 1),
    ("Sequence", ("PulseSequenceType", "PulseSequenceDetails", "SequenceName", "ScanningSequence"), "{}", 1),
    ("Acquisition type", ("MRAcquisitionType",), "{}", 1),
    ("Repetition time", ("RepetitionTimeExcitation", "RepetitionTime"), "{:g} ms", 1000),
    ("Flip angle", ("FlipAngle",), "{:g} degrees", 1),
    ("Bandwidth", ("PixelBandwidth",), "{:g} Hz per pixel", 1),
    ("Acceleration", ("ParallelReductionFactorInPlane",), "{:g}", 1),
    ("Coil combination", ("CoilCombinationMethod",), "{}", 1),
)


@dataclass(frozen=True)
class Entry:
    """One work of the bibliography."""

    key: str
    fields: Mapping[str, str]
    bibtex: str

    @property
    def url(self) -> str:
        """Where the work can be found."""
        return f"https://doi.org/{self.fields['doi']}" if "doi" in self.fields else self.fields["url"]

    @property
    def authors(self) -> str:
        """Authors as in a reference list, at most six."""
        names = [_author(name) for name in self.fields["author"].split(" and ")]
        more = len(names) > 6 or names[-1] == "others"
        return ", ".join([name for name in names[:6] if name != "others"] + ["et al."] * more)

    @property
    def short(self) -> str:
        """First author and year, with the DOI."""
        more = " et al." if " and " in self.fields["author"] else ""
        family = _author(self.fields["author"].split(" and ")[0]).rsplit(" ", 1)[0]
        return f"{family}{more} {self.fields['year']}, doi:{self.fields['doi']}"

    @property
    def text(self) -> str:
        """The reference as one line of plain text, without the link."""
        get = {key: _plain(value) for key, value in self.fields.items()}
        where = get.get("journal") or get.get("howpublished", "")
        if "volume" in get:
            where += f" {get['volume']}" + (f":{get['pages'].replace('--', '–')}" if "pages" in get else "")
        return f"{self.authors.rstrip('.')}. {get['title'].rstrip('.')}. {where}, {get['year']}."


@cache
def bibliography() -> dict[str, Entry]:
    """All works that can be cited, by key.

    Examples
    --------
    >>> bibliography()["itoh1982"].text
    'Itoh K. Analysis of the phase unwrapping algorithm. Applied Optics 21:2470, 1982.'
    """
    text = resources.files("qsmflow.data").joinpath("references.bib").read_text(encoding="utf-8")
    return {entry.key: entry for entry in parse_bibtex(text)}


def parse_bibtex(text: str) -> list[Entry]:
    """Entries of a BibTeX file whose values stand in braces (no macros, no concatenation).

    Raises
    ------
    ValueError
        If an entry is not closed.

    Examples
    --------
    >>> entry, = parse_bibtex("@misc{a1, title = {On {MRI}}, author = {Doe, Jane}, year = {2020}, url = {https://x.org}}")
    >>> entry.key, entry.fields["title"], entry.url
    ('a1', 'On {MRI}', 'https://x.org')
    """
    entries = []
    for match in re.finditer(r"@\w+\s*\{\s*([^,\s]+)\s*,", text):
        body = _braced(text, text.index("{", match.start()))
        fields = {}
        for name in re.finditer(r"(\w+)\s*=\s*(?=\{)", body):
            # A name inside another field's braces is text, not a field.
            if body.count("{", 0, name.start()) == body.count("}", 0, name.start()) + 1:
                fields[name.group(1).lower()] = " ".join(_braced(body, name.end())[1:-1].split())
        entries.append(Entry(match.group(1), fields, text[match.start() : text.index("{", match.start())] + body))
    return entries


def bibtex(keys: Iterable[str]) -> str:
    """The BibTeX entries of the cited works, in the order of the bibliography."""
    wanted = set(keys)
    return "\n\n".join(entry.bibtex for key, entry in bibliography().items() if key in wanted) + "\n"


def methods_text(
    recipe: Recipe,
    *,
    version: str,
    b0: float | None,
    echo_times: Sequence[float],
    skipped: Mapping[str, str] | None = None,
    registration: str = "",
    phase_reversed: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """The methods section of a paper, for one acquisition.

    Parameters
    ----------
    recipe : Recipe
        What was asked for.
    version : str
        Version of qsmflow.
    b0 : float or None
        Main field strength, T.
    echo_times : sequence of float
        Echo times, s.
    skipped : mapping of str to str
        Stages that did not run, with the reason (``{"offset": "one echo"}``); of those with the reason :data:`NOT_ASKED` or
        :data:`COMBINED` nothing is said. For ``mask`` it means that a ready-made one was used.
    registration : str
        How the atlas came to the images: a key of :data:`REGISTRATIONS`, or empty when there are no regions.
    phase_reversed : bool
        Whether the sign of the phase was reversed.

    Returns
    -------
    text : str
        Markdown with citations in Pandoc's notation, ``[@key]``.
    citations : tuple of str
        Keys of the works cited, in the order of their first appearance.
    """
    skipped = dict(skipped or {})
    paragraphs = [_opening(recipe, version, b0, echo_times)]
    steps = ["The sign of the phase was reversed, so that paramagnetic sources are positive."] if phase_reversed else []
    # Relaxometry stands beside the chain from phase to susceptibility and comes last.
    wanted = [stage for stage in sorted(STAGES, key=lambda name: name == "relaxometry") if _wanted(recipe, stage, skipped)]
    for stage in wanted:
        steps += _stage_sentences(recipe, stage, skipped)
        if stage == "inversion" and recipe.two_pass and stage not in skipped:
            steps.append(_two_passes(recipe))
    missing = [stage for stage in wanted if not (stage == "background" and recipe.single_step)]
    paragraphs.append(" ".join(steps + _left_out(missing, skipped)))
    if recipe.cosmos:
        paragraphs.append(
            f"Acquisitions of a subject that differ only in {recipe.cosmos}- were taken as orientations of one head: their"
            " magnitudes were registered to the first with rigid transforms (ANTs [@avants2011]), their local fields resampled"
            " with cubic splines, and all of them combined to one susceptibility map by weighted least squares (COSMOS"
            " [@liu2009])."
        )
    if registration and ("rois" in recipe.outputs or recipe.takes_prior):
        sentence, citations = REGISTRATIONS[registration]
        atlas = recipe.atlas if recipe.atlas in _ATLASES else f"user's ({_file_name(recipe.atlas)})"
        paragraphs.append(
            f"Regions were taken from the {atlas} atlas{_cite(_ATLASES.get(recipe.atlas, ()))}. "
            + _with_citations(sentence, citations)
            + (_REGION_VALUES if "rois" in recipe.outputs else "")
        )
    text = "\n\n".join(part for part in paragraphs if part) + "\n"
    return text, cited(text)


def cited(text: str) -> tuple[str, ...]:
    """Keys cited in a text, in the order of their first appearance.

    Examples
    --------
    >>> cited("One [@wu2012; @li2011], two [@wu2012].")
    ('wu2012', 'li2011')
    """
    return tuple(dict.fromkeys(re.findall(r"@([\w:-]+)", " ".join(re.findall(r"\[[^\]]*\]", text)))))


def latex(text: str) -> str:
    """A methods text as LaTeX: special characters escaped, citations as ``\\cite``.

    Examples
    --------
    >>> latex("R2* above 50 % of S_0 [@wu2012; @li2011].")
    'R2* above 50 \\\\% of S\\\\_0 \\\\cite{wu2012,li2011}.'
    """
    parts = re.split(r"(\[@[^\]]*\])", text)
    return "".join(rf"\cite{{{','.join(cited(part))}}}" if part.startswith("[@") else _escaped(part) for part in parts)


def reporting_table(
    recipe: Recipe,
    *,
    version: str,
    b0: float | None,
    echo_times: Sequence[float],
    voxel_size: Sequence[float],
    shape: Sequence[int],
    acquisition: Mapping[str, object],
    reference: tuple[float, float] | None = None,
    skipped: Mapping[str, str] | None = None,
    echo_polarity: str = "",
) -> list[list[str]]:
    """What the consensus paper asks every study to report, filled in.

    Parameters
    ----------
    recipe, version, b0, echo_times, skipped
        As for :func:`methods_text`.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    shape : sequence of int, (3,)
        Matrix size.
    acquisition : mapping
        Metadata of the images, in the words of BIDS.
    reference : tuple of float, optional
        Mean and standard deviation of the reference region relative to the whole brain, ppm; NaN for what is not known.
    echo_polarity : str
        ``"monopolar"`` or ``"bipolar"`` where it is known.

    Returns
    -------
    list of [item, value]
        Every value is text; :data:`UNKNOWN` where neither the metadata nor the run knows.

    References
    ----------
    QSM Consensus Organization Committee et al., Magn Reson Med 91:1834, 2024, doi:10.1002/mrm.30006.
    """
    skipped = dict(skipped or {})
    # Where coils are combined here, the stage has a row of its own and the scanner's word does not count.
    here = STAGES["coils"].title.capitalize() if _wanted(recipe, "coils", skipped) else ""
    rows = [[item, _metadata(acquisition, keys, form, factor)] for item, keys, form, factor in _ACQUISITION if item != here]
    rows[1:1] = [["Field strength", f"{b0:g} T" if b0 else UNKNOWN]]
    rows += [
        ["Echo times", ", ".join(f"{1000 * te:.4g}" for te in echo_times) + " ms"],
        ["Resolution", " x ".join(f"{v:.4g}" for v in voxel_size) + " mm"],
        ["Matrix", " x ".join(str(n) for n in shape)],
        ["Echo polarity", echo_polarity or UNKNOWN],
        ["Phase export", _phase_export(acquisition)],
        [
            "Toolbox",
            f"qsmflow {version} (" + ", ".join(f"{name} {metadata.version(name)}" for name in ("nipype", "antspyx")) + ")",
        ],
        ["Recipe", f"{recipe.name} (hash {recipe.hash})"],
    ]
    for stage in STAGES.values():
        if stage.name == "reference" and recipe.two_pass and "inversion" not in skipped:
            rows.append(["Passes", f"two: phase quality of at least {recipe.reliable_quality:g}, then the whole mask"])
        if _wanted(recipe, stage.name, skipped):
            rows.append([stage.title[0].upper() + stage.title[1:], _stage_values(recipe, stage.name, skipped)])
    spaces = [space for space in recipe.output_spaces if space != "GRE"] if "qsm" in recipe.outputs else []
    spread = ""
    if reference is not None:
        sd = f"{reference[1]:.4f} ppm" if math.isfinite(reference[1]) else "not measured"
        spread = f"; mean {reference[0]:+.4f} ppm relative to the whole brain, SD {sd}"
    rows += [
        ["Reference region", _region(recipe) + spread],
        ["Further processing", f"susceptibility resampled to {' and '.join(spaces)}" if spaces else "none"],
        ["Inclusion criteria", "to be stated by the study"],
    ]
    return rows


def _opening(recipe: Recipe, version: str, b0: float | None, echo_times: Sequence[float]) -> str:
    field = f", {b0:g} T" if b0 else ""
    times = ", ".join(f"{1000 * te:.4g}" for te in echo_times)
    data = "Single-echo" if len(echo_times) == 1 else f"Multi-echo ({len(echo_times)} echoes)"
    follows = ""
    if recipe.name == "consensus" and _as_packaged(recipe):
        follows = ", which follows the recommendations of the QSM consensus [@bilgic2024]"
    elif recipe.name in RECIPES and not _as_packaged(recipe):
        follows = ", changed as stated below"
    return (
        f"{data} gradient-echo images (TE {times} ms{field}), organised as BIDS [@gorgolewski2016; @karakuzu2022], were"
        f' processed with qsmflow {version} (recipe "{recipe.name}", hash {recipe.hash}{follows}), which is built on Nipype'
        " [@gorgolewski2011], PyBIDS [@yarkoni2019], NiBabel [@nibabel], NumPy [@harris2020] and SciPy [@virtanen2020]."
    )


def _wanted(recipe: Recipe, stage: str, skipped: Mapping[str, str]) -> bool:
    """Whether a stage belongs to what was asked for (it may still have been left out)."""
    if skipped.get(stage) in (NOT_ASKED, COMBINED):
        return False
    if stage == "swi":
        return "swi" in recipe.outputs and recipe.swi != "none"
    if stage == "separation":
        return recipe.separation != "none"
    if stage == "relaxometry":
        return recipe.needs_r2star
    return stage == "mask" or recipe.needs_chi


def _left_out(wanted: Sequence[str], skipped: Mapping[str, str]) -> list[str]:
    """One sentence per reason for which stages were left out."""
    reasons: dict[str, list[str]] = {}
    for stage in wanted:
        if stage in skipped and stage != "mask":
            reasons.setdefault(skipped[stage], []).append(STAGES[stage].title)
    return [f"Left out because of the input ({reason}): {', '.join(titles)}." for reason, titles in reasons.items()]


def _as_packaged(recipe: Recipe) -> bool:
    """Whether methods and parameters are those of the packaged recipe of the same name."""
    packaged = Recipe.load(recipe.name)
    used, meant = ([(s, n, r.values(s, n)) for s, n in r.methods] for r in (recipe, packaged))
    return used == meant


def _file_name(path: str) -> str:
    """What of a path is worth telling; names that are no paths stay."""
    return path.rpartition("/")[2]


def _stage_sentences(recipe: Recipe, stage: str, skipped: Mapping[str, str]) -> list[str]:
    chosen = [name for where, name in recipe.methods if where == stage]
    if stage == "mask" and (recipe.mask_file or "mask" in skipped):
        return ["A ready-made mask was used."]
    if stage in skipped:
        return []
    rows = [find(stage, name) for name in chosen]
    sentences = [_with_citations(row.describe(recipe.parameters.get(row.name)), row.citations) for row in rows]
    if stage == "mask" and len(sentences) > 1:
        plain = recipe.mask_expression.is_intersection
        words = f"The masks were combined as {recipe.mask_expression} (& and, | or, - without, ! not)."
        sentences.append("The intersection of the masks was used." if plain else words)
    if stage == "reference" and not sentences:
        sentences.append("No reference was subtracted.")
    return sentences


def _two_passes(recipe: Recipe) -> str:
    what = "The inversion was" if recipe.single_step else "Background removal and inversion were"
    return (
        f"{what} done in two passes [@stewart2022]: once in the voxels with a phase quality of at least"
        f" {recipe.reliable_quality:g}, holes left open, and once in the whole mask; the second map, shifted by the median"
        " difference of the two in a rim of two voxels along the seam, was taken where the first has no value."
    )


def _stage_values(recipe: Recipe, stage: str, skipped: Mapping[str, str]) -> str:
    if stage == "mask" and (recipe.mask_file or "mask" in skipped):
        return "ready-made"
    if stage in skipped:
        return f"left out: {skipped[stage]}"

    def told(name: str) -> str:
        values = ", ".join(f"{key.rstrip('_')} = {_value(value)}" for key, value in recipe.values(stage, name).items())
        return f"{name} ({values})" if values else name

    if stage == "mask" and not recipe.mask_expression.is_intersection:
        return recipe.mask_expression.text(told)
    return " and ".join(told(name) for where, name in recipe.methods if where == stage) or "none"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _region(recipe: Recipe) -> str:
    if recipe.reference in _REFERENCES:
        return _REFERENCES[recipe.reference]
    return _file_name(recipe.reference_region) or find("reference", recipe.reference).summary.rstrip(".")


def _metadata(acquisition: Mapping[str, object], keys: Sequence[str], form: str, factor: float) -> str:
    """The first of the keys that is there; for the scanner, maker and model together."""
    found = [acquisition[key] for key in keys if acquisition.get(key) not in (None, "", [])]
    if not found:
        return UNKNOWN
    if keys[0] == "Manufacturer":
        return " ".join(str(value) for value in found)
    value = found[0]
    if isinstance(value, (list, tuple)):
        return ", ".join(str(part) for part in value)
    if "g}" not in form:
        return form.format(value)
    try:
        return form.format(float(value) * factor)
    except (TypeError, ValueError):
        return str(value)


def _phase_export(acquisition: Mapping[str, object]) -> str:
    parts = [str(acquisition["Units"])] if acquisition.get("Units") else []
    kind = acquisition.get("ImageType")
    if kind:
        parts.append("ImageType " + "/".join(str(part) for part in (kind if isinstance(kind, (list, tuple)) else [kind])))
    return ", ".join(parts) or UNKNOWN


def _escaped(text: str) -> str:
    """Plain text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    quoted = re.sub(r'"([^"]*)"', r"``\1''", text)
    return "".join(special.get(character, character) for character in quoted)


def _cite(keys: Sequence[str]) -> str:
    return f" [{'; '.join(f'@{key}' for key in keys)}]" if keys else ""


def _with_citations(sentence: str, keys: Sequence[str]) -> str:
    """The sentence with its citations before the final stop."""
    return f"{sentence.rstrip('.')}{_cite(keys)}."


def _braced(text: str, start: int) -> str:
    """The text from the brace at ``start`` to the one that closes it, both included."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start : position + 1]
    raise ValueError(f"BibTeX: a brace is not closed after '{text[start : start + 40]}'")


def _plain(text: str) -> str:
    """BibTeX markup as plain text: accents composed, braces dropped."""
    marks = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "^": "\u0302", "~": "\u0303"}
    text = re.sub(r"\{\\(['`\"^~])(\w)\}", lambda m: unicodedata.normalize("NFC", m.group(2) + marks[m.group(1)]), text)
    return text.replace("{", "").replace("}", "")


def _author(name: str) -> str:
    """``Family, Given Middle`` as ``Family GM``; a name in braces is a body and stays."""
    if name.startswith("{") and "," not in name:
        return _plain(name)
    family, _, given = _plain(name).partition(",")
    initials = "".join(part[0] for part in re.split(r"[\s-]+", given.strip()) if part)
    return f"{family} {initials}".strip()
