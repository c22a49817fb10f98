"""Every inversion of the table against sources whose field is known in closed form. A new row is tested by being there."""

from functools import cache

import numpy as np
import pytest

from qsmflow import registry
from qsmflow.algorithms import fourier
from qsmflow.algorithms.dipole import dipole_kernel

#: Methods that need ventricles are tested where there are some (test_gauss_newton).
NAMES = [name for name in registry.names("inversion") if "r2star" not in registry.find("inversion", name).arrays]
SIZE, RADIUS, CHI = 32, 5.0, 0.1
CONTEXT = {"voxel_size": (1.0, 1.0, 1.0), "b0": 3.0, "echo_times": (0.005, 0.01, 0.015)}
ALONG_Z, TILTED = (0.0, 0.0, 1.0), (0.0, 0.6, 0.8)
POINTS = np.stack(np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 3, indexing="ij"))
R = np.sqrt((POINTS**2).sum(axis=0))
MASK = R < 14.5

#: Share of the contrast that comes back from methods that underestimate by design, and from all others.
WEAK = {
    "tkd": (0.75, 1.0),
    "tsvd": (0.65, 1.0),
    "tikhonov": (0.6, 0.9),
    "rts": (0.65, 0.9),
    "ndi": (0.6, 0.9),
    "ilsqr": (0.6, 1.0),
}
FAITHFUL = (0.85, 1.1)

#: Parameters for a grid as small as this one: steps enough to come within the bounds.
SMALL = {"tfi": {"iterations": 8}}


def inside(distance):
    """Share of a voxel that lies within the radius of a sphere or cylinder, to first order."""
    return np.clip(RADIUS - distance + 0.5, 0, 1)


def sphere_field(b0_dir):
    """Field of a sphere in an infinite medium (Lorentz-corrected: none inside)."""
    cosine = np.tensordot(b0_dir, POINTS, 1) / R
    return (1 - inside(R)) * CHI / 3 * (RADIUS / R) ** 3 * (3 * cosine**2 - 1)


def cylinder_field(b0_dir):
    """Field of an infinite cylinder along the first axis, which is perpendicular to the main field."""
    distance = np.hypot(POINTS[1], POINTS[2])
    cosine = (b0_dir[1] * POINTS[1] + b0_dir[2] * POINTS[2]) / distance
    within = inside(distance)
    return (1 - within) * CHI / 2 * (RADIUS / distance) ** 2 * (2 * cosine**2 - 1) - within * CHI / 6


def invert(name, field, b0_dir, source):
    """The map that a method makes of a field; the magnitude shows the source, the error is 1 % of its susceptibility."""
    field = np.where(MASK, field, 0).astype(np.float32)
    magnitude = np.repeat((100 - 20 * source * MASK)[..., None], 3, axis=-1).astype(np.float32)
    error = np.full(field.shape, CHI / 100, np.float32)
    arrays = {"local_field": field, "total_field": field, "mask": MASK, "field_error": error, "magnitude": magnitude}
    arrays["chi_prior"] = np.zeros_like(field)  # the data alone
    context = CONTEXT | {"b0_dir": b0_dir}
    return registry.apply("inversion", name, arrays=arrays, context=context, parameters=SMALL.get(name, {}))["chi"]


@cache
def sphere(name, b0_dir=ALONG_Z, sign=1):
    return invert(name, sign * sphere_field(b0_dir), b0_dir, inside(R))


def contrast(chi, distance, outer):
    """Mean in the source minus mean around it, a voxel and a half away from the surface, as a share of the truth."""
    return (chi[MASK & (distance < RADIUS - 1.5)].mean() - chi[(distance > RADIUS + 1.5) & (outer > R)].mean()) / CHI


@pytest.mark.parametrize("b0_dir", [ALONG_Z, TILTED], ids=["axial", "oblique"])
@pytest.mark.parametrize("name", NAMES)
def test_sphere(name, b0_dir):
    low, high = WEAK.get(name, FAITHFUL)
    chi = sphere(name, b0_dir)
    assert low < contrast(chi, R, 11) < high
    assert not chi[~MASK].any()


@pytest.mark.parametrize("name", NAMES)
def test_infinite_cylinder(name):
    """Across the field, going out of the mask on both sides."""
    distance = np.hypot(POINTS[1], POINTS[2])
    chi = invert(name, cylinder_field(ALONG_Z), ALONG_Z, inside(distance))
    low, high = WEAK.get(name, FAITHFUL)
    assert 0.8 * low < contrast(chi, distance, 11) < 1.1 * high


@pytest.mark.parametrize("name", NAMES)
def test_sign_of_the_field_and_of_its_direction(name):
    """A map is odd in the field; the main field may point either way."""
    chi = sphere(name, TILTED)
    assert np.abs(sphere(name, TILTED, -1) + chi).max() < 0.01 * CHI
    assert np.abs(sphere(name, tuple(-b for b in TILTED)) - chi).max() < 1e-3 * CHI


@pytest.mark.parametrize("angle", [0, 54.7356, 90])
def test_a_periodic_cylinder_misses_the_mean_of_its_plane(angle):
    """A cylinder that closes on itself around the grid: with D(0) = 0 its field is short of (3 cos^2 - 1)/6 of its share."""
    distance = np.hypot(POINTS[1], POINTS[2])
    chi = CHI * inside(distance).astype(np.float32)
    cosine = np.cos(np.deg2rad(angle))
    b0_dir = (cosine, 0.0, np.sqrt(1 - cosine**2))
    kernel = dipole_kernel(chi.shape, voxel_size=(1, 1, 1), b0_dir=b0_dir)
    field = fourier.convolve(chi, kernel, chi.shape) + chi.mean() * (3 * cosine**2 - 1) / 6
    assert field[distance < 3].mean() == pytest.approx(CHI * (3 * cosine**2 - 1) / 6, abs=2e-3 * CHI)
