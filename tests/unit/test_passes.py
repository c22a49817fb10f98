"""Two passes: nothing changes without holes, and a strong source in a hole leaves fewer streaks."""

import numpy as np
import pytest

from qsmflow.algorithms.background.pdf import pdf
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.inversion.tv import tv
from qsmflow.algorithms.passes import merge, reliable

GEOMETRY = {"voxel_size": (1.0, 1.0, 1.0), "b0_dir": (0.0, 0.0, 1.0)}
SHAPE = (40, 40, 40)
MASK = sum((axis - 20) ** 2 for axis in np.ogrid[:40, :40, :40]) < 17**2


def ball(radius, *centre):
    return sum((axis - c) ** 2 for axis, c in zip(np.ogrid[:40, :40, :40], centre, strict=True)) < radius**2


def invert(field, mask):
    local, mask = pdf(field, mask, np.ones_like(field), **GEOMETRY, iterations=20, margin=10.0)
    return tv(local, mask, np.ones_like(field), **GEOMETRY, iterations=30), mask


def test_without_holes_both_passes_and_their_merging_are_the_same():
    quality = np.full(SHAPE, 0.9, np.float32)
    mask = reliable(MASK, quality, threshold=0.4)
    assert np.array_equal(mask, MASK)
    field = forward_field(0.1 * ball(4, 18, 22, 20).astype(np.float32), **GEOMETRY)
    (first, first_mask), (second, second_mask) = invert(field, mask), invert(field, MASK)
    chi, known, offset = merge(first, first_mask, second, second_mask)
    assert np.array_equal(chi, first)
    assert np.array_equal(chi, second)
    assert np.array_equal(known, MASK)
    assert offset == 0


def test_a_strong_source_leaves_fewer_streaks():
    """Its phase is lost: what was measured there is noise."""
    tissue = 0.05 * ball(4, 14, 22, 20) - 0.05 * ball(4, 26, 24, 24)
    source = ball(3, 20, 16, 20)
    field = forward_field((tissue + 2 * source).astype(np.float32), **GEOMETRY)
    lost = ball(5, 20, 16, 20)
    field[lost] = np.random.default_rng(0).uniform(-0.5, 0.5, lost.sum())
    mask = reliable(MASK, np.where(lost, 0.1, 0.9).astype(np.float32), threshold=0.4)
    second, second_mask = invert(field, MASK)
    chi, known, _ = merge(*invert(field, mask), second, second_mask)
    assert np.array_equal(known, MASK)
    away = MASK & ~ball(8, 20, 16, 20)
    one, two = (np.std((made - tissue)[away]) for made in (second, chi))
    assert two < 0.2 * one
    assert chi[source].mean() - chi[away].mean() > 0.3  # the hole is filled by the second pass


def test_the_seam_is_closed_by_one_shift():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(SHAPE).astype(np.float32)
    first_mask = MASK & ~ball(4, 20, 20, 20)
    chi, known, offset = merge((truth + 0.3) * first_mask, first_mask, (truth - 0.1) * MASK, MASK)
    assert offset == pytest.approx(0.4, abs=1e-6)
    assert np.abs(chi - (truth + 0.3) * MASK).max() < 1e-6
    assert np.array_equal(known, MASK)


def test_what_only_the_first_pass_knows_is_kept():
    one, two = np.ones((1, 1, 3), np.float32), np.zeros((1, 1, 3), np.float32)
    chi, known, offset = merge(one, np.array([[[True, True, False]]]), two, np.array([[[True, False, False]]]))
    assert chi.tolist() == [[[1, 1, 0]]]
    assert known.tolist() == [[[True, True, False]]]
    assert offset == 0


def test_reliable_voxels_hang_together_and_are_there():
    quality = np.full(SHAPE, 0.9, np.float32)
    quality[18:22] = 0.1  # cuts the mask in two
    kept = reliable(MASK, quality, threshold=0.4)
    assert kept.any(axis=(1, 2)).nonzero()[0].tolist() in (list(range(4, 18)), list(range(22, 37)))
    with pytest.raises(ValueError, match="leave the two passes out"):
        reliable(MASK, quality, threshold=0.95)
