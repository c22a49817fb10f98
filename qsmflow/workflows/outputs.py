"""Saving: one node per product, all fed from one node of fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from qsmflow.bids.outputs import PRODUCTS, sidecar
from qsmflow.interfaces.outputs import SaveDerivative
from qsmflow.interfaces.reports import SaveFigures
from qsmflow.workflows.nodes import make_node
from qsmflow.workflows.plan import Plan


def init_outputs_wf(
    plan: Plan,
    products: Mapping[str, Mapping],
    *,
    output_dir: Path,
    datasets: Mapping[str, Path],
    measured: tuple[str, ...] = (),
) -> Workflow:
    """Save the products of one acquisition under their BIDS names, with sidecars.

    Parameters
    ----------
    plan : Plan
        The acquisition and its recipe.
    products : mapping of str to mapping
        Products to save (keys of :data:`qsmflow.bids.outputs.PRODUCTS`) with settings of
        :class:`qsmflow.interfaces.outputs.SaveDerivative`. A key may carry a suffix after a colon (``unwrapped:2``) where a
        product is saved more than once.
    output_dir : Path
        Root of the output tree.
    datasets : mapping of str to Path
        Datasets that the sources lie in.
    measured : tuple of str
        Products whose sidecar gets what only the run could know.

    Inputs
    ------
    <product> : file
        The work file of each product (its name without the suffix).
    <product>_measured : dict
        Of the products in ``measured``.
    figures : list of file
        The pictures of the report.
    """
    workflow = Workflow(name="outputs_wf")
    names = list(dict.fromkeys(key.partition(":")[0] for key in products))
    fields = [*names, *(f"{name}_measured" for name in measured), "figures"]
    inputs = Node(IdentityInterface(fields=fields), name="inputnode")
    entities = dict(plan.acquisition.entities)
    for key, settings in products.items():
        name = key.partition(":")[0]
        save = SaveDerivative(output_dir=str(output_dir), entities=entities, product=name, **settings)
        if PRODUCTS[name].is_image:
            save.inputs.metadata = sidecar(name, plan.acquisition, plan.recipe, datasets=datasets, skipped=plan.skipped)
        node = make_node(save, "save_" + key.replace(":", "_"), volumes=6, voxels=plan.voxels)
        workflow.connect(inputs, name, node, "in_file")
        if name in measured:
            workflow.connect(inputs, f"{name}_measured", node, "measured")
    figures = make_node(SaveFigures(output_dir=str(output_dir), entities=entities), "save_figures")
    workflow.connect(inputs, "figures", figures, "in_files")
    return workflow
