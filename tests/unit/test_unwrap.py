"""Unwrapping: ROMEO with its quality map and residues, the Laplacian, and along the echoes."""

from __future__ import annotations

import nibabel as nb
import numpy as np
import pytest
from scipy import ndimage

from qsmflow import registry
from qsmflow.algorithms.unwrap import edges
from qsmflow.algorithms.unwrap.bestpath import _DIRECTIONS, _reliability, bestpath
from qsmflow.algorithms.unwrap.growth import label_parts, unwrap_volume
from qsmflow.algorithms.unwrap.laplacian import laplacian
from qsmflow.algorithms.unwrap.romeo import quality_map, residues, romeo
from qsmflow.algorithms.unwrap.temporal import temporal
from qsmflow.algorithms.unwrap.wrapping import wrap
from qsmflow.interfaces.threads import limit_threads

TWO_PI = 2 * np.pi
TIMES = (0.004, 0.009, 0.017)
SHAPE = (30, 22, 16)
SETS = ("romeo2", "romeo3", "romeo4", "romeo6")
MODES = ("template", "individual")


def ball(shape=SHAPE, radius=0.95):
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return sum(c**2 for c in grid) < radius**2


def smooth_field(rng, shape=SHAPE, peak=1200.0, width=6.0):
    """A smooth random field, rad/s, whose phase wraps several times at the last echo."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), width, mode="wrap")
    field -= np.median(field)
    return peak * field / np.abs(field).max()


def turns(unwrapped, wrapped):
    return (unwrapped - wrapped) / TWO_PI


class TestRomeo:
    @pytest.mark.parametrize("weights", SETS)
    @pytest.mark.parametrize("mode", MODES)
    def test_recovers_the_phase_with_its_absolute_turns(self, rng, mode, weights):
        mask = ball()
        true = (smooth_field(rng)[..., None] * np.array(TIMES)).astype(np.float32)
        assert np.abs(true[mask]).max() > 2 * TWO_PI
        found = romeo(wrap(true), np.ones_like(true), mask, echo_times=TIMES, mode=mode, weights=weights)
        assert np.abs(found - true)[mask].max() < 1e-4
        assert not found[~mask].any()

    @pytest.mark.parametrize("template", [1, 2, 3])
    @pytest.mark.parametrize("mode", MODES)
    def test_any_echo_can_be_the_template(self, rng, mode, template):
        true = (smooth_field(rng)[..., None] * np.array(TIMES)).astype(np.float32)
        found = romeo(wrap(true), np.ones_like(true), ball(), echo_times=TIMES, mode=mode, template=template)
        assert np.abs(found - true)[ball()].max() < 1e-4

    def test_unknown_template_is_refused(self):
        phase = np.zeros((2, 2, 2, 3), np.float32)
        for template in (0, 4):
            with pytest.raises(ValueError, match="template echo"):
                romeo(phase, phase, phase[..., 0] == 0, echo_times=TIMES, template=template)

    @pytest.mark.parametrize("weights", SETS)
    @pytest.mark.parametrize("mode", MODES)
    def test_noise_gets_whole_turns(self, rng, mode, weights):
        phase = rng.uniform(-np.pi, np.pi, (*SHAPE, 3)).astype(np.float32)
        magnitude = rng.rayleigh(1, phase.shape).astype(np.float32)
        k = turns(romeo(phase, magnitude, ball(), echo_times=TIMES, mode=mode, weights=weights), phase)[ball()]
        assert np.abs(k - np.rint(k)).max() < 1e-4

    def test_single_echo(self, rng):
        true = (smooth_field(rng) * 0.012).astype(np.float32)[..., None]
        found = romeo(wrap(true), np.ones_like(true), ball(), echo_times=(0.012,))
        k = turns(found, true)[ball()]
        assert np.ptp(k) < 1e-4
        assert abs(np.median(found[ball()])) <= np.pi

    def test_a_constant_changes_nothing(self, rng):
        """The edge weights depend on phase steps only: the same turns up to a common number."""
        true = (smooth_field(rng) * 0.012).astype(np.float32)[..., None]
        noisy = true + rng.normal(0, 0.3, true.shape).astype(np.float32)
        magnitude, mask = np.ones_like(true), ball()
        one, other = (romeo(wrap(noisy + c), magnitude, mask, echo_times=(0.012,))[mask] for c in (0.0, 1.0))
        assert np.ptp(np.rint((other - one - 1.0) / TWO_PI)) == 0

    def test_disconnected_parts_get_the_turns_that_the_echoes_agree_on(self):
        """The second part's phase is beyond pi at the first echo; the longer echoes tell."""
        mask = np.zeros((24, 10, 10), bool)
        mask[2:10], mask[14:22] = True, True
        field = np.where(np.arange(24) < 12, 30.0, 1100.0)[:, None, None, None] * np.ones((24, 10, 10, 1))
        true = (field * np.array(TIMES)).astype(np.float32)
        assert true[20, 5, 5, 0] > np.pi
        for mode in MODES:
            found = romeo(wrap(true), np.ones_like(true), mask, echo_times=TIMES, mode=mode)
            assert np.abs(found - true)[mask].max() < 1e-4

    def test_parts_that_the_echoes_cannot_tell_apart_stay_near_zero(self):
        """A turn at the first of echoes at 4, 8, 12 ms is whole turns at all of them: the smaller field is taken."""
        mask = np.zeros((20, 6, 6), bool)
        mask[1:8], mask[11:19] = True, True
        times = np.array([0.004, 0.008, 0.012])
        true = np.where(np.arange(20) < 10, 100.0, 700.0)[:, None, None, None] * np.ones((20, 6, 6, 1)) * times
        found = romeo(wrap(true).astype(np.float32), np.ones(true.shape, np.float32), mask, echo_times=times)
        assert found[15, 3, 3] == pytest.approx(700 * times, abs=1e-4)

    def test_a_cut_goes_through_low_magnitude(self):
        """Between two opposite vortices a cut is unavoidable; it must take the dark strip, the long way round."""
        x, y, _ = np.meshgrid(np.arange(40) - 19.5, np.arange(40) - 19.5, np.arange(2), indexing="ij")
        phase = wrap(np.arctan2(y, x - 8) - np.arctan2(y, x + 8)).astype(np.float32)
        outside = np.abs(x) > 7
        dark = outside & (np.abs(y) < 2)
        magnitude = np.where(dark, 0.05, 1.0).astype(np.float32)
        found = romeo(phase[..., None], magnitude[..., None], np.ones(x.shape, bool), echo_times=(0.01,))[..., 0]
        jumps = [np.abs(np.diff(found, axis=a)) > np.pi for a in (0, 1)]
        assert sum(j.sum() for j in jumps) > 0
        assert not (jumps[1] & ~(dark[:, 1:] | dark[:, :-1])).any()
        assert not (jumps[0] & ~(dark[1:] | dark[:-1])).any()

    def test_seed_is_the_most_reliable_voxel_and_its_part_is_centred(self):
        ramp = np.broadcast_to(np.arange(0, 40, 2.0)[:, None, None], (20, 3, 3)).astype(np.float32)
        mask = np.ones(ramp.shape, bool)
        k = unwrap_volume(wrap(ramp), np.ones_like(ramp), mask, label_parts(mask), weights="romeo2").reshape(ramp.shape)
        unwrapped = wrap(ramp) + TWO_PI * k
        assert np.ptp(unwrapped - ramp) < 1e-4
        assert abs(np.median(unwrapped)) <= np.pi + 1e-4

    def test_contract(self, rng):
        true = (smooth_field(rng)[..., None] * np.array(TIMES)).astype(np.float32)
        phase, mask = wrap(true), ball()
        magnitude = rng.uniform(1, 2, phase.shape).astype(np.float32)
        copies = phase.copy(), magnitude.copy(), mask.copy()
        found = romeo(phase, magnitude, mask, echo_times=TIMES)
        assert found.dtype == np.float32
        for before, after in zip(copies, (phase, magnitude, mask), strict=True):
            np.testing.assert_array_equal(before, after)
        other = romeo(np.asfortranarray(phase), np.asfortranarray(magnitude), np.asfortranarray(mask), echo_times=TIMES)
        np.testing.assert_array_equal(other, found)
        empty = romeo(phase, magnitude, np.zeros_like(mask), echo_times=TIMES)
        assert not empty.any()

    @pytest.mark.parametrize("mode", MODES)
    def test_real_data_keep_whole_turns(self, shared, mode):
        folder = shared / "data" / "invivo" / "sub-01" / "anat"
        parts = {
            part: np.stack([nb.load(folder / f"sub-01_echo-{e}_part-{part}_MEGRE.nii.gz").get_fdata() for e in (1, 2, 3)], -1)
            for part in ("mag", "phase")
        }
        phase = (parts["phase"] / np.abs(parts["phase"]).max() * np.pi).astype(np.float32)
        mask = parts["mag"][..., 0] > 0.2 * np.percentile(parts["mag"][..., 0], 95)
        found = romeo(phase, parts["mag"].astype(np.float32), mask, echo_times=(0.004, 0.008, 0.012), mode=mode)
        k = turns(found, phase)[mask]
        assert np.abs(k - np.rint(k)).max() < 1e-4
        # Unwrapping removes nearly all steps of more than pi between neighbours.
        steps = [np.abs(np.diff(volume[..., 0], axis=1))[mask[:, 1:] & mask[:, :-1]] > np.pi for volume in (phase, found)]
        assert steps[1].sum() < 0.02 * max(steps[0].sum(), 50)


class TestRomeoOptions:
    def test_seeds_let_the_whole_border_decide(self, rng):
        """One bright edge between two regions is a turn off; the other edges outvote it when both have seeds."""
        x = np.arange(24.0)[:, None, None] * np.ones((24, 12, 12))
        true = (0.05 * x).astype(np.float32)
        phase = true + rng.uniform(-1.4, 1.4, true.shape).astype(np.float32) * (np.abs(x - 11.5) < 1)
        magnitude = np.where(np.abs(x - 11.5) < 1, rng.uniform(0.2, 0.6, x.shape), 1.0).astype(np.float32)
        # A bridge through the bad layer whose steps of 2 rad are each below pi but add up to a turn too much.
        phase[11, 6, 6], phase[12, 6, 6] = true[11, 6, 6] + 2.1, true[12, 6, 6] - 2.1
        magnitude[11:13, 6, 6] = 1.0
        mask = np.ones(true.shape, bool)
        one, many = (
            romeo(wrap(phase)[..., None], magnitude[..., None], mask, echo_times=(0.01,), weights="romeo2", seeds=n)[..., 0]
            for n in (1, 10)
        )
        good = np.abs(x - 11.5) > 1
        assert np.ptp(np.rint((many - true)[good] / TWO_PI)) == 0
        k = turns(many, wrap(phase))
        assert np.abs(k - np.rint(k)).max() < 1e-4
        assert np.isfinite(one).all()

    def test_uncertain_voxels_are_unwrapped_in_space(self, rng):
        """Where the first echo is off by 2 rad, the prediction in time is off by more than pi; the neighbours know better."""
        true = (smooth_field(rng, peak=300.0)[..., None] * np.array(TIMES)).astype(np.float32)
        mask = ball()
        off = mask & (rng.random(SHAPE) < 0.03)
        true[off, 0] += 2.0
        plain, again = (romeo(wrap(true), np.ones_like(true), mask, echo_times=TIMES, uncertain=u) for u in (0.0, 0.5))
        wrong = np.abs(plain - true)[..., 1] > 1
        assert wrong[off].all()
        assert not wrong[mask & ~off].any()
        assert np.abs(again - true)[mask].max() < 1e-4

    def test_a_step_that_grows_gradually_can_be_followed_beyond_pi(self):
        """Steps from 0.2 to 4.4 rad along one axis; a gradient like that folds back without the addition."""
        steps = np.concatenate([np.linspace(0.2, 4.4, 30), np.linspace(4.4, 0.2, 30)])
        true = np.broadcast_to(np.cumsum(steps)[:, None, None], (60, 3, 3)).astype(np.float32)[..., None]
        every, flat = np.ones((60, 3, 3), bool), np.ones_like(true)
        plain, helped = (romeo(wrap(true), flat, every, echo_times=(0.01,), addition=a) for a in (0.0, np.pi))
        assert np.ptp(plain - true) > 6
        assert np.ptp(helped - true) < 1e-3

    @pytest.mark.parametrize(
        "wrong", [{"seeds": 0}, {"seeds": 256}, {"uncertain": -0.1}, {"uncertain": 1.1}, {"addition": 3.2}]
    )
    def test_values_out_of_range_are_refused(self, wrong):
        phase = np.zeros((2, 2, 2, 3), np.float32)
        with pytest.raises(ValueError, match=next(iter(wrong))):
            romeo(phase, phase, phase[..., 0] == 0, echo_times=TIMES, **wrong)


class TestBestPath:
    def test_recovers_the_phase_with_its_absolute_turns(self, rng):
        mask = ball()
        true = (smooth_field(rng, peak=900.0)[..., None] * np.array(TIMES)).astype(np.float32)
        found = bestpath(wrap(true), mask, echo_times=TIMES)
        assert found.dtype == np.float32
        assert np.abs(found - true)[mask].max() < 1e-4
        assert not found[~mask].any()

    def test_the_reliability_is_the_inverse_of_the_second_differences(self):
        """A paraboloid of curvature c along the first axis: 9 of the 13 directions see 2 c."""
        phase = (0.05 * (np.arange(7.0) - 3) ** 2)[:, None, None] * np.ones((7, 5, 5))
        found = _reliability(phase.astype(np.float32), np.ones((7, 5, 5), bool), _DIRECTIONS)
        np.testing.assert_allclose(found[1:-1, 1:-1, 1:-1], 1 / (0.1 * 3), rtol=1e-4)
        found[1:-1, 1:-1, 1:-1] = 0
        assert not found.any()

    def test_noise_gets_whole_turns(self, rng):
        phase = rng.uniform(-np.pi, np.pi, (*SHAPE, 2)).astype(np.float32)
        found = bestpath(phase, ball(), echo_times=TIMES[:2])
        k = turns(found, phase)[ball()]
        assert np.abs(k - np.rint(k)).max() < 1e-4

    def test_a_smooth_field_around_noise_is_unwrapped_through_the_smooth_part(self, rng):
        true = (smooth_field(rng) * 0.012).astype(np.float32)
        noisy = np.zeros(SHAPE, bool)
        noisy[10:18, 6:14, 4:10] = True
        phase = np.where(noisy, rng.uniform(-np.pi, np.pi, SHAPE), wrap(true)).astype(np.float32)
        found = bestpath(phase[..., None], np.ones(SHAPE, bool), echo_times=(0.012,))[..., 0]
        assert np.ptp(np.rint((found - true)[~noisy] / TWO_PI)) == 0

    def test_order_of_ties_does_not_matter_without_noise(self, rng):
        """Flipped axes visit the edges in another order."""
        true = (smooth_field(rng, peak=900.0)[..., None] * np.array(TIMES)).astype(np.float32)
        mask = ball()
        found = bestpath(wrap(true), mask, echo_times=TIMES)
        flipped = bestpath(wrap(true)[::-1, :, ::-1], mask[::-1, :, ::-1], echo_times=TIMES)[::-1, :, ::-1]
        np.testing.assert_allclose(found, flipped, atol=1e-5)

    def test_an_offset_shifts_other_echoes_by_common_turns_only(self, rng):
        true = (smooth_field(rng, peak=400.0)[..., None] * np.array(TIMES)).astype(np.float32)
        offset = 2.5 * np.linspace(-1, 1, SHAPE[0], dtype=np.float32)[:, None, None, None]
        k = (bestpath(wrap(true + offset), ball(), echo_times=TIMES) - true - offset)[ball()] / TWO_PI
        assert np.ptp(k, axis=0).max() < 1e-4


@pytest.mark.parametrize("unwrap", [romeo, bestpath, laplacian, temporal])
def test_the_number_of_threads_changes_nothing(rng, unwrap):
    true = smooth_field(rng)[..., None] * np.array(TIMES) + rng.normal(0, 0.5, (*SHAPE, 3))
    arrays = {"phase": wrap(true).astype(np.float32), "magnitude": rng.uniform(1, 2, true.shape), "mask": ball()}
    row = next(row for row in registry.ALGORITHMS if row.stage == "unwrap" and row.call is unwrap)
    context = {"echo_times": TIMES, "voxel_size": (1.0, 1.0, 2.0)}
    results = []
    for threads in (1, 3):
        with limit_threads(threads):
            results.append(registry.apply("unwrap", row.name, arrays=arrays, context=context, parameters={})["phase"])
    np.testing.assert_array_equal(*results)


class TestWeights:
    """The six weights on one edge in the middle of a row of four voxels."""

    def bin_of(self, name, phase, magnitude=(1, 1, 1, 1), second=None, ratio=0.5):
        phase, magnitude = (np.array(v, np.float32).reshape(4, 1, 1) for v in (phase, magnitude))
        pair = {} if second is None else {"second": np.array(second, np.float32).reshape(4, 1, 1), "ratio": ratio}
        mask = np.ones(phase.shape, bool)
        return int(edges.edge_bins(phase, magnitude, mask, weights=name, **pair)[0, 1])

    @staticmethod
    def expected(*weights):
        return max(1, round((1 - np.prod([0.1 + 0.9 * w for w in weights])) * 255))

    def test_phase_and_magnitude_coherence(self):
        assert self.bin_of("romeo2", (0, 0, 0, 0)) == 1
        assert self.bin_of("romeo2", (0, 3.0, -3.0, 0)) == self.expected(1 - (TWO_PI - 6) / np.pi)
        assert self.bin_of("romeo2", (0, 0, 0, 0), (1, 1, 2, 1)) == self.expected(0.25)
        assert self.bin_of("romeo2", (0, 0, 0, 0), (1, 0, 0, 1)) == self.expected(0)

    def test_gradient_coherence(self):
        assert self.bin_of("romeo3", (0, 0, 0.5, 0.5), second=(0, 0, 1.0, 1.0)) == self.expected(1 - 0.5 / np.pi)
        assert self.bin_of("romeo3", (0, 0, 0.5, 0.5), second=(0, 0, 0.4, 0.4)) == self.expected(1 - 0.5 / np.pi, 1 - 0.3)

    def test_phase_linearity(self):
        assert self.bin_of("romeo4", (0, 0.5, 1, 1.5)) == self.expected(1 - 0.5 / np.pi)
        assert self.bin_of("romeo4", (0, 0, 1, 1)) == self.expected(1 - 1 / np.pi, 0.5 * 0.5)

    def test_phase_linearity_at_the_border(self):
        flat = np.zeros((4, 1, 1), np.float32)
        bins = edges.edge_bins(flat, flat + 1, flat == 0, weights="romeo4")
        assert bins[0, 0] == self.expected(0.9)
        assert bins[0, 3] == 0

    def test_magnitude_weights(self):
        """The 95 % quantile of (1, 1, 1, 9) is 7.8."""
        same = (0, 0, 0, 0)
        small, big = 0.5 + 0.5 * 1 / 3.9, 1.0
        assert self.bin_of("romeo6", same, (1, 1, 1, 9), second=same) == self.expected(small, big)
        assert self.bin_of("romeo6", same, (1, 9, 9, 1), second=same) == self.expected(1, 0.5 + 0.5 * 4.5 / 9)

    def test_only_edges_inside_the_mask_exist(self):
        mask = np.array([[[True, False]], [[True, True]]])
        flat = np.ones(mask.shape, np.float32)
        bins = edges.edge_bins(flat, flat, mask, weights="romeo2").reshape(3, *mask.shape)
        assert np.argwhere(bins).tolist() == [[0, 0, 0, 0], [2, 1, 0, 0]]

    def test_a_voxel_without_a_number_gives_the_worst_edge(self):
        assert self.bin_of("romeo2", (0, np.nan, 0, 0)) == 255


class TestQuality:
    def test_perfect_everywhere_with_and_without_mask_edge(self):
        flat = np.full((8, 7, 6, 2), 0.3, np.float32)
        for mask in (np.ones((8, 7, 6), bool), ball((8, 7, 6), 0.8)):
            quality = quality_map(flat, flat, mask, echo_times=(0.004, 0.008))
            assert quality.dtype == np.float32
            np.testing.assert_allclose(quality, mask, atol=1e-6)

    def test_separates_signal_from_noise(self, rng):
        shape = (40, 40, 40, 2)
        field = smooth_field(rng, shape[:3], peak=600.0)
        phase = wrap(field[..., None] * np.array((0.004, 0.012)) + rng.normal(0, 0.05, shape)).astype(np.float32)
        noise = rng.uniform(-np.pi, np.pi, shape).astype(np.float32)
        every = np.ones(shape[:3], bool)
        good = quality_map(phase, np.ones_like(phase), every, echo_times=(0.004, 0.012))
        bad = quality_map(noise, rng.rayleigh(1, shape).astype(np.float32), every, echo_times=(0.004, 0.012))
        assert (good > 0.3).mean() > 0.99
        assert (bad < 0.3).mean() > 0.99

    def test_lonely_voxel_and_single_echo(self):
        mask = np.zeros((7, 7, 7), bool)
        mask[3, 3, 3] = True
        flat = np.ones((7, 7, 7, 1), np.float32)
        assert not quality_map(flat, flat, mask, echo_times=(0.004,)).any()
        assert quality_map(flat, flat, ~mask, echo_times=(0.004,)).max() == pytest.approx(1)


class TestResidues:
    def test_smooth_phase_has_none(self, rng):
        assert residues(wrap(smooth_field(rng) * 0.01), np.ones(SHAPE, bool)).sum() == 0

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_vortex_has_one_in_every_slice(self, axis):
        x, y, _ = np.meshgrid(np.arange(6) - 2.5, np.arange(6) - 2.5, np.arange(4), indexing="ij")
        phase = np.moveaxis(np.arctan2(y, x), 2, axis)
        every = np.ones(phase.shape, bool)
        count = residues(phase, every)
        assert count.dtype == np.uint8
        assert count.sum() == 4
        without = every.copy()
        without[tuple(slice(2, 3) if a != axis else slice(None) for a in range(3))] = False
        assert residues(phase, without).sum() == 0

    def test_share_in_noise(self, rng):
        """Of random 2 x 2 loops, one third has a residue."""
        phase = rng.uniform(-np.pi, np.pi, (40, 40, 40))
        assert residues(phase, np.ones(phase.shape, bool)).sum() / (3 * 40 * 39**2) == pytest.approx(1 / 3, abs=0.01)


class TestLaplacian:
    def test_periodic_phase_is_exact_up_to_whole_turns(self, rng):
        true = np.stack([smooth_field(rng, peak=600.0) * te for te in TIMES], -1).astype(np.float32)
        mask = np.ones(SHAPE, bool)
        found = laplacian(wrap(true), mask, voxel_size=(0.7, 1.0, 2.0), pad=0)
        for e in range(3):
            assert np.ptp((found - true)[..., e]) < 2e-4
        k = np.median(turns(found, true).reshape(-1, 3), axis=0)
        np.testing.assert_allclose(k, np.rint(k), atol=1e-4)

    def test_padding_frees_a_phase_that_is_not_periodic(self):
        """A bump that is 0 at the faces of the volume but lies at one side of it."""
        x, y, z = np.meshgrid(*(np.arange(n) for n in (24, 20, 16)), indexing="ij")
        bump = 9 * np.exp(-((x - 9) ** 2 + (y - 9) ** 2 + (z - 8) ** 2 * 1.5) / 18)
        true = bump.astype(np.float32)[..., None]
        mask = bump > 0.01
        found = laplacian(wrap(true), mask, voxel_size=(1, 1, 1.5))
        assert np.ptp((found - true)[mask]) < 2e-4
        assert not found[~mask].any()
        assert found.dtype == np.float32

    def test_cosines_need_no_padding(self, rng):
        """A ramp, which no periodic solver can hold, and a cosine mode, which is an eigenvector of the Neumann Laplacian."""
        n = np.arange(40)
        ramp = 1.7 * n[:, None, None, None] * np.ones((40, 5, 6, 1))
        mode = 12 * np.cos(np.pi * 3 * (n + 0.5) / 40)[:, None, None, None] * np.ones((40, 5, 6, 1))
        every = np.ones((40, 5, 6), bool)
        for true in (ramp, mode, np.moveaxis(ramp, 0, 1), np.moveaxis(mode, 0, 2)):
            mask = every if true.shape[0] == 40 else np.ones(true.shape[:3], bool)
            phase = wrap(true).astype(np.float32)
            cosines, periodic = (
                laplacian(phase, mask, voxel_size=(0.7, 1.0, 2.0), solver=solver, pad=0) for solver in ("dct", "fft")
            )
            assert np.ptp(cosines - true) < 5e-4
            if true is ramp:
                assert np.ptp(periodic - true) > 1

    def test_padding_matters(self, rng):
        phase = wrap(rng.normal(0, 1, (10, 9, 8, 1))).astype(np.float32)
        mask = np.ones((10, 9, 8), bool)
        one, two = (laplacian(phase, mask, voxel_size=(1, 1, 1), pad=pad) for pad in (0, 12))
        assert np.abs(one - two).max() > 0.05


class TestTemporal:
    @pytest.mark.parametrize(
        "times", [(0.004, 0.009), (0.004, 0.009, 0.014, 0.019, 0.024, 0.029), (0.003, 0.011, 0.015, 0.027)]
    )
    def test_exact_below_the_limit(self, rng, times):
        spacing = np.diff(times).min()
        rate = rng.uniform(-0.99, 0.99, (9, 8, 7)) * np.pi / spacing
        true = (rate[..., None] * np.array(times)).astype(np.float32)
        mask = ball((9, 8, 7))
        found = temporal(wrap(true), mask, echo_times=times)
        assert found.dtype == np.float32
        assert np.abs(found - true)[mask].max() < 1e-4
        assert not found[~mask].any()

    def test_beyond_the_limit_the_field_is_off_by_one_turn_per_spacing(self):
        times = np.array([0.004, 0.009, 0.014, 0.019])
        rate = 1.2 * np.pi / 0.005
        phase = wrap(np.broadcast_to(rate * times, (2, 2, 2, 4))).astype(np.float32)
        found = temporal(phase, np.ones((2, 2, 2), bool), echo_times=times)
        slope = np.polyfit(times, found[0, 0, 0], 1)[0]
        assert (rate - slope) / TWO_PI == pytest.approx(1 / 0.005, rel=1e-4)

    def test_an_offset_is_kept_and_noise_gets_whole_turns(self, rng):
        times = np.array([0.004, 0.009, 0.016])
        true = (1.0 + 300 * times + rng.normal(0, 0.1, (6, 6, 6, 3))).astype(np.float32)
        found = temporal(wrap(true), np.ones((6, 6, 6), bool), echo_times=times)
        np.testing.assert_allclose(found, true, atol=1e-4)
        noise = rng.uniform(-np.pi, np.pi, (6, 6, 6, 3)).astype(np.float32)
        k = turns(temporal(noise, np.ones((6, 6, 6), bool), echo_times=times), noise)
        assert np.abs(k - np.rint(k)).max() < 1e-4

    def test_one_echo_is_refused(self):
        phase = np.zeros((2, 2, 2, 1), np.float32)
        with pytest.raises(ValueError, match="two echoes"):
            temporal(phase, phase[..., 0] == 0, echo_times=(0.004,))
