"""Writing datasets, and running their graphs in the process of the test."""

import json

import nibabel as nb
import pytest

from qsmflow.bids.inputs import read_dataset
from qsmflow.config import Execution
from qsmflow.workflows.base import init_qsmflow_wf
from qsmflow.workflows.failures import acquisition_workflow_name

DESCRIPTION = '{"Name": "simulated", "BIDSVersion": "1.10.0"}'


@pytest.fixture(scope="session")
def save():
    """Write an image and its sidecar: ``save(path, data, affine, slope=1, intercept=0, **sidecar)``, path without ending."""

    def save(path, data, affine, slope=1.0, intercept=0.0, **sidecar):
        image = nb.Nifti1Image(data, affine)
        image.header.set_slope_inter(slope, intercept)
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        nb.save(image, f"{path}.nii.gz")
        if sidecar:
            path.with_name(f"{path.name}.json").write_text(json.dumps(sidecar))
        return f"{path}.nii.gz"

    return save


@pytest.fixture(scope="session")
def process():
    """Run the graph of some participants: ``process(root, folder, recipe, *labels, reports=(), **settings)``.

    The folder of the outputs is returned. Drawing takes longer than computing here: only ``reports`` get their pictures.
    """

    def process(root, folder, recipe, *labels, reports=(), **settings):
        (root / "dataset_description.json").write_text(DESCRIPTION)
        execution = Execution(root, folder / "out", folder / "work", participant_label=labels, **settings)
        found = read_dataset(execution, recipe)
        assert found.problems == ()
        workflow = init_qsmflow_wf(found.acquisitions, recipe, execution)
        for acquisition in found.acquisitions:
            if acquisition.entities["sub"] not in reports:
                single = workflow.get_node(acquisition_workflow_name(acquisition.name))
                outputs = single.get_node("outputs_wf")
                single.remove_nodes([single.get_node("report")])
                outputs.remove_nodes([outputs.get_node("save_figures"), outputs.get_node("save_quality")])
        workflow.base_dir = str(execution.work_dir)
        workflow.config["execution"] = {"crashdump_dir": str(folder), "create_report": "false", "stop_on_first_crash": "true"}
        workflow.run(plugin="Linear")
        return execution.output_dir

    return process
