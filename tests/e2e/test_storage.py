"""The same acquisition stored in other ways gives the same susceptibility; turned, it gives the same object."""

import json
from dataclasses import dataclass, replace

import nibabel as nb
import numpy as np
import pytest
from scipy import ndimage

from qsmflow.algorithms import simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.config import Recipe
from qsmflow.interfaces.images import Grid

SHAPE, VOXEL = (48, 54, 44), (3.5, 3.25, 4.0)
ECHO_TIMES = (0.005, 0.012, 0.019)
B0 = 3.0
#: Centre (mm, RAS+), radii (mm), susceptibility (ppm), R2* (1/s) of what is in the head; no two sides are alike.
BODIES = (
    ((18, 12, 6), (9, 12, 10), 0.12, 45),
    ((-20, 10, 4), (8, 14, 9), 0.10, 40),
    ((12, -20, -14), (7, 7, 6), 0.15, 50),
    ((-30, -28, 18), (10, 8, 8), -0.06, 20),
    ((2, -8, 28), (6, 40, 6), 0.20, 60),
)
HEAD = (62, 72, 58)
#: Beside the head, where a turn about x leaves it in the field of view.
AIR = ((74, 4, -8), (8, 8, 8), 9.0)


@dataclass(frozen=True)
class Scan:
    """Complex data, and the truth, on a grid."""

    data: np.ndarray
    chi: np.ndarray
    affine: np.ndarray


def ellipsoid(position, centre, radii):
    """How much of each voxel is inside, so that a turned grid sees the same body."""
    distance = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip(position, centre, radii, strict=True)))
    return np.clip(0.5 + (1 - distance) * min(radii) / np.mean(VOXEL), 0, 1).astype(np.float32)


def world(affine):
    """Scanner coordinates of all voxels, mm."""
    return np.moveaxis(nb.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1)), -1, 0)


def simulate(affine):
    """The head on the grid of ``affine``, seen by the field along the scanner's z."""
    grid, position = Grid(SHAPE, affine), world(affine)
    head = ellipsoid(position, (0, 0, 0), HEAD)
    chi, r2star = np.zeros(SHAPE, np.float32), np.full(SHAPE, 18, np.float32)
    for centre, radii, value, rate in BODIES:
        inside = ellipsoid(position, centre, radii)
        chi += inside * value
        r2star += inside * (rate - 18)
    sources = chi + AIR[2] * ellipsoid(position, *AIR[:2])
    field = forward_field(sources, voxel_size=grid.voxel_size, b0_dir=grid.b0_dir, space="image")
    x, y, z = position / 100
    offset = 0.8 + 1.5 * x - 1.1 * y * z + 0.6 * z
    gain = 1 + 0.2 * x - 0.1 * y
    field = field + 0.1 * y + 0.2 * z * x
    clean = simulation.signal(field, r2star, 800 * gain * head, echo_times=ECHO_TIMES, b0=B0, offset=offset)
    noisy = simulation.acquire(clean, factor=(1, 1, 1), snr=100, reference=800, seed=1)
    return Scan(noisy, chi, affine)


def axial():
    affine = np.diag([*VOXEL, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * h for n, h in zip(SHAPE, VOXEL, strict=True)]
    return affine


def store(save, root, label, scan, how="rad", codes="RAS"):
    """Write a scan as participant ``label``."""
    folder, stem = root / f"sub-{label}" / "anat", f"sub-{label}"
    data, affine = simulation.reorient(scan.data, scan.affine, codes=codes)
    common = {"MagneticFieldStrength": B0}
    if how == "4d":
        save(folder / f"{stem}_part-mag_MEGRE", np.abs(data), affine, EchoTime=ECHO_TIMES, **common)
        save(folder / f"{stem}_part-phase_MEGRE", np.angle(data), affine, EchoTime=ECHO_TIMES, Units="rad", **common)
        return
    for echo, te in enumerate(ECHO_TIMES):
        for part, volume, stored in parts(data[..., echo], how):
            save(folder / f"{stem}_echo-{echo + 1}_part-{part}_MEGRE", volume, affine, EchoTime=te, **common, **stored)


def parts(volume, how):
    """The files of one echo: part, data, and how the data are stored."""
    if how == "complex":
        return [("real", volume.real.copy(), {}), ("imag", volume.imag.copy(), {})]
    magnitude, phase = ("mag", np.abs(volume), {}), np.angle(volume)
    if how in ("rad", "negated"):
        return [magnitude, ("phase", -phase if how == "negated" else phase, {"Units": "rad"})]
    slope, intercept = {"siemens": (1, 0), "scaled": (2, -4096)}[how]
    levels = (np.rint(phase / np.pi * 2048 + 2048) % 4096).astype(np.int16)
    return [magnitude, ("phase", levels, {"slope": slope, "intercept": intercept, "Units": "arbitrary"})]


#: Participant: how it is stored, and along which axes.
STORED = {
    "reference": ("rad", "RAS"),
    "las": ("rad", "LAS"),
    "sagittal": ("rad", "PSR"),
    "coronal": ("siemens", "LSA"),
    "upsidedown": ("rad", "LPI"),
    "complex": ("complex", "RAS"),
    "fourd": ("4d", "RAS"),
    "siemens": ("siemens", "RAS"),
    "scaled": ("scaled", "RAS"),
    "negated": ("negated", "RAS"),
}
ANGLE = 30

COMMON = {"mask": "threshold & quality", "output_spaces": ("GRE",)}
DIRECT = Recipe(name="direct", background="vsharp", inversion="tkd", outputs=("qsm", "r2star"), **COMMON)
ITERATIVE = Recipe(name="iterative", background="pdf", inversion="tv", outputs=("qsm",), **COMMON)
REVERSED = replace(DIRECT, name="reversed", phase_sign="-")


@pytest.fixture(scope="module")
def upright():
    return simulate(axial())


@pytest.fixture(scope="module")
def turned():
    return simulate(simulation.tilt(axial(), SHAPE, degrees=ANGLE))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, save, upright, turned):
    root = tmp_path_factory.mktemp("storage")
    for label, (how, codes) in STORED.items():
        store(save, root, label, upright, how, codes)
    store(save, root, "turned", turned)
    store(save, root, "mistaken", replace(turned, affine=upright.affine))
    return root


@pytest.fixture(scope="module")
def direct(dataset, process, tmp_path_factory):
    """All ways of storage through the methods without iterations."""
    folder = tmp_path_factory.mktemp("direct")
    return process(dataset, folder, DIRECT, *STORED, "turned", "mistaken", reports=("reference", "negated"))


@pytest.fixture(scope="module")
def iterative(dataset, process, tmp_path_factory):
    return process(dataset, tmp_path_factory.mktemp("iterative"), ITERATIVE, "reference", "sagittal", "turned")


def load(out, label, name="anat/{}_Chimap"):
    """An output, brought to the axes of the reference."""
    image = nb.load(out / f"sub-{label}" / f"{name.format(f'sub-{label}')}.nii.gz")
    return simulation.reorient(image.get_fdata(), image.affine, codes="RAS")


def quality(out, label):
    return json.loads((out / f"sub-{label}/anat/sub-{label}_desc-qc_stats.json").read_text())


def fit(chi, truth):
    """Correlation and slope of a map against the truth inside its mask, without the outer two voxels."""
    where = ndimage.binary_erosion(chi != 0, iterations=2)
    assert where.sum() > 5000
    return np.corrcoef(chi[where], truth[where])[0, 1], np.polyfit(truth[where], chi[where], 1)[0]


def in_bodies(chi, affine):
    """Mean of a map in every body, ppm, relative to what is around them."""
    position = world(affine)
    masks = [ellipsoid(position, centre, radii) > 0.5 for centre, radii, *_ in BODIES]
    rest = (chi != 0) & ~np.any(masks, axis=0)
    return np.array([chi[mask & (chi != 0)].mean() for mask in masks]) - chi[rest].mean()


#: Largest difference that rounding may make, in the units of the files; all maps are computed in single precision.
ROUNDING = {"anat/{}_Chimap": 1e-5, "anat/{}_R2starmap": 1e-3, "fmap/{}_desc-total_fieldmap": 1e-3, "anat/{}_desc-qsm_mask": 0}


def check_same(out, label, other):
    for name, tolerance in ROUNDING.items():
        (found, affine), (wanted, reference) = load(out, label, name), load(out, other, name)
        np.testing.assert_allclose(affine, reference, atol=1e-4)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("label", ["las", "sagittal", "upsidedown", "complex", "fourd"])
def test_storage_does_not_matter(direct, label):
    check_same(direct, label, "reference")


@pytest.mark.parametrize("label", ["coronal", "scaled"])
def test_storage_in_integers_does_not_matter(direct, label):
    check_same(direct, label, "siemens")


def test_integers_cost_little(direct):
    """4096 levels per turn: a noise of 0.4 mrad, beside 10 mrad of the images' own."""
    found, wanted = load(direct, "siemens")[0], load(direct, "reference")[0]
    assert np.count_nonzero((found != 0) != (wanted != 0)) < 20  # of 30,000: the mask looks at the phase's quality
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 5e-4


def test_storage_does_not_matter_to_iterations(iterative):
    found, wanted = load(iterative, "sagittal")[0], load(iterative, "reference")[0]
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 5e-4  # 2.6e-4: what rounding leaves of an iteration's step
    assert np.abs(found - wanted).max() < 1e-2  # where rounding moves a voxel over a threshold


@pytest.mark.parametrize(("methods", "least", "low", "high"), [("direct", 0.75, 0.7, 0.95), ("iterative", 0.8, 0.7, 1.0)])
def test_susceptibility_is_recovered_upright_and_turned(methods, least, low, high, request, upright, turned):
    """The field lies along another direction of the voxels, and the same comes out."""
    out, values = request.getfixturevalue(methods), []
    for label, scan in (("reference", upright), ("turned", turned)):
        chi, affine = load(out, label)
        correlation, slope = fit(chi, scan.chi)
        assert correlation > least
        assert low < slope < high
        values.append(in_bodies(chi, affine))
    # Bodies of two voxels are cut by the two grids in different ways.
    np.testing.assert_allclose(values[0], values[1], rtol=0.2, atol=0.005)


def test_direction_of_the_field_matters(direct, turned):
    """The control of the test above: the same data with a header that says upright."""
    right, wrong = (fit(load(direct, label)[0], turned.chi) for label in ("turned", "mistaken"))
    assert wrong[0] < right[0] - 0.08


def test_negated_phase_is_told(direct):
    before, after = (quality(direct, label)["warnings"] for label in ("reference", "negated"))
    told = [warning for warning in after if warning not in before]
    assert len(told) == 1
    assert "inverted" in told[0]["what"]
    assert "--phase-sign" in told[0]["remedy"]
    assert not any("inverted" in warning["what"] for warning in before)
    np.testing.assert_allclose(load(direct, "negated")[0], -load(direct, "reference")[0], atol=1e-6)


def test_negated_phase_is_turned_by_hand(direct, dataset, process, tmp_path):
    out = process(dataset, tmp_path, REVERSED, "negated")
    np.testing.assert_allclose(load(out, "negated")[0], load(direct, "reference")[0], atol=1e-6)
