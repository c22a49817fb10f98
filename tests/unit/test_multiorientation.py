"""COSMOS: the truth from several orientations, better than any method that has one; orientations that do not help are told."""

import math

import numpy as np
import pytest
from scipy import ndimage

from qsmflow import registry
from qsmflow.algorithms import simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.multiorientation import conditioning, cosmos

SHAPE, SIZE = (26, 28, 20), (2.0, 2.0, 2.5)


def tilted(degrees, axis):
    a = math.radians(degrees)
    return (math.sin(a), 0.0, math.cos(a)) if axis == "x" else (0.0, math.sin(a), math.cos(a))


FOUR = [tilted(0, "x"), tilted(25, "x"), tilted(25, "y"), tilted(-25, "y")]


@pytest.fixture(scope="module")
def head():
    """Truth, mask and the four fields of a small head, which is not made of homogeneous pieces, as no head is."""
    mask = simulation.sphere(SHAPE, radius=22.0, voxel_size=SIZE) > 0.5
    chi = simulation.sphere(SHAPE, radius=7.0, centre=(9, 14, 10), chi=0.1, voxel_size=SIZE)
    chi -= simulation.sphere(SHAPE, radius=5.0, centre=(16, 10, 8), chi=0.06, voxel_size=SIZE)
    texture = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=SHAPE), 1)
    chi = ((chi + 0.015 * texture / texture.std()) * mask).astype(np.float32)
    fields = [forward_field(chi, voxel_size=SIZE, b0_dir=b) * mask for b in FOUR]
    return chi, mask, fields


def error(found, truth, where):
    found, truth = found[where] - found[where].mean(), truth[where] - truth[where].mean()
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def solve(fields, masks, directions=FOUR, **settings):
    even = [np.ones(SHAPE, np.float32)] * len(fields)
    return cosmos(fields, masks, directions, even, voxel_size=SIZE, **settings)


def test_truth_without_noise(head):
    chi, mask, fields = head
    found, kept = solve(fields, [mask] * 4)
    assert np.array_equal(kept, mask)
    assert error(found, chi, mask) < 1e-3
    assert found.dtype == np.float32
    assert not found[~mask].any()


def test_iterations_repair_what_the_masks_break(head):
    """Fields that are cut off at the mask bias the closed form; the weighted solution knows about the cut."""
    chi, mask, fields = head
    closed = error(solve(fields, [mask] * 4, iterations=0)[0], chi, mask)
    solved = error(solve(fields, [mask] * 4)[0], chi, mask)
    assert 2 * solved < closed


def test_masks_differ(head):
    """Half of one orientation is missing; what is left decides there."""
    chi, mask, fields = head
    half = mask.copy()
    half[:13] = False
    masks = [mask, mask, mask, half]
    broken = [*fields[:3], np.where(half, fields[3], 5).astype(np.float32)]
    found, kept = solve(broken, masks)
    assert np.array_equal(kept, mask)
    assert error(found, chi, mask) < 0.01


def test_weights(head):
    """An orientation with a large error in one place does little harm there, if it says so."""
    chi, mask, fields = head
    noise = np.zeros(SHAPE, np.float32)
    noise[8:14, 12:18, 8:12] = 0.05 * np.random.default_rng(1).normal(size=(6, 6, 4))
    errors = [np.ones(SHAPE, np.float32)] * 3 + [np.where(noise != 0, 50, 1).astype(np.float32)]
    noisy = [*fields[:3], fields[3] + noise]
    told, _ = cosmos(noisy, [mask] * 4, FOUR, errors, voxel_size=SIZE, iterations=20)
    untold, _ = solve(noisy, [mask] * 4, iterations=20)
    assert 2 * error(told, chi, mask) < error(untold, chi, mask)


def test_better_than_one_orientation(head):
    """At SNR 100 (field noise of 1 % of the largest field)."""
    chi, mask, fields = head
    rng = np.random.default_rng(3)
    level = 0.01 * max(abs(field).max() for field in fields)
    noisy = [((field + level * rng.normal(size=SHAPE)) * mask).astype(np.float32) for field in fields]
    best = error(solve(noisy, [mask] * 4)[0], chi, mask)
    even = np.ones(SHAPE, np.float32)
    arrays = {"local_field": noisy[0], "mask": mask, "field_error": even, "magnitude": even[..., None]}
    for name in ("tkd", "tikhonov", "tv", "whqsm"):
        context = {"voxel_size": SIZE, "b0_dir": FOUR[0], "b0": 3.0, "echo_times": (0.01, 0.02)}
        single = registry.apply("inversion", name, arrays=arrays, context=context, parameters={})["chi"]
        assert best < 0.8 * error(single, chi, mask), name


def test_conditioning():
    assert conditioning(FOUR).minimum > 0.1
    assert not conditioning(FOUR).poor
    about_b0 = conditioning([(0, 0, 1)] * 4)
    assert about_b0.poor
    assert math.isinf(about_b0.condition)
    nodding = conditioning([tilted(0, "y"), tilted(20, "y"), tilted(-20, "y")])
    assert nodding.poor
    assert nodding.condition == pytest.approx(29.4, rel=0.02)
    assert conditioning([tilted(0, "x"), tilted(25, "x"), tilted(25, "y")]).condition == pytest.approx(5.06, rel=0.02)


def test_refusals(head):
    _, mask, fields = head
    with pytest.raises(ValueError, match="every orientation"):
        solve(fields, [mask] * 3)
    with pytest.raises(ValueError, match="nothing in common"):
        solve(fields, [np.zeros(SHAPE, bool)] * 4)
