"""Nipype's own plugins, for clusters: with an end that is waited for, and failures that have names.

Nipype hands the nodes to the scheduler; whether a node has its result is then read from the shared work folder, which is the
same question for every plugin. ``SLURMGraph`` leaves as soon as the jobs are submitted; here their queue is watched.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import subprocess
import uuid
from pathlib import Path
from time import sleep, time
from typing import TYPE_CHECKING

import networkx as nx
from nipype.pipeline import plugins
from nipype.pipeline.plugins.base import GraphPluginBase, PluginBase

from qsmflow.config import read_plugin_file
from qsmflow.errors import QsmflowError, UsageError, nearest
from qsmflow.interfaces.threads import environment, thread_environment
from qsmflow.workflows.failures import Failure, NodesFailed, last_line, write_crash_file
from qsmflow.workflows.plugin import NodeProcessPlugin, Observer

if TYPE_CHECKING:
    from networkx import DiGraph
    from nipype.pipeline.engine import Node

#: Seconds between two looks at the queue, and how often in a row the scheduler may fail to answer.
POLL, PATIENCE = 2.0, 30

#: Seconds that a result may take to become visible on a shared file system.
VISIBLE = 15.0


def load_plugin(path: Path, settings: dict, local: dict) -> PluginBase:
    """The plugin that a YAML file asks for.

    Parameters
    ----------
    path : Path
        ``plugin: NAME`` and, optionally, ``plugin_args:``.
    settings : dict
        ``observer`` and ``crash_dir``, as for :class:`~qsmflow.workflows.plugin.NodeProcessPlugin`.
    local : dict
        ``n_procs``, ``memory_gb`` and ``omp_nthreads`` of the command line.

    Returns
    -------
    PluginBase
        For ``MultiProc``, which hangs when a node is killed, our own plugin with the processors and memory of the file.

    Raises
    ------
    UsageError
        If Nipype has no such plugin, or one that cannot tell when its jobs end.
    """
    name, arguments = read_plugin_file(path)
    known = {key.removesuffix("Plugin"): value for key, value in vars(plugins).items() if key.endswith("Plugin")}
    if name not in known:
        raise UsageError(f"plugin file {path}: Nipype has no plugin '{name}'{nearest(name, known)}")
    if name in ("MultiProc", "LegacyMultiProc"):
        given = {key: arguments[key] for key in ("n_procs", "memory_gb") if key in arguments}
        return NodeProcessPlugin(settings | local | given)
    if issubclass(known[name], GraphPluginBase) and name != "SLURMGraph":
        instead = name.removesuffix("Graph") if name.removesuffix("Graph") in known else "SLURMGraph"
        raise UsageError(f"plugin file {path}: {name} never hears how its jobs ended; use {instead}")
    mixin = _WatchedGraph if name == "SLURMGraph" else _WatchedSlurm if name == "SLURM" else _Watched
    return type(known[name].__name__, (mixin, known[name]), {})(arguments, settings, local["omp_nthreads"])


class _Watched:
    """Mixed into a Nipype plugin: an account of every node at the end."""

    def __init__(self, arguments: dict, settings: dict, threads: int):
        self.observer: Observer = settings["observer"]
        self.crash_dir = Path(settings["crash_dir"])
        self.threads = threads
        self.started = time()
        self.submitted: set[Node] = set()
        self.settled: dict[Node, bool] = {}
        super().__init__(plugin_args={**arguments, "status_callback": self._status})
        self.plugin_args = arguments  # Nipype pickles these with every MapNode

    def run(self, graph: DiGraph, config: dict, updatehash: bool = False) -> None:
        """Run the graph; Nipype calls this."""
        self.observer.begin(graph)
        os.environ.setdefault("LOGNAME", getpass.getuser())  # Nipype's SLURM plugin names jobs with it
        try:
            with environment(thread_environment(self.threads)):  # schedulers hand it on
                super().run(graph, config, updatehash=updatehash)
        except RuntimeError as error:  # what Nipype's plugins raise when a node failed
            if all(self.settle(node, graph) for node in nx.topological_sort(graph)):
                raise QsmflowError(f"the plugin failed: {error}") from error
        failures = sum(not self.settle(node, graph) for node in nx.topological_sort(graph))
        if failures:
            raise NodesFailed(f"{failures} steps failed or were not run")

    def settle(self, node: Node, graph: DiGraph) -> bool:
        """Whether a node that will not be run any more has its result; the observer is told once."""
        if node in self.settled:
            return self.settled[node]
        runnable = all([self.settle(before, graph) for before in graph.predecessors(node)]) and node in self.submitted
        self.settled[node] = runnable and _has_result(node)
        if self.settled[node]:
            self.observer.finished(node, "")
        elif runnable:
            self.observer.failed(node, self._failure(node), "")
        return self.settled[node]

    def _status(self, node: Node, status: str) -> None:
        """Nipype's report of one node (its Linear plugin says "end" of nodes that never started); failures are told later."""
        if status == "start":
            self.submitted.add(node)
        elif status == "end" and node in self.submitted and node not in self.settled:
            self.settled[node] = True
            self.observer.finished(node, "")

    def _report_crash(self, node: Node, result: dict | None = None) -> str:
        """Nipype's crash report, with a traceback in the form that it can take: its plugins give it a text or a list."""
        if result and isinstance(result.get("traceback"), str):
            result = {**result, "traceback": result["traceback"].splitlines(keepends=True)}
        return super()._report_crash(node, result=result)

    def _failure(self, node: Node) -> Failure:
        """What is known of a failed node: Nipype's crash report from its job, or the last words of a job that was killed."""
        reported = ""
        for path in sorted(self.crash_dir.glob(f"crash-*-{node._id}-*.txt")):
            text = path.read_text(errors="replace")
            if text.startswith(f"Node: {node.fullname}\n"):
                if "results file does not exist" not in text:  # this one only says that the job left none
                    reported = text
                path.unlink()
        printed = self._last_words(node)
        reason = last_line(reported) if reported else killed_reason(printed)
        return write_crash_file(self.crash_dir, node, reason=reason, traceback=reported, printed=printed)

    def _last_words(self, node: Node) -> str:
        """What the jobs of a node printed in this run."""
        folder = Path(node.base_dir) / node.fullname.split(".")[0] / "batch"
        own = f"{node._hierarchy}_{node._id}" if node._hierarchy else node._id
        texts = [path.read_text(errors="replace") for path in folder.glob(f"*_{own}.sh.[oe]") if self._is_recent(path)]
        # Nipype's SLURM plugin names these after the job's number only.
        others = [path.read_text(errors="replace") for path in folder.glob("slurm-*.out") if self._is_recent(path)]
        return "\n".join(texts + [text for text in others if f"_{own}.py" in text or f'"{node.fullname}"' in text])

    def _is_recent(self, path: Path) -> bool:
        return path.stat().st_mtime >= self.started - 1


class _WatchedSlurm(_Watched):
    """Mixed into ``SLURM``: the needs of nodes told to Slurm, and jobs taken back when the run is stopped."""

    def __init__(self, arguments: dict, settings: dict, threads: int):
        self.mark = f"qsmflow{uuid.uuid4().hex}"
        given = str(arguments.get("sbatch_args", ""))
        super().__init__({**arguments, "sbatch_args": f"{given} --comment={self.mark}"}, settings, threads)

    def run(self, graph: DiGraph, config: dict, updatehash: bool = False) -> None:
        """Run the graph; Nipype calls this."""
        for node in graph:
            node.plugin_args = {"sbatch_args": self._resources(node)}
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            self._cancel()

    def _resources(self, node: Node) -> str:
        """What a node asks for, unless the user's arguments say it for all nodes; 1 GB is for Python and libraries."""
        given = self.plugin_args["sbatch_args"]
        text = ""
        if not re.search(r"--mem\b|--mem-per-cpu|--exclusive", given):
            text += f" --mem={math.ceil(1024 * (node.mem_gb + 1))}M"
        if not re.search(r"(^|\s)-c|--cpus-per-task", given):
            text += f" --cpus-per-task={min(node.n_procs, self.threads)}"
        return text

    def _queue(self) -> dict[str, str]:
        """Our jobs that are not over: number and name."""
        lines = _slurm("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i|%k|%j").splitlines()
        jobs = [line.split("|", 2) for line in lines]
        return {number: name for number, comment, name in jobs if comment == self.mark}

    def _cancel(self) -> None:
        """Take back the jobs that are left."""
        jobs = self._queue()
        if jobs:
            _slurm("scancel", *jobs)


class _WatchedGraph(_WatchedSlurm):
    """Mixed into ``SLURMGraph``, which has no callbacks and does not wait."""

    def __init__(self, arguments: dict, settings: dict, threads: int):
        given = str(arguments.get("sbatch_args", ""))
        super().__init__({**arguments, "sbatch_args": f"{given} --kill-on-invalid-dep=yes"}, settings, threads)

    def run(self, graph: DiGraph, config: dict, updatehash: bool = False) -> None:
        """Run the graph; Nipype calls this."""
        self.submitted.update(graph)
        self._graph = graph
        self._stop_at_once = str(config["execution"]["stop_on_first_crash"]).lower() == "true"
        super().run(graph, config, updatehash=updatehash)

    def _submit_graph(self, pyfiles: list[str], dependencies: dict, nodes: list[Node]) -> None:
        """Submit, then settle every node when its job (``j<place in the graph>_<node>``) has left the queue."""
        super()._submit_graph(pyfiles, dependencies, nodes)
        waiting = dict(enumerate(nodes))
        while waiting:
            queued = {int(name.split("_")[0][1:]) for name in self._queue().values()}
            for place in sorted(set(waiting) - queued):
                if not self.settle(waiting.pop(place), self._graph) and self._stop_at_once:
                    self.submitted.difference_update(waiting.values())
                    return
            if waiting:
                sleep(POLL)


def killed_reason(printed: str) -> str:
    """One line on a job that left no result, from what it and Slurm printed.

    Examples
    --------
    >>> killed_reason("slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch.")
    'slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch.'
    >>> killed_reason("/scratch/batchscript.sh: line 2:  4711 Killed   python /scratch/pyscript.py")
    'killed by signal 9 in its job (out of memory?)'
    """
    lines = printed.splitlines()
    for line in lines:
        if line.startswith("slurmstepd:"):
            return line
    if any(re.search(r"\d Killed\b", line) for line in lines):
        return "killed by signal 9 in its job (out of memory?)"
    return "the job disappeared without a result"


def _has_result(node: Node) -> bool:
    """Whether a node's result for its present inputs is in the work folder; a shared file system is given time to show it."""
    until = time() + VISIBLE
    while True:
        if all(node.is_cached()):
            return True
        crashed = Path(node.output_dir()).exists() and not list(Path(node.output_dir()).glob("_0x*.json"))
        if crashed or time() > until:
            return False
        sleep(0.5)


def _slurm(*command: str) -> str:
    """Output of a Slurm command; a controller that is busy is asked again."""
    for _ in range(PATIENCE):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        sleep(POLL)
    raise QsmflowError(f"{command[0]} failed {PATIENCE} times in a row: {done.stderr.strip()}")
