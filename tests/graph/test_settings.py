"""What was asked for decides what the graph holds: methods, outputs, passes, orientations."""

import pytest
from skeleton import (
    BACKGROUND,
    BRAIN,
    CHAIN,
    CHECK,
    CHI_T1W,
    CHI_TEMPLATE,
    FIELD,
    INVERT,
    LABELS,
    OFFSET,
    PATCH,
    REFERENCE,
    SAVED,
    TABLE,
    TO_T1W,
    UNWRAP,
    WEIGHTED,
    names,
    node,
    saved,
)

from qsmflow import registry
from qsmflow.config import OUTPUTS, Recipe
from qsmflow.errors import UsageError
from qsmflow.workflows.failures import acquisition_workflow_name


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
