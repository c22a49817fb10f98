"""Which acquisitions are finished: a stamp in the logs says from what and by what, and a changed world breaks it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import qsmflow
from qsmflow.bids.inputs import Acquisition
from qsmflow.bids.outputs import ENTITY_ORDER, json_text, output_path, write_text
from qsmflow.config import Execution, Recipe

#: Entities that only outputs carry; the others tell acquisitions apart.
_ADDED = ("echo", "part", "space", "atlas", "seg", "res", "label", "desc")


def stamp(execution: Execution, acquisition: Acquisition, recipe: Recipe, given: Iterable[str] = ()) -> Path:
    """Declare an acquisition finished.

    Parameters
    ----------
    execution : Execution
        ``bids_dir`` (paths of inputs are kept relative to it) and ``output_dir``.
    acquisition : Acquisition
        All of its nodes have succeeded.
    recipe : Recipe
        By which it was processed.
    given : iterable of str
        Ready-made files that were used beside the images.

    Returns
    -------
    Path
        ``logs/X_complete.json``: version, recipe hash, size, time and BLAKE2b of every input, size of every output.
    """
    path = _stamp_path(execution, acquisition)
    content = {
        "version": qsmflow.__version__,
        "recipe": recipe.hash,
        "description": _described(execution, acquisition),
        "inputs": [_fingerprint(file, execution.bids_dir) for file in _inputs(acquisition, given)],
        "outputs": _sizes(execution.output_dir, outputs(execution.output_dir, acquisition)),
    }
    write_text(path, json_text(content))
    return path


def reason_to_run(execution: Execution, acquisition: Acquisition, recipe: Recipe, given: Iterable[str] = ()) -> str:
    """Why an acquisition has to be processed; empty when it is finished.

    A file whose time changed but whose content did not is unchanged. Metadata count as far as they are read.
    """
    path = _stamp_path(execution, acquisition)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        version, recipe_hash, described = told["version"], told["recipe"], told["description"]
        inputs = {entry["path"]: entry for entry in told["inputs"]}
        sizes = dict(told["outputs"])
    except FileNotFoundError:
        return "not done yet"
    except (ValueError, KeyError, TypeError):
        return f"{path.name} is not readable"
    if version != qsmflow.__version__:
        return f"done by version {version}, this is {qsmflow.__version__}"
    if recipe_hash != recipe.hash:
        return f"the recipe changed (was {recipe_hash}, is {recipe.hash})"
    files = {_relative(file, execution.bids_dir): file for file in _inputs(acquisition, given)}
    if set(files) != set(inputs) or described != _described(execution, acquisition):
        return "files or metadata of the dataset changed"
    changed = [name for name, file in files.items() if not _is_same(file, inputs[name])]
    if changed:
        return f"changed since: {', '.join(changed)}"
    gone = [name for name, size in sizes.items() if _size(execution.output_dir / name) != size]
    return f"outputs changed or gone: {', '.join(gone)}" if gone else ""


def outputs(output_dir: Path, acquisition: Acquisition) -> list[Path]:
    """All files of an acquisition in the output tree (images, sidecars, tables, figures), in the order of their paths."""
    found = []
    for datatype in ("anat", "fmap", "figures"):
        model = output_path(output_dir, acquisition.entities, "x", "", datatype=datatype)
        wanted = _entities(model.name)
        files = model.parent.iterdir() if model.parent.is_dir() else ()
        found += [file for file in files if not file.name.startswith(".") and _entities(file.name) == wanted]
    return sorted(found)


def _entities(name: str) -> dict[str, str]:
    """The entities in a file name that tell acquisitions apart."""
    pairs = re.findall(r"(?:^|_)([a-z]+)-([A-Za-z0-9]+)", name)
    return {key: label for key, label in pairs if key in ENTITY_ORDER and key not in _ADDED}


def _stamp_path(execution: Execution, acquisition: Acquisition) -> Path:
    return execution.output_dir / "logs" / f"{acquisition.name}_complete.json"


def _inputs(acquisition: Acquisition, given: Iterable[str]) -> list[str]:
    return [*acquisition.sources, *([acquisition.t1w] if acquisition.t1w else []), *given]


def _described(execution: Execution, acquisition: Acquisition) -> str:
    """Hash of what was read from names and sidecars, wherever the dataset lies."""
    content = asdict(acquisition)
    del content["notices"]  # words for people
    text = json.dumps(_portable(content, execution.bids_dir), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _portable(value: object, root: Path) -> object:
    if isinstance(value, Mapping):
        return {key: _portable(part, root) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(part, root) for part in value]
    return _relative(value, root) if isinstance(value, str) and os.path.isabs(value) else value


def _relative(file: str, root: Path) -> str:
    """The path in the dataset; of a file elsewhere, the whole path."""
    for base in (os.path.abspath(root), os.path.realpath(root)):
        if Path(file).is_relative_to(base):
            return Path(file).relative_to(base).as_posix()
    return file


def _fingerprint(file: str, root: Path) -> dict[str, object]:
    status = os.stat(file)
    return {"path": _relative(file, root), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "blake2b": _digest(file)}


def _is_same(file: str, entry: Mapping[str, object]) -> bool:
    try:
        status = os.stat(file)
    except OSError:
        return False
    if status.st_size != entry["size"]:
        return False
    return status.st_mtime_ns == entry["mtime_ns"] or _digest(file) == entry["blake2b"]


def _digest(file: str) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sizes(root: Path, files: Iterable[Path]) -> dict[str, int]:
    return {file.relative_to(root).as_posix(): file.stat().st_size for file in files}


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
