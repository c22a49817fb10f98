"""Several orientations of one head, each with its local field, to one susceptibility map."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from qsmflow.bids.orientations import Orientations
from qsmflow.bids.outputs import bids_uri, sidecar
from qsmflow.interfaces.multiorientation import CombineOrientations
from qsmflow.interfaces.outputs import SaveDerivative
from qsmflow.interfaces.reference import Reference
from qsmflow.interfaces.registration import AlignOrientation, Register
from qsmflow.interfaces.reports import COSMOS, OrientationsReport, SaveFigures
from qsmflow.workflows.nodes import make_node, method_node
from qsmflow.workflows.plan import Plan

#: What each acquisition gives: field here, node and field of its graph.
_GIVES = {
    "local_field": "susceptibility_wf.outputnode.local_field",
    "mask": "susceptibility_wf.outputnode.mask",
    "field_error": "susceptibility_wf.inputnode.field_error",
    "magnitude": "load.magnitude",
    "brain": "mask_wf.outputnode.brain",
}

#: What only the first one gives, for references that need it.
_FIRST_GIVES = {"r2star": "susceptibility_wf.inputnode.r2star", "region": "susceptibility_wf.inputnode.region"}


def init_multiorientation_wf(
    group: Orientations, plans: Mapping[str, Plan], *, output_dir: Path, datasets: Mapping[str, Path]
) -> Workflow:
    """Register the orientations to the first, combine their local fields, set the reference, and save.

    Parameters
    ----------
    group : Orientations
        The acquisitions.
    plans : mapping of str to Plan
        What is done with each, by its name.
    output_dir : Path
        Root of the output tree.
    datasets : mapping of str to Path
        Datasets that the sources lie in.

    Inputs
    ------
    <field>_<n> : file
        ``local_field``, ``mask``, ``field_error``, ``magnitude`` and ``brain`` of the n-th acquisition (from 1).
    r2star, region : file
        R2* and reference region of the first one, for references that need them.
    """
    workflow = Workflow(name="cosmos_" + re.sub(r"\W", "_", group.name.replace("-", "_")))
    count, first = len(group.members), plans[group.members[0].name]
    numbers = range(1, count + 1)
    fields = [f"{name}_{n}" for n in numbers for name in _GIVES]
    inputs = Node(IdentityInterface(fields=[*fields, *_FIRST_GIVES]), name="inputnode")
    combine = make_node(
        CombineOrientations(names=[member.name for member in group.members]), "combine", volumes=75 + 7 * count,
        voxels=first.voxels,
    )  # fmt: skip
    lists = {"local_field": "local_fields", "mask": "masks", "field_error": "field_errors", "b0_dir": "directions"}
    for target in lists.values():
        merge = Node(Merge(count, no_flatten=True), name=f"all_{target}", run_without_submitting=True)
        workflow.connect(merge, "out", combine, target)
    similarities = Node(Merge(count - 1), name="all_similarities", run_without_submitting=True)
    workflow.connect(similarities, "out", combine, "similarities")
    for n in numbers:
        voxels = plans[group.members[n - 1].name].voxels
        align = make_node(AlignOrientation(), f"align_{n}", volumes=20, voxels=max(voxels, first.voxels))
        workflow.connect([(inputs, align, [(f"{name}_{n}", name) for name in ("local_field", "mask", "field_error")])])
        workflow.connect(inputs, "local_field_1", align, "reference")
        if n > 1:
            register = make_node(Register(kind="Rigid"), f"register_{n}", volumes=20, voxels=max(voxels, first.voxels))
            workflow.connect([
                (inputs, register, [(f"magnitude_{n}", "moving"), (f"brain_{n}", "moving_mask")]),
                (inputs, register, [("magnitude_1", "fixed"), ("brain_1", "fixed_mask")]),
                (register, align, [("forward", "transforms")]),
            ])  # fmt: skip
            workflow.connect(register, "similarity", similarities, f"in{n - 1}")
        for name, target in lists.items():
            workflow.connect(align, name, workflow.get_node(f"all_{target}"), f"in{n}")
    chi = (combine, "chi")
    if first.runs("reference"):
        zero = method_node(Reference, "referencing", first.method("reference"), volumes=12, voxels=first.voxels)
        workflow.connect([
            (combine, zero, [("chi", "chi"), ("mask", "mask")]),
            (inputs, zero, [(name, name) for name in _FIRST_GIVES]),
        ])  # fmt: skip
        chi = (zero, "chi")
    sources = [bids_uri(path, datasets) for member in group.members for path in member.sources]
    for product, source in (("chi_cosmos", chi), ("mask_cosmos", (combine, "mask"))):
        save = SaveDerivative(output_dir=str(output_dir), entities=dict(group.entities), product=product)
        told = sidecar(product, group.members[0], first.recipe, datasets=datasets)
        save.inputs.metadata = {**told, "Sources": sources}
        node = make_node(save, f"save_{product}", volumes=6, voxels=first.voxels)
        workflow.connect(*source, node, "in_file")
        workflow.connect(combine, "measured", node, "measured")
    report = OrientationsReport(name=group.name, reference=first.recipe.reference)
    report = make_node(report, "report", volumes=12, voxels=first.voxels)
    figures = SaveFigures(output_dir=str(output_dir), entities=dict(group.entities), family=COSMOS)
    figures = make_node(figures, "save_figures")
    workflow.connect([
        (combine, report, [("mask", "mask")]),
        (report, figures, [("figures", "in_files")]),
    ])  # fmt: skip
    workflow.connect(*chi, report, "chi")
    return workflow


def connect_orientations(
    workflow: Workflow, combination: Workflow, singles: Mapping[str, Workflow], group: Orientations, first: Plan
) -> None:
    """Feed a combination of orientations from the graphs of its acquisitions.

    Parameters
    ----------
    workflow : Workflow
        Holds them all.
    combination : Workflow
        From :func:`init_multiorientation_wf`.
    singles : mapping of str to Workflow
        Graphs of the acquisitions, by name.
    group : Orientations
        The acquisitions.
    first : Plan
        What is done with the first one.
    """
    for n, member in enumerate(group.members, 1):
        pairs = [(source, f"inputnode.{name}_{n}") for name, source in _GIVES.items()]
        workflow.connect([(singles[member.name], combination, pairs)])
    if first.runs("reference"):
        given = {"r2star": first.runs("relaxometry"), "region": bool(first.recipe.reference_region)}
        pairs = [(source, f"inputnode.{name}") for name, source in _FIRST_GIVES.items() if given[name]]
        if pairs:
            workflow.connect([(singles[group.members[0].name], combination, pairs)])
