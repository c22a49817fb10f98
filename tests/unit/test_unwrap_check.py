"""The check of unwrapped phase: what it measures, when it fires, and what it puts in place."""

from __future__ import annotations

import nibabel as nb
import numpy as np
import pytest
from scipy import ndimage

from qsmflow.algorithms.coils import mcpc3ds
from qsmflow.algorithms.unwrap.check import bent_share, consistency, wall_area
from qsmflow.algorithms.unwrap.romeo import residues, romeo
from qsmflow.algorithms.unwrap.temporal import temporal
from qsmflow.algorithms.unwrap.wrapping import wrap

TWO_PI = 2 * np.pi
TIMES = (0.004, 0.009, 0.017)
SHAPE = (24, 22, 20)
CONTEXT = {"echo_times": TIMES, "voxel_size": (1.0, 1.0, 2.0)}


def head(rng, peak=1200.0):
    """A smooth field in a ball: unwrapped phase, magnitude, mask."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    mask = sum(c**2 for c in grid) < 0.9
    field = ndimage.gaussian_filter(rng.normal(size=SHAPE), 5.0, mode="wrap")
    field *= peak / np.abs(field).max()
    phase = (field[..., None] * np.array(TIMES)).astype(np.float32)
    return phase * mask[..., None], np.ones(phase.shape, np.float32), mask


def test_a_wall_is_measured_by_its_area():
    phase, every = np.zeros((10, 20, 30), np.float32), np.ones((10, 20, 30), bool)
    phase[:5] = TWO_PI
    assert wall_area(phase, np.ones_like(phase), every) == pytest.approx(600 / 6000 ** (2 / 3))
    assert wall_area(phase, np.ones_like(phase), np.zeros_like(every)) == 0


def test_residues_are_counted_as_everywhere_and_excuse_as_many_jumps(rng):
    """Noise has jumps, but few more than residues."""
    phase = rng.uniform(-np.pi, np.pi, (30, 30, 30, 1)).astype(np.float32)
    every, magnitude = np.ones((30, 30, 30), bool), np.ones((30, 30, 30), np.float32)
    unwrapped = romeo(phase, magnitude[..., None], every, echo_times=(0.004,))[..., 0]
    jumps = sum((np.abs(np.diff(unwrapped, axis=a)) > np.pi).sum() for a in range(3))
    expected = max(0, jumps - 1.25 * int(residues(phase[..., 0], every).sum(dtype=int))) / 30**2
    assert wall_area(unwrapped, magnitude, every) == pytest.approx(expected)
    assert expected < 0.03 * jumps / 30**2


def test_dark_voxels_hardly_count():
    phase = np.zeros((10, 10, 10), np.float32)
    phase[5:, :5] = TWO_PI
    every, magnitude = np.ones(phase.shape, bool), np.ones(phase.shape, np.float32)
    magnitude[4:6, :5], magnitude[5:, 4:6] = 0.1, 0.1
    assert wall_area(phase, magnitude, every) == pytest.approx(0.01, rel=0.01)


def test_echoes_off_the_line(rng):
    phase, magnitude, mask = head(rng)
    assert bent_share(phase, magnitude, mask, echo_times=TIMES) == 0
    wrong = phase.copy()
    wrong[:12, ..., 1] += 2 * TWO_PI  # the line itself gives way to a single turn
    share = mask[:12].sum() / mask.sum()
    assert bent_share(wrong, magnitude, mask, echo_times=TIMES) == pytest.approx(share)
    assert bent_share(wrong[..., :2], magnitude[..., :2], mask, echo_times=TIMES[:2]) == 0
    assert bent_share(phase + 3, magnitude, mask, echo_times=TIMES) == 0  # an offset is no error


def test_what_passes_is_left_alone(rng):
    phase, magnitude, mask = head(rng)
    result, before, after, used = consistency(phase, magnitude, mask, **CONTEXT)
    assert (before, after, used) == (0, 0, "")
    np.testing.assert_array_equal(result, phase)
    assert not np.shares_memory(result, phase)


@pytest.mark.parametrize("fallback", ["best", "romeo", "bestpath"])
def test_a_wrong_result_is_replaced_by_the_right_one(rng, fallback):
    """Half a head that is one turn off in one echo and two in another."""
    phase, magnitude, mask = head(rng)
    wrong = phase.copy()
    wrong[12:, ..., 0] += TWO_PI
    wrong[12:, ..., 2] -= 2 * TWO_PI
    wrong *= mask[..., None]
    result, before, after, used = consistency(wrong, magnitude, mask, **CONTEXT, fallback=fallback)
    assert before > 2
    assert after == 0
    assert used == ("romeo" if fallback == "best" else fallback)
    assert np.abs(result - phase)[mask].max() < 1e-4


def test_voxelwise_unwrapping_beyond_its_limit_fails_and_is_replaced(rng):
    """Where the field passes 1 / (2 dTE), unwrapping along the echoes leaves walls."""
    phase, magnitude, mask = head(rng, peak=1500.0)
    wrong = temporal(wrap(phase), mask, echo_times=TIMES)
    result, before, after, used = consistency(wrong, magnitude, mask, **CONTEXT)
    assert before > 1 > after
    assert used
    turns = (result - phase)[mask] / TWO_PI
    assert np.ptp(turns, axis=0).max() < 1e-4


def test_bestpath_steps_in_where_the_magnitude_misleads():
    """Two opposite vortices, and a magnitude that makes ROMEO cut the long way round; the check prefers the short one."""
    x, y, _ = np.meshgrid(np.arange(40) - 19.5, np.arange(40) - 19.5, np.arange(6), indexing="ij")
    phase = wrap(np.arctan2(y, x - 3) - np.arctan2(y, x + 3)).astype(np.float32)[..., None]
    dark = (np.abs(x) > 3) & (np.abs(y) < 2)
    magnitude = np.where(dark, 0.6, 1.0).astype(np.float32)[..., None]
    every = np.ones(x.shape, bool)
    context = {"echo_times": (0.01,), "voxel_size": (1.0, 1.0, 1.0)}
    wrong = romeo(phase, magnitude, every, echo_times=(0.01,))
    result, before, after, used = consistency(wrong, magnitude, every, **context, walls=0.05)
    assert used == "bestpath"
    assert after < 0.5 * before
    turns = (result - phase) / TWO_PI
    assert np.abs(turns - np.rint(turns)).max() < 1e-4


def test_a_worse_replacement_is_not_taken(rng):
    """Noise in three echoes contradicts every line; nothing does better, and the phase stays."""
    phase = rng.uniform(-np.pi, np.pi, (*SHAPE, 3)).astype(np.float32)
    mask = np.ones(SHAPE, bool)
    smooth = temporal(phase, mask, echo_times=TIMES)
    _, before, after, _ = consistency(smooth, np.ones_like(phase), mask, **CONTEXT)
    assert before >= after > 1


def test_tolerances_decide(rng):
    phase, magnitude, mask = head(rng)
    wrong = phase.copy()
    wrong[12:16, 8:14, 8:12, 2] += 2 * TWO_PI
    for walls, bent, fires in ((0.01, 1.0, True), (10.0, 0.001, True), (10.0, 1.0, False)):
        used = consistency(wrong, magnitude, mask, **CONTEXT, walls=walls, bent=bent)[3]
        assert bool(used) == fires


def test_laplacian_fallback(rng):
    phase, magnitude, mask = head(rng, peak=600.0)
    wrong = phase.copy()
    wrong[12:] += 3 * TWO_PI
    result, _, after, used = consistency(wrong * mask[..., None], magnitude, mask, **CONTEXT, fallback="laplacian")
    assert used == "laplacian"
    assert after < 1
    turns = (result - phase)[mask] / TWO_PI
    assert np.abs(turns - np.rint(turns)).max() > 0.01  # by design not whole


def test_quiet_on_real_data(shared):
    folder = shared / "data" / "invivo" / "sub-01" / "anat"
    phase, magnitude = (
        np.stack([nb.load(folder / f"sub-01_echo-{e}_part-{part}_MEGRE.nii.gz").get_fdata() for e in (1, 2, 3)], -1)
        for part in ("phase", "mag")
    )
    phase, magnitude = (phase / np.abs(phase).max() * np.pi).astype(np.float32), magnitude.astype(np.float32)
    mask = magnitude[..., 0] > 0.2 * np.percentile(magnitude[..., 0], 95)
    times = (0.004, 0.008, 0.012)
    for mode in ("template", "individual"):
        unwrapped = romeo(phase, magnitude, mask, echo_times=times, mode=mode)
        _, before, _, used = consistency(unwrapped, magnitude, mask, echo_times=times, voxel_size=(0.47, 0.47, 1.0))
        assert before < 0.25
        assert not used


def test_quiet_on_the_simulated_head_and_loud_where_the_offset_was_left(shared):
    """Template mode predicts later echoes wrongly when an offset is left; the check finds it and puts it right."""
    folder, times = shared / "data" / "head" / "sub-01" / "anat", (0.004, 0.012, 0.020, 0.028)
    truth = shared / "data" / "head" / "derivatives" / "truth" / "sub-01" / "anat"
    phase, magnitude = (
        np.stack([nb.load(folder / f"sub-01_echo-{e}_part-{part}_MEGRE.nii.gz").get_fdata() for e in range(1, 5)], -1)
        for part in ("phase", "mag")
    )
    phase, magnitude = (phase * np.pi / 4096).astype(np.float32), magnitude.astype(np.float32)
    mask = nb.load(truth / "sub-01_desc-brain_mask.nii.gz").get_fdata() > 0
    context = {"echo_times": times, "voxel_size": (1.5, 1.5, 1.5)}
    corrected, _ = mcpc3ds(phase, magnitude, mask, **context)
    _, before, _, used = consistency(romeo(corrected, magnitude, mask, echo_times=times), magnitude, mask, **context)
    assert before < 0.25
    assert not used
    wrong = romeo(phase, magnitude, mask, echo_times=times, uncertain=0.0)
    _, before, after, used = consistency(wrong, magnitude, mask, **context)
    assert before > 3
    assert after < 0.25
    assert used == "romeo"
