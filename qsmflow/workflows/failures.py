"""What failed, why in one line, and what to do: for the crash files and for the summary of a run."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from qsmflow.bids.outputs import write_text
from qsmflow.errors import QsmflowError

if TYPE_CHECKING:
    from nipype.pipeline.engine import Node

_MEMORY = "give the run or its jobs more memory, or let fewer steps run at once (--mem, --nprocs); the same command resumes"

#: What to do, by what is found in the reason (the first match counts).
_REMEDIES = (
    (r"signal 9\b|out.of.memory|oom|MemoryError|exit code 137", _MEMORY),
    (r"signal (4|6|7|11) ", "send the crash file to the developers; the same command runs the rest and tries this step again"),
    (r"No space left|Disk quota", "free disk space in the work and output folders; the same command resumes"),
    (r"Permission denied|Read-only file system", "make the work and output folders writable; the same command resumes"),
    (r"FileNotFoundError|No such file", "put the missing file back; the same command resumes"),
    (r"job disappeared|CANCELLED", "look in the scheduler's log why this job ended; the same command resumes"),
)
_OTHERWISE = "read the crash file; after a change of the data or the recipe the same command resumes"


@dataclass(frozen=True)
class Failure:
    """A node that failed.

    ``acquisition`` is its name (empty for a node that serves several), ``stage`` what the progress line calls it, ``node``
    the full name in the graph, ``reason`` one line, ``crash_file`` the whole story as text.
    """

    acquisition: str
    stage: str
    node: str
    reason: str
    crash_file: Path

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return next((text for pattern, text in _REMEDIES if re.search(pattern, self.reason, re.I)), _OTHERWISE)

    def __str__(self) -> str:
        who = f"{self.acquisition} " if self.acquisition else ""
        return f"{who}{self.stage}: {self.reason}\n  crash file: {self.crash_file}\n  what to do: {self.remedy}"


class NodesFailed(QsmflowError):
    """At least one node of a graph failed; the others that could run did run."""


def acquisition_workflow_name(name: str) -> str:
    """Name of the sub-workflow that holds the nodes of one acquisition.

    Examples
    --------
    >>> acquisition_workflow_name("sub-01_ses-a")
    'acq_sub_01_ses_a'
    """
    return "acq_" + re.sub(r"\W", "_", name.replace("-", "_"))


def acquisition_of(node: Node) -> str:
    """Name of the acquisition that a node belongs to, or an empty string (a BIDS label holds neither ``-`` nor ``_``)."""
    for part in node.fullname.split("."):
        if part.startswith("acq_"):
            words = part.split("_")[1:]
            return "_".join("-".join(words[i : i + 2]) for i in range(0, len(words), 2))
    return ""


def owner_of(node: Node) -> str:
    """Whose work a node does, for a person: the acquisition, or the sub-workflow that serves several."""
    parts = node.itername.split(".")
    return acquisition_of(node) or (parts[1] if len(parts) > 2 else "")


def stage_of(node: Node) -> str:
    """What a node does, for a person: its place inside the acquisition, and its method.

    A node ``chain.inversion`` with the input ``algorithm = "tv"`` is called ``inversion (tv)``.
    """
    parts = node.itername.split(".")[1:]
    inside = [part for part in parts if not part.startswith("acq_")]
    method = getattr(node.inputs, "algorithm", None)
    return (inside[-1] if inside else node.itername) + (f" ({method})" if isinstance(method, str) else "")


def signal_reason(exit_code: int) -> str:
    """One line on a process that ended without saying why.

    Examples
    --------
    >>> signal_reason(-9)
    'killed by signal 9 (SIGKILL; out of memory?)'
    >>> signal_reason(3)
    'ended with exit code 3 and no result'
    """
    if exit_code >= 0:
        return f"ended with exit code {exit_code} and no result"
    name = signal.Signals(-exit_code).name
    return f"killed by signal {-exit_code} ({name}{'; out of memory?' if exit_code == -signal.SIGKILL else ''})"


def last_line(traceback: str) -> str:
    """The line of a traceback that says what went wrong; the innermost one when errors were chained.

    Examples
    --------
    >>> last_line("Traceback (most recent call last):\\n  File x, line 1\\nValueError: no echo\\n\\n")
    'ValueError: no echo'
    """
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Warning|Interrupt|Exit|Failed)\b.*?(:|$)", line)]
    reason = (named or lines or ["no reason given"])[-1]
    return re.sub(r"^[\w.]*\.(?=\w+:)", "", reason)[:300]


def write_crash_file(folder: Path, node: Node, *, reason: str, traceback: str = "", printed: str = "") -> Failure:
    """Write the crash file of a node and return its failure.

    The file's name is the node's, so that a node that fails in run after run has one crash file, the last.
    """
    failure = Failure(acquisition_of(node), stage_of(node), node.itername, reason, crash_file(folder, node))
    inputs = "\n".join(f"  {key} = {value!r}" for key, value in sorted(node.inputs.get_traitsfree().items()))
    sections = {
        "Inputs set when the graph was made (the rest comes from other nodes)": inputs,
        "Traceback": traceback.strip("\n"),
        "Last lines that the node printed": "\n".join(printed.splitlines()[-60:]),
    }
    head = {
        "node": node.itername, "acquisition": failure.acquisition, "step": failure.stage,
        "interface": f"{type(node.interface).__module__}.{type(node.interface).__name__}",
        "time": datetime.now().astimezone().isoformat(timespec="seconds"), "work folder": node.output_dir(),
        "reason": reason, "what to do": failure.remedy,
    }  # fmt: skip
    text = "".join(f"{key + ':':<13}{value}\n" for key, value in head.items() if value)
    text += "".join(f"\n{title}:\n{body}\n" for title, body in sections.items() if body)
    write_text(failure.crash_file, text)
    return failure


def crash_file(folder: Path, node: Node) -> Path:
    """Where the crash file of a node lies."""
    return folder / f"crash_{'_'.join(node.itername.split('.')[1:]) or node.itername}.txt"
