"""Datasets of headers, and the graphs that are made of them: expanded, not run, with nothing left unconnected."""

import json

import nibabel as nb
import numpy as np
from nipype.interfaces.base import isdefined
from nipype.pipeline.engine.utils import generate_expanded_graph

from qsmflow.bids.inputs import read_dataset
from qsmflow.bids.outputs import product_path
from qsmflow.config import Execution, Recipe
from qsmflow.workflows.base import init_qsmflow_wf
from qsmflow.workflows.failures import acquisition_workflow_name

#: Field of view, mm: a head, and a slab of one.
HEAD, PATCH = 200, 60

READOUT = "readout_correction"
OFFSET, UNWRAP, FIELD = "field_wf.offset_removal", "field_wf.unwrapping", "field_wf.field_mapping"
CHECK = "field_wf.unwrapping_check"
BACKGROUND, INVERT, REFERENCE = (f"susceptibility_wf.{n}" for n in ("background_removal", "inversion", "referencing"))
BRAIN, QUALITY = "mask_wf.brain_extraction", "mask_wf.quality"
TO_T1W, TO_TEMPLATE = "registration_wf.magnitude_to_t1w", "registration_wf.magnitude_to_template"
LABELS, TABLE, CHI_T1W, CHI_TEMPLATE = "labels_wf.labels", "tabulate", "chi_to_t1w", "chi_to_template"
#: Everything between the phase and the table of regions.
CHAIN = {READOUT, OFFSET, UNWRAP, CHECK, FIELD, BACKGROUND, INVERT, REFERENCE}


class Study:
    """A BIDS dataset of headers: images of 6 x 7 x 8 voxels."""

    shape = (6, 7, 8)

    def __init__(self, root):
        self.root, self.bids = root, root / "bids"
        self.bids.mkdir()
        (self.bids / "dataset_description.json").write_text('{"Name": "headers", "BIDSVersion": "1.10.0"}')

    def image(self, path, fov=HEAD, coils=1):
        affine = np.diag([*(fov / n for n in self.shape), 1.0])
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = self.shape if coils == 1 else (*self.shape, coils)
        nb.save(nb.Nifti1Image(np.ones(shape, np.int16), affine), path)
        return str(path)

    def scan(self, sub="01", echoes=3, parts=("mag", "phase"), run="", fov=HEAD, coils=1):
        suffix = "MEGRE" if echoes > 1 else "T2starw"
        for echo in range(1, echoes + 1):
            for part in parts:
                name = f"sub-{sub}{run}" + f"_echo-{echo}" * (echoes > 1) + f"_part-{part}_{suffix}"
                path = self.bids / f"sub-{sub}" / "anat" / f"{name}.nii"
                self.image(path, fov, coils)
                path.with_suffix(".json").write_text(json.dumps({"EchoTime": 0.008 * echo, "MagneticFieldStrength": 3}))

    def t1w(self, sub="01"):
        self.image(self.bids / f"sub-{sub}" / "anat" / f"sub-{sub}_T1w.nii")

    def given(self, *products, sub="01"):
        """A derivatives dataset with ready-made maps."""
        for product in products:
            extra = {"atlas": "CIT168"} if product == "labels" else {}
            self.image(product_path(self.root / "given", {"sub": sub}, product, **extra))
        return {"derivatives": (self.root / "given",)}

    def graph(self, recipe: Recipe, **settings):
        """The expanded graph of the whole study."""
        execution = Execution(self.bids, self.root / "out", self.root / "work", **settings)
        dataset = read_dataset(execution, recipe)
        assert dataset.problems == ()
        workflow = init_qsmflow_wf(dataset.acquisitions, recipe, execution)
        flat = workflow._create_flat_graph()
        check_edges(flat)
        graph = generate_expanded_graph(flat)
        check_inputs(graph)
        return graph


def check_edges(flat):
    """Every edge starts at a declared output and ends in a declared input."""
    assert len(flat) > 10
    for source, target, data in flat.edges(data=True):
        for output, field in data["connect"]:
            output = output[0] if isinstance(output, tuple) else output
            assert output in source.outputs.copyable_trait_names(), f"{source.fullname} has no output {output}"
            assert field in target.inputs.copyable_trait_names(), f"{target.fullname} has no input {field}"


def check_inputs(graph):
    """Without the nodes of fields: every mandatory input of every node is set or connected, once."""
    for node in graph:
        fed = [field for *_, edge in graph.in_edges(node, data=True) for _, field in edge["connect"]]
        assert len(fed) == len(set(fed)), f"{node.fullname}: two edges into one of {fed}"
        for name, trait in node.inputs.traits(mandatory=True).items():
            assert isdefined(getattr(node.inputs, name)) or name in fed, (
                f"{node.fullname}.{name} is neither set nor fed ({trait})"
            )


def names(graph, sub="01"):
    """Nodes of an acquisition, without the name of its workflow."""
    prefix = f"qsmflow_wf.{acquisition_workflow_name(f'sub-{sub}')}."
    return {node.fullname.removeprefix(prefix) for node in graph if node.fullname.startswith(prefix)}


def saved(graph, sub="01"):
    return {name.removeprefix("outputs_wf.save_") for name in names(graph, sub) if name.startswith("outputs_wf.save_")}


def node(graph, name):
    return next(n for n in graph if n.fullname.endswith(name))


#: What a recipe saves that was left as it is.
SAVED = {
    "combined", "brain_mask", "qsm_mask", "r2star", "t2star", "s0", "chi", "total_field", "local_field", "field_magnitude",
    "unwrapped_1", "unwrapped_2", "unwrapped_3", "labels", "labels_table", "region_table", "chi_template", "figures", "quality",
}  # fmt: skip

#: What susceptibility weighting adds.
WEIGHTED = {"swi", "minip", "phase_mask"}
