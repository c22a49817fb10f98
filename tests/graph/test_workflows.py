"""What there is decides what the graph holds: echoes, parts, coils, a T1-weighted image, ready-made maps."""

import json

import pytest
from skeleton import (
    BACKGROUND,
    BRAIN,
    CHAIN,
    CHECK,
    CHI_T1W,
    CHI_TEMPLATE,
    FIELD,
    HEAD,
    INVERT,
    LABELS,
    OFFSET,
    PATCH,
    QUALITY,
    READOUT,
    REFERENCE,
    SAVED,
    TABLE,
    TO_T1W,
    TO_TEMPLATE,
    UNWRAP,
    names,
    node,
    saved,
)

from qsmflow.config import Recipe
from qsmflow.workflows.failures import acquisition_workflow_name


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
