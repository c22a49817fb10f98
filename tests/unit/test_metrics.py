"""Quality metrics: known values, the direction in which they move, and what they must not depend on."""

import numpy as np
import pytest

from qsmflow.algorithms import dipole, fourier, metrics

VOXEL = (1.0, 1.0, 1.5)
AXIS = (0.0, 0.6, 0.8)
GRID = {"voxel_size": VOXEL, "b0_dir": AXIS}


@pytest.fixture(scope="module")
def ball():
    shape = (36, 34, 30)
    centred = [(np.arange(n) - (n - 1) / 2) * h for n, h in zip(shape, VOXEL, strict=True)]
    return sum(np.square(a) for a in np.ix_(*centred)) < 14**2


@pytest.fixture
def chi(ball, rng):
    return np.where(ball, 0.05 * rng.standard_normal(ball.shape), 0).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 8.0])
def test_snr_finds_the_noise_level_on_top_of_anatomy(ball, rng, sigma):
    anatomy = np.where(np.arange(ball.shape[0]) < 18, 100.0, 140.0)[:, None, None] * np.ones(ball.shape)
    magnitude = np.stack([anatomy + sigma * rng.standard_normal(ball.shape) for _ in range(2)], axis=-1)
    expected = np.median(magnitude[..., 0][ball]) / sigma
    assert metrics.snr(magnitude, ball) == pytest.approx([expected] * 2, rel=0.08)
    assert metrics.snr(7 * magnitude, ball) == pytest.approx(metrics.snr(magnitude, ball))


def test_snr_looks_only_at_blocks_inside_the_mask(ball, rng):
    magnitude = (50 + rng.standard_normal(ball.shape))[..., None]
    noisy = np.where(ball[..., None], magnitude, 1000 * rng.standard_normal((*ball.shape, 1)))
    assert metrics.snr(noisy, ball) == pytest.approx(metrics.snr(magnitude, ball))
    assert np.isnan(metrics.snr(magnitude, np.eye(36, 34, dtype=bool)[..., None] & ball)[0])


def test_residues_counts_a_vortex_once_per_slice():
    x, y, _ = np.meshgrid(np.arange(6) - 2.5, np.arange(6) - 2.5, np.arange(5), indexing="ij")
    vortex, mask = np.arctan2(y, x), np.ones(x.shape, bool)
    assert metrics.residues(vortex, mask) == pytest.approx(1000 * 5 / mask.size)


def test_fit_residual_is_the_median_in_the_mask(ball):
    residual = np.where(ball, 0.2, 9.0)
    residual[ball & (np.arange(36)[:, None, None] < 10)] = 3.0
    assert metrics.fit_residual(residual, ball) == pytest.approx(0.2)


def test_field_range_leaves_out_a_hundredth_at_both_ends():
    field = np.concatenate([np.full(5, -50.0), np.linspace(-1, 1, 990), np.full(5, 50.0)])
    low, high = metrics.field_range(field, np.ones(1000, bool))
    assert (low, high) == pytest.approx((-0.99, 0.99), abs=0.01)


def test_volume_and_coverage(ball):
    assert metrics.volume(ball, voxel_size=VOXEL) == pytest.approx(4 / 3 * np.pi * 14**3 / 1000, rel=0.03)
    half = ball & (np.arange(36)[:, None, None] < 18)
    assert metrics.coverage(half, ball) == pytest.approx(0.5)
    assert np.isnan(metrics.coverage(ball, np.zeros_like(ball)))


def test_rim_energy_is_the_ratio_of_the_spreads(ball, rng):
    noise = rng.standard_normal(ball.shape)
    assert metrics.rim_energy(noise, ball, voxel_size=VOXEL) == pytest.approx(1, abs=0.05)
    inner = metrics._core(ball, VOXEL, 3.0)
    assert metrics.rim_energy(np.where(inner, noise, 5 * noise), ball, voxel_size=VOXEL) == pytest.approx(5, rel=0.05)


def test_rim_is_as_wide_as_asked_in_mm(ball):
    depth = 14 - np.sqrt(
        sum(np.square(a) for a in np.ix_(*[(np.arange(n) - (n - 1) / 2) * h for n, h in zip(ball.shape, VOXEL, strict=True)]))
    )
    assert (~metrics._core(ball, VOXEL, 4.0) & ball)[ball & (depth < 2.9)].all()
    assert metrics._core(ball, VOXEL, 4.0)[depth > 5.5].all()


def test_rim_energy_of_a_thin_mask_is_no_number(ball):
    assert np.isnan(metrics.rim_energy(np.ones(ball.shape), ball & ~metrics._core(ball, VOXEL, 2.0), voxel_size=VOXEL))
    assert np.isnan(metrics.rim_energy(np.ones(ball.shape), np.ones_like(ball), voxel_size=VOXEL))


def _on_the_cone(image, factor):
    """An image with the spectrum near the dipole's zero cone multiplied."""
    kernel = dipole.dipole_kernel(image.shape, **GRID)
    weight = np.where(np.abs(kernel) < 0.1, factor, 1).astype(np.float32)
    return fourier.convolve(image, weight, image.shape)


def test_streaks_sees_power_on_the_cone_and_missing_power(ball, chi):
    even = metrics.streaks(chi, ball, **GRID)
    assert even == pytest.approx(1, abs=0.15)
    assert metrics.streaks(_on_the_cone(chi, 4.0) * ball, ball, **GRID) > 3 * even
    assert metrics.streaks(_on_the_cone(chi, 0.2) * ball, ball, **GRID) < 0.6 * even


def test_streaks_knows_the_direction_of_the_field(ball, chi):
    streaky = _on_the_cone(chi, 4.0) * ball
    right = metrics.streaks(streaky, ball, **GRID)
    assert metrics.streaks(streaky, ball, voxel_size=VOXEL, b0_dir=(1, 0, 0)) < 0.5 * right


def test_streaks_does_not_depend_on_scale_and_reference(ball, chi):
    moved = np.where(ball, 3 * chi + 0.2, 0)
    assert metrics.streaks(moved, ball, **GRID) == pytest.approx(metrics.streaks(chi, ball, **GRID), rel=1e-3)


def test_forward_fit_runs_from_0_to_1(ball, chi):
    field = dipole.forward_field(chi, **GRID) * ball
    assert metrics.forward_fit(chi, field, ball, **GRID) < 0.03  # the grids of model and test are padded differently
    assert metrics.forward_fit(0.5 * chi, field, ball, **GRID) == pytest.approx(0.5, abs=0.02)
    assert metrics.forward_fit(np.zeros_like(chi), field, ball, **GRID) == pytest.approx(1, abs=0.02)
    assert np.isnan(metrics.forward_fit(chi, np.zeros_like(chi), ball, **GRID))


def test_forward_fit_does_not_depend_on_the_reference(ball, chi):
    field = dipole.forward_field(chi, **GRID) * ball
    shifted = np.where(ball, 0.5 * chi - 0.4, 0).astype(np.float32)
    assert metrics.forward_fit(shifted, field + 0.1, ball, **GRID) > 0  # an offset of the field changes only its size
    assert metrics.forward_fit(shifted, field, ball, **GRID) == pytest.approx(
        metrics.forward_fit(0.5 * chi, field, ball, **GRID), abs=1e-3
    )


def test_reference_is_relative_to_the_brain(ball, chi):
    region = ball & (np.arange(36)[:, None, None] < 14)
    image = np.where(region, 0.1, 0.0) + 5.0
    share = region.sum() / ball.sum()
    assert metrics.reference(image, region, ball) == pytest.approx((0.1 * (1 - share), 0.0), abs=1e-9)
    assert np.isnan(metrics.reference(image, np.zeros_like(ball), ball)).all()


@pytest.fixture
def head(ball, chi):
    """Susceptibility and R2* of a brain with two iron-rich nuclei, and a rim full of artefacts of the other sign."""
    image, r2star, nuclei = 0.2 * chi, np.where(ball, 18.0, 0.0), np.zeros_like(ball)
    nuclei[12:15, 14:18, 12:16] = nuclei[20:23, 14:18, 12:16] = True
    image[nuclei] += 0.12
    r2star[nuclei] += 30
    r2star += np.linspace(0, 1, 30, dtype=np.float32)
    rim = ball & ~metrics._core(ball, VOXEL, 2.5)
    image[rim] -= 0.5
    r2star[rim] = 200
    return image.astype(np.float32), r2star.astype(np.float32), nuclei


def test_polarity_metrics_are_positive_and_turn_with_the_sign(ball, head):
    image, r2star, nuclei = head
    tails = metrics.tail_asymmetry(image, ball, voxel_size=VOXEL)
    iron = metrics.iron_contrast(image, r2star, ball, voxel_size=VOXEL)
    contrast = metrics.nuclei_contrast(image, nuclei, ball, voxel_size=VOXEL)
    assert tails > 0.3
    assert iron == pytest.approx(0.12, abs=0.01)
    assert contrast == pytest.approx(0.12, abs=0.01)
    assert metrics.tail_asymmetry(-image, ball, voxel_size=VOXEL) == pytest.approx(-tails)
    assert metrics.iron_contrast(-image, r2star, ball, voxel_size=VOXEL) == pytest.approx(-iron)
    assert metrics.nuclei_contrast(-image, nuclei, ball, voxel_size=VOXEL) == pytest.approx(-contrast)
    assert metrics.tail_asymmetry(image + 1, ball, voxel_size=VOXEL) == pytest.approx(tails, abs=1e-4)


def test_polarity_metrics_without_anything_to_see(ball):
    flat = np.zeros(ball.shape, np.float32)
    assert np.isnan(metrics.tail_asymmetry(flat, ball, voxel_size=VOXEL))
    assert np.isnan(metrics.iron_contrast(flat, flat, ball, voxel_size=VOXEL))
    assert np.isnan(metrics.nuclei_contrast(flat, flat > 0, ball, voxel_size=VOXEL))
    assert np.isnan(metrics.nuclei_contrast(flat, ball, ball, voxel_size=VOXEL))


def test_an_empty_mask_is_an_error(ball, chi):
    with pytest.raises(ValueError, match="empty"):
        metrics.streaks(chi, np.zeros_like(ball), **GRID)


def test_inputs_are_left_alone(ball, head):
    image, r2star, nuclei = head
    before = [a.copy() for a in (image, r2star, nuclei, ball)]
    metrics.streaks(image, ball, **GRID)
    metrics.forward_fit(image, image, ball, **GRID)
    metrics.rim_energy(image, ball, voxel_size=VOXEL)
    metrics.iron_contrast(image, r2star, ball, voxel_size=VOXEL)
    metrics.nuclei_contrast(image, nuclei, ball, voxel_size=VOXEL)
    metrics.snr(image[..., None], ball)
    for array, copy in zip((image, r2star, nuclei, ball), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.slow
def test_on_a_known_head(shared):
    """Truth looks like truth, and thresholded division with a low threshold looks like streaks."""
    import nibabel as nb

    folder = shared / "data/head/derivatives/truth/sub-01/anat"
    chi, field, r2star = (
        np.asarray(nb.load(folder / f"sub-01_{name}.nii.gz").dataobj, dtype=np.float32)
        for name in ("Chimap", "desc-local_fieldmap", "R2starmap")
    )
    mask = np.asarray(nb.load(folder / "sub-01_desc-brain_mask.nii.gz").dataobj) > 0
    grid = {"voxel_size": (1.5, 1.5, 1.5), "b0_dir": (0, 0, 1)}
    shape = fourier.padded_shape(chi.shape, 20)
    kernel = dipole.dipole_kernel(shape, **grid)
    cut = np.where(np.abs(kernel) > 0.02, kernel, np.where(kernel < 0, -0.02, 0.02)).astype(np.float32)
    noise = 0.003 * np.random.default_rng(1).standard_normal(chi.shape).astype(np.float32)
    streaky = fourier.convolve((field + noise) * mask, 1 / cut, shape) * mask
    assert 0.7 < metrics.streaks(chi * mask, mask, **grid) < 1.3
    assert metrics.streaks(streaky, mask, **grid) > 3
    assert metrics.tail_asymmetry(chi, mask, voxel_size=grid["voxel_size"]) > 0.1
    assert metrics.iron_contrast(chi, r2star, mask, voxel_size=grid["voxel_size"]) > 0.03
