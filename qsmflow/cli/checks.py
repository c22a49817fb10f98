"""What can be wrong with a command line beyond its words: paths, files, amounts. Each message says what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from qsmflow.cli import machine
from qsmflow.config import Execution, read_plugin_file
from qsmflow.errors import UsageError

_SIZES = {"": 1.0, "M": 1 / 1024, "G": 1.0, "T": 1024.0}


def gigabytes(text: str) -> float:
    """Memory in GB from ``16``, ``16G``, ``16GB``, ``500M``.

    Examples
    --------
    >>> gigabytes("16GB"), gigabytes("512M"), gigabytes("1.5")
    (16.0, 0.5, 1.5)
    """
    match = re.fullmatch(r"(\d+\.?\d*)\s*([MGT]?)I?B?", text.strip().upper())
    value = float(match[1]) * _SIZES[match[2]] if match else 0.0
    if not value:
        raise UsageError(f"--mem: '{text}' is not an amount of memory; give gigabytes, or a number with M, G or T, such as 16G")
    return value


def whole(option: str, value: int) -> int:
    """A number of processes or threads."""
    if value < 1:
        raise UsageError(f"{option}: {value} is too few; give 1 or more")
    return value


def folders(bids_dir: Path, output_dir: Path, work_dir: Path | None = None) -> None:
    """Refuse input, output and work folders that are missing or would harm each other; the group level has no work folder."""
    raw, out = (Path(os.path.realpath(path)) for path in (bids_dir, output_dir))
    own = f"give a folder of its own, such as {bids_dir}/derivatives/qsmflow"
    if not raw.is_dir():
        raise UsageError(f"BIDS_DIR: there is no folder {bids_dir}")
    if out == raw:
        raise UsageError(f"OUTPUT_DIR is the dataset itself; {own}")
    if raw.is_relative_to(out):
        raise UsageError(f"OUTPUT_DIR {output_dir} holds the dataset; {own}")
    if out.is_relative_to(raw) and (out.relative_to(raw).parts[0] != "derivatives" or out == raw / "derivatives"):
        raise UsageError(f"OUTPUT_DIR {output_dir} would mix results with raw data; {own}")
    _own_dataset(output_dir)
    writable("OUTPUT_DIR", out)
    if work_dir is None:
        return
    work = Path(os.path.realpath(work_dir))
    if work.is_relative_to(raw):
        raise UsageError(f"--work-dir {work_dir} lies in the dataset; give a folder outside of it")
    if work.is_relative_to(out):
        raise UsageError(f"--work-dir {work_dir} lies in OUTPUT_DIR, among the results; give a folder outside of it")
    writable("--work-dir", work)


def writable(name: str, path: Path) -> None:
    """Refuse a folder that cannot be made or written to."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{name}: {path} is a file")
    nearest = next(level for level in (path, *path.parents) if level.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{name}: no permission to write to {nearest}; give a folder that may be written to")


def _own_dataset(output_dir: Path) -> None:
    description = output_dir / "dataset_description.json"
    if not description.is_file():
        return
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        kind = content.get("DatasetType", "raw")
    except (ValueError, AttributeError):
        raise UsageError(f"{description} is not a JSON object; correct or delete it, or give another OUTPUT_DIR") from None
    if kind != "derivative":
        raise UsageError(f"OUTPUT_DIR {output_dir} holds a {kind} dataset; give a folder of its own")


def filters(path: Path) -> dict[str, object]:
    """The content of a BIDS filter file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--bids-filter-file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--bids-filter-file {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UsageError(f'--bids-filter-file {path} must hold objects by query, such as {{"megre": {{"acquisition": "x"}}}}')
    return content


def derivatives(texts: list[str]) -> tuple[Path, ...]:
    """Folders of other pipelines' results, from ``PATH`` or ``NAME=PATH``."""
    paths = []
    for text in texts:
        path = Path(text if Path(text).is_dir() else text.partition("=")[2] or text)
        if not path.is_dir():
            raise UsageError(f"--derivatives: there is no folder {path}")
        paths.append(Path(os.path.abspath(path)))
    return tuple(paths)


def image_file(option: str, text: str) -> str:
    """The absolute path of a NIfTI file that an option names; any other text as it is."""
    if not text.endswith((".nii", ".nii.gz")):
        return text
    if not Path(text).is_file():
        raise UsageError(f"{option}: there is no file {text}")
    return os.path.abspath(text)


def plugin_file(path: Path | None) -> Path | None:
    """A plugin file that can be read and says what it must."""
    if path is not None:
        read_plugin_file(path)
    return path


def graph_tool() -> None:
    """Refuse ``--write-graph`` where nothing can draw."""
    if not shutil.which("dot"):
        raise UsageError("--write-graph needs the program 'dot'; install Graphviz")


def execution(options: object) -> Execution:
    """The :class:`Execution` of parsed options, everything checked."""
    folders(options.bids_dir, options.output_dir, options.work_dir)
    if options.write_graph:
        graph_tool()
    nprocs = whole("--nprocs", machine.processors() if options.nprocs is None else options.nprocs)
    # One processor is left to nodes beside the largest one; more than eight threads bring little in FFTs.
    threads = max(1, min(nprocs - 1, 8)) if options.omp_nthreads is None else options.omp_nthreads
    return Execution(
        bids_dir=Path(os.path.abspath(options.bids_dir)),
        output_dir=Path(os.path.abspath(options.output_dir)),
        work_dir=Path(os.path.abspath(options.work_dir)),
        participant_label=labels(options.participant_label, "sub-"),
        session_label=labels(options.session_label, "ses-"),
        bids_filters=filters(options.bids_filter_file) if options.bids_filter_file else {},
        derivatives=derivatives(options.derivatives),
        nprocs=nprocs,
        omp_nthreads=whole("--omp-nthreads", threads),
        mem_gb=machine.memory_gb() if options.mem is None else gigabytes(options.mem),
        plugin_file=plugin_file(options.use_plugin),
        stop_on_first_crash=options.stop_on_first_crash,
        skip_bids_validation=options.skip_bids_validation,
        write_graph=options.write_graph,
        verbose=options.verbose,
    )


def labels(given: list[str], prefix: str) -> tuple[str, ...]:
    """Labels without their prefix, each once."""
    return tuple(dict.fromkeys(label.removeprefix(prefix) for label in given))
