"""Work files become outputs: scaled, typed, compressed, whole, and the same every time."""

import gzip
import json
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from qsmflow.bids.outputs import product_path
from qsmflow.interfaces import images
from qsmflow.interfaces.outputs import SaveDerivative, save_image

ENTITIES = {"sub": "01"}


@pytest.fixture
def grid():
    """An oblique grid of anisotropic voxels."""
    angle = np.deg2rad(30)
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation @ np.diag([0.8, 1.0, 2.0]), (-10, 5, 3)
    return images.Grid((8, 6, 5), affine)


@pytest.fixture
def volume(grid):
    return np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)


def save(tmp_path, **inputs):
    return SaveDerivative(output_dir=str(tmp_path / "out"), entities=ENTITIES, **inputs).run(cwd=str(tmp_path)).outputs.out_file


def test_image_sidecar_and_scale(tmp_path, grid, volume):
    source = images.write(tmp_path / "field.nii", volume, grid)
    out = save(
        tmp_path,
        in_file=source,
        product="total_field",
        scale=127.5,
        metadata={"Units": "Hz"},
        measured={"Mean": np.float32(0.5)},
    )
    assert out == str(tmp_path / "out/sub-01/fmap/sub-01_desc-total_fieldmap.nii.gz")
    image = nb.load(out)
    np.testing.assert_allclose(image.get_fdata(), volume * 127.5, rtol=1e-6)
    np.testing.assert_allclose(image.affine, grid.affine, atol=1e-6)
    assert image.get_data_dtype() == np.float32
    sidecar = json.loads((tmp_path / "out/sub-01/fmap/sub-01_desc-total_fieldmap.json").read_text())
    assert sidecar == {"Units": "Hz", "Mean": 0.5}
    assert sorted(path.name for path in (tmp_path / "out/sub-01/fmap").iterdir()) == [
        "sub-01_desc-total_fieldmap.json", "sub-01_desc-total_fieldmap.nii.gz",
    ]  # fmt: skip


def test_one_echo_of_many(tmp_path, grid, volume):
    source = images.write(tmp_path / "phase.nii", np.stack([volume, volume + 1], axis=-1), grid)
    out = save(tmp_path, in_file=source, product="unwrapped", volume=1, extra={"echo": "2"})
    assert out.endswith("sub-01_echo-2_part-phase_desc-unwrapped_MEGRE.nii.gz")
    np.testing.assert_array_equal(nb.load(out).get_fdata(dtype=np.float32), volume + 1)


def test_masks_are_zero_and_one_bytes(tmp_path, grid, volume):
    source = images.write(tmp_path / "mask.nii", 0.3 * (volume > 0), grid)
    image = nb.load(save(tmp_path, in_file=source, product="qsm_mask"))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume > 0)


def test_labels_are_integers(tmp_path, grid, volume):
    labels = np.arange(volume.size, dtype=np.int16).reshape(volume.shape)
    source = images.write(tmp_path / "labels.nii", labels.astype(np.float32), grid)
    out = Path(save(tmp_path, in_file=source, product="labels", extra={"atlas": "CIT168"}))
    image = nb.load(out)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels)
    assert "subcortical nuclei" in (out.parents[2] / "atlas-CIT168_description.json").read_text(), (
        "told beside the first output"
    )


def test_tables_are_copied_with_their_sidecar(tmp_path):
    (tmp_path / "rois.tsv").write_text("index\tname\n1\tPu\n")
    out = save(
        tmp_path, in_file=str(tmp_path / "rois.tsv"), product="region_table", extra={"atlas": "CIT168"}, metadata={"a": 1}
    )
    assert out.endswith("sub-01_atlas-CIT168_stats.tsv")
    assert Path(out).read_text() == "index\tname\n1\tPu\n"
    assert json.loads(Path(out).with_suffix(".json").read_text()) == {"a": 1}


def test_same_input_same_bytes(tmp_path, grid, volume):
    contents = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        source = images.write(tmp_path / name / f"{name}.nii", volume, grid)
        contents.add(Path(save(tmp_path / name, in_file=source, product="chi")).read_bytes())
    assert len(contents) == 1
    (content,) = contents
    assert content[3] == 0, "no file name in the gzip header"
    assert content[4:8] == bytes(4), "no time in the gzip header"
    assert len(gzip.decompress(content)) == 352 + volume.nbytes


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_refused(tmp_path, grid, volume, value):
    volume[0, 0, 0] = value
    source = images.write(tmp_path / "chi.nii", volume, grid)
    with pytest.raises(ValueError, match=r"chi\.nii: 1 voxels are not finite"):
        save(tmp_path, in_file=source, product="chi")
    assert not (tmp_path / "out/sub-01/anat/sub-01_Chimap.nii.gz").exists()


def test_the_number_of_axes_is_checked(tmp_path, grid, volume):
    source = images.write(tmp_path / "chi.nii", volume, grid)
    with pytest.raises(ValueError, match="volume=1"):
        save_image(source, tmp_path / "x.nii.gz", dtype="float32", volume=1)
    many = images.write(tmp_path / "many.nii", np.stack([volume] * 2, axis=-1), grid)
    with pytest.raises(ValueError, match="volume=None"):
        save_image(many, tmp_path / "x.nii.gz", dtype="float32")


def test_a_write_that_fails_leaves_no_image(tmp_path, grid, volume, monkeypatch):
    """A full disk cuts the file short; the old output stays as it was."""
    source = images.write(tmp_path / "chi.nii", volume, grid)
    path = product_path(tmp_path / "out", ENTITIES, "chi")
    save_image(source, path, dtype="float32")
    before, write = path.read_bytes(), images.write

    def cut(target, data, grid):
        write(target, data * 0, grid)
        return str(target)

    monkeypatch.setattr(images, "write", cut)
    with pytest.raises(OSError, match="does not read back"):
        save_image(source, path, dtype="float32")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_deleted_output_comes_back(tmp_path, grid, volume):
    from nipype.pipeline import engine as pe

    source = images.write(tmp_path / "chi.nii", volume, grid)
    node = pe.Node(
        SaveDerivative(in_file=source, output_dir=str(tmp_path / "out"), entities=ENTITIES, product="chi"),
        name="save", base_dir=str(tmp_path / "work"),
    )  # fmt: skip
    for _ in range(2):
        node.run()
        path = product_path(tmp_path / "out", ENTITIES, "chi")
        assert path.exists()
        path.unlink()
