"""Graphs are built and expanded, not run: the right nodes for what there is, and nothing left unconnected."""

import json

import nibabel as nb
import numpy as np
import pytest
from nipype.interfaces.base import isdefined
from nipype.pipeline.engine.utils import generate_expanded_graph

from qsmflow import registry
from qsmflow.bids.inputs import read_dataset
from qsmflow.bids.outputs import product_path
from qsmflow.config import OUTPUTS, Execution, Recipe
from qsmflow.errors import UsageError
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

    def graph(self, recipe, **settings):
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


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


@pytest.fixture
def native_atlas(study):
    return study.image(study.root / "lesion_mask.nii")


SAVED = {
    "combined", "brain_mask", "qsm_mask", "r2star", "t2star", "s0", "chi", "total_field", "local_field", "field_magnitude",
    "unwrapped_1", "unwrapped_2", "unwrapped_3", "labels", "labels_table", "region_table", "chi_template", "figures", "quality",
}  # fmt: skip


WEIGHTED = {"swi", "minip", "phase_mask"}


def test_everything_with_a_t1w(study):
    study.scan()
    study.t1w()
    graph = study.graph(Recipe.load("consensus"))
    found = names(graph)
    assert {*CHAIN, BRAIN, QUALITY, TO_T1W, LABELS, TABLE, CHI_TEMPLATE, "relaxometry"} <= found
    assert not {TO_TEMPLATE, CHI_T1W, "take_field", "reference_region"} & found
    assert saved(graph) == SAVED
    shared = {n.fullname for n in graph} - {f"qsmflow_wf.{acquisition_workflow_name('sub-01')}.{name}" for name in found}
    assert shared == {"qsmflow_wf.t1w_sub_01_T1w.t1w_brain_extraction", "qsmflow_wf.t1w_sub_01_T1w.t1w_to_template"}


@pytest.mark.parametrize("recipe", ["consensus", "fast"])
@pytest.mark.parametrize("echoes", [1, 2, 5])
def test_echoes(study, recipe, echoes):
    study.scan(echoes=echoes)
    graph = study.graph(Recipe.load(recipe))
    found = names(graph)
    several = {OFFSET, "relaxometry"}
    assert found & several == (several if echoes > 1 else set())
    assert {UNWRAP, FIELD, BACKGROUND, INVERT, REFERENCE, TO_TEMPLATE, LABELS, TABLE} <= found
    assert {f"unwrapped_{echo + 1}" for echo in range(echoes)} == {name for name in saved(graph) if "unwrapped" in name}
    assert node(graph, UNWRAP).inputs.echo_times == [pytest.approx(0.008 * (echo + 1)) for echo in range(echoes)]
    assert (CHI_TEMPLATE in found) == (recipe == "consensus")


@pytest.mark.parametrize(("inversion", "removals"), [("tv", 2), ("sstv", 0)])
def test_two_passes(study, inversion, removals):
    """Each of its own mask, merged, and referenced once; also where one step inverts."""
    study.scan()
    graph = study.graph(Recipe(two_pass=True, inversion=inversion, parameters={"quality": {"threshold": 0.3}}))
    found = names(graph)
    for stage, count in (("background_removal", removals), ("inversion", 2), ("referencing", 1)):
        assert sum(name.startswith("susceptibility_wf.") and name.endswith(f".{stage}") for name in found) == count
    assert node(graph, "susceptibility_wf.reliable").inputs.threshold == 0.3
    first = "background_removal" if removals else "inversion"
    masks = {}
    for chain in ("reliable_wf", "whole_wf"):
        edges = graph.in_edges(node(graph, f"{chain}.{first}"), data=True)
        masks[chain] = {source.name for source, _, edge in edges if any(field == "mask" for _, field in edge["connect"])}
    assert masks == {"reliable_wf": {"reliable"}, "whole_wf": {"mask"}}
    after = {target.name for _, target in graph.out_edges(node(graph, "susceptibility_wf.merging"))}
    assert {"referencing", "save_qsm_mask", "report", "chi_measured"} <= after
    assert saved(graph) == SAVED - ({"local_field"} if not removals else set())


@pytest.mark.parametrize("outputs", [("qsm", "rois"), ("qsm",)])
@pytest.mark.parametrize("two_pass", [False, True])
def test_prior_from_the_atlas(study, outputs, two_pass):
    """The labels come before the inversion, and are saved only where they are asked for."""
    study.scan()
    graph = study.graph(Recipe(inversion="qsip", outputs=outputs, two_pass=two_pass))
    assert {LABELS, "chi_prior"} <= names(graph)
    inversions = [n for n in graph if n.name == "inversion"]
    assert len(inversions) == 1 + two_pass
    for inversion in inversions:
        edges = graph.in_edges(inversion, data=True)
        assert [s.name for s, _, edge in edges if any(field == "chi_prior" for _, field in edge["connect"])] == ["chi_prior"]
    assert ({"labels", "labels_table", "region_table"} & saved(graph) != set()) == ("rois" in outputs)
    assert "SusceptibilityPrior" in node(graph, "save_chi").inputs.metadata
    assert "SusceptibilityPrior" not in node(graph, "save_brain_mask").inputs.metadata


def test_no_prior_without_regions(study, native_atlas):
    """Of part of a head, and from an atlas of unknown names: no map with another prior than that of the others."""
    study.scan(fov=PATCH)
    study.scan(sub="02")
    for sub, settings in (("01", {}), ("02", {"atlas": native_atlas})):
        graph = study.graph(Recipe(inversion="qsip", **settings))
        assert not {"chi_prior", INVERT} & names(graph, sub)
        notices = node(graph, f"sub_{sub}.report").inputs.notices
        assert any(notice.startswith("no susceptibility, because qsip needs regions") for notice in notices)


def test_no_t1w(study):
    study.scan()
    found = names(study.graph(Recipe()))
    assert {TO_TEMPLATE, LABELS, TABLE, CHI_TEMPLATE} <= found
    assert TO_T1W not in found


def test_no_magnitude(study):
    study.scan(parts=("phase",))
    study.t1w()
    graph = study.graph(Recipe())
    found = names(graph)
    assert {*CHAIN, QUALITY} <= found
    assert not {BRAIN, TO_T1W, TO_TEMPLATE, LABELS, TABLE, CHI_TEMPLATE, "relaxometry"} & found
    assert not {"combined", "r2star"} & saved(graph)
    assert [method[0] for method in node(graph, "mask_wf.mask").inputs.methods] == ["quality"]


@pytest.mark.parametrize("parts", [("mag",), ("mag", "phase")])
def test_relaxation_only(study, parts):
    study.scan(parts=parts)
    study.t1w()
    graph = study.graph(Recipe(outputs=("r2star",)))
    found = names(graph)
    assert {BRAIN, "relaxometry"} <= found
    assert not {*CHAIN, TO_T1W, LABELS, TABLE, CHI_TEMPLATE} & found
    assert saved(graph) == {"combined", "brain_mask", "r2star", "t2star", "s0", "figures", "quality"}
    methods = [method[0] for method in node(graph, "mask_wf.mask").inputs.methods]
    assert methods == ["template", "quality"] if "phase" in parts else ["template"]


@pytest.mark.parametrize("swi", ["swi", "clearswi"])
def test_susceptibility_weighting_only(study, swi):
    """From phase: nothing but the mask is computed before."""
    study.scan()
    study.t1w()
    graph = study.graph(Recipe(outputs=("swi",), swi=swi, output_spaces=("GRE", "T1w")))
    assert {"swi", BRAIN} <= names(graph)
    assert not {*CHAIN, TO_T1W, LABELS, TABLE, CHI_TEMPLATE, CHI_T1W, "relaxometry"} & names(graph)
    assert saved(graph) == {"combined", "brain_mask", *WEIGHTED, "figures", "quality"}
    assert node(graph, "sub_01.swi").inputs.b0 == 3


@pytest.mark.parametrize("method", ["r2starqsm", "chisep"])
def test_separation_of_sources_computes_what_it_needs(study, method):
    study.scan()
    graph = study.graph(Recipe(outputs=("rois",), separation=method))
    assert {*CHAIN, "relaxometry", "separation"} <= names(graph)
    assert {"chi_para", "chi_dia"} <= saved(graph)
    assert not {"chi", "r2star"} & saved(graph)
    fed = {field for *_, edge in graph.in_edges(node(graph, "sub_01.separation"), data=True) for _, field in edge["connect"]}
    assert fed == {"mask", *registry.find("separation", method).arrays} - {"r2"}
    assert "separation" not in names(study.graph(Recipe()))


def test_decompose_inverts_every_echo(study):
    study.scan(echoes=4)
    recipe = Recipe(outputs=("r2star",), separation="decompose")
    found = names(study.graph(recipe))
    assert {
        f"echo_{echo}_wf.{step}" for echo in (1, 2, 3, 4) for step in ("background_removal", "inversion", "referencing")
    } <= found
    assert {"stack_echoes", "separation", *CHAIN} <= found
    graph = study.graph(recipe, **study.given("total_field"))
    assert "separation" not in names(graph)
    reason = node(graph, "sub_01.report").inputs.skipped["separation"]
    assert reason == "it needs the phase of every echo, but the total field was given"


def test_decompose_says_that_it_takes_one_pass(study):
    study.scan(echoes=4)
    for two_pass in (True, False):
        graph = study.graph(Recipe(outputs=("qsm",), output_spaces=("GRE",), separation="decompose", two_pass=two_pass))
        assert {"echo_1_wf.inversion", "stack_echoes"} <= names(graph)
        notices = node(graph, "sub_01.report").inputs.notices
        assert any("decompose inverts every echo in one pass" in notice for notice in notices) == two_pass


def test_decompose_needs_four_echoes(study):
    study.scan(echoes=3)
    graph = study.graph(Recipe(separation="decompose"))
    assert not {"separation", "stack_echoes"} & names(graph)
    assert "four echoes" in node(graph, "sub_01.report").inputs.skipped["separation"]


def test_no_separation_without_r2star(study):
    study.scan(echoes=1)
    graph = study.graph(Recipe(separation="r2starqsm"))
    assert "separation" not in names(graph)
    assert node(graph, "sub_01.report").inputs.skipped["separation"] == "it needs R2*, but there is one echo"
    with pytest.raises(UsageError, match="chisep takes the local field, but sstv starts"):
        Recipe(separation="chisep", inversion="sstv")


@pytest.mark.parametrize("swi", ["tswi", "smwi"])
def test_weighting_by_susceptibility_computes_it(study, swi):
    """What was not asked for is computed where it is needed, but not saved."""
    study.scan()
    study.t1w()
    graph = study.graph(Recipe(outputs=("swi",), swi=swi, output_spaces=("GRE", "T1w")))
    assert {*CHAIN, "swi"} <= names(graph)
    assert not {TO_T1W, LABELS, TABLE, CHI_TEMPLATE, CHI_T1W, "relaxometry"} & names(graph)
    assert saved(graph) == {"combined", "brain_mask", *WEIGHTED, "figures", "quality"}
    fed = {field for *_, edge in graph.in_edges(node(graph, "sub_01.swi"), data=True) for _, field in edge["connect"]}
    assert fed == {"magnitude", "mask", "chi"}


@pytest.mark.parametrize(
    ("parts", "settings", "why"),
    [(("phase",), {}, "no magnitude"), (("mag", "phase"), {"swi": "none"}, "not asked for")],
)
def test_no_susceptibility_weighting(study, parts, settings, why):
    study.scan(parts=parts)
    graph = study.graph(Recipe(outputs=("qsm", "r2star", "swi"), **settings))
    assert "swi" not in names(graph)
    assert node(graph, "sub_01.report").inputs.skipped["swi"] == why


def test_everything_at_once(study):
    study.scan()
    study.t1w()
    assert saved(study.graph(Recipe(outputs=tuple(OUTPUTS)))) == SAVED | WEIGHTED


def test_relaxation_of_a_patch_with_a_mask_from_phase_quality(study):
    """A mask that only phase could give: without phase, the magnitude has to do."""
    study.scan(parts=("mag",), fov=PATCH)
    graph = study.graph(Recipe(outputs=("r2star",), mask="quality"))
    assert [method[0] for method in node(graph, "mask_wf.mask").inputs.methods] == ["threshold"]


def test_real_and_imaginary(study):
    study.scan(parts=("real", "imag"))
    graph = study.graph(Recipe())
    assert {*CHAIN, BRAIN, "relaxometry", TO_TEMPLATE} <= names(graph)
    load = node(graph, "sub_01.load").inputs
    assert (len(load.real), len(load.imag), len(load.phase), len(load.magnitude)) == (3, 3, 0, 0)


@pytest.mark.parametrize("parts", [("mag", "phase"), ("real", "imag")])
def test_uncombined_coils(study, parts):
    """Their combination takes the place of loading; coils are no echoes."""
    study.scan(parts=parts, coils=4)
    graph = study.graph(Recipe())
    assert {*CHAIN, "combine_coils", "relaxometry"} <= names(graph)
    assert "load" not in names(graph)
    assert saved(graph) == SAVED | {"matching"}
    combine = node(graph, "combine_coils").inputs
    assert (combine.algorithm, combine.coils, len(combine.echo_times)) == ("mcpc3ds-coils", 4, 3)
    volumes = combine.phase if "phase" in parts else combine.imag
    assert [index for _, index in volumes] == [0, 1, 2, 3] * 3
    fed = {field for *_, edge in graph.in_edges(node(graph, "sub_01.report"), data=True) for _, field in edge["connect"]}
    assert {"matching", "readout_notices"} <= fed


def test_combined_images_are_not_touched(study):
    study.scan()
    graph = study.graph(Recipe(coils="vrc"))
    assert "load" in names(graph)
    assert "combine_coils" not in names(graph)
    assert "matching" not in saved(graph)


def test_one_echo_of_coils_is_combined_without_a_second(study):
    study.scan(echoes=1, coils=4)
    for file in (study.bids / "sub-01" / "anat").iterdir():  # a file of one echo, told so by its name
        file.rename(file.with_name(file.name.replace("_part", "_echo-1_part")))
    graph = study.graph(Recipe(parameters={"mcpc3ds-coils": {"sigma": 3.0}}))
    assert node(graph, "combine_coils").inputs.algorithm == "vrc"
    assert any("needs two echoes" in notice for notice in node(graph, "sub_01.report").inputs.notices)


def test_coil_reference(study):
    study.scan(coils=4)
    for part in ("mag", "phase"):
        path = study.bids / "sub-01" / "anat" / f"sub-01_acq-coilref_part-{part}_T2starw.nii"
        study.image(path)
        path.with_suffix(".json").write_text(json.dumps({"EchoTime": 0.002}))
    graph = study.graph(Recipe(coils="roemer"))
    combine = node(graph, "combine_coils").inputs
    assert [path.rpartition("/")[2] for path, _ in combine.reference_phase] == ["sub-01_acq-coilref_part-phase_T2starw.nii"]
    assert any("coilref" in uri for uri in node(graph, "sub_01.report").inputs.sources)


@pytest.mark.parametrize(
    ("echoes", "settings", "runs"), [(3, {}, True), (2, {}, False), (1, {}, False), (3, {"readout": "none"}, False)]
)
def test_readout_is_looked_at_from_three_echoes_on(study, echoes, settings, runs):
    study.scan(echoes=echoes)
    graph = study.graph(Recipe(**settings))
    assert (READOUT in names(graph)) == runs
    sources = {source.name for source, _ in graph.in_edges(node(graph, OFFSET if echoes > 1 else UNWRAP))}
    assert ("readout_correction" in sources) == runs


def test_patch(study):
    study.scan(fov=PATCH)
    study.t1w()
    graph = study.graph(Recipe())
    assert names(graph) >= {*CHAIN, QUALITY, "relaxometry"}
    assert not {BRAIN, TO_T1W, TO_TEMPLATE, LABELS, TABLE, CHI_TEMPLATE} & names(graph)
    assert [method[0] for method in node(graph, "mask_wf.mask").inputs.methods] == ["threshold", "quality"]
    assert not any("t1w" in n.fullname for n in graph)


def test_mask_by_path(study):
    study.scan()
    mask = study.image(study.root / "mine.nii")
    graph = study.graph(Recipe(mask=mask))
    assert BRAIN not in names(graph)
    assert node(graph, "mask_wf.mask").inputs.in_file == mask


def test_given_mask(study):
    study.scan()
    graph = study.graph(Recipe(), **study.given("brain_mask"))
    assert BRAIN not in names(graph)
    assert node(graph, "mask_wf.mask").inputs.in_file.endswith("given/sub-01/anat/sub-01_desc-brain_mask.nii.gz")


@pytest.mark.parametrize(
    ("product", "gone", "unsaved"),
    [
        ("total_field", {READOUT, OFFSET, UNWRAP, CHECK, FIELD}, {"unwrapped_1"}),
        ("local_field", {READOUT, OFFSET, UNWRAP, CHECK, FIELD, BACKGROUND}, {"unwrapped_1", "total_field"}),
    ],
)
@pytest.mark.parametrize("parts", [("mag", "phase"), ("phase",)])
def test_given_field(study, product, gone, unsaved, parts):
    study.scan(parts=parts)
    graph = study.graph(Recipe(), **study.given(product))
    found = names(graph)
    assert "take_field" in found
    assert found & CHAIN == CHAIN - gone
    assert not unsaved & saved(graph)
    assert {"chi", "local_field"} <= saved(graph)
    assert node(graph, "take_field").inputs.b0 == 3


def test_both_fields_given_the_local_one_is_taken(study):
    study.scan()
    graph = study.graph(Recipe(), **study.given("total_field", "local_field"))
    assert "local" in node(graph, "take_field").inputs.in_file
    assert BACKGROUND not in names(graph)


def test_single_step(study):
    """An inversion of the total field: no background removal, no local field, and nobody says otherwise."""
    study.scan()
    graph = study.graph(Recipe(inversion="sstv"))
    assert names(graph) & CHAIN == CHAIN - {BACKGROUND}
    assert saved(graph) == SAVED - {"local_field"}
    fed = {
        field: source.name for source, _, edge in graph.in_edges(node(graph, INVERT), data=True) for _, field in edge["connect"]
    }
    assert fed["total_field"] == "field_mapping"
    assert "local_field" not in fed
    report = node(graph, "sub_01.report").inputs
    assert report.skipped["background"] == "the inversion starts from the total field"
    told = node(graph, "save_chi").inputs.metadata["Methods"]
    assert "background" not in [method["Stage"] for method in told]
    assert "background" not in report.recipe


def test_single_step_takes_a_total_field_and_no_local_one(study):
    study.scan()
    graph = study.graph(Recipe(inversion="sstv"), **study.given("local_field"))
    assert {UNWRAP, FIELD} <= names(graph)
    assert any("not taken: sub-01_desc-local" in notice for notice in node(graph, "sub_01.report").inputs.notices)
    graph = study.graph(Recipe(inversion="sstv"), **study.given("total_field"))
    assert "total" in node(graph, "take_field").inputs.in_file
    assert "take_field" in {source.name for source, _ in graph.in_edges(node(graph, INVERT))}


def test_orientations_are_combined(study):
    """Three runs of one subject and one of another: the first subject gets one more map."""
    for number in (1, 2, 3):
        study.scan(run=f"_run-{number}")
    study.scan(sub="02", run="_run-1")
    graph = study.graph(Recipe(cosmos="run", reference="csf"))
    prefix = "qsmflow_wf.cosmos_sub_01."
    found = {n.fullname.removeprefix(prefix) for n in graph if n.fullname.startswith(prefix)}
    steps = {"align_1", "align_2", "align_3", "register_2", "register_3", "combine", "referencing", "report"}
    assert found == steps | {f"all_{n}" for n in ("local_fields", "masks", "field_errors", "directions")} | {
        "save_chi_cosmos", "save_mask_cosmos", "save_figures", "all_similarities",
    }  # fmt: skip
    assert not any("cosmos_sub_02" in n.fullname for n in graph)
    assert node(graph, "combine").inputs.names == ["sub-01_run-1", "sub-01_run-2", "sub-01_run-3"]
    sources = {source.fullname.split(".")[1] for source, _ in graph.in_edges(node(graph, "register_3"))}
    assert sources == {acquisition_workflow_name(f"sub-01_run-{n}") for n in (1, 3)}
    save = node(graph, "save_chi_cosmos").inputs
    assert save.entities == {"sub": "01"}
    assert len(save.metadata["Sources"]) == 18
    assert not any("cosmos" in n.fullname for n in study.graph(Recipe()))


def test_given_labels(study):
    study.scan()
    study.t1w()
    graph = study.graph(Recipe(), **study.given("labels"))
    assert TABLE in names(graph)
    assert not {TO_T1W, TO_TEMPLATE, LABELS, CHI_TEMPLATE} & names(graph)
    assert node(graph, TABLE).inputs.labels.endswith("sub-01_space-GRE_atlas-CIT168_dseg.nii.gz")
    assert {"labels", "labels_table", "region_table"} <= saved(graph)


def test_atlas_on_the_images_by_path(study, native_atlas):
    study.scan(fov=HEAD)
    graph = study.graph(Recipe(atlas=native_atlas))
    assert TABLE in names(graph)
    assert not {TO_TEMPLATE, LABELS, CHI_TEMPLATE} & names(graph)
    assert node(graph, TABLE).inputs.labels == native_atlas
    assert node(graph, "save_region_table").inputs.extra == {"atlas": "lesionmask"}


def test_atlas_on_the_t1w_by_path(study):
    study.scan()
    study.t1w()
    atlas = study.image(study.root / "space-T1w_desc-lesion_mask.nii")
    graph = study.graph(Recipe(atlas=atlas))
    assert {TO_T1W, LABELS, TABLE, CHI_TEMPLATE} <= names(graph)
    sources = {source.name for source, _ in graph.in_edges(node(graph, LABELS))}
    assert sources == {"combine_magnitude", "magnitude_to_t1w"}  # the template has no part in it


@pytest.mark.parametrize(
    ("settings", "there", "absent"),
    [
        ({"reference": "none"}, set(), {REFERENCE, "reference_region"}),
        ({"reference": "brain"}, {REFERENCE}, {"reference_region"}),
        ({"reference": "csf"}, {REFERENCE, "relaxometry"}, {"reference_region"}),
        ({"reference": "csf", "outputs": ("qsm",), "output_spaces": ("GRE",)}, {REFERENCE, "relaxometry"}, {LABELS}),
        ({"reference": "region", "reference_region": "Pu_L+Pu_R"}, {REFERENCE, "reference_region", LABELS}, set()),
        ({"offset": "none"}, {UNWRAP, CHECK}, {OFFSET}),
        ({"check": "none"}, {UNWRAP, FIELD}, {CHECK}),
    ],
)
def test_settings(study, settings, there, absent):
    study.scan()
    graph = study.graph(Recipe(**settings))
    assert there <= names(graph)
    assert not absent & names(graph)


def test_the_field_is_fitted_to_the_phase_that_was_checked(study):
    study.scan()
    for recipe, source in ((Recipe(), "unwrapping_check"), (Recipe(check="none"), "unwrapping")):
        graph = study.graph(recipe)
        for name in (FIELD, "save_unwrapped_1"):
            edges = graph.in_edges(node(graph, name), data=True)
            assert {start.name for start, _, edge in edges if "phase" in str(edge)} == {source}
    assert not node(graph, "sub_01.report").inputs.unwrapping_notices


@pytest.mark.parametrize(
    ("mask", "fov", "parts", "expected"),
    [
        ("(template | robust) & quality", HEAD, ("mag", "phase"), "(template | robust) & quality"),
        ("(template | robust) & quality", PATCH, ("mag", "phase"), "(threshold | robust) & quality"),
        ("(template | threshold) & quality", PATCH, ("mag", "phase"), "threshold & quality"),
        ("(template | robust) & quality", HEAD, ("phase",), "quality"),
        ("template - !quality", HEAD, ("mag",), "template"),
    ],
)
def test_mask_expressions_are_adapted_to_the_images(study, mask, fov, parts, expected):
    study.scan(fov=fov, parts=parts)
    graph = study.graph(Recipe(mask=mask, outputs=("qsm", "r2star") if "phase" in parts else ("r2star",)))
    inputs = node(graph, "mask_wf.mask").inputs
    assert inputs.expression == expected
    assert (BRAIN in names(graph)) == ("template" in expected)
    notices = node(graph, "sub_01.report").inputs.notices
    assert any(f"mask: {expected}" in notice for notice in notices) == (mask != expected)


def test_complex_decay_gets_the_phase_or_another_method_takes_its_place(study):
    study.scan()
    graph = study.graph(Recipe(relaxometry="complexdecay"))
    fed = [field for *_, edge in graph.in_edges(node(graph, "relaxometry"), data=True) for _, field in edge["connect"]]
    assert "phase" in fed
    study.scan(sub="02", parts=("mag",))
    parameters = {"complexdecay": {"fwhm": 2.0}}
    graph = study.graph(Recipe(relaxometry="complexdecay", parameters=parameters, outputs=("r2star",)))
    assert node(graph, "sub_02.relaxometry").inputs.algorithm == "nonlinear"
    assert any("complexdecay" in notice for notice in node(graph, "sub_02.report").inputs.notices)


def test_reference_region_by_path_needs_no_atlas(study):
    study.scan(fov=PATCH)
    region = study.image(study.root / "ventricle.nii", PATCH)
    graph = study.graph(Recipe(reference="region", reference_region=region))
    assert {REFERENCE, "reference_region"} <= names(graph)


@pytest.mark.parametrize("settings", [{"echoes": 1}, {"parts": ("phase",)}])
def test_reference_that_cannot_be_found_is_told(study, settings):
    """CSF is found by its R2*, which needs two echoes with magnitude."""
    study.scan(**settings)
    graph = study.graph(Recipe(reference="csf"))
    assert REFERENCE not in names(graph)
    assert any("csf" in notice for notice in node(graph, "sub_01.report").inputs.notices)


@pytest.mark.parametrize("settings", [{"echoes": 1}, {"parts": ("phase",)}])
def test_inversion_that_needs_what_is_not_there_is_told(study, settings):
    study.scan(**settings)
    graph = study.graph(Recipe(inversion="medi0"))
    assert INVERT not in names(graph)
    assert any("medi0 needs" in notice for notice in node(graph, "sub_01.report").inputs.notices)


def test_inversion_gets_r2star_if_it_asks(study):
    study.scan()
    for inversion, wanted in (("medi0", True), ("medi", False)):
        graph = study.graph(Recipe(inversion=inversion, outputs=("qsm",), output_spaces=("GRE",)))
        assert ("relaxometry" in names(graph)) == wanted
        fields = {field for _, _, data in graph.in_edges(node(graph, INVERT), data=True) for _, field in data["connect"]}
        assert ("r2star" in fields) == wanted
        assert len(node(graph, INVERT).inputs.echo_times) == 3


@pytest.mark.parametrize("outputs", [("qsm", "rois"), ("qsm",)])
def test_output_space_t1w(study, outputs):
    study.scan()
    study.t1w()
    graph = study.graph(Recipe(outputs=outputs, output_spaces=("GRE", "T1w")))
    assert {TO_T1W, CHI_T1W} <= names(graph)
    assert {"chi", "chi_t1w"} <= saved(graph)
    assert (LABELS in names(graph)) == ("rois" in outputs)
    assert node(graph, CHI_T1W).inputs.reference.endswith("sub-01_T1w.nii")


def test_acquisitions_share_the_registration_of_their_t1w(study):
    study.scan(run="_run-1")
    study.scan(run="_run-2")
    study.t1w()
    study.scan(sub="02")
    study.t1w(sub="02")
    graph = study.graph(Recipe())
    registrations = [n for n in graph if n.name == "t1w_to_template"]
    assert [n.fullname for n in registrations] == [
        f"qsmflow_wf.t1w_sub_{sub}_T1w.t1w_to_template" for sub in ("01", "02")
    ]  # fmt: skip
    users = {name.split(".")[1] for name in (target.fullname for _, target in graph.out_edges(registrations[0]))}
    assert users == {acquisition_workflow_name(f"sub-01_run-{run}") for run in (1, 2)}
    assert len([n for n in graph if n.name == "magnitude_to_t1w"]) == 3
