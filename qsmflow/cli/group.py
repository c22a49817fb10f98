"""The group level: ``qsmflow BIDS_DIR OUTPUT_DIR group``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import qsmflow
from qsmflow.cli import checks, talk
from qsmflow.cli.parser import Formatter, Parser, dashed
from qsmflow.cli.talk import logger
from qsmflow.errors import EXIT_OK, UsageError, nearest

if TYPE_CHECKING:
    from qsmflow.group.study import Study
    from qsmflow.group.voxelwise import Voxels

_USAGE = "qsmflow BIDS_DIR OUTPUT_DIR group [options]"

_DESCRIPTION = """\
Tables, statistics and a report of a whole study, from what the participant level has left in OUTPUT_DIR (or in the
folder of --derivatives) and participants.tsv."""

_EPILOG = """\
A model file says what is compared with what; docs/group.md explains every setting. Without --study and --model the
tables are collected and shown.

Exit codes: 0 everything done, 1 a step failed, 2 wrong usage or a model that cannot be used, 3 data that cannot be used."""


@dataclass(frozen=True)
class Options:
    """The options of a command line, checked as far as that needs no data."""

    bids_dir: Path
    output_dir: Path
    results_dir: Path
    participants: tuple[str, ...]
    study: str
    model: Path | None
    voxelwise: bool


def is_group(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for the group level.

    Examples
    --------
    >>> is_group(["bids", "out", "group"]), is_group(["group", "out", "participant"])
    (True, False)
    """
    return list(arguments[2:3]) == ["group"] or ("group" in arguments and "participant" not in arguments)


def parse_group(arguments: Sequence[str]) -> Options:
    """Read a command line of the group level.

    Raises
    ------
    UsageError
        If anything cannot be used as it is.
    SystemExit
        After ``--help`` and ``--version``.
    """
    parser = _build()
    words = [dashed(word) for word in arguments]
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    for word in (word.partition("=")[0] for word in words if word.startswith("--")):
        if word not in known:
            raise UsageError(f"the group level has no option {word}{nearest(word, known)}")
    options = parser.parse_args(words)
    if options.study and options.model:
        raise UsageError("--study names a ready-made model and --model gives one; take one of them")
    results = checks.derivatives([options.derivatives])[0] if options.derivatives else options.output_dir
    checks.folders(options.bids_dir, options.output_dir)
    if options.voxelwise and not (options.study or options.model):
        raise UsageError("--voxelwise needs --study or --model, which say what is compared")
    raw, out, results = (Path(os.path.abspath(path)) for path in (options.bids_dir, options.output_dir, results))
    labels = checks.labels(options.participant_label, "sub-")
    return Options(raw, out, results, labels, options.study or "", options.model, options.voxelwise)


def run_group(options: Options) -> int:
    """Collect, analyse, write and report."""
    from qsmflow.group.collect import collect
    from qsmflow.group.model import load_model, load_study
    from qsmflow.group.study import run_study
    from qsmflow.group.tables import write_collected, write_study
    from qsmflow.reports.group_page import build_group_page

    # What can be wrong is found before anything is written.
    model = load_study(options.study) if options.study else load_model(options.model) if options.model else None
    cohort = collect(options.bids_dir, options.results_dir, options.participants)
    study = run_study(cohort, model) if model else None
    paths = _template_maps(options, study) if study and options.voxelwise else {}
    _open_log(options)
    logger.info(f"{cohort.scans['participant_id'].nunique()} participants, {len(cohort.scans)} acquisitions")
    for notice in (*cohort.notices, *(study.notices if study else ())):
        logger.info(f"notice: {notice}")
    _describe_outputs(options)
    written = write_collected(cohort, options.output_dir)
    if study:
        written += write_study(study, options.output_dir)
        for finding in study.findings:
            logger.info(finding)
    maps = _compare_voxels(options, study, paths) if paths else None
    page = build_group_page(options.output_dir, cohort, study, maps)
    logger.info(f"tables: {', '.join(path.name for path in written)}")
    logger.info(f"report: {page}")
    return EXIT_OK


def _template_maps(options: Options, study: Study) -> dict[str, list[Path]]:
    from qsmflow.interfaces.voxelwise import find_maps

    return find_maps(study, options.results_dir)


def _compare_voxels(options: Options, study: Study, paths: dict[str, list[Path]]) -> Voxels:
    from qsmflow.interfaces.voxelwise import compare_voxels

    return compare_voxels(study, paths, options.output_dir, say=logger.info)


def _open_log(options: Options) -> None:
    logs = options.output_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    talk.log_to(logs / f"qsmflow_group_{datetime.now().astimezone():%Y%m%dT%H%M%S}_{os.getpid()}.log")
    logger.info(f"qsmflow {qsmflow.__version__}, group level")


def _describe_outputs(options: Options) -> None:
    """The dataset-level files; those of a participant level in the same folder are kept as they are."""
    from qsmflow.bids.outputs import dataset_roots, write_dataset_files, write_ignore_file

    if not (options.output_dir / "dataset_description.json").is_file():
        apart = () if options.results_dir == options.output_dir else (options.results_dir,)
        write_dataset_files(options.output_dir, datasets=dataset_roots(options.bids_dir, apart))
    write_ignore_file(options.output_dir)


def _build() -> argparse.ArgumentParser:
    parser = Parser(
        prog="qsmflow", usage=_USAGE, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=Formatter, allow_abbrev=False,
        add_help=False,
    )  # fmt: skip
    where = parser.add_argument_group("from where, to where")
    where.add_argument("bids_dir", metavar="BIDS_DIR", type=Path, help="root of the BIDS dataset, with participants.tsv")
    where.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="where the results of all participants are and go")
    where.add_argument("level", metavar="group", choices=("group",), help="the level of analysis")
    where.add_argument("-d", "--derivatives", metavar="PATH", help="results of the participant level, if not in OUTPUT_DIR")
    what = parser.add_argument_group("what to compare")
    what.add_argument("--study", metavar="NAME", help="a ready-made study: ageing, case-control, phantom or test-retest")
    what.add_argument("--model", metavar="FILE", type=Path, help="a study of your own, a YAML file")
    what.add_argument("--voxelwise", action="store_true", help="also test the maps in template space, voxel by voxel")
    several = {"nargs": "+", "action": "extend", "default": []}
    what.add_argument("--participant-label", metavar="LABEL", **several, help="only these participants, with or without sub-")
    other = parser.add_argument_group("other")
    other.add_argument("-h", "--help", action="help", help="show this and leave")
    other.add_argument(
        "--version", action="version", version=f"qsmflow {qsmflow.__version__}", help="show the version and leave"
    )
    return parser
