"""Methods text, bibliography and reporting table: complete, true to the recipe, and without loose ends."""

import re

import pytest

from qsmflow import registry
from qsmflow.config import OUTPUTS, Recipe
from qsmflow.reports import boilerplate
from qsmflow.reports.boilerplate import UNKNOWN, bibliography, bibtex, cited, methods_text, parse_bibtex, reporting_table

SCAN = {"version": "1.2.3", "b0": 3.0, "echo_times": [0.004, 0.012, 0.02]}
GRID = {"voxel_size": (1, 1, 1.2), "shape": (64, 65, 40)}

RECIPES = [
    Recipe(outputs=tuple(OUTPUTS)),
    Recipe(outputs=tuple(OUTPUTS), swi="tswi", background="vsharp", inversion="tkd", unwrap="laplacian", reference="csf"),
    Recipe(
        swi="none",
        background="resharp",
        inversion="tikhonov",
        unwrap="temporal",
        offset="none",
        reference="none",
        mask="threshold",
    ),
    Recipe(outputs=("qsm", "r2star", "swi"), swi="clearswi", reference="region", reference_region="Ca_L"),
]


@pytest.mark.parametrize("row", registry.ALGORITHMS, ids=lambda row: f"{row.stage}-{row.name}")
def test_every_citation_of_a_method_is_in_the_bibliography(row):
    assert row.citations
    assert set(row.citations) <= set(bibliography())


@pytest.mark.parametrize("entry", bibliography().values(), ids=lambda entry: entry.key)
def test_every_work_can_be_found_and_is_complete(entry):
    assert {"author", "title", "year"} <= set(entry.fields)
    assert re.fullmatch(r"10\.\d{4,9}/\S+", entry.fields["doi"])
    assert re.fullmatch(r"(19|20)\d\d", entry.fields["year"])
    assert not re.search(r"[{}\\]", entry.text + entry.short)


def test_keys_and_works_occur_once():
    text = (boilerplate.resources.files("qsmflow.data") / "references.bib").read_text()
    keys = re.findall(r"@\w+\{([^,]+),", text)
    dois = [entry.fields["doi"].lower() for entry in bibliography().values()]
    assert len(keys) == len(set(keys)) == len(dois) == len(set(dois))


def test_reading_bibtex():
    text = """
    Text between entries is ignored.
    @article{one, title = {On {MRI} = {nested {braces}}}, author = {M{\\"u}ller, J{\\'e}r{\\^o}me and {The Group} and others},
      year = {2020}, journal = {J}, volume = {3}, pages = {1--9}, doi = {10.1000/x}}
    @misc{two,title={T},author={A, B},year={2021},howpublished={Web},url={https://example.org}}
    """
    one, two = parse_bibtex(text)
    assert one.text == "Müller J, The Group, et al. On MRI = nested braces. J 3:1–9, 2020."
    assert one.short == "Müller et al. 2020, doi:10.1000/x"
    assert (two.key, two.url, two.text) == ("two", "https://example.org", "A B. T. Web, 2021.")
    with pytest.raises(ValueError, match="not closed"):
        parse_bibtex("@misc{three, title = {open}")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.background}-{recipe.inversion}-{recipe.reference}")
def test_text_tells_every_method_with_its_values_and_cites_it(recipe):
    text, citations = methods_text(recipe, **SCAN, registration="t1w")
    for stage, name in recipe.methods:
        row = registry.find(stage, name)
        assert row.describe(recipe.parameters.get(name)).rstrip(".") in text
        assert set(row.citations) <= set(citations)
    assert "3 echoes" in text
    assert "TE 4, 12, 20 ms, 3 T" in text
    assert "qsmflow 1.2.3" in text
    assert recipe.hash in text
    assert "{" not in text


def test_latex_says_the_same():
    text, citations = methods_text(Recipe(), **SCAN, registration="t1w")
    made = boilerplate.latex(text)
    assert {key for part in re.findall(r"\\cite\{([^}]*)\}", made) for key in part.split(",")} == set(citations)
    assert "[@" not in made
    assert boilerplate.latex('a_b 5% "q" {x} ~ [@a; @b]') == r"a\_b 5\% ``q'' \{x\} \textasciitilde{} \cite{a,b}"
    plain = re.sub(r"\\cite\{[^}]*\}|``|''", "", made).replace("\\", "")
    assert plain == re.sub(r'\[@[^\]]*\]|"', "", text)


def test_values_in_the_text_are_those_of_the_recipe():
    text, _ = methods_text(Recipe(inversion="tkd", parameters={"tkd": {"threshold": 0.123}}), **SCAN)
    assert "0.123" in text


@pytest.mark.parametrize("registration", ["", *boilerplate.REGISTRATIONS])
def test_citations_and_bibliography_fit_each_other(registration):
    text, citations = methods_text(Recipe(), **SCAN, registration=registration)
    assert list(citations) == list(cited(text))
    assert {entry.key for entry in parse_bibtex(bibtex(citations))} == set(citations)
    assert ("pauli2018" in citations) == bool(registration)


def test_the_consensus_is_claimed_only_by_its_own_recipe():
    assert "[@bilgic2024]), which" in methods_text(Recipe.load("consensus"), **SCAN)[0]
    for changed in (Recipe(inversion="tkd"), Recipe.load("fast")):
        assert "recommendations" not in methods_text(changed, **SCAN)[0]
    assert "changed as stated" in methods_text(Recipe(inversion="tkd"), **SCAN)[0]
    assert "changed" not in methods_text(Recipe.load("fast"), **SCAN)[0]


def test_what_was_left_out_is_told_once_per_reason():
    skipped = {
        "offset": "one echo",
        "relaxometry": "one echo",
        "reference": boilerplate.NOT_ASKED,
        "coils": boilerplate.COMBINED,
    }
    text, citations = methods_text(Recipe(), **SCAN | {"echo_times": [0.02]}, skipped=skipped)
    assert "Single-echo" in text
    assert "(one echo): phase-offset removal, relaxometry." in text
    assert "eckstein2018" not in citations
    assert "pei2015" not in citations
    assert "relative to the mean" not in text
    assert boilerplate.NOT_ASKED not in text
    assert boilerplate.COMBINED not in text


def test_outputs_that_were_not_asked_for_are_not_described():
    text, citations = methods_text(Recipe(outputs=("r2star",)), **SCAN | {"b0": None})
    assert "R2*" in text
    assert not {"bilgic2014tv", "dymerska2021"} & set(citations) - set(registry.find("mask", "quality").citations)
    assert " T)" not in text


def test_ready_made_masks_reversed_phase_and_files_of_the_user(tmp_path):
    mask, atlas = tmp_path / "m.nii.gz", tmp_path / "tpl-X_atlas-Mine_dseg.nii.gz"
    mask.touch()
    atlas.touch()
    recipe = Recipe(mask=str(mask), atlas=str(atlas))
    text, _ = methods_text(recipe, **SCAN, registration="native", phase_reversed=True)
    assert "ready-made mask" in text
    assert "sign of the phase was reversed" in text
    assert str(tmp_path) not in text
    assert "tpl-X_atlas-Mine_dseg.nii.gz" in text
    assert "ready-made mask" in methods_text(Recipe(), **SCAN, skipped={"mask": "given"})[0]


METADATA = {
    "Manufacturer": "Siemens", "ManufacturersModelName": "Prisma", "RepetitionTime": 0.033, "FlipAngle": 15,
    "PixelBandwidth": 260, "SequenceName": "fl3d", "ReceiveCoilName": "HeadNeck_64",
    "ImageType": ["ORIGINAL", "PRIMARY", "P"], "Units": "arbitrary",
    "MRAcquisitionType": "3D", "ParallelReductionFactorInPlane": 2, "CoilCombinationMethod": "Adaptive Combine",
}  # fmt: skip


def table(recipe=None, metadata=METADATA, **options):
    options = {"skipped": {"coils": boilerplate.COMBINED}, **options}
    rows = reporting_table(recipe or Recipe(), **SCAN, **GRID, acquisition=metadata, **options)
    assert all(len(row) == 2 and all(isinstance(cell, str) and cell for cell in row) for row in rows)
    assert len({item for item, _ in rows}) == len(rows)
    return dict(rows)


def test_reporting_table_is_filled_from_the_metadata():
    rows = table(echo_polarity="monopolar")
    assert rows["Scanner"] == "Siemens Prisma"
    assert rows["Field strength"] == "3 T"
    assert rows["Repetition time"] == "33 ms"
    assert rows["Flip angle"] == "15 degrees"
    assert rows["Echo times"] == "4, 12, 20 ms"
    assert rows["Resolution"] == "1 x 1 x 1.2 mm"
    assert rows["Matrix"] == "64 x 65 x 40"
    assert rows["Sequence"] == "fl3d"
    assert rows["Phase export"] == "arbitrary, ImageType ORIGINAL/PRIMARY/P"
    assert rows["Coil combination"] == "Adaptive Combine"
    assert rows["Echo polarity"] == "monopolar"
    assert UNKNOWN not in {value for item, value in rows.items() if item != "Scanner software"}


def test_reporting_table_says_what_is_not_known():
    rows = table(metadata={"FlipAngle": "fifteen", "RepetitionTime": None, "Manufacturer": ""})
    assert rows["Flip angle"] == "fifteen"
    assert all(rows[item] == UNKNOWN for item in ("Scanner", "Repetition time", "Sequence", "Coil combination", "Phase export"))


def test_reporting_table_gives_every_parameter_defaults_too():
    recipe = Recipe(outputs=tuple(OUTPUTS), parameters={"tv": {"iterations": 7}})
    rows = table(recipe)
    text = " ".join(rows.values())
    assert "Susceptibility-weighted imaging" not in table(Recipe())
    for stage, name in recipe.methods:
        for key, value in recipe.values(stage, name).items():
            assert f"{key.rstrip('_')} = {boilerplate._value(value)}" in text, (stage, name, key)
    assert "iterations = 7" in rows["Dipole inversion"]
    assert " and " in rows["Masking"]


def test_reporting_table_gives_the_reference_with_its_spread(tmp_path):
    (tmp_path / "r.nii").touch()
    assert table(reference=(0.0123, 0.04))["Reference region"].endswith(
        "mean +0.0123 ppm relative to the whole brain, SD 0.0400 ppm"
    )
    assert table(Recipe(reference="csf"), reference=(0.01, float("nan")))["Reference region"].endswith("SD not measured")
    assert table(Recipe(reference="none"))["Reference region"] == "none"
    assert table(Recipe(reference="region", reference_region=str(tmp_path / "r.nii")))["Reference region"] == "r.nii"


def test_single_step_has_no_background_method():
    recipe, skipped = Recipe(inversion="sstv"), {"background": "the inversion starts from the total field"}
    text, _ = methods_text(recipe, **SCAN, skipped=skipped)
    assert "in a single step" in text
    assert "background" not in text.lower()
    assert table(recipe, skipped=skipped)["Background field removal"] == f"left out: {skipped['background']}"


def test_two_passes_are_told():
    recipe = Recipe(two_pass=True, parameters={"quality": {"threshold": 0.35}})
    text, citations = methods_text(recipe, **SCAN)
    assert "Background removal and inversion were done in two passes" in text
    assert "a phase quality of at least 0.35" in text
    assert "stewart2022" in citations
    assert table(recipe)["Passes"] == "two: phase quality of at least 0.35, then the whole mask"
    assert "two passes" not in methods_text(Recipe(), **SCAN)[0] + methods_text(recipe, **SCAN, skipped={"inversion": "x"})[0]
    assert "The inversion was done in two passes" in methods_text(Recipe(two_pass=True, inversion="sstv"), **SCAN)[0]


def test_reporting_table_tells_what_was_left_out():
    rows = table(skipped={"offset": "one echo"})
    assert rows["Phase-offset removal"] == "left out: one echo"
    assert table(Recipe(offset="none"))["Phase-offset removal"] == "none"


def test_reporting_table_tells_who_combined_the_coils():
    assert table()["Coil combination"] == "Adaptive Combine"
    assert table(Recipe(coils="vrc"), skipped={})["Coil combination"] == "vrc (radius = 5, sigma = 7)"


def test_masks_are_told_as_they_are_combined():
    plain, mixed = (
        (methods_text(recipe, **SCAN)[0], dict(reporting_table(recipe, **SCAN, **GRID, acquisition={}))["Masking"])
        for recipe in (Recipe(mask="template & quality"), Recipe(mask="(template | robust) - quality"))
    )
    assert "The intersection of the masks was used." in plain[0]
    assert plain[1].count(" and ") == 1
    assert "The masks were combined as (template | robust) - quality" in mixed[0]
    assert re.fullmatch(r"\(template \(.*\) \| robust \(factor = 5, .*\)\) - quality \(.*\)", mixed[1])
