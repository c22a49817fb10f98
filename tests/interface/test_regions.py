"""The table of region values, reference regions, given masks and fields, and atlases by path."""

import csv
import re

import numpy as np
import pytest

from qsmflow.algorithms.units import hz_per_ppm
from qsmflow.bids.atlas import read_atlas
from qsmflow.bids.regions import COLUMNS
from qsmflow.errors import UsageError
from qsmflow.interfaces import images
from qsmflow.interfaces.field import TakeField
from qsmflow.interfaces.masking import CheckMask
from qsmflow.interfaces.regions import ExpectRegions, PickRegion, TabulateRegions

GRID = images.Grid((10, 10, 10), np.diag([-2.0, 1.0, 3.0, 1.0]))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.zeros(GRID.shape, np.int16)
    labels[:2], labels[2:4], labels[4] = 1, 101, 9
    chi = rng.normal(0.02, 0.01, GRID.shape).astype(np.float32)
    chi[labels == 1] += 0.1
    mask = np.ones(GRID.shape, bool)
    mask[4] = False
    arrays = {"labels": labels, "chi": chi, "mask": mask, "r2star": np.full(GRID.shape, 20, np.float32)}
    return {name: images.write(tmp_path / f"{name}.nii", data, GRID) for name, data in arrays.items()}


def test_table_holds_every_region_relative_to_both_references(files):
    sources = {"chi_para": files["chi"], "chi_dia": files["r2star"]}
    outputs = TabulateRegions(atlas="CIT168", **files, **sources).run().outputs
    with open(outputs.table, newline="") as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file, delimiter="\t")}
    assert len(rows) == 28
    chi, labels, mask = images.read(files["chi"]), images.read(files["labels"], int), images.read(files["mask"], bool)
    putamen = rows[1]
    assert (putamen["name"], putamen["hemisphere"], putamen["n_voxels"]) == ("Pu_L", "L", "200")
    assert float(putamen["volume_mm3"]) == pytest.approx(1200)
    assert float(putamen["chi_mean"]) == pytest.approx(chi[labels == 1].mean(), rel=1e-4)
    assert float(putamen["chi_p95"]) == pytest.approx(np.percentile(chi[labels == 1], 95), rel=1e-4)
    assert float(putamen["chi_brain_mean"]) == pytest.approx(chi[labels == 1].mean() - chi[mask].mean(), rel=1e-3)
    assert float(putamen["r2star_median"]) == 20
    assert rows[9]["n_voxels"] == "0"  # outside the mask
    assert rows[9]["chi_mean"] == "n/a"
    assert (putamen["para_mean"], putamen["dia_mean"]) == (putamen["chi_mean"], putamen["r2star_mean"])
    assert list(outputs.dictionary) == list(putamen)
    for column, words in outputs.dictionary.items():  # every map is one that has words of its own
        assert re.search(r"of .*(ppm|1/s)$", words["Description"]) or column in COLUMNS


@pytest.mark.parametrize(("region", "indices"), [("Pu_L", [1]), ("1+101", [1, 101]), ("Pu_L+9", [1, 9])])
def test_reference_region_by_name_and_index(files, region, indices):
    mask = PickRegion(region=region, atlas="CIT168", labels=files["labels"], like=files["chi"]).run().outputs.mask
    assert np.array_equal(images.read(mask, bool), np.isin(images.read(files["labels"], int), indices))


def test_unknown_reference_region_gets_the_nearest_name(files):
    with pytest.raises(UsageError, match="did you mean 'Pu_L'"):
        PickRegion(region="Pu_l", atlas="CIT168", labels=files["labels"], like=files["chi"]).run()


def test_prior_is_the_middle_of_the_range(files):
    prior = images.read(ExpectRegions(atlas="CIT168", labels=files["labels"]).run().outputs.chi_prior)
    labels = images.read(files["labels"], int)
    assert np.allclose(prior[labels == 1], 0.07)  # Pu_L, 0.03 to 0.11
    assert not prior[labels == 0].any()


def test_given_mask_is_checked(files, tmp_path):
    magnitude = np.zeros((*GRID.shape, 1), np.float32)
    magnitude[:5] = 100
    images.write(tmp_path / "magnitude.nii", magnitude, GRID)
    off = images.write(tmp_path / "off.nii", magnitude[..., 0] == 0, GRID)
    outputs = CheckMask(in_file=off, magnitude="magnitude.nii").run().outputs
    assert any("lies on tissue" in notice for notice in outputs.notices)
    other = images.Grid((8, 10, 10), GRID.affine)
    wrong = images.write(tmp_path / "wrong.nii", np.ones(other.shape, bool), other)
    with pytest.raises(ValueError, match="resample the mask"):
        CheckMask(in_file=wrong, magnitude="magnitude.nii").run()
    empty = images.write(tmp_path / "empty.nii", np.zeros(GRID.shape, bool), GRID)
    with pytest.raises(ValueError, match="is empty"):
        CheckMask(in_file=empty, magnitude="magnitude.nii").run()


def test_given_field_is_taken_in_hertz(files, tmp_path):
    mask = images.write(tmp_path / "mask.nii", np.ones(GRID.shape, bool), GRID)
    noise = np.random.default_rng(0).standard_normal(GRID.shape)
    for name, error, expected in (("flat", 0.0, 1.0), ("noisy", 0.5, 0.5 / hz_per_ppm(b0=3.0))):
        path = images.write(tmp_path / f"{name}.nii", (12.8 + error * noise).astype(np.float32), GRID)
        outputs = TakeField(in_file=path, like=files["chi"], mask=mask, b0=3.0).run().outputs
        assert images.read(outputs.field).mean() == pytest.approx(12.8 / hz_per_ppm(b0=3.0), rel=1e-2)
        assert images.read(outputs.field_error) == pytest.approx(expected, rel=0.1)


def test_atlas_by_path(tmp_path):
    name = str(tmp_path / "sub-01_space-MNI152NLin2009cAsym_atlas-Own_dseg.nii.gz")
    images.write(name, np.ones((4, 4, 4), np.int16), images.Grid((4, 4, 4), np.eye(4)))
    assert read_atlas(name).space == "template"
    assert (read_atlas(name).name, read_atlas(name).regions) == ("Own", {})
    table = tmp_path / "sub-01_space-MNI152NLin2009cAsym_atlas-Own_dseg.tsv"
    table.write_text("index\tname\n1\tlesion\n")
    assert read_atlas(name).regions == {1: ("lesion", "n/a")}
    table.write_text("number\tname\n1\tlesion\n")
    with pytest.raises(UsageError, match="columns 'index' and 'name'"):
        read_atlas(name)
    for bad, text in (("CIT186", "did you mean 'CIT168'"), ("gone.nii", "no such file")):
        with pytest.raises(UsageError, match=text):
            read_atlas(bad)
    unknown = tmp_path / "space-Talairach_dseg.nii"
    unknown.write_bytes(b"")
    with pytest.raises(UsageError, match="space 'Talairach' is not known"):
        read_atlas(str(unknown))
