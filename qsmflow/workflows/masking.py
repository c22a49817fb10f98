"""The mask."""

from __future__ import annotations

from collections.abc import Sequence

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from qsmflow.bids.atlas import template_file
from qsmflow.interfaces.masking import CheckMask, MakeMask
from qsmflow.interfaces.registration import BrainPrior
from qsmflow.interfaces.unwrap import RatePhase
from qsmflow.workflows.nodes import make_node
from qsmflow.workflows.plan import Method


def init_mask_wf(
    methods: Sequence[Method],
    expression: str,
    mask_file: str | None,
    *,
    echo_times: Sequence[float],
    has_phase: bool,
    voxels: int,
) -> Workflow:
    """Find the voxels to work on.

    Parameters
    ----------
    methods : sequence of Method
        Masking methods.
    expression : str
        How their masks are combined.
    mask_file : str or None
        A ready-made mask, used instead.
    echo_times : sequence of float
        Echo times, s.
    has_phase : bool
        Whether the acquisition has phase.
    voxels : int
        Voxels of one volume.

    Inputs
    ------
    magnitude, phase : file
        All echoes; phase only with ``has_phase``.

    Outputs
    -------
    mask : file
        Voxels to work on.
    brain : file
        The same before voxels of unreliable phase were taken out.
    quality : file
        ROMEO quality, with ``has_phase``.
    notices : list of str
        What a user should know about the mask.
    """
    workflow = Workflow(name="mask_wf")
    inputs = Node(IdentityInterface(fields=["magnitude"] + ["phase"] * has_phase), name="inputnode")
    fields = ["mask", "brain", "notices"] + ["quality"] * has_phase
    outputs = Node(IdentityInterface(fields=fields), name="outputnode")
    mask = make_node(CheckMask(in_file=mask_file) if mask_file else MakeMask(), "mask", volumes=16, voxels=voxels)
    workflow.connect([
        (inputs, mask, [("magnitude", "magnitude")]),
        (mask, outputs, [("mask", "mask"), ("brain", "brain"), ("notices", "notices")]),
    ])  # fmt: skip
    if has_phase:
        rate = RatePhase(echo_times=list(echo_times))
        quality = make_node(rate, "quality", volumes=2 * len(echo_times) + 8, voxels=voxels)
        workflow.connect([
            (inputs, quality, [("magnitude", "magnitude"), ("phase", "phase")]),
            (quality, outputs, [("quality", "quality")]),
        ])  # fmt: skip
    if mask_file:
        return workflow
    names = [method.name for method in methods]
    mask.inputs.methods = [tuple(method) for method in methods]
    mask.inputs.expression = expression
    if "quality" in names:
        workflow.connect(quality, "quality", mask, "quality")
    if "template" in names:
        find = BrainPrior(template=template_file("head"), template_mask=template_file("head_mask"))
        prior = make_node(find, "brain_extraction", volumes=8, voxels=voxels)
        workflow.connect([
            (inputs, prior, [("magnitude", "in_file")]),
            (prior, mask, [("prior", "prior")]),
        ])  # fmt: skip
    return workflow
