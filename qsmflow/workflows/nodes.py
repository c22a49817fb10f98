"""Making nodes: what they need of the machine, and the method that they run."""

from __future__ import annotations

from nipype.interfaces.base import BaseInterface
from nipype.pipeline.engine import Node

from qsmflow.workflows.plan import Method

#: Memory of a process before it reads an image, GB.
_BASE_GB = 0.4


def make_node(interface: BaseInterface, name: str, *, volumes: float = 0, voxels: int = 0, threads: int = 1) -> Node:
    """A node that needs the memory of ``volumes`` float32 volumes of ``voxels`` voxels, and ``threads`` cores."""
    return Node(interface, name=name, mem_gb=round(_BASE_GB + 4e-9 * volumes * voxels, 2), n_procs=threads)


def method_node(interface: type[BaseInterface], name: str, method: Method, **needs) -> Node:
    """A node of a stage interface with its method set."""
    settings = {"algorithm": method.name, "parameters": method.parameters, "version": method.version}
    return make_node(interface(**settings), name, **needs)
