"""Images of one acquisition put in order: which volume is which echo of which part, and whether they fit together."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from qsmflow.bids.headers import Header
from qsmflow.bids.layout import Image
from qsmflow.bids.problems import Findings, Unusable

#: Values of the ``part`` entity.
PARTS = ("mag", "phase", "real", "imag")

#: Echo times above this are taken to be milliseconds, s.
_MAX_ECHO_TIME = 1.0

#: Echo times of magnitude and phase may differ by rounding, s.
_TIME_TOLERANCE = 1e-6

_NAME_COILS = "if they are coils, name the file echo-1, or store them along a fifth axis (coils are never counted as echoes)"

#: ImageType of phase that a susceptibility-weighted imaging reconstruction has filtered.
_FILTERED = re.compile(r"FILT|^(SWI|SWAN|SWIP|VENOBOLD|HPF)$", re.IGNORECASE)


@dataclass(frozen=True)
class Volume:
    """One 3D volume in a file: ``index`` counts its volumes as they are stored, the fourth axis first (None for a 3D file)."""

    path: str
    index: int | None


@dataclass(frozen=True, eq=False)
class Echo:
    """One part of one echo: a volume per receive coil (one, where they were combined), and the files that hold them."""

    time: float | None
    volumes: Mapping[str, Volume]
    files: tuple[tuple[Image, Header], ...]
    metadata: Mapping[str, object]

    @property
    def image(self) -> Image:
        """The first of the files."""
        return self.files[0][0]

    @property
    def header(self) -> Header:
        """The header of the first of the files."""
        return self.files[0][1]

    def joined(self, other: Echo) -> Echo:
        """This echo with the coils of another file."""
        return replace(self, volumes={**self.volumes, **other.volumes}, files=self.files + other.files)


@dataclass(frozen=True, eq=False)
class Row:
    """One echo: its time and its parts."""

    time: float
    parts: Mapping[str, Echo]


def split_parts(images: Sequence[Image], found: Findings) -> dict[str, list[Image]]:
    """Images by part; an image without the ``part`` entity is a magnitude, as BIDS has it."""
    parts: dict[str, list[Image]] = {}
    for image in images:
        part = image.entities.get("part", "mag")
        if part not in PARTS:
            found.problem(image.relative, f"has the unknown part '{part}'", f"name the part one of {', '.join(PARTS)}")
            continue
        if "part" not in image.entities:
            found.notice("images without a 'part-' entity were taken as magnitude")
        parts.setdefault(part, []).append(image)
    return parts


def read_part(
    images: Sequence[Image], header: Callable[[Image], Header], metadata: Callable[[Image], Mapping], found: Findings
) -> dict[int, Echo]:
    """The echoes of one part by their number (the ``echo`` entity, or the place in a 4D file)."""
    echoes: dict[int, Echo] = {}
    for image in images:
        try:
            for number, echo in _echoes(image, header(image), metadata(image)).items():
                known = echoes.get(number)
                if known and known.volumes.keys() & echo.volumes.keys():
                    found.problem(image.relative, f"is echo {number} as {known.image.name} is", "keep one of them")
                if known and known.time != echo.time:
                    found.problem(
                        image.relative, f"its EchoTime is not that of {known.image.name}, another coil of echo {number}",
                        "correct the sidecars: all coils of an echo share its time",
                    )  # fmt: skip
                echoes[number] = known.joined(echo) if known else echo
        except Unusable as error:
            found.problems.append(error.problem)
    return echoes


def combine(parts: Mapping[str, Mapping[int, Echo]], found: Findings) -> list[Row]:
    """Echoes of all parts as rows, sorted by echo time; whatever does not fit together is noted as a problem."""
    rows: dict[int, Row] = {}
    for number in sorted({number for echoes in parts.values() for number in echoes}):
        here = {part: echoes[number] for part, echoes in parts.items() if number in echoes}
        for part in [part for part in parts if part not in here]:
            partner = next(iter(here.values())).image
            found.problem(partner.relative, f"echo {number} has no part-{part} image", "add it, or leave the echo out")
        time = _time(number, here, found)
        if time is not None:
            rows[number] = Row(time, here)
    ordered = sorted(rows.values(), key=lambda row: row.time)
    if ordered != list(rows.values()):
        found.notice("echoes were sorted by EchoTime: their numbers are in another order")
    _check_duplicates(ordered, found)
    _check_coils(ordered, found)
    _check_grids(ordered, found)
    return ordered


def check_phase(rows: Sequence[Row], found: Findings) -> str:
    """Check the phase (or real and imaginary) images for susceptibility mapping; return the unit of the phase."""
    units = set()
    for row in rows:
        for part in [part for part in row.parts if part != "mag"]:
            echo = row.parts[part]
            kind = next((str(item) for item in _listed(echo.metadata.get("ImageType")) if _FILTERED.search(str(item))), None)
            if kind:
                found.problem(
                    echo.image.relative,
                    f"is filtered phase (ImageType {kind}), from which susceptibility cannot be computed",
                    "use the unfiltered phase; if this is unfiltered, correct ImageType in the sidecar",
                )
            if echo.header.dtype.itemsize == 1:
                found.notice(f"the {part} images have only 8 bits: 256 levels")
            if part == "phase":
                units.add(_unit(echo, found))
    if len(units) > 1:
        first = next(row.parts["phase"] for row in rows if "phase" in row.parts)
        found.problem(first.image.relative, "Units differ between the echoes", "give all phase images the same Units")
    return "rad" if units in (set(), {"rad"}) else "arbitrary"


def _echoes(image: Image, header: Header, metadata: Mapping) -> dict[int, Echo]:
    """The echoes that one file holds."""
    number = image.entities.get("echo")
    times = None if "EchoTime" not in metadata else [_seconds(value, image) for value in _listed(metadata["EchoTime"])]
    if number is not None and not number.isdigit():
        raise Unusable(image.relative, f"echo number '{number}' is not a number", "rename the file")
    count, coils = _axes(image, header)
    if count > 1 and times is None:
        raise Unusable(
            image.relative, f"holds {count} volumes but no EchoTime",
            f"list the {count} echo times in its sidecar, if they are echoes; {_NAME_COILS}",
        )  # fmt: skip
    if times is not None and len(times) != count:
        raise Unusable(
            image.relative, f"holds {count} volume(s) but its EchoTime lists {len(times)}",
            f"list one echo time (s) per volume; {_NAME_COILS}",
        )  # fmt: skip
    if coils > 1 and image.coil:
        raise Unusable(image.relative, f"is one coil by its name, but holds {coils}", "keep one coil per file, or rename it")
    result = {}
    for place in range(count):
        indices = [place + count * coil for coil in range(coils)] if len(header.shape) > 3 else [None]
        labels = [image.coil] if coils == 1 else [str(coil + 1) for coil in range(coils)]
        volumes = {label: Volume(image.path, index) for label, index in zip(labels, indices, strict=True)}
        time = None if times is None else times[place]
        result[place + int(number or 1)] = Echo(time, volumes, ((image, header),), metadata)
    return result


def _axes(image: Image, header: Header) -> tuple[int, int]:
    """How many echoes and how many coils a file holds: echoes come first, and several volumes of one echo are its coils."""
    coils = math.prod(header.extra_axes)
    if len(header.extra_axes) > 1:
        raise Unusable(image.relative, f"has {len(header.shape)} axes", "store it as x, y, z, echo, coil")
    if "echo" not in image.entities or header.volumes == 1:
        return header.volumes, coils
    if coils > 1:
        raise Unusable(
            image.relative, f"is one echo by its name, but holds {header.volumes} volumes of {coils} coils",
            "leave echo- out of its name and list the echo times, or store one echo per file",
        )  # fmt: skip
    return 1, header.volumes


def _seconds(value: object, image: Image) -> float:
    """An echo time that can be one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise Unusable(image.relative, f"EchoTime {value!r} is not a positive number", "give it in seconds")
    if value > _MAX_ECHO_TIME:
        raise Unusable(image.relative, f"EchoTime {value:g} looks like ms", f"give it in seconds ({value / 1000:g})")
    return float(value)


def _time(number: int, parts: Mapping[str, Echo], found: Findings) -> float | None:
    """The echo time on which all parts of an echo agree."""
    known = {part: echo for part, echo in parts.items() if echo.time is not None}
    if not known:
        for echo in parts.values():
            found.problem(echo.image.relative, "has no EchoTime", "add EchoTime (s) to its sidecar, or to one it inherits from")
        return None
    first, *others = known.values()
    for echo in others:
        if abs(echo.time - first.time) > _TIME_TOLERANCE:
            found.problem(
                echo.image.relative, f"EchoTime {echo.time:g} s is not the {first.time:g} s of {first.image.name}",
                "correct the sidecars: both are the same echo",
            )  # fmt: skip
    for part in [part for part in parts if part not in known]:
        found.notice(f"echo {number}: EchoTime of part-{part} taken from {first.image.name}")
    return first.time


def _check_duplicates(rows: Sequence[Row], found: Findings) -> None:
    for one, two in pairwise(rows):
        if two.time - one.time <= _TIME_TOLERANCE:
            a, b = (next(iter(row.parts.values())).image for row in (one, two))
            found.problem(b.relative, f"has the same EchoTime ({two.time:g} s) as {a.name}", "correct EchoTime in the sidecars")


def _check_coils(rows: Sequence[Row], found: Findings) -> None:
    """Every part of every echo must have the coils of the first one."""
    echoes = [echo for row in rows for echo in row.parts.values()]
    for echo in echoes[1:]:
        first, wanted = echoes[0].image, echoes[0].volumes
        if len(echo.volumes) != len(wanted):
            found.problem(
                echo.image.relative, f"comes with {len(echo.volumes)} coil(s), {first.name} with {len(wanted)}",
                "all parts of all echoes need the same coils; add them, or choose images with a BIDS filter",
            )  # fmt: skip
        elif echo.volumes.keys() != wanted.keys():
            odd = sorted(wanted.keys() ^ echo.volumes.keys())
            found.problem(
                echo.image.relative,
                f"has other coils ({', '.join(odd)}) than {first.name}",
                "name the coils alike in all parts",
            )


def _check_grids(rows: Sequence[Row], found: Findings) -> None:
    """Every volume must lie on the grid of the first one."""
    files = {file[0].relative: file for row in rows for echo in row.parts.values() for file in echo.files}
    first, *others = files.values() if files else (None,)
    for image, header in others:
        difference = header.difference(first[1])
        if difference:
            found.problem(image.relative, f"{difference} of {first[0].name}", "all must share one grid")


def _unit(echo: Echo, found: Findings) -> str:
    unit = echo.metadata.get("Units")
    if unit is None:
        found.notice("phase without Units was taken as arbitrary units: its scale follows from its range")
        return "arbitrary"
    if unit not in ("rad", "arbitrary"):
        found.problem(echo.image.relative, f"Units '{unit}' is unknown for phase", "set Units to 'rad' or 'arbitrary'")
    return str(unit)


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]
