"""The interfaces of masks and of the check of unwrapped phase, on small files."""

from __future__ import annotations

import numpy as np
import pytest

from qsmflow import registry
from qsmflow.interfaces import images
from qsmflow.interfaces.masking import MakeMask
from qsmflow.interfaces.passes import FindReliable, MergePasses
from qsmflow.interfaces.unwrap import CheckPhase

GRID = images.Grid((24, 20, 16), np.diag([2.0, 2.0, 3.0, 1.0]))
TIMES = [0.004, 0.009, 0.017]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def method(stage, name, **parameters):
    row = registry.find(stage, name)
    return {"algorithm": name, "parameters": row.merged(parameters), "version": row.version}


def check(place, phase, **parameters):
    files = {
        "phase": phase, "magnitude": np.ones((*GRID.shape, 3), np.float32), "mask": np.ones(GRID.shape, bool),
    }  # fmt: skip
    files = {name: images.write(place / f"in_{name}.nii", data, GRID) for name, data in files.items()}
    return CheckPhase(**method("check", "consistency", **parameters), **files, echo_times=TIMES).run().outputs


def test_a_failed_check_is_told_and_the_phase_replaced(place):
    true = np.broadcast_to(np.linspace(-300, 300, 24)[:, None, None, None] * np.array(TIMES), (*GRID.shape, 3))
    fine = check(place, true.astype(np.float32))
    assert fine.notices == []
    assert (fine.before, fine.after, fine.used) == (0, 0, "")
    wrong = true.astype(np.float32).copy()
    wrong[12:, ..., 2] += 4 * np.pi
    replaced = check(place, wrong)
    assert replaced.before > 1 >= replaced.after
    (notice,) = replaced.notices
    assert "unwrapped again by romeo" in notice
    np.testing.assert_allclose(images.read(replaced.phase), true, atol=1e-4)
    kept = check(place, wrong, fallback="laplacian", walls=5.0, bent=1.0)
    assert kept.notices == []


def test_masks_are_combined_as_the_expression_says(place):
    magnitude = np.zeros((*GRID.shape, 2), np.float32) + np.float32(0.01)
    magnitude[3:21, 3:17, 3:13] = 100
    prior = np.zeros(GRID.shape, np.float32)
    prior[3:12, 3:17, 3:13] = 1
    quality = np.ones(GRID.shape, np.float32)
    quality[:, :, 8:] = 0
    arrays = {"magnitude": magnitude, "prior": prior, "quality": quality}
    files = {name: images.write(place / f"{name}.nii", data, GRID) for name, data in arrays.items()}

    def volume(expression, *names):
        methods = [(name, registry.find("mask", name).merged(), 1) for name in names]
        made = MakeMask(methods=methods, expression=expression, **files).run().outputs
        return images.read(made.mask, bool), images.read(made.brain, bool)

    both, brain = volume("(template | robust) & quality", "template", "robust", "quality")
    np.testing.assert_array_equal(brain, volume("template | robust", "template", "robust")[0])
    assert both.sum() < brain.sum()
    assert not both[:, :, 9:].any()
    narrow, wide = volume("template & quality", "template", "quality")
    assert wide[3:12, 3:17, 3:13].mean() > 0.95
    assert not narrow[12:].any()
    assert both[14:18, 8:12, 5].all()
    rest, _ = volume("robust - template", "robust", "template")
    assert not (rest & (prior > 0)).any()
    with pytest.raises(ValueError, match="robust - robust: the mask is empty"):
        volume("robust - robust", "robust")


def test_two_passes_meet_in_one_map(place):
    mask, quality = np.zeros(GRID.shape, bool), np.full(GRID.shape, 0.9, np.float32)
    mask[2:-2, 2:-2, 2:-2] = True
    quality[9:14, 8:13, 6:11] = 0.1
    files = {name: images.write(place / f"in_{name}.nii", data, GRID) for name, data in (("mask", mask), ("quality", quality))}
    reliable = FindReliable(**files, threshold=0.5).run().outputs.mask
    known = images.read(reliable, bool)
    assert (mask & ~known).sum() == 81  # half of a box of 3^3 decides, which rounds the corners of the cube
    maps = {"first": 0.1 * known, "second": 0.3 * mask + 0.2 * (mask & ~known)}
    maps = {name: images.write(place / f"{name}.nii", data.astype(np.float32), GRID) for name, data in maps.items()}
    made = MergePasses(**maps, first_mask=reliable, second_mask=files["mask"]).run().outputs
    assert np.array_equal(images.read(made.mask, bool), mask)
    np.testing.assert_allclose(images.read(made.chi), 0.1 * mask + 0.2 * (mask & ~known), atol=1e-6)
    share = (mask & ~known).sum() / mask.sum()
    assert made.measured == {"SecondPassShare": pytest.approx(share, abs=1e-4), "SecondPassShift": -0.2}
    assert made.notices == [f"two passes: {share:.1%} of the susceptibility is from the second, shifted by -0.2000 ppm"]
