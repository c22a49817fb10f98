"""The whole graph, and the only reader of the configuration: everything below gets its settings by argument."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from qsmflow import registry
from qsmflow.algorithms.units import hz_per_ppm
from qsmflow.bids.atlas import template_file
from qsmflow.bids.inputs import Acquisition
from qsmflow.bids.orientations import group_orientations
from qsmflow.bids.outputs import bids_uri, dataset_roots
from qsmflow.config import Execution, Recipe
from qsmflow.interfaces.combination import CombineCoils
from qsmflow.interfaces.field import TakeField
from qsmflow.interfaces.inputs import PARTS, LoadAcquisition
from qsmflow.interfaces.magnitude import CombineMagnitude
from qsmflow.interfaces.readout import CorrectReadout
from qsmflow.interfaces.regions import ExpectRegions, PickRegion, TabulateRegions
from qsmflow.interfaces.registration import Warp
from qsmflow.interfaces.relaxometry import MapRelaxation
from qsmflow.interfaces.reports import AcquisitionReport
from qsmflow.interfaces.separation import EchoField, SeparateSources, StackEchoes
from qsmflow.interfaces.swi import WeightMagnitude
from qsmflow.workflows.failures import acquisition_workflow_name
from qsmflow.workflows.field import init_field_wf
from qsmflow.workflows.inversion import init_inversion_wf, init_two_pass_wf
from qsmflow.workflows.masking import init_mask_wf
from qsmflow.workflows.multiorientation import connect_orientations, init_multiorientation_wf
from qsmflow.workflows.nodes import make_node, method_node
from qsmflow.workflows.outputs import init_outputs_wf
from qsmflow.workflows.plan import Method, Plan, plan_acquisition
from qsmflow.workflows.regions import init_anatomy_wf, init_labels_wf, init_registration_wf

#: What source separation gives.
_SOURCES = ("chi_para", "chi_dia")

_TRANSFORMS = ("forward", "forward_flags", "inverse", "inverse_flags")


def init_qsmflow_wf(acquisitions: Sequence[Acquisition], recipe: Recipe, execution: Execution) -> Workflow:
    """The graph of a run: one sub-workflow per acquisition, per T1-weighted image they share, and per head with orientations.

    Parameters
    ----------
    acquisitions : sequence of Acquisition
        What to process.
    recipe : Recipe
        What to compute; adapted to each acquisition by :func:`qsmflow.workflows.plan.plan_acquisition`.
    execution : Execution
        Folders and cores.

    Returns
    -------
    Workflow
        Not run; its ``base_dir`` is not set.
    """
    workflow = Workflow(name="qsmflow_wf")
    anatomies: dict[str, Workflow] = {}
    plans, singles = {}, {}
    for acquisition in acquisitions:
        plan = plan_acquisition(acquisition, recipe, execution)
        single = init_acquisition_wf(plan, execution)
        plans[acquisition.name], singles[acquisition.name] = plan, single
        workflow.add_nodes([single])
        if plan.regions == "t1w" or "T1w" in plan.warped_spaces:
            t1w = acquisition.t1w
            if t1w not in anatomies:
                stem = t1w.rpartition("/")[2].partition(".")[0]
                anatomies[t1w] = init_anatomy_wf(t1w, name="t1w_" + re.sub(r"\W", "_", stem))
            names = ["t1w", ("mask", "t1w_mask"), "similarity", *_TRANSFORMS]
            pairs = [(n if isinstance(n, tuple) else (n, n)) for n in names]
            workflow.connect([
                (anatomies[t1w], single, [(f"outputnode.{a}", f"registration_wf.inputnode.{b}") for a, b in pairs]),
            ])  # fmt: skip
    datasets = dataset_roots(execution.bids_dir, execution.derivatives)
    for group in group_orientations(acquisitions, recipe.cosmos):
        combination = init_multiorientation_wf(group, plans, output_dir=execution.output_dir, datasets=datasets)
        connect_orientations(workflow, combination, singles, group, plans[group.members[0].name])
    return workflow


def init_acquisition_wf(plan: Plan, execution: Execution) -> Workflow:
    """The graph of one acquisition.

    Parameters
    ----------
    plan : Plan
        The acquisition and what to do with it.
    execution : Execution
        Folders and cores.

    Returns
    -------
    Workflow
        Everything passes through one node of fields, ``results``: stages feed it, outputs and the report read it. With
        registration through a T1w, ``registration_wf.inputnode`` waits for the outputs of
        :func:`qsmflow.workflows.regions.init_anatomy_wf`.
    """
    graph = _Acquisition(plan, execution)
    graph.load()
    graph.mask()
    graph.relaxometry()
    graph.readout()
    graph.field()
    graph.regions()
    graph.susceptibility()
    graph.separation()
    graph.weighting()
    graph.table()
    graph.report()
    graph.save()
    return graph.workflow


class _Acquisition:
    """Builds the graph of one acquisition stage by stage; :attr:`have` maps what exists so far to where it comes from."""

    def __init__(self, plan: Plan, execution: Execution):
        self.plan, self.execution = plan, execution
        self.workflow = Workflow(name=acquisition_workflow_name(plan.acquisition.name))
        self.echo_times = list(plan.acquisition.echo_times)
        self.needs = {"voxels": plan.voxels, "threads": min(execution.omp_nthreads, execution.nprocs)}
        self.have: dict[str, tuple[Node | Workflow, str]] = {}

    def feed(self, target: Node | Workflow, **fields: str) -> None:
        """Connect fields of a node (``inputnode`` of a workflow) to what exists under the given names; others are left out."""
        prefix = "inputnode." if isinstance(target, Workflow) else ""
        for field, name in fields.items():
            if name in self.have:
                source, output = self.have[name]
                self.workflow.connect(source, output, target, prefix + field)

    def gain(self, source: Node | Workflow, **names: str) -> None:
        """Note that outputs of a node (``outputnode`` of a workflow) exist now: ``name=output``."""
        prefix = "outputnode." if isinstance(source, Workflow) else ""
        self.have |= {name: (source, prefix + output) for name, output in names.items()}

    def load(self) -> None:
        acquisition = self.plan.acquisition
        parts = {part: [astuple(v) for v in getattr(acquisition, part)] for part in PARTS}
        how = {"phase_units": acquisition.phase_units, "phase_sign": self.plan.recipe.phase_sign}
        if self.plan.runs("coils"):
            node = self.combine_coils(parts, how)
        else:
            node = make_node(
                LoadAcquisition(**parts, **how), "load", volumes=2 * len(self.echo_times) + 6, voxels=self.plan.voxels
            )
        self.workflow.add_nodes([node])
        self.gain(node, magnitude="magnitude", loaded="report", **({"phase": "phase"} if self.plan.has_phase else {}))
        combine = make_node(CombineMagnitude(), "combine_magnitude", volumes=len(self.echo_times) + 3, voxels=self.plan.voxels)
        self.feed(combine, magnitude="magnitude")
        self.gain(combine, combined="combined")

    def combine_coils(self, parts: Mapping[str, Sequence[tuple]], how: Mapping[str, str]) -> Node:
        """The node that takes the place of loading where the coils were not combined."""
        acquisition = self.plan.acquisition
        # Two complex sums and their polar form per echo, and a few volumes of one coil.
        method = self.plan.method("coils")
        node = method_node(CombineCoils, "combine_coils", method, volumes=5 * len(self.echo_times) + 25, **self.needs)
        node.inputs.trait_set(**parts, **how, coils=acquisition.coils, echo_times=self.echo_times)
        if acquisition.reference:
            reference = acquisition.reference
            first = {f"reference_{part}": [astuple(v) for v in getattr(reference, part)[: reference.coils]] for part in PARTS}
            node.inputs.trait_set(**first, reference_units=reference.phase_units)
        self.gain(node, matching="matching")
        return node

    def mask(self) -> None:
        plan = self.plan
        given = plan.recipe.mask_file or plan.given.get("brain_mask")
        mask = init_mask_wf(
            plan.mask_methods, plan.recipe.mask, given,
            echo_times=self.echo_times, has_phase=plan.has_phase, voxels=plan.voxels,
        )  # fmt: skip
        self.feed(mask, magnitude="magnitude", **({"phase": "phase"} if plan.has_phase else {}))
        self.gain(mask, mask="mask", brain="brain", mask_notices="notices")
        if plan.has_phase:
            self.gain(mask, quality="quality")

    def relaxometry(self) -> None:
        if self.plan.runs("relaxometry"):
            method = self.plan.method("relaxometry")
            node = method_node(MapRelaxation, "relaxometry", method, volumes=2 * len(self.echo_times) + 8, **self.needs)
            node.inputs.echo_times = self.echo_times
            self.feed(node, magnitude="magnitude", phase="phase", mask="brain")
            self.gain(node, r2star="r2star", t2star="t2star", s0="s0")

    def readout(self) -> None:
        if self.plan.runs("readout"):
            method = self.plan.method("readout")
            node = method_node(
                CorrectReadout, "readout_correction", method, volumes=3 * len(self.echo_times) + 16, **self.needs
            )
            node.inputs.echo_times = self.echo_times
            self.feed(node, phase="phase", magnitude="magnitude", mask="mask")
            self.gain(node, one_way_phase="phase", readout_notices="notices", echo_polarity="echo_polarity")

    def field(self) -> None:
        plan = self.plan
        if not plan.runs("inversion"):
            return
        for name in ("local_field", "total_field"):
            if name in plan.given:
                given = TakeField(in_file=plan.given[name], b0=plan.acquisition.b0)
                take = make_node(given, "take_field", volumes=6, voxels=plan.voxels)
                self.feed(take, like="combined", mask="mask")
                self.gain(take, **{name: "field"}, field_error="field_error")
                return
        offset = plan.method("offset") if plan.runs("offset") else None
        field = init_field_wf(
            offset,
            plan.method("unwrap"),
            plan.method("check") if plan.runs("check") else None,
            plan.method("field"),
            echo_times=self.echo_times,
            b0=plan.acquisition.b0,
            **self.needs,
        )
        phase = "one_way_phase" if "one_way_phase" in self.have else "phase"
        self.feed(field, phase=phase, magnitude="magnitude", mask="mask")
        self.gain(field, unwrapped="unwrapped", total_field="total_field", field_error="field_error", residual="residual")
        if plan.runs("check"):
            self.gain(field, unwrapping_notices="notices")

    def regions(self) -> None:
        plan = self.plan
        through = "t1w" if "T1w" in plan.warped_spaces else plan.regions
        if through in ("t1w", "magnitude"):
            registration = init_registration_wf(through)
            self.feed(registration, magnitude="magnitude", mask="brain")
            own = (*_TRANSFORMS, "similarity")
            names = (*own, *(f"t1w_{name}" for name in own if through == "t1w"))
            self.gain(registration, **{name: name for name in names})
        if plan.regions:
            labels = init_labels_wf(plan.atlas, plan.given.get("labels", plan.atlas.labels), plan.regions, voxels=plan.voxels)
            prefix = "t1w_" if plan.atlas.space == "T1w" else ""
            self.feed(labels, **({} if plan.regions == "native" else {"magnitude": "combined"}))
            self.feed(
                labels, **{f"{prefix}{n}": f"{prefix}{n}" for n in ("inverse", "inverse_flags") if plan.regions != "native"}
            )
            self.gain(labels, labels="labels")

    def susceptibility(self) -> None:
        plan = self.plan
        if not plan.runs("inversion"):
            return
        if plan.recipe.reference_region and plan.runs("reference"):
            region = plan.recipe.reference_region
            kind = "region_file" if region.endswith((".nii", ".nii.gz")) else "region"
            pick = PickRegion(atlas=plan.recipe.atlas, **{kind: region})
            node = make_node(pick, "reference_region", volumes=3, voxels=plan.voxels)
            self.feed(node, labels="labels", like="combined")
            self.gain(node, region="mask")
        if plan.recipe.takes_prior:
            expect = make_node(ExpectRegions(atlas=plan.recipe.atlas), "chi_prior", volumes=4, voxels=plan.voxels)
            self.feed(expect, labels="labels")
            self.gain(expect, chi_prior="chi_prior")
        methods = self._to_chi()
        settings = {"echo_times": self.echo_times, "b0": plan.acquisition.b0, **self.needs}
        if plan.recipe.two_pass:
            chain = init_two_pass_wf(*methods, threshold=plan.recipe.reliable_quality, **settings)
            self.feed(chain, quality="quality")
            self.gain(chain, passes="measured", pass_notices="notices")
        else:
            chain = init_inversion_wf(*methods, **settings)
        field = "total_field" if plan.runs("background") or plan.recipe.single_step else "local_field"
        self.feed(chain, field=field, field_error="field_error", magnitude="magnitude", mask="mask", region="region")
        if plan.runs("relaxometry"):
            self.feed(chain, r2star="r2star")
        self.feed(chain, chi_prior="chi_prior")
        self.gain(chain, chi="chi", qsm_mask="mask", **({} if plan.recipe.single_step else {"local_field": "local_field"}))
        if plan.runs("reference"):
            self.gain(chain, shift="shift")

    def _to_chi(self) -> tuple[Method | None, Method, Method | None]:
        """Background removal, inversion and reference; None for what is left out."""
        plan = self.plan
        stages = ("background", "inversion", "reference")
        return tuple(plan.method(stage) if plan.runs(stage) else None for stage in stages)

    def separation(self) -> None:
        plan = self.plan
        if plan.runs("separation"):
            if plan.recipe.separates("chi_echoes"):
                self.echoes()
            node = method_node(SeparateSources, "separation", plan.method("separation"), volumes=40, **self.needs)
            node.inputs.trait_set(b0=plan.acquisition.b0, echo_times=self.echo_times)
            if "r2" in plan.given and plan.recipe.separates("r2"):
                node.inputs.r2 = plan.given["r2"]
            same = [name for name in registry.find("separation", plan.recipe.separation).arrays if name != "mask"]
            self.feed(node, mask="qsm_mask", **{name: name for name in same})
            self.gain(node, chi_para="chi_para", chi_dia="chi_dia", rate="rate")

    def echoes(self) -> None:
        """The susceptibility of every echo by itself, on the way that all take together."""
        plan, b0 = self.plan, self.plan.acquisition.b0
        merge = Node(Merge(len(self.echo_times)), name="echoes", run_without_submitting=True)
        for echo, te in enumerate(self.echo_times):
            field = make_node(
                EchoField(echo=echo, echo_time=te, b0=b0), f"echo_{echo + 1}_field", volumes=4, voxels=plan.voxels
            )
            self.feed(field, unwrapped="unwrapped")
            chain = init_inversion_wf(*self._to_chi(), name=f"echo_{echo + 1}_wf", echo_times=[te], b0=b0, **self.needs)
            self.feed(chain, field_error="field_error", magnitude="magnitude", mask="mask", region="region")
            self.feed(chain, r2star="r2star", chi_prior="chi_prior")
            self.workflow.connect([
                (field, chain, [("total_field", "inputnode.field")]),
                (chain, merge, [("outputnode.chi", f"in{echo + 1}")]),
            ])  # fmt: skip
        stack = make_node(StackEchoes(), "stack_echoes", volumes=2 * len(self.echo_times) + 2, voxels=plan.voxels)
        self.workflow.connect(merge, "out", stack, "in_files")
        self.gain(stack, chi_echoes="out_file")

    def weighting(self) -> None:
        plan = self.plan
        if plan.runs("swi"):
            node = method_node(WeightMagnitude, "swi", plan.method("swi"), volumes=3 * len(self.echo_times) + 14, **self.needs)
            node.inputs.echo_times, node.inputs.b0 = self.echo_times, plan.acquisition.b0
            # The whole brain: what the mask of reliable phase leaves out, large veins above all, is what is looked for.
            weigher = "chi" if plan.recipe.weights_chi else "phase"
            self.feed(node, magnitude="magnitude", mask="brain", **{weigher: weigher})
            self.gain(node, swi="swi", minip="minip", phase_mask="phase_mask")

    def table(self) -> None:
        if {"labels", "chi"} <= set(self.have) and "rois" in self.plan.recipe.outputs:
            node = make_node(TabulateRegions(atlas=self.plan.recipe.atlas), "tabulate", volumes=8, voxels=self.plan.voxels)
            self.feed(node, labels="labels", chi="chi", mask="qsm_mask")
            self.feed(node, **{name: name for name in ("r2star", *_SOURCES)})
            self.gain(node, regions="table", region_dictionary="dictionary", region_names="names")

    def report(self) -> None:
        plan, acquisition = self.plan, self.plan.acquisition
        datasets = dataset_roots(self.execution.bids_dir, self.execution.derivatives)
        report = AcquisitionReport(
            name=acquisition.name,
            echo_times=self.echo_times,
            b0=acquisition.b0,
            metadata=dict(acquisition.metadata),
            sources=[bids_uri(path, datasets) for path in acquisition.sources],
            notices=[*acquisition.notices, *plan.notices],
            recipe=plan.recipe.to_toml(),
            skipped=dict(plan.skipped),
            registration=plan.regions,
            phase_reversed=plan.recipe.phase_sign == "-",
        )
        node = make_node(report, "report", volumes=3 * len(self.echo_times) + 30, voxels=plan.voxels)
        same = (
            "magnitude", "phase", "unwrapped", "quality", "total_field", "local_field", "field_error", "residual", "chi",
            "r2star", "swi", "minip", "phase_mask", "labels", "regions", "loaded", "mask_notices", "matching",
            "readout_notices", "echo_polarity", "unwrapping_notices", "pass_notices", *_SOURCES,
        )  # fmt: skip
        mask = "qsm_mask" if "qsm_mask" in self.have else "mask"
        names = {name: name for name in same} | {"brain_mask": "brain", "mask": mask, "label_table": "region_names"}
        names |= {"registration_template": "similarity", "registration_t1w": "t1w_similarity"}
        self.feed(node, **names, reference_region="region")
        self.gain(node, quality_file="quality_file", figures="figures")

    def save(self) -> None:
        plan, products = self.plan, self._products()
        datasets = dataset_roots(self.execution.bids_dir, self.execution.derivatives)
        told = [name for name in ("shift", "passes") if name in self.have]
        kept = {"chi": bool(told), "region_table": "regions" in self.have} | dict.fromkeys(_SOURCES, "rate" in self.have)
        measured = tuple(name for name, known in kept.items() if known and name in products)
        outputs = init_outputs_wf(
            plan, {key: settings for key, (_, settings) in products.items()},
            output_dir=self.execution.output_dir, datasets=datasets, measured=measured,
        )  # fmt: skip
        self.feed(outputs, **{key.partition(":")[0]: source for key, (source, _) in products.items()})
        if "chi" in measured:
            collect = Node(Merge(len(told)), name="chi_measured", run_without_submitting=True)
            self.feed(collect, **{f"in{n}": name for n, name in enumerate(told, 1)})
            self.workflow.connect([(collect, outputs, [(("out", _chi_metadata), "inputnode.chi_measured")])])
        for name in (n for n in _SOURCES if n in measured):
            node, output = self.have["rate"]
            self.workflow.connect([(node, outputs, [((output, _rate_metadata), f"inputnode.{name}_measured")])])
        self.feed(outputs, region_table_measured="region_dictionary", figures="figures")

    def _products(self) -> dict[str, tuple[str, dict]]:
        """What to save: product, from which field of :attr:`have`, with which settings."""
        plan = self.plan
        wanted = {"brain_mask": "brain", "quality": "quality_file", "matching": "matching"}
        if plan.acquisition.magnitude or plan.acquisition.real:
            wanted["combined"] = "combined"
        if "r2star" in plan.recipe.outputs:
            wanted |= {"r2star": "r2star", "t2star": "t2star", "s0": "s0"}
        wanted |= {name: name for name in ("swi", "minip", "phase_mask", *_SOURCES)}
        if "qsm" in plan.recipe.outputs:
            wanted |= {"chi": "chi", "qsm_mask": "qsm_mask", "total_field": "total_field", "local_field": "local_field"}
        if "rois" in plan.recipe.outputs:
            wanted |= {"labels": "labels", "labels_table": "region_names", "region_table": "regions"}
        products = {product: (source, {}) for product, source in wanted.items() if source in self.have}
        if "chi" in products:
            products["field_magnitude"] = ("combined", {})
            for product in ("total_field", "local_field"):
                if product in products:
                    products[product][1]["scale"] = hz_per_ppm(b0=plan.acquisition.b0)
        if "unwrapped" in self.have and "qsm" in plan.recipe.outputs:
            for echo in range(len(self.echo_times)):
                extra = {"echo": str(echo + 1)}
                products[f"unwrapped:{echo + 1}"] = ("unwrapped", {"volume": echo, "extra": extra})
        for product in ("labels", "labels_table", "region_table"):
            if product in products:
                products[product][1]["extra"] = {"atlas": plan.atlas.name}
        for space in plan.warped_spaces:
            products |= self._warp(space)
        return products

    def _warp(self, space: str) -> dict[str, tuple[str, dict]]:
        """Resample the susceptibility to another space; the product to save."""
        plan = self.plan
        name, prefix, product = ("t1w", "t1w_", "chi_t1w") if space == "T1w" else ("template", "", "chi_template")
        reference = plan.acquisition.t1w if space == "T1w" else template_file("brain")
        node = make_node(Warp(reference=reference, labels=False), f"chi_to_{name}", volumes=12, voxels=8_500_000)
        self.feed(node, in_file="chi", transforms=f"{prefix}forward", flags=f"{prefix}forward_flags")
        self.gain(node, **{product: "out_file"})
        return {product: (product, {})}


def _rate_metadata(rate):
    """What was taken off R2*, for the sidecar."""
    return {"RateWithoutSources": float(f"{rate:.6g}")}


def _chi_metadata(measured):
    """What the reference subtracted, and what is known of the passes, for the sidecar."""
    content = {}
    for value in measured:
        content.update(value if isinstance(value, dict) else {"ReferenceShift": value})
    return content
