"""From the total field to referenced susceptibility."""

from __future__ import annotations

from collections.abc import Sequence

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from qsmflow import registry
from qsmflow.interfaces.background import RemoveBackground
from qsmflow.interfaces.inversion import InvertField
from qsmflow.interfaces.reference import Reference
from qsmflow.workflows.nodes import method_node
from qsmflow.workflows.plan import Method


def init_inversion_wf(
    background: Method | None,
    inversion: Method,
    reference: Method | None,
    *,
    echo_times: Sequence[float],
    b0: float,
    voxels: int,
    threads: int,
) -> Workflow:
    """Remove the background field, invert the dipole, set the reference.

    Parameters
    ----------
    background : Method or None
        Background removal; None takes the field as it is: local already, or total for an inversion that starts from it.
    inversion : Method
        Dipole inversion.
    reference : Method or None
        Referencing; None leaves the inversion's constant.
    echo_times : sequence of float
        Echo times, s.
    b0 : float
        Main field strength, T.
    voxels, threads : int
        Voxels of one volume; cores of a node.

    Inputs
    ------
    field, field_error, magnitude, mask : file
        Total field (local, if that is what the inversion gets without ``background``) and its standard deviation, ppm;
        magnitude of all echoes; where the field is known.
    r2star, region : file
        R2* and the reference region, for methods that need them.

    Outputs
    -------
    local_field : file
        Local field, ppm (none when the inversion starts from the total field).
    chi : file
        Susceptibility, ppm.
    mask : file
        Where both are valid.
    shift : float
        What the reference subtracted, ppm (with ``reference``).
    """
    workflow = Workflow(name="susceptibility_wf")
    fields = ["field", "field_error", "magnitude", "mask", "r2star", "region"]
    inputs = Node(IdentityInterface(fields=fields), name="inputnode")
    single_step = registry.find("inversion", inversion.name).from_total_field
    results = ["local_field"] * (not single_step) + ["chi", "mask"] + ["shift"] * bool(reference)
    outputs = Node(IdentityInterface(fields=results), name="outputnode")
    needs = {"voxels": voxels, "threads": threads}
    inverting = method_node(InvertField, "inversion", inversion, volumes=60 + len(echo_times), **needs)
    inverting.inputs.trait_set(b0=b0, echo_times=list(echo_times))
    workflow.connect([(inputs, inverting, [("field_error", "field_error"), ("magnitude", "magnitude")])])
    if "r2star" in registry.find("inversion", inversion.name).arrays:
        workflow.connect(inputs, "r2star", inverting, "r2star")
    field, mask = (inputs, "field"), (inputs, "mask")
    if background:
        removal = method_node(RemoveBackground, "background_removal", background, volumes=40, **needs)
        workflow.connect([
            (inputs, removal, [("field", "total_field"), ("mask", "mask"), ("field_error", "field_error")]),
        ])  # fmt: skip
        field, mask = (removal, "local_field"), (removal, "mask")
    chi = (inverting, "chi")
    if single_step:
        workflow.connect(*field, inverting, "total_field")
    else:
        for node in (inverting, outputs):
            workflow.connect(*field, node, "local_field")
    for node in (inverting, outputs):
        workflow.connect(*mask, node, "mask")
    if reference:
        zero = method_node(Reference, "referencing", reference, volumes=12, voxels=voxels)
        workflow.connect(*chi, zero, "chi")
        workflow.connect(*mask, zero, "mask")
        workflow.connect([(inputs, zero, [("r2star", "r2star"), ("region", "region")])])
        workflow.connect(zero, "shift", outputs, "shift")
        chi = (zero, "chi")
    workflow.connect(*chi, outputs, "chi")
    return workflow
