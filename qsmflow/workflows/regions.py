"""Atlas regions: registration, labels on the gradient-echo images, the table of values."""

from __future__ import annotations

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node, Workflow

from qsmflow.bids.atlas import Atlas, template_file
from qsmflow.interfaces.registration import BrainPrior, Register, Warp
from qsmflow.workflows.nodes import make_node

#: Volumes of the template's size that ANTs holds while it registers; the template has 8.5 million voxels.
_TEMPLATE = {"volumes": 40, "voxels": 8_500_000}


def init_anatomy_wf(t1w: str, *, name: str) -> Workflow:
    """Find the brain in a T1-weighted image and register it to the template.

    Parameters
    ----------
    t1w : str
        The image.
    name : str
        Name of the workflow.

    Outputs
    -------
    t1w, mask : file
        The image and its brain.
    forward, forward_flags, inverse, inverse_flags : list
        Transforms to and from the template, and which of them are to be inverted.
    similarity : float
        Of the image and the template after registration.
    """
    workflow = Workflow(name=name)
    names = ["forward", "forward_flags", "inverse", "inverse_flags", "similarity"]
    outputs = Node(IdentityInterface(fields=["t1w", "mask", *names]), name="outputnode")
    outputs.inputs.t1w = t1w
    find = BrainPrior(in_file=t1w, template=template_file("head"), template_mask=template_file("head_mask"))
    brain = make_node(find, "t1w_brain_extraction", volumes=12, voxels=_TEMPLATE["voxels"])
    register = Register(moving=t1w, fixed=template_file("brain"), focus=template_file("nuclei"), kind="SyN")
    registration = make_node(register, "t1w_to_template", **_TEMPLATE)
    workflow.connect([
        (brain, registration, [("mask", "moving_mask")]),
        (brain, outputs, [("mask", "mask")]),
        (registration, outputs, [(name, name) for name in names]),
    ])  # fmt: skip
    return workflow


def init_registration_wf(through: str) -> Workflow:
    """Register the magnitude to the template, through the subject's T1-weighted image or directly.

    Parameters
    ----------
    through : {"t1w", "magnitude"}
        With or without a T1-weighted image.

    Inputs
    ------
    magnitude, mask : file
        Magnitude of all echoes (the first is registered) and the brain.
    t1w, t1w_mask, forward, forward_flags, inverse, inverse_flags, similarity
        From :func:`init_anatomy_wf`, with ``through="t1w"``.

    Outputs
    -------
    forward, forward_flags, inverse, inverse_flags : list
        Transforms from the gradient-echo images to the template and back.
    t1w_forward, t1w_forward_flags, t1w_inverse, t1w_inverse_flags : list
        The same for the T1-weighted image, with ``through="t1w"``.
    similarity, t1w_similarity : float
        Of the image that was registered to the template and the template; with ``through="t1w"``, of the magnitude and the
        T1-weighted image.
    """
    workflow = Workflow(name="registration_wf")
    names = ["forward", "forward_flags", "inverse", "inverse_flags"]
    anatomy = ["t1w", "t1w_mask", "similarity", *names] if through == "t1w" else []
    inputs = Node(IdentityInterface(fields=["magnitude", "mask", *anatomy]), name="inputnode")
    own = [*names, "similarity"]
    fields = own + [f"t1w_{name}" for name in own] * (through == "t1w")
    outputs = Node(IdentityInterface(fields=fields), name="outputnode")
    if through == "magnitude":
        register = Register(fixed=template_file("brain"), focus=template_file("nuclei"), kind="SyN")
        direct = make_node(register, "magnitude_to_template", **_TEMPLATE)
        workflow.connect([
            (inputs, direct, [("magnitude", "moving"), ("mask", "moving_mask")]),
            (direct, outputs, [(name, name) for name in own]),
        ])  # fmt: skip
        return workflow
    rigid = make_node(Register(kind="Rigid"), "magnitude_to_t1w", **_TEMPLATE)
    workflow.connect([
        (inputs, rigid, [("magnitude", "moving"), ("mask", "moving_mask"), ("t1w", "fixed"), ("t1w_mask", "fixed_mask")]),
        (rigid, outputs, [(name, f"t1w_{name}") for name in own]),
        (inputs, outputs, [("similarity", "similarity")]),
    ])  # fmt: skip
    # ANTs applies the last transform of a list first
    for name in names:
        first, second = (inputs, rigid) if name.startswith("forward") else (rigid, inputs)
        chain = Node(Merge(2), name=f"chain_{name}", run_without_submitting=True)
        workflow.connect(first, name, chain, "in1")
        workflow.connect(second, name, chain, "in2")
        workflow.connect(chain, "out", outputs, name)
    return workflow


def init_labels_wf(atlas: Atlas, labels_file: str, through: str, *, voxels: int) -> Workflow:
    """Bring the labels of an atlas to the gradient-echo images.

    Parameters
    ----------
    atlas : Atlas
        The atlas.
    labels_file : str
        Its labels, or ready-made ones in the space of the images.
    through : {"t1w", "magnitude", "native"}
        How they come.
    voxels : int
        Voxels of one volume.

    Inputs
    ------
    magnitude : file
        The grid that is wanted.
    inverse, inverse_flags, t1w_inverse, t1w_inverse_flags : list
        From :func:`init_registration_wf`, unless ``through`` is ``"native"``.

    Outputs
    -------
    labels : file
        Labels on the gradient-echo images.
    """
    workflow = Workflow(name="labels_wf")
    prefix = "t1w_" if atlas.space == "T1w" else ""
    moved = through != "native"
    fields = ["magnitude"] + [f"{prefix}inverse", f"{prefix}inverse_flags"] * moved
    inputs = Node(IdentityInterface(fields=fields), name="inputnode")
    outputs = Node(IdentityInterface(fields=["labels"]), name="outputnode")
    if moved:
        warp = make_node(Warp(in_file=labels_file, labels=True), "labels", volumes=60, voxels=voxels)
        transforms = [(f"{prefix}inverse", "transforms"), (f"{prefix}inverse_flags", "flags")]
        workflow.connect([
            (inputs, warp, [("magnitude", "reference"), *transforms]),
            (warp, outputs, [("out_file", "labels")]),
        ])  # fmt: skip
    else:
        outputs.inputs.labels = labels_file
        workflow.add_nodes([outputs])  # which no connection does here
    return workflow
