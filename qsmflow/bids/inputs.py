"""What a dataset offers: its multi-echo gradient-echo acquisitions, and everything that is wrong with them.

Only names, sidecars and headers are read. A problem is never raised: all of them come back together, and the acquisitions
without one can be processed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from qsmflow.algorithms.units import GAMMA_BAR
from qsmflow.bids.combination import check_combination, mark_coils, needs_reference, prefer_combined, series_entities
from qsmflow.bids.headers import Header, read_header
from qsmflow.bids.layout import QUERIES, Image, Layout, check_filters, choose_labels, folders
from qsmflow.bids.problems import Findings, Problem, Unusable
from qsmflow.bids.series import Row, Volume, check_phase, combine, read_part, split_parts
from qsmflow.config import Execution, Recipe
from qsmflow.errors import UsageError

__all__ = ["Acquisition", "Dataset", "Problem", "Volume", "needs_phase", "read_dataset"]

#: ImagingFrequency is believed where it is this close to the nominal field strength.
_FREQUENCY_TOLERANCE = 0.1


@dataclass(frozen=True)
class Acquisition:
    """Everything with the same entities but echo, part and coil.

    One volume per echo in ``magnitude`` (or none) and in ``phase`` or, where the phase comes as such, in ``real`` and ``imag``.
    Of uncombined images, one per echo and coil: all ``coils`` of the first echo, then those of the second, and so on; with
    ``reference``, the scan that their combination needs, where it needs one. ``b0`` is None only where no output needs it.
    ``notices`` tell everything that was guessed or is worth knowing.
    """

    entities: Mapping[str, str]
    suffix: str
    echo_times: tuple[float, ...]
    magnitude: tuple[Volume, ...] = ()
    phase: tuple[Volume, ...] = ()
    real: tuple[Volume, ...] = ()
    imag: tuple[Volume, ...] = ()
    phase_units: str = "arbitrary"
    b0: float | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    t1w: str | None = None
    coils: int = 1
    reference: Acquisition | None = None
    notices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The entities as a file name begins: ``sub-01_ses-a_acq-x_run-1``."""
        return _name(self.entities)

    @property
    def sources(self) -> tuple[str, ...]:
        """Paths of the files it is made of."""
        volumes = chain(self.magnitude, self.phase, self.real, self.imag)
        reference = self.reference.sources if self.reference else ()
        return tuple(dict.fromkeys([*(volume.path for volume in volumes), *reference]))


@dataclass(frozen=True)
class Dataset:
    """The acquisitions of a dataset that can be processed, and all problems of those that cannot."""

    root: Path
    acquisitions: tuple[Acquisition, ...] = ()
    problems: tuple[Problem, ...] = ()


def needs_phase(recipe: Recipe) -> bool:
    """Whether one of the outputs asked for cannot be computed from magnitudes alone."""
    return "qsm" in recipe.outputs or ("swi" in recipe.outputs and recipe.swi != "none")


def read_dataset(execution: Execution, recipe: Recipe) -> Dataset:
    """Read a BIDS dataset: group its files into acquisitions, check them, and match each with a T1-weighted image.

    Parameters
    ----------
    execution : Execution
        ``bids_dir``; ``participant_label`` and ``session_label`` with or without prefix (none: all); ``bids_filters`` as in
        fMRIPrep: ``{"megre": {...}, "coil_reference": {...}, "t1w": {...}}``, where each object adds to the query or overrides
        it, by the entity names of pybids (``acquisition``, ``run``, ``reconstruction``, ``echo``, ``suffix``, ``coil``, ...); a
        value is a label, a list of labels, ``null`` (the entity must be absent) or ``"*"`` (it must be present).
        ``skip_bids_validation`` lets a dataset without ``dataset_description.json`` through.
    recipe : Recipe
        ``outputs`` decide whether phase is needed, ``b0`` overrides the field strength of the sidecars, ``coils`` decides
        whether uncombined images need a reference scan.

    Returns
    -------
    Dataset
        Acquisitions in the order of their names, and all problems.

    Raises
    ------
    UsageError
        If the folder does not exist, or a label or filter names something unknown.

    Notes
    -----
    Acquisitions are told apart by all entities but ``echo`` and ``part``. Real and imaginary parts are used where there is no
    phase. A 4D file is a series of echoes only if its sidecar lists one EchoTime per volume; a file of one echo (``echo-``)
    with several volumes holds coils, as does a fifth axis. Coils may also have files of their own (``coil-``, or a number at
    the end of ``acq-`` or ``rec-``, such as ``rec-coil03``). The reference scan of their combination (``acq-coilref``, or what
    the query ``coil_reference`` of the filter finds) comes from the same session; where there are several, the one that shares
    most entities with the acquisition. The T1w is taken from the same session, else from any session (in the order of their
    labels); where there are several, the one with the fewest entities beside ``run``, then the last run, then the first by
    name; ``acq-`` and the like need not match.
    """
    root = Path(execution.bids_dir).resolve()
    if not root.is_dir():
        raise UsageError(f"BIDS folder {execution.bids_dir} does not exist")
    check_filters(execution.bids_filters)
    known = folders(root, "sub")
    problem = _check_root(root, known, execution.skip_bids_validation)
    if problem:
        return Dataset(root, problems=(problem,))
    participants = choose_labels(execution.participant_label, known, "sub")
    chosen = participants or tuple(known)
    sessions: tuple[str, ...] = ()
    if execution.session_label:
        found_sessions = {session for sub in chosen for session in folders(root / f"sub-{sub}", "ses")}
        sessions = choose_labels(execution.session_label, found_sessions, "ses")

    with Layout(root, participants) as layout:
        images = layout.images("megre", execution.bids_filters)
        references = layout.images("coil_reference", execution.bids_filters)
        apart = {image.path for image in references}
        images = [image for image in images if image.path not in apart]
        if sessions:
            images = [image for image in images if image.entities.get("ses") in sessions]
        found = Findings()
        _check_presence(images, root, participants, execution.bids_filters, found)
        reader = _Reader(layout, recipe, _T1w(layout, execution.bids_filters), _grouped(mark_coils(references)).values())
        groups = _without_namesakes(_grouped(mark_coils(images)).values())
        acquisitions = [reader.combinable(group, found, notices) for group, notices in groups]
    return Dataset(root, tuple(a for a in acquisitions if a), tuple(dict.fromkeys(found.problems)))


class _Reader:
    """Turns the images of one acquisition into an :class:`Acquisition`, or into problems."""

    def __init__(self, layout: Layout, recipe: Recipe, t1w: _T1w, references: Iterable[list[Image]]):
        self.layout, self.recipe, self.t1w, self.references = layout, recipe, t1w, list(references)

    def combinable(self, images: Sequence[Image], found: Findings, notices: Sequence[str]) -> Acquisition | None:
        """As :meth:`acquisition`; uncombined images come with the reference that they need, or end as a problem."""
        mine = Findings(notices=list(notices))
        images = prefer_combined(images, mine)
        acquisition = self.acquisition(images, found, mine.notices)
        if acquisition is None or acquisition.coils == 1:
            return acquisition
        mine = Findings()
        if needs_reference(self.recipe.coils):
            acquisition = replace(acquisition, reference=self._reference(acquisition, mine))
        if not mine.problems:
            check_combination(acquisition, self.recipe.coils, images[0].relative, mine)
        found.problems += mine.problems
        return None if mine.problems else replace(acquisition, notices=(*acquisition.notices, *mine.notices))

    def _reference(self, acquisition: Acquisition, found: Findings) -> Acquisition | None:
        """The reference scan for an acquisition: of its session, the one that shares most entities, then the first by name."""
        entities = acquisition.entities
        place = entities["sub"], entities.get("ses")
        near = [group for group in self.references if (group[0].entities["sub"], group[0].entities.get("ses")) == place]
        near.sort(key=lambda group: -len(series_entities(group[0]).items() & entities.items()))
        if not near:
            return None
        if len(near) > 1:
            found.notice(f"coil reference: {near[0][0].name} was chosen out of {len(near)}")
        # One echo with phase is all it needs; its field strength is that of the acquisition.
        recipe = replace(self.recipe, outputs=("qsm",), b0=self.recipe.b0 or acquisition.b0)
        return _Reader(self.layout, recipe, self.t1w, ()).acquisition(near[0], found, ())

    def acquisition(self, images: Sequence[Image], found: Findings, notices: Sequence[str]) -> Acquisition | None:
        """The acquisition with ``notices``, or None if it cannot be processed (the reasons are added to ``found``)."""
        mine = Findings(notices=list(notices))
        parts = split_parts(images, mine)
        chosen = self._choose(parts, images, mine)
        if mine.problems:
            found.problems += mine.problems
            return None
        rows, unit, b0, attempt = self._read(chosen)
        if attempt.problems and "mag" in chosen and len(chosen) > 1 and not needs_phase(self.recipe):
            mine.notice(f"phase is not used: {attempt.problems[0]}")
            rows, unit, b0, attempt = self._read({"mag": chosen["mag"]})
        found.problems += mine.problems + attempt.problems
        if attempt.problems:
            return None
        for notice in attempt.notices:
            mine.notice(notice)
        self._notices(rows, mine)
        t1w = self.t1w.match(images[0].entities, mine, found)
        coils = next(iter(rows[0].parts.values())).volumes
        volumes = {part: tuple(row.parts[part].volumes[coil] for row in rows for coil in coils) for part in rows[0].parts}
        return Acquisition(
            entities=series_entities(images[0]),
            suffix=images[0].suffix,
            echo_times=tuple(row.time for row in rows),
            magnitude=volumes.get("mag", ()),
            phase=volumes.get("phase", ()),
            real=volumes.get("real", ()),
            imag=volumes.get("imag", ()),
            phase_units=unit,
            b0=b0,
            metadata=dict(chain.from_iterable(echo.metadata.items() for echo in rows[0].parts.values())),
            t1w=t1w,
            coils=len(coils),
            notices=tuple(mine.notices),
        )

    def _choose(self, parts: Mapping[str, list[Image]], images: Sequence[Image], found: Findings) -> dict[str, list[Image]]:
        """The parts to use: magnitude with phase, or real with imaginary; what is missing is noted."""
        first = images[0].relative
        magnitude = {"mag": parts["mag"]} if "mag" in parts else {}
        if "phase" in parts:
            if "real" in parts or "imag" in parts:
                found.notice("real and imaginary parts were left aside, because there is phase")
            return {**magnitude, "phase": parts["phase"]}
        if "real" in parts and "imag" in parts:
            if magnitude:
                found.notice("the magnitude was computed from real and imaginary parts")
            return {"real": parts["real"], "imag": parts["imag"]}
        if not needs_phase(self.recipe) and magnitude:
            return magnitude
        half = next((part for part in ("real", "imag") if part in parts), None)
        if half:
            other = "imag" if half == "real" else "real"
            found.problem(parts[half][0].relative, f"part-{half} comes without part-{other}", f"add the part-{other} images")
        else:
            found.problem(
                first, "no phase image belongs to this acquisition",
                "add the part-phase images, ask for --outputs r2star, or leave the series out with a BIDS filter",
            )  # fmt: skip
        return magnitude

    def _read(self, chosen: Mapping[str, list[Image]]) -> tuple[list[Row], str, float | None, Findings]:
        """Rows, unit of the phase and field strength of the chosen parts, with what was found on the way."""
        found = Findings()
        parts = {part: read_part(images, self._header, self.layout.metadata, found) for part, images in chosen.items()}
        if found.problems:
            return [], "arbitrary", None, found
        rows = combine(parts, found)
        unit = check_phase(rows, found)
        b0 = self._field_strength(rows, found) if rows else None
        only_r2star = "r2star" in self.recipe.outputs and not needs_phase(self.recipe)
        if set(chosen) == {"phase"}:
            if "qsm" not in self.recipe.outputs:
                first = chosen["phase"][0].relative
                found.problem(first, "comes without magnitude, which R2* and SWI need", "add part-mag images")
            found.notice("no magnitude: echoes and voxels are not weighted, and there is no R2*")
        if len(rows) == 1 and only_r2star:
            image = next(iter(rows[0].parts.values())).image
            found.problem(image.relative, "has one echo, which gives no R2*", "ask for other outputs, or leave the series out")
        return rows, unit, b0, found

    def _header(self, image: Image) -> Header:
        return read_header(image.path, image.relative)

    def _field_strength(self, rows: Sequence[Row], found: Findings) -> float | None:
        """B0 in tesla: from the recipe, or from the sidecars (ImagingFrequency before the nominal value)."""
        echoes = [echo for row in rows for echo in row.parts.values()]
        told = []
        for value in (echo.metadata.get("MagneticFieldStrength") for echo in echoes):
            if value is not None and value not in told:
                told.append(value)
        if self.recipe.b0 is not None:
            if told and told != [self.recipe.b0]:
                found.notice(f"B0 is {self.recipe.b0:g} T as asked for; the sidecars say {_either(told)}")
            return self.recipe.b0
        nominal = told[0] if len(told) == 1 else None
        if isinstance(nominal, bool) or not isinstance(nominal, int | float) or not 0 < nominal < 30:
            if needs_phase(self.recipe):
                differ, odd = f"differs between images ({_either(told)})", f"{nominal!r} is not in tesla"
                what = "is missing" if not told else differ if len(told) > 1 else odd
                remedy = "give it in tesla, the same in all sidecars, or give --b0"
                found.problem(echoes[0].image.relative, f"MagneticFieldStrength {what}", remedy)
            return None
        frequency = echoes[0].metadata.get("ImagingFrequency")
        if isinstance(frequency, int | float) and abs(frequency / GAMMA_BAR / nominal - 1) < _FREQUENCY_TOLERANCE:
            exact = round(frequency / GAMMA_BAR, 5)
            if abs(exact / nominal - 1) > 1e-3:
                found.notice(f"B0 is {exact:g} T, from ImagingFrequency {frequency:g} MHz (nominal: {nominal:g} T)")
            return exact
        return float(nominal)

    def _notices(self, rows: Sequence[Row], found: Findings) -> None:
        """What is worth knowing about an acquisition that can be processed."""
        first = next(iter(rows[0].parts.values()))
        for notice in first.header.notices:
            found.notice(notice)
        if len(first.volumes) > 1:
            guessed = "" if first.image.coil or first.header.extra_axes else ": the volumes of every echo were taken as coils"
            found.notice(f"{len(first.volumes)} uncombined coils{guessed}")
        elif first.image.coil:
            found.notice(f"only one coil ({first.image.coil}) of an uncombined acquisition")
        if len(rows) == 1:
            found.notice("one echo: phase offsets cannot be removed and R2* cannot be computed")
        elif len(rows) == 2:
            found.notice("two echoes: R2* comes from two points only")
        if first.metadata.get("MRAcquisitionType") == "2D":
            found.notice("the acquisition is 2D; 3D is recommended for susceptibility mapping")


class _T1w:
    """The T1-weighted images of a dataset; each chosen one is checked once."""

    def __init__(self, layout: Layout, filters: Mapping[str, Mapping]):
        self._by_subject: dict[str, list[Image]] = defaultdict(list)
        for image in layout.images("t1w", filters):
            self._by_subject[image.entities["sub"]].append(image)
        self._checked: dict[str, Problem | None] = {}

    def match(self, entities: Mapping[str, str], notices: Findings, problems: Findings) -> str | None:
        """The path of the T1w for an acquisition; files that cannot be used are noted in ``problems`` and passed over."""
        session = entities.get("ses")

        def rank(image: Image) -> tuple:
            run = image.entities.get("run", "0")
            extra = [key for key in image.entities if key not in ("sub", "ses", "run", "part")]
            last_run_first = -int(run) if run.isdigit() else 0
            other = image.entities.get("ses")
            return other != session, other or "", len(extra), last_run_first, image.relative

        usable = []
        for image in sorted(self._by_subject[entities["sub"]], key=rank):
            problem = self._check(image)
            if problem:
                problems.problems.append(problem)
            else:
                usable.append(image)
        if not usable:
            notices.notice("no T1w image of this subject")
            return None
        first = usable[0]
        near = [image for image in usable if image.entities.get("ses") == first.entities.get("ses")]
        if len(near) > 1:
            notices.notice(f"T1w: {first.name} was chosen out of {len(near)}")
        if session is not None and first.entities.get("ses") != session:
            notices.notice(f"T1w: {first.name} comes from another session")
        return first.path

    def _check(self, image: Image) -> Problem | None:
        if image.path not in self._checked:
            self._checked[image.path] = None
            try:
                header = read_header(image.path, image.relative)
                if header.volumes > 1 or header.extra_axes:
                    raise Unusable(image.relative, "is not a single 3D image", "keep one volume of it")
            except Unusable as error:
                self._checked[image.path] = error.problem
        return self._checked[image.path]


def _check_root(root: Path, participants: Sequence[str], skip: bool) -> Problem | None:
    """Whether the folder is a dataset at all."""
    description = root / "dataset_description.json"
    if not skip:
        if not description.is_file():
            return Problem(
                str(root), "is not a BIDS dataset: there is no dataset_description.json",
                "give the dataset's root, add the file, or use --skip-bids-validation",
            )  # fmt: skip
        try:
            json.loads(description.read_text(encoding="utf-8"))
        except ValueError as error:
            return Problem(str(description), f"is not valid JSON ({error})", "correct it")
    if not participants:
        return Problem(str(root), "holds no participant (no folder sub-<label>)", "give the dataset's root")
    return None


def _check_presence(
    images: Sequence[Image], root: Path, participants: Sequence[str], filters: Mapping[str, object], found: Findings
) -> None:
    """Note it if there is nothing to do, for the dataset or for a participant that was asked for by name."""
    what = " or ".join(QUERIES["megre"]["suffix"])
    after = " that the BIDS filter lets through" if filters.get("megre") else ""
    remedy = "check the BIDS filter" if after else "check names and folders (sub-<label>/[ses-<label>/]anat)"
    present = {image.entities["sub"] for image in images}
    for label in participants:
        if label not in present:
            found.problem(f"sub-{label}", f"has no {what} image{after}", remedy)
    if not images and not participants:
        found.problem(str(root), f"holds no {what} image{after}", remedy)


def _grouped(images: Iterable[Image]) -> dict[str, list[Image]]:
    """Images by acquisition, in the order of their names."""
    groups: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        groups[f"{_name(series_entities(image))}_{image.suffix}"].append(image)
    return dict(sorted(groups.items()))


def _without_namesakes(groups: Iterable[list[Image]]) -> list[tuple[list[Image], tuple[str, ...]]]:
    """Groups with notices; of a MEGRE and a T2starw series of the same entities, whose outputs would share names, the first."""
    chosen: dict[str, tuple[list[Image], tuple[str, ...]]] = {}
    for images in sorted(groups, key=lambda images: images[0].suffix != "MEGRE"):
        name = _name(series_entities(images[0]))
        if name in chosen:
            first, notices = chosen[name]
            chosen[name] = first, (*notices, f"left aside, because it has the same entities: {images[0].relative}")
        else:
            chosen[name] = images, ()
    return [chosen[name] for name in sorted(chosen)]


def _name(entities: Mapping[str, str]) -> str:
    return "_".join(f"{key}-{value}" for key, value in entities.items())


def _either(values: Iterable[object]) -> str:
    return " or ".join(f"{value} T" for value in values)
