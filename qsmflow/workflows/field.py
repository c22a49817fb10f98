"""From wrapped phase to the total field."""

from __future__ import annotations

from collections.abc import Sequence

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from qsmflow.interfaces.coils import RemoveOffset
from qsmflow.interfaces.field import MapField
from qsmflow.interfaces.unwrap import CheckPhase, UnwrapPhase
from qsmflow.workflows.nodes import method_node
from qsmflow.workflows.plan import Method


def init_field_wf(
    offset: Method | None,
    unwrap: Method,
    check: Method | None,
    field: Method,
    *,
    echo_times: Sequence[float],
    b0: float,
    voxels: int,
    threads: int,
) -> Workflow:
    """Remove the phase offset, unwrap, check that, and fit the total field.

    Parameters
    ----------
    offset : Method or None
        Offset removal; None leaves the phase as it is.
    unwrap : Method
        Unwrapping.
    check : Method or None
        Check of the unwrapped phase, and unwrapping by another method where it fails; None takes it as it is.
    field : Method
        Field mapping.
    echo_times : sequence of float
        Echo times, s.
    b0 : float
        Main field strength, T.
    voxels, threads : int
        Voxels of one volume; cores of a node.

    Inputs
    ------
    phase, magnitude, mask : file
        Wrapped phase and magnitude of all echoes; where the field is wanted.

    Outputs
    -------
    unwrapped : file
        Unwrapped phase of all echoes, rad.
    total_field, field_error : file
        Total field and its standard deviation, ppm.
    residual : file
        What the fit leaves, rad.
    notices : list of str
        What a user should know about the unwrapped phase (with ``check``).
    """
    workflow = Workflow(name="field_wf")
    inputs = Node(IdentityInterface(fields=["phase", "magnitude", "mask"]), name="inputnode")
    results = ["total_field", "field_error", "residual"]
    outputs = Node(IdentityInterface(fields=["unwrapped", *results] + ["notices"] * bool(check)), name="outputnode")
    needs = {"volumes": 4 * len(echo_times) + 12, "voxels": voxels, "threads": threads}
    unwrapping = method_node(UnwrapPhase, "unwrapping", unwrap, **needs)
    mapping = method_node(MapField, "field_mapping", field, **needs)
    mapping.inputs.b0 = b0
    source = inputs
    if offset:
        removal = method_node(RemoveOffset, "offset_removal", offset, **needs)
        removal.inputs.echo_times = list(echo_times)
        workflow.connect([(inputs, removal, [(name, name) for name in ("phase", "magnitude", "mask")])])
        source = removal
    unwrapped, checking = unwrapping, []
    if check:
        unwrapped = method_node(CheckPhase, "unwrapping_check", check, **needs)
        workflow.connect([
            (unwrapping, unwrapped, [("phase", "phase")]),
            (unwrapped, outputs, [("notices", "notices")]),
        ])  # fmt: skip
        checking = [unwrapped]
    for node in (unwrapping, *checking, mapping):
        node.inputs.echo_times = list(echo_times)
        workflow.connect([(inputs, node, [("magnitude", "magnitude"), ("mask", "mask")])])
    workflow.connect([
        (source, unwrapping, [("phase", "phase")]),
        (unwrapped, mapping, [("phase", "phase")]),
        (unwrapped, outputs, [("phase", "unwrapped")]),
        (mapping, outputs, [(name, name) for name in results]),
    ])  # fmt: skip
    return workflow
