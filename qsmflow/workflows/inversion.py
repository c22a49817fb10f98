"""From the total field to referenced susceptibility."""

from __future__ import annotations

from collections.abc import Sequence

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from qsmflow import registry
from qsmflow.interfaces.background import RemoveBackground
from qsmflow.interfaces.inversion import InvertField
from qsmflow.interfaces.passes import FindReliable, MergePasses
from qsmflow.interfaces.reference import Reference
from qsmflow.workflows.nodes import make_node, method_node
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
    name: str = "susceptibility_wf",
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
    name : str
        Name of the workflow.

    Inputs
    ------
    field, field_error, magnitude, mask : file
        Total field (local, if that is what the inversion gets without ``background``) and its standard deviation, ppm;
        magnitude of all echoes; where the field is known.
    r2star, chi_prior, region : file
        R2*, the expected susceptibility and the reference region, for methods that need them.

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
    workflow = Workflow(name=name)
    fields = ["field", "field_error", "magnitude", "mask", "r2star", "chi_prior", "region"]
    inputs = Node(IdentityInterface(fields=fields), name="inputnode")
    single_step = registry.find("inversion", inversion.name).from_total_field
    results = ["local_field"] * (not single_step) + ["chi", "mask"] + ["shift"] * bool(reference)
    outputs = Node(IdentityInterface(fields=results), name="outputnode")
    needs = {"voxels": voxels, "threads": threads}
    inverting = method_node(InvertField, "inversion", inversion, volumes=60 + len(echo_times), **needs)
    inverting.inputs.trait_set(b0=b0, echo_times=list(echo_times))
    workflow.connect([(inputs, inverting, [("field_error", "field_error"), ("magnitude", "magnitude")])])
    for name in {"r2star", "chi_prior"} & set(registry.find("inversion", inversion.name).arrays):
        workflow.connect(inputs, name, inverting, name)
    field, mask = (inputs, "field"), (inputs, "mask")
    if background:
        removal = method_node(RemoveBackground, "background_removal", background, volumes=40, **needs)
        workflow.connect([
            (inputs, removal, [("field", "total_field"), ("mask", "mask"), ("field_error", "field_error")]),
        ])  # fmt: skip
        field, mask = (removal, "local_field"), (removal, "mask")
    if single_step:
        workflow.connect(*field, inverting, "total_field")
    else:
        for node in (inverting, outputs):
            workflow.connect(*field, node, "local_field")
    for node in (inverting, outputs):
        workflow.connect(*mask, node, "mask")
    _connect_chi(workflow, (inverting, "chi"), mask, reference, voxels)
    return workflow


def init_two_pass_wf(
    background: Method | None,
    inversion: Method,
    reference: Method | None,
    *,
    threshold: float,
    echo_times: Sequence[float],
    b0: float,
    voxels: int,
    threads: int,
) -> Workflow:
    """Remove the background field and invert the dipole twice, merge both susceptibility maps, set the reference.

    The first pass takes the voxels of reliable phase alone, the second the whole mask.

    Parameters
    ----------
    background, inversion, reference, echo_times, b0, voxels, threads
        As for :func:`init_inversion_wf`.
    threshold : float
        Lowest phase quality of a reliable voxel.

    Inputs
    ------
    field, field_error, magnitude, mask, r2star, chi_prior, region : file
        As for :func:`init_inversion_wf`.
    quality : file
        ROMEO quality.

    Outputs
    -------
    local_field : file
        Local field of the second pass, ppm (none when the inversion starts from the total field).
    chi, mask, shift
        As for :func:`init_inversion_wf`.
    measured : dict
        Share of the second pass and its shift.
    notices : list of str
        What a user should know about the passes.
    """
    workflow = Workflow(name="susceptibility_wf")
    fields = ["field", "field_error", "magnitude", "mask", "quality", "r2star", "chi_prior", "region"]
    inputs = Node(IdentityInterface(fields=fields), name="inputnode")
    single_step = registry.find("inversion", inversion.name).from_total_field
    results = ["local_field"] * (not single_step) + ["chi", "mask"] + ["shift"] * bool(reference) + ["measured", "notices"]
    outputs = Node(IdentityInterface(fields=results), name="outputnode")
    reliable = make_node(FindReliable(threshold=threshold), "reliable", volumes=8, voxels=voxels)
    merge = make_node(MergePasses(), "merging", volumes=12, voxels=voxels)
    settings = {"echo_times": echo_times, "b0": b0, "voxels": voxels, "threads": threads}
    for prefix, name, source in (("first", "reliable_wf", reliable), ("second", "whole_wf", inputs)):
        chain = init_inversion_wf(background, inversion, None, name=name, **settings)
        passed = ("field", "field_error", "magnitude", "r2star", "chi_prior")
        shared = [(field, f"inputnode.{field}") for field in passed]
        workflow.connect([
            (inputs, chain, shared),
            (source, chain, [("mask", "inputnode.mask")]),
            (chain, merge, [("outputnode.chi", prefix), ("outputnode.mask", f"{prefix}_mask")]),
        ])  # fmt: skip
    workflow.connect([
        (inputs, reliable, [("mask", "mask"), ("quality", "quality")]),
        (merge, outputs, [("mask", "mask"), ("measured", "measured"), ("notices", "notices")]),
    ])  # fmt: skip
    if not single_step:
        workflow.connect(chain, "outputnode.local_field", outputs, "local_field")
    _connect_chi(workflow, (merge, "chi"), (merge, "mask"), reference, voxels)
    return workflow


def _connect_chi(
    workflow: Workflow, chi: tuple[Node, str], mask: tuple[Node, str], reference: Method | None, voxels: int
) -> None:
    """Feed the susceptibility to the outputs, after referencing if there is one."""
    inputs, outputs = (workflow.get_node(name) for name in ("inputnode", "outputnode"))
    if reference:
        zero = method_node(Reference, "referencing", reference, volumes=12, voxels=voxels)
        workflow.connect(*chi, zero, "chi")
        workflow.connect(*mask, zero, "mask")
        workflow.connect([
            (inputs, zero, [("r2star", "r2star"), ("region", "region")]),
            (zero, outputs, [("shift", "shift")]),
        ])  # fmt: skip
        chi = (zero, "chi")
    workflow.connect(*chi, outputs, "chi")
