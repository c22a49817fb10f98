"""The files of a dataset: which images are asked for, and the metadata that each of them inherits."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qsmflow.bids.problems import Unusable
from qsmflow.errors import UsageError, nearest

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

_EXTENSIONS = (".nii", ".nii.gz")

#: What is looked for, by the name that a filter file may give it; a filter adds to a query or overrides it.
QUERIES = {
    "megre": {"datatype": "anat", "suffix": ["MEGRE", "T2starw"], "extension": list(_EXTENSIONS)},
    "coil_reference": {
        "datatype": "anat", "suffix": ["MEGRE", "T2starw"], "acquisition": "coilref", "extension": list(_EXTENSIONS),
    },
    "t1w": {"datatype": "anat", "suffix": ["T1w"], "part": ["mag", None], "extension": list(_EXTENSIONS)},
}  # fmt: skip

#: Entities as BIDS orders them in names; others (``coil``) come last.
_ORDER = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "chunk")

# ``coil`` is not BIDS, but files carry it and a filter must be able to name it.
_COIL = {"name": "coil", "entities": [{"name": "coil", "pattern": r"[_/\\]+coil-([a-zA-Z0-9+]+)"}]}

_MAX_LISTED = 20


@dataclass(frozen=True)
class Image:
    """An image file: where it is, its name from the dataset's root on, and what that name says.

    ``coil`` is the label of the receive coil in the name of an uncombined image, empty for all others.
    """

    path: str
    relative: str
    entities: Mapping[str, str]
    suffix: str
    coil: str = ""

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return self.relative.rpartition("/")[2]


def parse_name(relative: str) -> tuple[dict[str, str], str]:
    """Entities (in BIDS order, by their short keys) and suffix of a file's name.

    Examples
    --------
    >>> parse_name("sub-01/anat/sub-01_run-1_acq-x_MEGRE.nii.gz")
    ({'sub': '01', 'acq': 'x', 'run': '1'}, 'MEGRE')
    """
    *pairs, suffix = relative.rpartition("/")[2].partition(".")[0].split("_")
    found = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    rank = {key: place for place, key in enumerate(_ORDER)}
    return {key: found[key] for key in sorted(found, key=lambda key: rank.get(key, len(rank)))}, suffix


class Layout:
    """The images of the chosen participants, found with pybids, and their sidecars.

    Only the ``anat`` folders of the chosen participants are indexed. Metadata is not: pybids gives up a whole dataset for one
    sidecar that it cannot read, and takes three times as long.

    Parameters
    ----------
    root : Path
        The dataset.
    participants : sequence of str
        Labels without ``sub-``; none: all.
    """

    def __init__(self, root: Path, participants: Sequence[str] = ()):
        # Imported here because it takes most of a second, which no other command should wait for.
        from bids.layout import BIDSLayout, BIDSLayoutIndexer

        self.root = Path(root).resolve()
        indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=_ignored(participants))
        self._layout = BIDSLayout(self.root, validate=False, config=["bids", _COIL], indexer=indexer)
        self._sidecars: dict[tuple[str, str], list[tuple[dict[str, str], str]]] | None = None
        self._content: dict[str, Mapping[str, object] | Unusable] = {}

    def __enter__(self) -> Layout:
        return self

    def __exit__(self, *error: object) -> None:
        connection = self._layout.connection_manager
        connection.session.close()
        connection.engine.dispose()

    def images(self, query: str, filters: Mapping[str, Mapping] | None = None) -> list[Image]:
        """Images of a query of :data:`QUERIES`, overridden by the filters of the same name, in the order of their names."""
        wanted = {**QUERIES[query], **(filters or {}).get(query, {})}
        result = []
        for path in _get(self._layout, wanted):
            relative = Path(path).relative_to(self.root).as_posix()
            entities, suffix = parse_name(relative)
            if "sub" in entities:
                result.append(Image(path, relative, entities, suffix))
        return sorted(result, key=lambda image: image.relative)

    def metadata(self, image: Image) -> dict[str, object]:
        """The metadata of an image: every sidecar that applies, from the root down, nearer ones overriding.

        A sidecar applies when it lies in the folder of the image or above, has its suffix, and the image has all its entities.

        Raises
        ------
        Unusable
            If one of them is not a JSON object; the problem names that file.
        """
        merged: dict[str, object] = {}
        folder = image.relative.rpartition("/")[0]
        places = [""] + [folder[: m.start()] for m in re.finditer("/", folder)] + ([folder] if folder else [])
        for place in places:
            for entities, relative in self._index.get((place, image.suffix), ()):
                if entities.items() <= image.entities.items():
                    merged.update(self._load(relative))
        return merged

    @property
    def _index(self) -> dict[tuple[str, str], list[tuple[dict[str, str], str]]]:
        """(folder, suffix) -> its sidecars, the more general ones first."""
        if self._sidecars is None:
            self._sidecars = defaultdict(list)
            for path in self._layout.get(extension=".json", return_type="file"):
                relative = Path(path).relative_to(self.root).as_posix()
                entities, suffix = parse_name(relative)
                self._sidecars[relative.rpartition("/")[0], suffix].append((entities, relative))
            for found in self._sidecars.values():
                found.sort(key=lambda item: (len(item[0]), item[1]))
        return self._sidecars

    def _load(self, relative: str) -> Mapping[str, object]:
        """Content of a sidecar, read once."""
        if relative not in self._content:
            try:
                content = json.loads((self.root / relative).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                content = error
            if not isinstance(content, Mapping):
                why = f" ({content})" if isinstance(content, Exception) else ""
                content = Unusable(relative, f"is not a valid JSON object{why}", "correct the sidecar")
            self._content[relative] = content
        content = self._content[relative]
        if isinstance(content, Unusable):
            raise content
        return content


def check_filters(filters: Mapping[str, object]) -> None:
    """Raise :class:`UsageError` unless a filter file's content is ``{query: {entity: value}}`` with known queries."""
    for query, wanted in filters.items():
        if query not in QUERIES:
            raise UsageError(f"BIDS filter: no query '{query}'{nearest(query, QUERIES)}")
        if not isinstance(wanted, Mapping):
            raise UsageError(f"BIDS filter: '{query}' must be an object of entities and values, not {wanted!r}")


def choose_labels(asked: Iterable[str], known: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Labels without their prefix; every one of them must be known.

    Examples
    --------
    >>> choose_labels(["sub-02", "01"], ["01", "02", "03"], "sub")
    ('02', '01')
    """
    known = sorted(known)
    chosen = tuple(dict.fromkeys(label.removeprefix(f"{prefix}-") for label in asked))
    unknown = [label for label in chosen if label not in known]
    if unknown:
        listed = ", ".join(known[:_MAX_LISTED]) + (f", … ({len(known)} in all)" if len(known) > _MAX_LISTED else "")
        names = ", ".join(f"{prefix}-{label}" for label in unknown)
        raise UsageError(f"not in the dataset: {names}; it has: {listed or 'none'}")
    return chosen


def folders(root: Path, prefix: str) -> list[str]:
    """Labels of the folders ``<prefix>-<label>`` in ``root``."""
    return sorted(path.name.removeprefix(f"{prefix}-") for path in root.glob(f"{prefix}-*") if path.is_dir())


def _ignored(participants: Sequence[str]) -> list[re.Pattern]:
    """Patterns of what pybids need not look at; they are searched in paths that begin at the root with a slash."""
    patterns = [
        r"^/(?!sub-)[^/.]+(/|$)",  # folders beside the participants: derivatives, code, sourcedata, ...
        r"^/sub-[^/]+/(ses-[^/]+/)?(?!anat(/|$)|ses-|sub-)[^/]+",  # every other kind of data
    ]
    if participants:
        patterns.append(rf"^/sub-(?!({'|'.join(map(re.escape, participants))})(/|$))")
    return [re.compile(pattern) for pattern in patterns]


def _get(layout: BIDSLayout, wanted: Mapping[str, object]) -> list[str]:
    from bids.layout import Query

    def value(item: object) -> object:
        if isinstance(item, list):
            return [value(part) for part in item]
        return Query.ANY if item == "*" else item

    query = {key: value(item) for key, item in wanted.items()}
    known = layout.get_entities(metadata=False)
    for key in query:
        if key not in {*_entity_names(), *known}:
            raise UsageError(f"BIDS filter: no entity '{key}'{nearest(key, _entity_names())}")
    # An entity that no file has cannot be asked for by pybids: nothing matches, unless its absence is what is asked for.
    for key in [key for key in query if key not in known]:
        wanted_values = query[key] if isinstance(query[key], list) else [query[key]]
        if None not in wanted_values:
            return []
        del query[key]
    return layout.get(return_type="file", **query)


def _entity_names() -> tuple[str, ...]:
    from bids.layout.models import Config

    return (*Config.load("bids").entities, "coil")
