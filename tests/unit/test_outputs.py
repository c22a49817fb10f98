"""Names, sidecars and dataset files of the output tree; the BIDS validator has the last word."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nibabel as nb
import numpy as np
import pytest

from qsmflow.bids import outputs
from qsmflow.cli.validator import validate
from qsmflow.config import Recipe

ENTITIES = {"sub": "01", "ses": "a", "acq": "hi", "run": "1"}
X = "sub-01_ses-a_acq-hi_run-1"


@pytest.fixture
def acquisition(tmp_path):
    anat = tmp_path / "raw/sub-01/ses-a/anat"
    return SimpleNamespace(
        b0=3.0,
        t1w=str(anat / "sub-01_ses-a_T1w.nii.gz"),
        sources=tuple(str(anat / f"{X}_echo-{e}_part-{p}_MEGRE.nii.gz") for e in (1, 2) for p in ("mag", "phase")),
    )


def put(path: Path, metadata: dict | None) -> None:
    """An image of a few voxels (or one line of text) with its sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        image = nb.Nifti1Image(np.arange(64, dtype=np.float32).reshape(4, 4, 4), np.eye(4))
        image.header.set_xyzt_units("mm", "sec")
        nb.save(image, path)
        outputs.sidecar_path(path).write_text(json.dumps(metadata))
    else:
        path.write_text("index\tname\n1\tPu\n" if path.suffix == ".tsv" else "{}")


def write_tree(out: Path, acquisition, entities) -> None:
    """Every product of the table under its name."""
    datasets = outputs.dataset_roots(acquisition.t1w.split("/sub-01")[0])
    for name, row in outputs.PRODUCTS.items():
        extra = {"echo": "1"} if name == "unwrapped" else {"atlas": "CIT168"} if "label" in name or "region" in name else {}
        path = outputs.product_path(out, entities, name, **extra)
        put(path, outputs.sidecar(name, acquisition, Recipe(), datasets=datasets) if row.is_image else None)
    outputs.write_dataset_files(out, datasets=datasets)
    outputs.describe_atlas(out, "CIT168")


def test_names_of_the_table():
    names = {
        name: outputs.product_path("out", ENTITIES, name).relative_to("out/sub-01/ses-a").as_posix()
        for name in outputs.PRODUCTS
        if name not in ("unwrapped", "labels", "labels_table", "region_table")
    }
    assert names == {
        "chi": f"anat/{X}_Chimap.nii.gz",
        "chi_t1w": f"anat/{X}_space-T1w_Chimap.nii.gz",
        "chi_template": f"anat/{X}_space-MNI152NLin2009cAsym_res-1_Chimap.nii.gz",
        "chi_cosmos": f"anat/{X}_desc-cosmos_Chimap.nii.gz",
        "mask_cosmos": f"anat/{X}_desc-cosmos_mask.nii.gz",
        "chi_para": f"anat/{X}_desc-paramagnetic_Chimap.nii.gz",
        "chi_dia": f"anat/{X}_desc-diamagnetic_Chimap.nii.gz",
        "r2star": f"anat/{X}_R2starmap.nii.gz",
        "t2star": f"anat/{X}_T2starmap.nii.gz",
        "s0": f"anat/{X}_S0map.nii.gz",
        "combined": f"anat/{X}_desc-combined_T2starw.nii.gz",
        "matching": f"anat/{X}_desc-coilmatching_T2starw.nii.gz",
        "swi": f"anat/{X}_desc-swi_T2starw.nii.gz",
        "minip": f"anat/{X}_desc-minip_T2starw.nii.gz",
        "phase_mask": f"anat/{X}_desc-phasemask_T2starw.nii.gz",
        "brain_mask": f"anat/{X}_desc-brain_mask.nii.gz",
        "qsm_mask": f"anat/{X}_desc-qsm_mask.nii.gz",
        "quality": f"anat/{X}_desc-qc_stats.json",
        "total_field": f"fmap/{X}_desc-total_fieldmap.nii.gz",
        "local_field": f"fmap/{X}_desc-local_fieldmap.nii.gz",
        "field_magnitude": f"fmap/{X}_magnitude.nii.gz",
    }
    assert (
        outputs.product_path("out", ENTITIES, "unwrapped", echo="1").name
        == f"{X}_echo-1_part-phase_desc-unwrapped_MEGRE.nii.gz"
    )
    assert outputs.product_path("out", ENTITIES, "labels", atlas="CIT168").name == f"{X}_space-GRE_atlas-CIT168_dseg.nii.gz"
    assert outputs.product_path("out", ENTITIES, "region_table", atlas="CIT168").name == f"{X}_atlas-CIT168_stats.tsv"


@pytest.mark.parametrize(("swi", "inversion"), [("clearswi", False), ("tswi", True)])
def test_a_weighted_image_names_what_it_was_made_from(acquisition, swi, inversion):
    """Phase alone, or susceptibility with everything that led to it."""
    recipe = Recipe(outputs=("swi",), swi=swi)
    content = outputs.sidecar("minip", acquisition, recipe, datasets={})
    methods = {row["Stage"]: row for row in content["Methods"]}
    assert methods["swi"]["Method"] == swi
    assert methods["swi"]["Parameters"]["thickness"] == 14
    assert ("inversion" in methods) == inversion


def test_entities_follow_the_schema():
    order = [entity["name"] for entity in _schema().objects.entities.values()]
    rules = [_schema().objects.entities[key]["name"] for key in _schema().rules.entities]
    assert set(outputs.ENTITY_ORDER) <= set(order)
    assert list(outputs.ENTITY_ORDER) == [name for name in rules if name in outputs.ENTITY_ORDER]


def _schema():
    from bidsschematools.schema import load_schema

    return load_schema()


def test_figures_lie_beside_the_sessions():
    path = outputs.output_path("out", ENTITIES, "Chimap", ".png", datatype="figures", desc="atlas")
    assert path == Path(f"out/sub-01/figures/{X}_desc-atlas_Chimap.png")


@pytest.mark.parametrize(
    ("entities", "message"),
    [({"coil": "1"}, "coil-1"), ({"desc": "two-words"}, "letters and digits"), ({"sub": ""}, "subject")],
)
def test_refused_names(entities, message):
    with pytest.raises(ValueError, match=message):
        outputs.output_path("out", ENTITIES, "Chimap", ".nii.gz", datatype="anat", **entities)


@pytest.mark.parametrize(
    "entities",
    [
        {"sub": "01"},
        ENTITIES,
        {"sub": "01", "task": "rest", "acq": "hi", "ce": "gad", "rec": "norm", "run": "02", "chunk": "1"},
    ],
    ids=["plain", "session", "every entity"],
)
def test_the_validator_accepts_the_tree(tmp_path, acquisition, entities):
    out = tmp_path / "out"
    write_tree(out, acquisition, entities)
    anat = {"Units": "ppm", "SkullStripped": True}
    for desc in ("paramagnetic", "diamagnetic", "twopass"):
        put(outputs.output_path(out, entities, "Chimap", ".nii.gz", datatype="anat", desc=desc), anat)
    (out / "sub-01.html").write_text("<html></html>")
    for name in (
        "logs/run.toml",
        "sub-01/figures/sub-01_desc-mask_T2starw.png",
        "sub-01/figures/sub-01_desc-mask_T2starw.json",
    ):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("{}")
    (out / "sub-01" / ".0123456789ab.sub-01_Chimap.nii.gz").write_bytes(b"half a file, left by a killed run")
    assert validate(out) == []


def test_the_validator_is_heard(tmp_path, acquisition):
    out = tmp_path / "out"
    write_tree(out, acquisition, ENTITIES)
    (out / f"sub-01/ses-a/anat/{X}_localfield.nii.gz").write_bytes(b"")
    assert "NOT_INCLUDED" in " ".join(validate(out))


def test_two_reconstructions_do_not_share_a_field_map():
    paths = {outputs.product_path("out", {**ENTITIES, "rec": rec}, "total_field") for rec in ("norm", "sharp")}
    assert {path.name for path in paths} == {
        f"sub-01_ses-a_acq-hirec{rec}_run-1_desc-total_fieldmap.nii.gz" for rec in ("norm", "sharp")
    }


def test_sidecar_content(acquisition, tmp_path):
    recipe = Recipe(background="resharp")
    skipped = {"coils": "the images are combined", "readout": "two echoes"}
    content = outputs.sidecar("local_field", acquisition, recipe, datasets={"raw": tmp_path / "raw"}, skipped=skipped)
    assert content["Units"] == "Hz"
    assert content["SkullStripped"] is True
    assert content["Sources"][0] == f"bids:raw:sub-01/ses-a/anat/{X}_echo-1_part-mag_MEGRE.nii.gz"
    assert content["MagneticFieldStrength"] == 3.0
    assert content["RecipeHash"] == recipe.hash
    stages = ["offset", "unwrap", "check", "field", "mask", "mask", "background"]
    assert [method["Stage"] for method in content["Methods"]] == stages
    assert content["Methods"][-1] == {
        "Stage": "background", "Method": "resharp", "Parameters": recipe.values("background", "resharp"),
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(content), "a sidecar must not depend on where the study lies"


@pytest.mark.parametrize(
    ("product", "reference"),
    [
        ("labels", f"bids:raw:sub-01/ses-a/anat/{X}_echo-1_part-mag_MEGRE.nii.gz"),
        ("chi_t1w", "bids:raw:sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"),
        ("chi_template", "https://templateflow.s3.amazonaws.com/tpl-MNI152NLin2009cAsym/"
         "tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"),
        ("brain_mask", "orig"),
        ("chi", None),
    ],
)  # fmt: skip
def test_spatial_reference(acquisition, tmp_path, product, reference):
    content = outputs.sidecar(product, acquisition, Recipe(), datasets={"raw": tmp_path / "raw"})
    assert content.get("SpatialReference") == reference


def test_sidecar_without_a_field_strength(acquisition, tmp_path):
    acquisition.b0 = None
    assert "MagneticFieldStrength" not in outputs.sidecar("r2star", acquisition, Recipe(), datasets={"raw": tmp_path / "raw"})


def test_uri_of_the_innermost_dataset():
    datasets = {"raw": Path("/study"), "derivatives1": Path("/study/derivatives/masks")}
    assert outputs.bids_uri("/study/derivatives/masks/sub-01/x.nii", datasets) == "bids:derivatives1:sub-01/x.nii"
    assert outputs.bids_uri("/study/./sub-01/../sub-02/x.nii", datasets) == "bids:raw:sub-02/x.nii"
    assert outputs.bids_uri("/elsewhere/x.nii", datasets) == "file:///elsewhere/x.nii"


def test_links_to_symlinked_files_stay_in_the_dataset(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/object").write_text("content")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/x.nii").symlink_to(tmp_path / "store/object")
    assert outputs.bids_uri(tmp_path / "raw/x.nii", {"raw": tmp_path / "raw"}) == "bids:raw:x.nii"


def test_a_dataset_reached_through_a_link_is_recognised(tmp_path):
    (tmp_path / "disk/raw").mkdir(parents=True)
    (tmp_path / "raw").symlink_to(tmp_path / "disk/raw")
    for path in ("raw/x.nii", "disk/raw/x.nii"):
        assert outputs.bids_uri(tmp_path / path, {"raw": tmp_path / "raw"}) == "bids:raw:x.nii"


def test_dataset_files_are_relative_and_stable(tmp_path):
    out, roots = tmp_path / "study/derivatives/qsmflow", outputs.dataset_roots(tmp_path / "study", [tmp_path / "masks"])
    outputs.write_dataset_files(out, datasets=roots)
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"] == {"raw": "../..", "derivatives1": "../../../masks"}
    assert description["SourceDatasets"] == [{"URL": "../.."}, {"URL": "../../../masks"}]
    before = {path.name: path.stat().st_ino for path in out.iterdir()}
    outputs.write_dataset_files(out, datasets=roots)
    assert {path.name: path.stat().st_ino for path in out.iterdir()} == before, "unchanged files are left alone"


def test_licence_and_doi_of_the_raw_data_are_kept(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/dataset_description.json").write_text('{"License": "CC0", "DatasetDOI": "doi:10.1/x", "Name": "n"}')
    outputs.write_dataset_files(tmp_path / "out", datasets={"raw": tmp_path / "raw"})
    description = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert description["License"] == "CC0"
    assert description["SourceDatasets"] == [{"URL": "../raw", "DOI": "doi:10.1/x"}]


@pytest.mark.parametrize("text", ["{broken", "[]"])
def test_a_broken_description_of_the_raw_data_stops_nothing(tmp_path, text):
    (tmp_path / "dataset_description.json").write_text(text)
    outputs.write_dataset_files(tmp_path / "out", datasets={"raw": tmp_path})
    assert "License" not in json.loads((tmp_path / "out/dataset_description.json").read_text())


def test_every_description_is_explained(tmp_path):
    outputs.write_dataset_files(tmp_path, datasets={})
    lines = (tmp_path / "descriptions.tsv").read_text().splitlines()
    assert lines[0] == "desc_id\tdescription"
    rows = dict(line.split("\t") for line in lines[1:])
    assert set(rows) == {f"desc-{row.entities['desc']}" for row in outputs.PRODUCTS.values() if "desc" in row.entities}
    assert all(text.endswith(".") for text in rows.values())


def test_many_jobs_write_the_dataset_files_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(outputs.write_dataset_files, tmp_path, datasets={"raw": tmp_path / str(n % 2)}) for n in range(64)]
        for job in jobs:
            job.result()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".bidsignore",
        "README.md",
        "dataset_description.json",
        "descriptions.tsv",
    ]
    assert json.loads((tmp_path / "dataset_description.json").read_text())["DatasetLinks"]["raw"] in ("0", "1")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "sub-01_Chimap.json"
    outputs.write_text(path, "old")

    def interrupted():
        with outputs.atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_written_files_have_the_permissions_of_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        outputs.write_text(tmp_path / "x.json", "{}")
    finally:
        os.umask(old)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o640


def test_json_numbers():
    assert json.loads(outputs.json_text({"a": np.float32(0.5), "b": np.int64(3)})) == {"a": 0.5, "b": 3}
    with pytest.raises(ValueError, match="JSON compliant"):
        outputs.json_text({"a": float("nan")})


def test_copies_are_complete(tmp_path):
    (tmp_path / "a.tsv").write_text("index\tname\n")
    outputs.copy_file(tmp_path / "a.tsv", tmp_path / "deep/folder/b.tsv")
    assert (tmp_path / "deep/folder/b.tsv").read_text() == "index\tname\n"
