"""Which acquisitions are orientations of one head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qsmflow.bids.inputs import Acquisition


@dataclass(frozen=True)
class Orientations:
    """Acquisitions of one head in several positions; the first gives the space of the result.

    ``entities`` are those that all of them have, without the one that tells them apart.
    """

    entities: Mapping[str, str]
    members: tuple[Acquisition, ...]

    @property
    def name(self) -> str:
        """The common entities as a file name begins."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())


def group_orientations(acquisitions: Iterable[Acquisition], entity: str) -> list[Orientations]:
    """Acquisitions that differ in nothing but one entity, two or more of them together.

    Parameters
    ----------
    acquisitions : iterable of Acquisition
        What there is.
    entity : str
        Short key of the entity (``"acq"``); empty for no groups.

    Returns
    -------
    list of Orientations
        In the order of the first members. Acquisitions without phase or without magnitude, which cannot be registered, and
        those that lack the entity are in none.
    """
    found = defaultdict(list)
    for acquisition in acquisitions:
        complex_ = acquisition.real or (acquisition.phase and acquisition.magnitude)
        if complex_ and entity in acquisition.entities:
            rest = tuple((key, value) for key, value in acquisition.entities.items() if key != entity)
            found[rest].append(acquisition)
    return [Orientations(dict(rest), tuple(members)) for rest, members in found.items() if len(members) > 1]
