"""Atlases: the packaged ones by name, any other segmentation or mask by path."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from qsmflow.errors import UsageError, nearest

#: The template that comes with the package, and its files.
TEMPLATE = "MNI152NLin2009cAsym"
_FILES = {
    "head": "res-02_T1w.nii.gz",
    "head_mask": "res-02_desc-brain_mask.nii.gz",
    "brain": "res-01_desc-brain_T1w.nii.gz",
    "nuclei": "res-01_atlas-CIT168_dseg.nii.gz",
}
_PACKAGED = ("CIT168",)


@dataclass(frozen=True)
class Atlas:
    """A segmentation: its image, its regions and the space that it is given in.

    ``space`` is ``"template"``, ``"T1w"`` or ``"GRE"``; ``regions`` maps the index to (name, hemisphere), empty for a mask or a
    segmentation without a table (whatever indices it holds are then its regions).
    """

    name: str
    labels: str
    space: str
    regions: dict[int, tuple[str, str]]


def template_file(what: str) -> str:
    """Path of one of the packaged template's images: ``head`` (T1w, 2 mm), ``head_mask``, ``brain`` (T1w, 1 mm), ``nuclei``."""
    return _data(_FILES[what])


def read_atlas(name: str) -> Atlas:
    """The atlas of a name or path.

    A path must carry ``space-<label>`` or ``tpl-<label>`` in its name (the template, ``T1w`` or ``GRE``), as BIDS derivatives
    do; without either it counts as drawn on the gradient-echo images. A table of the same name (``.tsv`` with ``index`` and
    ``name``, optionally ``hemisphere``) names its regions.

    Raises
    ------
    UsageError
        If there is no such atlas, the file does not exist, or its space is none that images can be brought to.
    """
    if name in _PACKAGED:
        table = Path(_data(f"atlas-{name}_dseg.tsv"))
        return Atlas(name, _data(f"res-01_atlas-{name}_dseg.nii.gz"), "template", _regions(table))
    path = Path(name)
    if not name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"no atlas '{name}'{nearest(name, _PACKAGED)} (an atlas of your own is a NIfTI file)")
    if not path.is_file():
        raise UsageError(f"atlas {name}: there is no such file")
    stem = path.name.split(".")[0]
    table = path.with_name(stem + ".tsv")
    label = re.search(r"(?:^|_)(?:atlas|seg)-([A-Za-z0-9]+)", stem)
    return Atlas(
        label.group(1) if label else re.sub(r"[^A-Za-z0-9]", "", stem),
        str(path.absolute()),
        _space(stem, name),
        _regions(table) if table.is_file() else {},
    )


def region_indices(region: str, atlas: Atlas) -> list[int]:
    """Indices of a region given by name or index; several are joined with ``+``.

    Raises
    ------
    UsageError
        If the atlas has no region of that name.
    """
    by_name = {name: index for index, (name, _) in atlas.regions.items()}
    indices = []
    for part in region.split("+"):
        if part.isdigit():
            indices.append(int(part))
        elif part in by_name:
            indices.append(by_name[part])
        else:
            raise UsageError(f"no region '{part}' in atlas {atlas.name}{nearest(part, by_name)}")
    return indices


def _space(stem: str, name: str) -> str:
    match = re.search(r"(?:^|_)(?:space|tpl)-([A-Za-z0-9]+)", stem)
    if not match:
        return "GRE"
    spaces = {TEMPLATE: "template", "T1w": "T1w", "GRE": "GRE"}
    if match.group(1) not in spaces:
        raise UsageError(f"atlas {name}: space '{match.group(1)}' is not known; give it in {', '.join(spaces)}")
    return spaces[match.group(1)]


def _regions(table: Path) -> dict[int, tuple[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or not {"index", "name"} <= set(rows[0]):
        raise UsageError(f"atlas table {table}: it needs the columns 'index' and 'name'")
    try:
        return {int(row["index"]): (row["name"], row.get("hemisphere") or "n/a") for row in rows}
    except ValueError as error:
        raise UsageError(f"atlas table {table}: an index is not a whole number ({error})") from error


def _data(name: str) -> str:
    return str(resources.files("qsmflow.data").joinpath(f"atlas/tpl-{TEMPLATE}_{name}"))
