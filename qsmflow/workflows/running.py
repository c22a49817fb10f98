"""Run a graph: set Nipype up, resume what an earlier run left, say how it goes, list what failed."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

import networkx as nx
from nipype import config as nipype_config
from nipype import logging as nipype_logging
from nipype.utils.filemanip import loadpkl

from qsmflow import registry
from qsmflow.errors import QsmflowError
from qsmflow.workflows.batch import load_plugin
from qsmflow.workflows.failures import (
    Failure,
    NodesFailed,
    acquisition_of,
    acquisition_workflow_name,
    crash_file,
    owner_of,
    stage_of,
)
from qsmflow.workflows.plugin import NodeProcessPlugin

if TYPE_CHECKING:
    from networkx import DiGraph
    from nipype.pipeline.engine import Node, Workflow

    from qsmflow.config import Execution, Recipe

__all__ = ["Outcome", "acquisition_workflow_name", "preload_modules", "run_workflow", "stoppable", "work_folder"]

#: Nipype's settings for a run, in memory only: no file of the user's is read for them or written.
_SETTINGS = {
    "check_version": "false",  # asks a server
    "crashfile_format": "txt",
    "create_report": "false",  # a page per node that pulls a script from the net
    "hash_method": "content",  # a copied or touched dataset is still the same dataset
    "keep_inputs": "true",
    "local_hash_check": "true",
    "poll_sleep_duration": "2",  # batch systems only
    "remove_unnecessary_outputs": "false",
    "use_relative_paths": "false",
}


@dataclass(frozen=True)
class Outcome:
    """How a run went: what failed, and the acquisitions that have nodes which did not finish (failed or were not run)."""

    failures: tuple[Failure, ...]
    unfinished: frozenset[str]
    seconds: float


def work_folder(execution: Execution) -> Path:
    """The folder of a run inside the work folder: one for each pair of input and output, so that no two runs meet there.

    Recipes share it: a node is keyed by its inputs and parameters, so that after a change only what depends on it runs.
    """
    pair = "\n".join(str(path.resolve()) for path in (execution.bids_dir, execution.output_dir))
    return execution.work_dir.resolve() / f"qsmflow-{hashlib.blake2b(pair.encode(), digest_size=4).hexdigest()}"


def preload_modules(recipe: Recipe) -> list[str]:
    """What the nodes of a recipe need: what :func:`qsmflow.workflows.plugin.start_server` should import early."""
    rows = [registry.find(stage, name) for stage, name in recipe.methods]
    return ["qsmflow.workflows.base", *sorted({f"qsmflow.algorithms.{row.function.partition(':')[0]}" for row in rows})]


def run_workflow(workflow: Workflow, execution: Execution, acquisitions: Iterable[str], *, say: Callable = print) -> Outcome:
    """Run a workflow to its end, whatever fails on the way.

    Parameters
    ----------
    workflow : Workflow
        Its ``base_dir`` is set here. Nodes of an acquisition are in a sub-workflow named by
        :func:`acquisition_workflow_name`.
    execution : Execution
        Folders, cores, memory, plugin.
    acquisitions : iterable of str
        Names of the acquisitions in the workflow.
    say : callable
        Takes one line of progress.

    Returns
    -------
    Outcome
        Failures in the order of their occurrence.

    Raises
    ------
    QsmflowError
        If another process works on one of the acquisitions with the same folders.
    """
    names = tuple(acquisitions)
    logs = execution.output_dir.resolve() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    workflow.base_dir = str(work_folder(execution))
    _configure(workflow, execution, logs)
    progress = Progress(names, logs, say)
    with _lock(Path(workflow.base_dir), names):
        dropped = drop_incomplete(workflow)
        if dropped:
            say(f"run again, because files that they had made are gone: {', '.join(dropped)}")
        with suppress(NodesFailed):  # every failure has been reported to progress
            workflow.run(plugin=_plugin(execution, logs, progress))
    return progress.outcome()


def _plugin(execution: Execution, logs: Path, progress: Progress):
    local = {"n_procs": execution.nprocs, "memory_gb": execution.mem_gb, "omp_nthreads": execution.omp_nthreads}
    settings = {"observer": progress, "crash_dir": logs}
    if execution.plugin_file:
        return load_plugin(execution.plugin_file, settings, local)
    return NodeProcessPlugin(settings | local)


def _configure(workflow: Workflow, execution: Execution, logs: Path) -> None:
    settings = _SETTINGS | {"crashdump_dir": str(logs), "stop_on_first_crash": str(execution.stop_on_first_crash).lower()}
    workflow.config["execution"] = {**workflow.config.get("execution", {}), **settings}
    nipype_config.update_config({"execution": settings})
    nipype_logging.update_logging(nipype_config)


@dataclass
class Progress:
    """Tells what happens to the nodes: to a person in lines, to ``logs/X_timing.tsv`` in rows, to the run's log in full."""

    names: tuple[str, ...]
    logs: Path
    say: Callable
    started: float = field(default_factory=time)
    failures: list[Failure] = field(default_factory=list)
    open: dict[str, str] = field(default_factory=dict)  # nodes that are not finished, with their acquisition
    users: dict[str, set[str]] = field(default_factory=dict)  # acquisitions that need a node, or that it combines, by node
    total: int = 0

    def begin(self, graph: DiGraph) -> None:
        """Start the tables, forget the crash files of the run before."""
        self.total, self.started = len(graph), time()
        self.open = {node.itername: acquisition_of(node) for node in graph}
        for node in graph:
            shared = () if acquisition_of(node) else nx.descendants(graph, node) | nx.ancestors(graph, node)
            self.users[node.itername] = {acquisition_of(user) for user in (node, *shared)} & set(self.names)
        for node in graph:
            crash_file(self.logs, node).unlink(missing_ok=True)
        for name in self.names:
            self._table(name).write_text("node\tseconds\tstatus\n")

    def finished(self, node: Node, printed: str = "") -> None:
        """A node has its result: new, or from an earlier run."""
        seconds, cached = _duration(node, self.started)
        del self.open[node.itername]
        self._report(node, f"{seconds:.0f} s" + (" (from an earlier run)" if cached else ""), printed)
        self._row(node, seconds, "cached" if cached else "done")

    def failed(self, node: Node, failure: Failure, printed: str = "") -> None:
        """A node failed."""
        self.failures.append(failure)
        self._report(node, f"FAILED: {failure.reason}", printed)
        self._row(node, _duration(node, self.started)[0], "failed")

    def outcome(self) -> Outcome:
        """How it went, when the run is over. A node that serves several acquisitions leaves all of its users unfinished."""
        unfinished = frozenset(name for node in self.open for name in self.users[node])
        return Outcome(tuple(self.failures), unfinished, time() - self.started)

    def _report(self, node: Node, text: str, printed: str) -> None:
        count = self.total - len(self.open) + len(self.failures)
        line = " ".join(part for part in (f"{count}/{self.total}", owner_of(node), stage_of(node), text) if part)
        self.say(line)
        if printed.strip():
            logging.getLogger("nipype.workflow").info("%s, printed by the node:\n%s", line, printed.rstrip())

    def _row(self, node: Node, seconds: float, status: str) -> None:
        parts = node.itername.split(".")[2 if acquisition_of(node) else 1 :]
        for name in sorted(self.users[node.itername]):
            with self._table(name).open("a") as file:
                file.write(f"{'.'.join(parts)}\t{seconds:.2f}\t{status}\n")

    def _table(self, name: str) -> Path:
        return self.logs / f"{name}_timing.tsv"


def _duration(node: Node, since: float) -> tuple[float, bool]:
    """Seconds that a node's interface took, and whether that was before ``since``."""
    path = Path(node.output_dir()) / f"result_{node.name}.pklz"
    if not path.exists():
        return 0.0, False
    runtime = loadpkl(path).runtime
    parts = runtime if isinstance(runtime, list) else [runtime]
    return sum(getattr(part, "duration", 0.0) or 0.0 for part in parts), path.stat().st_mtime < since


def drop_incomplete(workflow: Workflow) -> list[str]:
    """Forget the cached result of every node whose recorded output files are not all there, so that it runs again.

    Nipype looks at a node's inputs only: with an output gone, the node counts as done and the next one fails.

    Returns
    -------
    list of str
        Names of the nodes.
    """
    dropped = []
    root = Path(workflow.base_dir) / workflow.name
    for name in workflow.list_node_names():
        folder = root.joinpath(*name.split("."))
        results = sorted(folder.rglob("result_*.pklz"))
        if all(_is_whole(path) for path in results):
            continue
        for path in (*results, *folder.rglob("_0x*.json")):
            path.unlink()
        dropped.append(name)
    return dropped


def _is_whole(result: Path) -> bool:
    try:
        outputs = loadpkl(result).outputs
    except Exception:  # a torn or foreign pickle raises anything; the node simply runs again
        return False
    return all(os.path.exists(path) for path in _paths(outputs.get() if outputs is not None else ()))


def _paths(value: object) -> Iterator[str]:
    """All absolute paths in the outputs of a node, at any depth."""
    if isinstance(value, str):
        if os.path.isabs(value):
            yield value
    elif isinstance(value, dict):
        yield from _paths(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _paths(part)


@contextmanager
def _lock(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Hold the work folders of acquisitions; the kernel releases them when this process ends, however that happens.

    One file serves all: an acquisition is one byte of it, at a place made from its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        for name in names:
            place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):
                raise QsmflowError(
                    f"{name} is being processed by another qsmflow with the same input, output and work folders;"
                    " wait for it to end, or give this one a --work-dir of its own"
                ) from None
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """Make SIGTERM (and SIGHUP) end a run as Ctrl-C does: nodes are stopped first, and the run can be resumed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
