"""The command: read, check, run, report. Modules that take long to import are imported when they are needed."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from traceback import format_exc
from typing import TYPE_CHECKING

import qsmflow
from qsmflow.cli import talk
from qsmflow.cli.talk import logger
from qsmflow.config import Execution, Recipe
from qsmflow.errors import EXIT_DATASET, EXIT_FAILED, EXIT_OK, DatasetError, QsmflowError

if TYPE_CHECKING:
    from nipype.pipeline.engine import Workflow

    from qsmflow.bids.inputs import Dataset
    from qsmflow.bids.orientations import Orientations
    from qsmflow.workflows.plan import Plan
    from qsmflow.workflows.running import Outcome

#: Exit code of a run that was stopped by a signal, as shells have it for Ctrl-C.
EXIT_STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run qsmflow with the arguments of a command line; returns the exit code."""
    from qsmflow.cli.group import is_group, parse_group, run_group
    from qsmflow.cli.parser import parse

    words = sys.argv[1:] if arguments is None else arguments
    with talk.console():
        try:
            if is_group(words):
                return run_group(parse_group(words))
            recipe, execution, mode = parse(words)
            if execution.verbose:
                talk.show_all()
            action = {"run": _run, "dry-run": _dry_run, "boilerplate": _boilerplate, "reports-only": _reports_only}[mode]
            return action(recipe, execution)
        except QsmflowError as error:
            logger.error(f"qsmflow: error: {error}")
            return error.exit_code
        except KeyboardInterrupt as stop:
            logger.error(f"qsmflow: stopped by {str(stop) or 'Ctrl-C'}; the same command goes on where it was")
            return EXIT_STOPPED
        except BrokenPipeError:  # whoever read our lines (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_FAILED


@dataclass(frozen=True)
class _Job:
    """An acquisition to look at: its plan, and why it has to be processed (empty: it is finished)."""

    plan: Plan
    reason: str

    @property
    def name(self) -> str:
        return self.plan.acquisition.name

    @property
    def subject(self) -> str:
        return self.plan.acquisition.entities["sub"]


def _run(recipe: Recipe, execution: Execution) -> int:
    from qsmflow.workflows.plugin import start_server
    from qsmflow.workflows.running import preload_modules, run_workflow, stoppable

    with stoppable():
        start = datetime.now().astimezone()
        if not execution.plugin_file:
            start_server(preload=preload_modules(recipe), threads=execution.omp_nthreads)
        log = _open_log(recipe, execution, start)
        dataset, jobs = _read(recipe, execution)
        todo = [job for job in jobs if job.reason]
        _tell_jobs(jobs)
        outcome = None
        if todo:
            _describe_outputs(execution)
            workflow = _graph(todo, recipe, execution)
            if execution.write_graph:
                _draw(workflow, execution)
            outcome = run_workflow(workflow, execution, [job.name for job in todo], say=logger.info)
            _stamp(todo, outcome, recipe, execution)
            _tell_orientations([job for job in todo if job.name not in outcome.unfinished], recipe, execution)
        touched = {job.subject for job in jobs if job.reason or not _page(execution, job.subject).exists()}
        broken = _pages(execution, sorted(touched))
        return _summary(execution, dataset, jobs, outcome, broken, log)


def _dry_run(recipe: Recipe, execution: Execution) -> int:
    from qsmflow.cli.dryrun import describe, written
    from qsmflow.workflows.failures import acquisition_workflow_name

    dataset, jobs = _read(recipe, execution)
    files = written(_graph(jobs, recipe, execution), execution.output_dir)
    for job in jobs:
        mine = files.get(acquisition_workflow_name(job.name), [])
        logger.info(describe(job.plan, job.reason, execution.bids_dir, mine))
    return EXIT_DATASET if dataset.problems else EXIT_OK


def _boilerplate(recipe: Recipe, execution: Execution) -> int:
    from qsmflow.reports.boilerplate import bibtex, methods_text

    dataset, jobs = _read(recipe, execution)
    texts: dict[str, list[str]] = {}
    keys: dict[str, None] = {}
    for plan in (job.plan for job in jobs):
        text, citations = methods_text(
            plan.recipe, version=qsmflow.__version__, b0=plan.acquisition.b0, echo_times=plan.acquisition.echo_times,
            skipped=plan.skipped, registration=plan.regions, phase_reversed=plan.recipe.phase_sign == "-",
        )  # fmt: skip
        texts.setdefault(text, []).append(plan.acquisition.name)
        keys |= dict.fromkeys(citations)
    for text, names in texts.items():
        print(f"<!-- {', '.join(names)} -->\n{text}")
    print(bibtex(keys))
    return EXIT_DATASET if dataset.problems else EXIT_OK


def _reports_only(recipe: Recipe, execution: Execution) -> int:
    found = sorted(path.name.removeprefix("sub-") for path in execution.output_dir.glob("sub-*") if path.is_dir())
    subjects = [label for label in found if label in (execution.participant_label or found)]
    missing = [label for label in execution.participant_label if label not in found]
    for label in missing:
        logger.error(f"sub-{label}: has no results in {execution.output_dir}; run it first")
    if not subjects:
        raise DatasetError(f"no results in {execution.output_dir}; --reports-only makes pages of what a run has left there")
    broken = _pages(execution, subjects)
    return EXIT_FAILED if broken else EXIT_DATASET if missing else EXIT_OK


def _read(recipe: Recipe, execution: Execution) -> tuple[Dataset, list[_Job]]:
    """The dataset, with everything that is wrong in it told at once, and what is to be done."""
    from qsmflow.bids.completion import reason_to_run
    from qsmflow.bids.inputs import read_dataset
    from qsmflow.cli.validator import validate
    from qsmflow.workflows.plan import plan_acquisition

    if not execution.skip_bids_validation:
        for line in validate(execution.bids_dir):
            logger.warning(f"dataset: {line}")
    dataset = read_dataset(execution, recipe)
    for problem in dataset.problems:
        logger.error(f"problem: {problem}")
    if not dataset.acquisitions:
        raise DatasetError(f"nothing in {execution.bids_dir} can be processed" + (" (see above)" if dataset.problems else ""))
    plans = [plan_acquisition(acquisition, recipe, execution) for acquisition in dataset.acquisitions]
    jobs = [_Job(plan, reason_to_run(execution, plan.acquisition, recipe, plan.given.values())) for plan in plans]
    return dataset, _with_partners(jobs, recipe, execution) if recipe.cosmos else jobs


def _with_partners(jobs: list[_Job], recipe: Recipe, execution: Execution) -> list[_Job]:
    """The jobs, where an orientation of a head takes all others of that head with it, as does a result that is gone."""
    groups = _orientations(jobs, recipe)
    if not groups:
        raise DatasetError(f"--cosmos {recipe.cosmos}: no subject has acquisitions that differ only in {recipe.cosmos}-")
    reasons = {job.name: job.reason for job in jobs}
    for group in groups:
        names = [member.name for member in group.members]
        if any(reasons[name] for name in names) or not _combination(execution, group).is_file():
            reasons |= {name: reasons[name] or "its orientations have to be combined" for name in names}
    alone = reasons.keys() - {member.name for group in groups for member in group.members}
    for name in sorted(alone):
        logger.info(f"{name}: notice: no part of a COSMOS map (no other acquisition differs only in {recipe.cosmos}-)")
    return [replace(job, reason=reasons[job.name]) for job in jobs]


def _orientations(jobs: Iterable[_Job], recipe: Recipe) -> list[Orientations]:
    from qsmflow.bids.orientations import group_orientations

    return group_orientations([job.plan.acquisition for job in jobs], recipe.cosmos)


def _combination(execution: Execution, group: Orientations) -> Path:
    """The map that a head's orientations give together."""
    from qsmflow.bids.outputs import product_path

    return product_path(execution.output_dir, group.entities, "chi_cosmos")


def _tell_orientations(jobs: Iterable[_Job], recipe: Recipe, execution: Execution) -> None:
    """What the run found about the orientations of each head, from the sidecars that it wrote."""
    from qsmflow.bids.outputs import sidecar_path
    from qsmflow.reports import quality

    for group in _orientations(jobs, recipe):
        path = sidecar_path(_combination(execution, group))
        if path.is_file():
            told = json.loads(path.read_text(encoding="utf-8"))
            tilts = ", ".join(f"{orientation['TiltDegrees']:g}" for orientation in told["Orientations"])
            words = f"orientations at {tilts} degrees, condition number {told['ConditionNumber']}"
            logger.info(f"{group.name}: COSMOS of {len(group.members)} {words}")
            if told["PoorlyConditioned"]:
                advice = "noise and streaks are raised; three or more tilts in two planes are needed"
                logger.warning(f"{group.name}: warning: COSMOS is poorly conditioned: {advice}")
            for warning in quality.warnings(told["Quality"]):
                logger.warning(f"{group.name}: warning: COSMOS: {warning['what']}; {warning['remedy']}")


def _tell_jobs(jobs: Iterable[_Job]) -> None:
    for job in jobs:
        logger.info(f"{job.name}: {job.reason or 'finished before, skipped'}")
        for notice in (*job.plan.acquisition.notices, *job.plan.notices) if job.reason else ():
            logger.info(f"{job.name}: notice: {notice}")


def _graph(jobs: Sequence[_Job], recipe: Recipe, execution: Execution) -> Workflow:
    from qsmflow.workflows.base import init_qsmflow_wf

    return init_qsmflow_wf([job.plan.acquisition for job in jobs], recipe, execution)


def _describe_outputs(execution: Execution) -> None:
    from qsmflow.bids.outputs import dataset_roots, write_dataset_files

    roots = dataset_roots(execution.bids_dir, execution.derivatives)
    write_dataset_files(execution.output_dir, datasets=roots)


def _draw(workflow: Workflow, execution: Execution) -> None:
    """``logs/graph.svg``; Nipype leaves its dot file beside it."""
    from qsmflow.workflows.running import work_folder

    folder = execution.output_dir / "logs"
    workflow.base_dir = str(work_folder(execution))
    workflow.write_graph("graph.dot", graph2use="colored", format="svg", simple_form=True)
    made = Path(workflow.base_dir, workflow.name)
    for path in (made / "graph.svg", made / "graph.dot"):
        path.replace(folder / path.name)


def _stamp(jobs: Iterable[_Job], outcome: Outcome, recipe: Recipe, execution: Execution) -> None:
    from qsmflow.bids.completion import stamp

    for job in jobs:
        if job.name not in outcome.unfinished:
            stamp(execution, job.plan.acquisition, recipe, job.plan.given.values())


def _page(execution: Execution, subject: str) -> Path:
    return execution.output_dir / f"sub-{subject}.html"


def _pages(execution: Execution, subjects: Iterable[str]) -> list[str]:
    """Make the pages of subjects; the subjects whose page failed."""
    from qsmflow.reports.page import build_subject_page

    broken = []
    for subject in subjects:
        try:
            build_subject_page(execution.output_dir, subject)
        except Exception as error:  # one page stops neither the others nor the summary; the log has the whole story
            logger.error(f"sub-{subject}: its page could not be made: {error}")
            logging.getLogger("nipype.workflow").error(format_exc())
            broken.append(subject)
    return broken


def _summary(
    execution: Execution, dataset: Dataset, jobs: Sequence[_Job], outcome: Outcome | None, broken: Sequence[str], log: Path
) -> int:
    unfinished = outcome.unfinished if outcome else frozenset()
    before = sum(not job.reason for job in jobs)
    done = len(jobs) - len(unfinished)
    logger.info(
        f"\n{done} of {len(jobs)} acquisitions finished" + (f", {before} of them before" if before else "")
        + (f"; {_duration(outcome.seconds)}" if outcome else "")
    )  # fmt: skip
    for failure in outcome.failures if outcome else ():
        logger.error(f"failed: {failure}")
    for name in sorted(unfinished):
        logger.error(f"not finished: {name}")
    if dataset.problems:
        logger.error(f"problems in the dataset: {len(dataset.problems)} (listed above)")
    logger.info(f"results: {execution.output_dir} (pages: {', '.join(sorted({f'sub-{job.subject}.html' for job in jobs}))})")
    logger.info(f"log: {log}")
    if unfinished or broken:
        return EXIT_FAILED
    return EXIT_DATASET if dataset.problems else EXIT_OK


def _duration(seconds: float) -> str:
    """Seconds for a person.

    Examples
    --------
    >>> _duration(7.3), _duration(252)
    ('7 s', '4 min 12 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _open_log(recipe: Recipe, execution: Execution, start: datetime) -> Path:
    """Start ``logs/qsmflow_<time>_<process>.log`` and write the run's TOML beside it."""
    import tomli_w

    from qsmflow.bids.outputs import write_text

    logs = execution.output_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    stem = f"qsmflow_{start:%Y%m%dT%H%M%S}_{os.getpid()}"
    told = {key: _plain(value) for key, value in asdict(execution).items() if value not in (None, (), {})}
    head = {"version": qsmflow.__version__, "time": start.isoformat(timespec="seconds"), "recipe_hash": recipe.hash}
    write_text(logs / f"{stem}.toml", f"{recipe.to_toml()}\n{tomli_w.dumps({'run': head, 'execution': told})}")
    talk.log_to(logs / f"{stem}.log")
    logger.info(f"qsmflow {qsmflow.__version__}, recipe {recipe.name} ({recipe.hash})")
    return logs / f"{stem}.log"


def _plain(value: object) -> object:
    """A value as TOML knows it."""
    if isinstance(value, Path):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
