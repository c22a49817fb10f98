"""A small workflow whose nodes do what a test asks for: add numbers, wait, fail or die.

``python toy.py FOLDER [ACQUISITION STEP]`` runs it as a program of its own (that step takes a minute).
"""

import sys
from pathlib import Path

from nipype.pipeline import engine as pe
from toy_nodes import Step

from qsmflow.config import Execution
from qsmflow.workflows.running import acquisition_workflow_name, run_workflow, stoppable

STEPS = ("load", "field", "inversion")


def make_workflow(names, counts="", actions=None, **node_options):
    """One chain of STEPS per acquisition; ``actions`` by "sub-01 step"."""
    workflow = pe.Workflow("qsmflow_wf")
    for place, name in enumerate(names, 1):
        inner = pe.Workflow(acquisition_workflow_name(name))
        before = None
        for step in STEPS:
            action = (actions or {}).get(f"{name} {step}", "")
            node = pe.Node(Step(value=place, action=action, counts=str(counts)), name=step, **node_options)
            if before is None:
                inner.add_nodes([node])
            else:
                inner.connect(before, "out_file", node, "in_files")
            before = node
        workflow.add_nodes([inner])
    return workflow


def make_shared_workflow(names, action=""):
    """Acquisitions that all need one step of a sub-workflow of its own."""
    workflow = make_workflow(names)
    shared = pe.Workflow("t1w_sub_01_T1w")
    register = pe.Node(Step(value=10, action=action), name="register")
    shared.add_nodes([register])
    for name in names:
        inner = workflow.get_node(acquisition_workflow_name(name))
        workflow.connect(shared, "register.out_file", inner, "load.in_files")
    return workflow


def make_execution(folder, **settings):
    """An execution in ``folder``."""
    return Execution(bids_dir=folder / "bids", output_dir=folder / "out", work_dir=folder / "work", **{"nprocs": 2, **settings})


def result(execution, name, step="inversion"):
    """The number that a step came to."""
    found = list(execution.work_dir.glob(f"*/qsmflow_wf/{acquisition_workflow_name(name)}/{step}/sum.txt"))
    assert len(found) == 1
    return int(found[0].read_text())


if __name__ == "__main__":
    folder, slow = Path(sys.argv[1]), sys.argv[2:]
    actions = {" ".join(slow): "sleep 60"} if slow else {}
    names = ("sub-01", "sub-02")
    with stoppable():
        done = run_workflow(make_workflow(names, folder / "counts", actions), make_execution(folder), names)
    sys.exit(len(done.failures))
