"""Images of single receive coils: which files belong together, and what their combination needs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qsmflow import registry
from qsmflow.bids.layout import Image
from qsmflow.bids.problems import Findings

if TYPE_CHECKING:
    from qsmflow.bids.inputs import Acquisition

#: Names of coils at the end of ``acq-`` or ``rec-``, e.g. ``rec-coil03``; they count only where several differ in nothing but
#: the number.
_COIL_LABEL = re.compile(r"(?i)(coil|channel|ch)(\d+)$")

_COMBINE = "combine the coils first, or choose combined images with a BIDS filter"


def mark_coils(images: Iterable[Image]) -> list[Image]:
    """The same images, with :attr:`Image.coil` set in those of single coils by their names."""
    images = list(images)
    labels: dict[tuple, set[str]] = defaultdict(set)
    for image in images:
        rest, label = _without_coil(image)
        labels[(*rest.items(), image.suffix)].add(label)
    marked = []
    for image in images:
        rest, label = _without_coil(image)
        several = len(labels[(*rest.items(), image.suffix)] - {""}) > 1
        marked.append(replace(image, coil=label) if label and (several or "coil" in image.entities) else image)
    return marked


def series_entities(image: Image) -> dict[str, str]:
    """Entities that an image shares with all echoes, parts and coils of its series."""
    entities = _without_coil(image)[0] if image.coil else image.entities
    return {key: value for key, value in entities.items() if key not in ("echo", "part", "coil")}


def prefer_combined(images: Sequence[Image], found: Findings) -> list[Image]:
    """Of a series that comes combined and as single coils, the combined images."""
    combined = [image for image in images if not image.coil]
    left = [image for image in images if image.coil]
    if combined and left:
        count = len({image.coil for image in left})
        found.notice(f"left aside, because there are combined images: {count} uncombined coils ({left[0].name}, ...)")
        return combined
    return list(images)


def needs_reference(method: str) -> bool:
    """Whether a method of coil combination takes a reference scan."""
    return method != "none" and "reference" in registry.find("coils", method).arrays


def check_combination(acquisition: Acquisition, method: str, first: str, found: Findings) -> None:
    """Note what keeps the coils of an acquisition from being combined; ``first`` is the file to name."""
    count = acquisition.coils
    if not (acquisition.real or (acquisition.phase and acquisition.magnitude)):
        found.problem(first, f"is one of {count} uncombined coils without both magnitude and phase", f"add them, or {_COMBINE}")
    elif method == "none":
        found.problem(first, f"is one of {count} uncombined coils, and --coils is none", f"choose a method, or {_COMBINE}")
    elif needs_reference(method):
        _check_reference(acquisition, method, first, found)
    elif method == "aspire" and len(acquisition.echo_times) > 1:
        from qsmflow.algorithms.combination import aspire_echoes

        try:
            aspire_echoes(acquisition.echo_times)
        except ValueError as error:
            found.problem(first, str(error), "choose --coils mcpc3ds-coils, which takes any echo times")


def _check_reference(acquisition: Acquisition, method: str, first: str, found: Findings) -> None:
    reference = acquisition.reference
    if reference is None:
        found.problem(
            first, f"has no reference scan, which {method} needs",
            "name it acq-coilref (with magnitude and phase), point to it with the query coil_reference of a BIDS filter, or"
            " choose another method (--coils)",
        )  # fmt: skip
    elif not (reference.real or (reference.phase and reference.magnitude)):
        found.problem(reference.sources[0], "is a reference scan without both magnitude and phase", "add the missing images")
    elif method == "composer" and reference.coils != acquisition.coils:
        what = f"is a reference scan of {reference.coils} coils for an acquisition of {acquisition.coils}"
        found.problem(reference.sources[0], what, "composer needs the same coils; choose another reference or method (--coils)")
    elif method == "roemer" and reference.coils != 1:
        what = f"is a reference scan of {reference.coils} coils"
        found.problem(reference.sources[0], what, "roemer needs one coil that sees everything; choose another method (--coils)")


def _without_coil(image: Image) -> tuple[dict[str, str], str]:
    """Entities without echo, part and the coil's label, and that label (empty where there is none)."""
    entities = {key: value for key, value in image.entities.items() if key not in ("echo", "part")}
    if "coil" in entities:
        return entities, entities.pop("coil")
    for key in ("acq", "rec"):
        found = _COIL_LABEL.search(entities.get(key, ""))
        if found:
            rest = entities[key][: found.start()]
            entities = {**entities, key: rest} if rest else {name: value for name, value in entities.items() if name != key}
            return entities, found[2]
    return entities, ""
