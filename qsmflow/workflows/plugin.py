"""A Nipype plugin that gives every node a process of its own.

A node whose process dies (memory, segmentation fault) is that node's failure, with a name and a reason, and the others go
on. Nothing polls: the end of a process is an event. When the main process goes, in whatever way, its nodes go with it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from pathlib import Path
from tempfile import mkstemp
from time import monotonic
from traceback import format_exc
from typing import TYPE_CHECKING, Protocol

from nipype import config as nipype_config
from nipype import logging as nipype_logging
from nipype.pipeline.engine.utils import topological_sort
from nipype.pipeline.plugins.base import PluginBase

from qsmflow.interfaces.threads import environment, limit_threads, thread_environment
from qsmflow.workflows.failures import Failure, NodesFailed, last_line, signal_reason, write_crash_file

if TYPE_CHECKING:
    from networkx import DiGraph
    from nipype.pipeline.engine import Node

#: Seconds that a process is given to end by itself, once it has delivered its result or was asked to stop.
GRACE = 5.0


class Observer(Protocol):
    """Who is told what happens to the nodes of a graph."""

    def begin(self, graph: DiGraph) -> None:
        """The graph is about to run."""

    def finished(self, node: Node, printed: str) -> None:
        """A node has its result; ``printed`` is what it wrote to its terminal."""

    def failed(self, node: Node, failure: Failure, printed: str) -> None:
        """A node failed; the nodes that need it will not run."""


def start_server(*, preload: Iterable[str] = (), threads: int = 1) -> None:
    """Start the process that all nodes are forked from, and let it import heavy modules once, in the background.

    A fork of a clean process is cheap and safe; the main process has threads, and forking those is not. Calling this early
    hides the imports behind other work; a server that runs already is kept as it is.

    Parameters
    ----------
    preload : iterable of str
        Modules to import there; one that is missing is skipped.
    threads : int
        Largest number of threads of a node (thread pools are sized when libraries are loaded).
    """
    # A process looks at the main script again (it may hold classes) and imports this module, for what it has to call; with
    # that done here, it is done once.
    forkserver.set_forkserver_preload(["__main__", __name__, *preload])
    with environment(thread_environment(threads)), _without_ctrl_c():
        forkserver.ensure_running()


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that are started here ignore Ctrl-C, from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Task:
    node: Node
    process: multiprocessing.Process
    receiver: connection.Connection
    output: Path
    procs: int
    memory_gb: float


class NodeProcessPlugin(PluginBase):
    """Run each node of a graph in its own process, as many at once as processors and memory allow.

    Parameters
    ----------
    plugin_args : dict
        ``observer`` (:class:`Observer`), ``crash_dir`` (Path), ``n_procs`` (int), ``memory_gb`` (float or None: not counted),
        ``omp_nthreads`` (int: most threads of a node; a node gets its ``n_procs``).

    Raises
    ------
    NodesFailed
        From :meth:`run`, when all that could run has run.
    """

    def __init__(self, plugin_args: dict):
        super().__init__(plugin_args=plugin_args)
        self.observer: Observer = plugin_args["observer"]
        self.crash_dir = Path(plugin_args["crash_dir"])
        self.procs = plugin_args["n_procs"]
        self.memory_gb = plugin_args.get("memory_gb") or float("inf")
        self.threads = plugin_args.get("omp_nthreads", 1)
        self.plugin_args = {}  # Nipype pickles these with every MapNode
        self._tasks: list[_Task] = []

    def run(self, graph: DiGraph, config: dict, updatehash: bool = False) -> None:
        """Run the graph; Nipype calls this."""
        self.observer.begin(graph)
        start_server(preload=sorted({type(node.interface).__module__ for node in graph}), threads=self.threads)
        stop_at_once = str(config["execution"]["stop_on_first_crash"]).lower() == "true"
        order = {node: place for place, node in enumerate(topological_sort(graph, depth_first=True)[0])}
        missing = {node: graph.in_degree(node) for node in graph}
        ready = sorted((node for node in graph if not missing[node]), key=order.get)
        failures = 0
        try:
            while ready or self._tasks:
                self._start(ready, updatehash)
                for task in self._wait():
                    if self._settle(task):
                        for node in graph.successors(task.node):
                            missing[node] -= 1
                            if not missing[node]:
                                ready.append(node)
                        ready.sort(key=order.get)
                    else:
                        failures += 1
                if failures and stop_at_once:
                    break
        finally:
            self._stop()
        if failures:
            raise NodesFailed(f"{failures} step{'s' if failures > 1 else ''} failed")

    def _start(self, ready: list[Node], updatehash: bool) -> None:
        """Start what fits, in order; when nothing runs something always fits, be it larger than the machine."""
        for node in list(ready):
            procs, memory_gb = min(node.n_procs, self.procs), min(node.mem_gb, self.memory_gb)
            free_procs = self.procs - sum(task.procs for task in self._tasks)
            free_memory = self.memory_gb - sum(task.memory_gb for task in self._tasks)
            if procs <= free_procs and memory_gb <= free_memory:
                ready.remove(node)
                self._tasks.append(self._launch(node, updatehash, procs, memory_gb))

    def _launch(self, node: Node, updatehash: bool, procs: int, memory_gb: float) -> _Task:
        handle, output = mkstemp(prefix="qsmflow-node-", suffix=".txt")
        os.close(handle)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("forkserver").Process(
            target=_run_node, args=(sender, node, min(procs, self.threads), output, updatehash), name=node.itername
        )
        process.start()
        sender.close()  # so that the end of the process is the end of the pipe
        return _Task(node, process, receiver, Path(output), procs, memory_gb)

    def _wait(self) -> list[_Task]:
        """The tasks that have ended, in the order of their start; waits until there is one."""
        ended = connection.wait([task.receiver for task in self._tasks])
        return [task for task in self._tasks if task.receiver in ended]

    def _settle(self, task: _Task) -> bool:
        """Close a task that ended; whether its node succeeded."""
        try:
            traceback = task.receiver.recv()
            task.process.join(GRACE)  # some libraries hang when their process ends; the result is safe by now
            died = False
        except EOFError:
            task.process.join()
            traceback, died = "", True
        reason = signal_reason(task.process.exitcode) if died else last_line(traceback)
        self._tasks.remove(task)
        printed = _close(task)
        if not died and not traceback:
            self.observer.finished(task.node, printed)
            return True
        failure = write_crash_file(self.crash_dir, task.node, reason=reason, traceback=traceback, printed=printed)
        self.observer.failed(task.node, failure, printed)
        return False

    def _stop(self) -> None:
        """End what still runs: asked first, then killed."""
        for task in self._tasks:
            _signal(task.process, signal.SIGTERM)
        until = monotonic() + GRACE
        for task in self._tasks:
            task.process.join(max(0.0, until - monotonic()))
            _close(task)
        self._tasks.clear()


def _close(task: _Task) -> str:
    """Release what a task holds, killing what is left of it; what it printed."""
    if task.process.is_alive():
        _signal(task.process, signal.SIGKILL)
        task.process.join()
    task.process.close()
    task.receiver.close()
    printed = task.output.read_text(errors="replace")
    task.output.unlink()
    return printed


def _signal(process: multiprocessing.Process, number: int) -> None:
    """Signal a node's process group; just the process when it has not made its group yet."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _run_node(sender: connection.Connection, node: Node, threads: int, output: str, updatehash: bool) -> None:
    """Body of a node's process: send an empty string, or the traceback."""
    os.setsid()  # Ctrl-C is for the main process, which then stops the nodes in order
    _die_with_parent()
    _offer_to_oom_killer()
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    nipype_config.update_config(node.config)
    nipype_logging.update_logging(nipype_config)
    try:
        with limit_threads(threads):
            node.run(updatehash=updatehash)
    except BaseException:
        sender.send(format_exc())
    else:
        sender.send("")
    sender.close()
    sys.stdout.flush()


def _die_with_parent() -> None:
    """Have the kernel end this process when the main process is gone, even in the middle of compiled code.

    The pipe from the main process breaks when that ends. O_ASYNC turns this into the signal SIGIO, whose default action is
    to end the process. (PR_SET_PDEATHSIG would follow the fork server, which lives as long as any of its children.)
    """
    pipe = multiprocessing.parent_process().sentinel
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([pipe], [], [], 0)[0]:  # gone before we were listening
        os._exit(1)


def _offer_to_oom_killer() -> None:
    """When memory runs out, this process should go, not the one that has to report it."""
    with suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/oom_score_adj").write_text("500")
