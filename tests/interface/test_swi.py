"""Susceptibility-weighted images as files: on the grid of the images, whole, with headers that hold what they promise."""

import nibabel as nb
import numpy as np
import pytest

from qsmflow import registry
from qsmflow.interfaces import images
from qsmflow.interfaces.outputs import SaveDerivative
from qsmflow.interfaces.swi import WeightMagnitude

SHAPE, ECHOES = (16, 15, 12), [0.01, 0.02]


@pytest.fixture
def grid():
    """Oblique, anisotropic."""
    turn, _ = np.linalg.qr(np.array([[1, 0.1, 0], [-0.1, 1, 0.2], [0, -0.2, 1]]))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) @ np.diag((1.0, 1.0, 2.0))
    affine[:3, 3] = (-8, -7, -12)
    return images.Grid(SHAPE, affine)


@pytest.fixture
def files(tmp_path, grid):
    rng = np.random.default_rng(0)
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    arrays = {
        "magnitude": 100 + 10 * rng.random((*SHAPE, 2)),
        "phase": rng.uniform(-1, 1, (*SHAPE, 2)),
        "mask": mask,
        "chi": 0.2 * rng.random(SHAPE) * mask,
    }
    return {name: images.write(tmp_path / f"{name}.nii", array, grid) for name, array in arrays.items()}


@pytest.mark.parametrize("name", registry.names("swi"))
def test_every_file_is_whole(tmp_path, monkeypatch, grid, files, name):
    monkeypatch.chdir(tmp_path)
    row = registry.find("swi", name)
    given = {key: files[key] for key in {*row.arrays, "magnitude", "mask"}}
    settings = {"algorithm": name, "parameters": row.merged({"thickness": 10.0}), "version": row.version}
    found = WeightMagnitude(**given, **settings, echo_times=ECHOES, b0=3.0).run().outputs
    loaded = {}
    for product in ("swi", "minip", "phase_mask"):
        save = SaveDerivative(
            in_file=getattr(found, product), output_dir=str(tmp_path / "out"), entities={"sub": "01"}, product=product
        )
        image = nb.load(save.run().outputs.out_file)
        assert image.shape == SHAPE, "as many slices as the images"
        assert image.header.get_data_dtype() == np.float32
        assert np.allclose(image.affine, grid.affine, atol=1e-5)
        assert image.header.get_zooms() == pytest.approx((1, 1, 2))
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
        loaded[product] = np.asarray(image.dataobj)
        assert np.isfinite(loaded[product]).all()
    image, projected = loaded["swi"], loaded["minip"]
    middle = image[2:-2, 2:-2]
    for z in range(2, SHAPE[2] - 2):  # five slices of 2 mm, fewer at the ends of the mask
        assert np.array_equal(projected[2:-2, 2:-2, z], middle[:, :, max(2, z - 2) : min(SHAPE[2] - 2, z + 3)].min(axis=2))
