"""The trained network: what it gains, and what must hold whatever its weights are."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from qsmflow.algorithms import simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.inversion import unet
from qsmflow.algorithms.inversion.fansi import whqsm

SHAPE = (56, 48, 40)
CONTEXT = {"voxel_size": (1.5, 1.5, 2.0), "b0_dir": (0.0, 0.28, 0.96), "b0": 3.0, "echo_times": (0.006, 0.012, 0.018)}


@cache
def head(noise=2e-3, seed=1):
    """Blobs of all sizes in an ellipsoid: truth, field with noise, mask and field error."""
    rng = np.random.default_rng(seed)
    position = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    mask = sum(p * p for p in position) < 0.8
    blobs = sum(ndimage.gaussian_filter(rng.standard_normal(SHAPE), s) * s**1.5 for s in (1.5, 3, 6))
    chi = np.where(mask, 0.05 * np.sign(blobs) * (np.abs(blobs) > blobs.std()), 0).astype(np.float32)
    deviation = np.where(mask, noise * (1 + position[0] ** 2), 0).astype(np.float32)
    field = forward_field(chi, voxel_size=CONTEXT["voxel_size"], b0_dir=CONTEXT["b0_dir"])
    field = np.where(mask, field + deviation * rng.standard_normal(SHAPE), 0).astype(np.float32)
    return chi, field, mask, deviation


@cache
def maps():
    _, field, mask, error = head()
    return unet.prepare_maps(field, mask, error, **CONTEXT)


def error(chi):
    """Root mean square error in the mask without its mean, as a share of the truth."""
    truth, mask = head()[0], head()[2]
    return (chi - truth)[mask].std() / truth[mask].std()


def test_the_network_is_nearer_to_the_truth_than_what_it_starts_from():
    """Shapes and noise that it was not trained on; on the maps of its training it takes off about a tenth."""
    _, field, mask, deviation = head()
    chi = unet.unet(field, mask, deviation, **CONTEXT)
    assert error(chi) < 0.95 * error(whqsm(field, mask, deviation, **CONTEXT))
    assert not chi[~mask].any()


@pytest.mark.parametrize("radius", [4, 10])
def test_the_contrast_of_a_sphere_is_off_by_a_seventh_at_most(radius):
    """That of WH-QSM by 6 % at most: what the network gains in noise, it can lose here."""
    grid = {"voxel_size": (1.0, 1.0, 1.0), "b0_dir": CONTEXT["b0_dir"]}
    distance = np.sqrt(sum(np.square(a) for a in np.ogrid[-32:32, -32:32, -32:32]))
    mask, noise = distance < 29, 1.5e-3 * np.random.default_rng(0).standard_normal(distance.shape)
    field = simulation.sphere_field(distance.shape, **grid, radius=radius, chi=0.1)
    field = np.where(mask, field + noise, 0).astype(np.float32)
    around = (distance > radius + 2) & (distance < radius + 6)
    for method, most in ((whqsm, 0.06), (unet.unet, 0.14)):
        chi = method(field, mask, np.full_like(field, 1.5e-3), **CONTEXT | grid)
        assert (chi[distance < radius - 1].mean() - chi[around].mean()) / 0.1 == pytest.approx(1, abs=most)


def test_a_larger_field_error_is_listened_to():
    _, field, mask, deviation = head()
    trusted, doubted = (unet.unet(field, mask, factor * deviation, **CONTEXT) for factor in (0.5, 4))
    roughness = [np.abs(np.diff(chi, axis=0))[mask[1:] & mask[:-1]].mean() for chi in (trusted, doubted)]
    assert roughness[1] < roughness[0]


def test_the_network_has_no_unit():
    """Twice the maps and twice the error give twice the correction."""
    once = unet.evaluate(maps())
    np.testing.assert_allclose(unet.evaluate(2 * maps()), 2 * once, atol=1e-5 * np.abs(once).max())
    assert np.abs(once).max() > 1e-3


def test_slabs_leave_no_seam(monkeypatch):
    long = np.tile(maps(), (1, 5, 1, 1))
    (whole,) = unet._slabs(long)
    monkeypatch.setattr(unet, "_VOXELS", 240 * long[0, 0].size)
    slabs = list(unet._slabs(long))
    assert len(slabs) > 2
    np.testing.assert_allclose(np.concatenate(slabs), whole, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_axes_may_be_stored_in_any_order(axis):
    """What the network knows of the main field is that it runs along the last axis."""
    _, field, mask, deviation = head()
    chi = unet.unet(field, mask, deviation, **CONTEXT)
    order = [0, 1]
    order.insert(axis, 2)
    turned = CONTEXT | {name: tuple(CONTEXT[name][i] for i in order) for name in ("voxel_size", "b0_dir")}
    arrays = (np.ascontiguousarray(np.moveaxis(volume, 2, axis)) for volume in (field, mask, deviation))
    np.testing.assert_allclose(np.moveaxis(unet.unet(*arrays, **turned), axis, 2), chi, atol=1e-3)


def test_where_the_image_lies_on_its_grid_does_not_matter():
    moved = np.roll(np.pad(maps(), [(0, 0), (0, 8), (0, 5), (0, 3)]), (3, 5, 1), (1, 2, 3))
    back = np.roll(unet.evaluate(moved), (-3, -5, -1), (0, 1, 2))[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    np.testing.assert_allclose(back, unet.evaluate(maps()), atol=1e-6)
