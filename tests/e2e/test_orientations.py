"""Four orientations of a small head from wrapped phase on: one map, better than one of them gives alone."""

import json
import math

import nibabel as nb
import numpy as np
import pytest
from scipy import ndimage

from qsmflow.algorithms import simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.bids.outputs import dataset_roots, write_dataset_files
from qsmflow.cli.validator import validate
from qsmflow.config import Recipe
from qsmflow.reports import quality
from qsmflow.reports.page import build_subject_page

SHAPE, SIZE, B0, TIMES = (38, 42, 36), 2.5, 3.0, (0.004, 0.010, 0.016)
AFFINE = np.diag([SIZE, SIZE, SIZE, 1.0])
AFFINE[:3, 3] = [-SIZE * (n - 1) / 2 for n in SHAPE]
#: Positions of the head, degrees about the scanner's x and y, by the label of acq-.
POSITIONS = {"axial": (0, 0), "left": (-6, -22), "nod": (24, 0), "right": (0, 24)}
SOURCES = [
    ((-16, 8, 4), 8, 0.1),
    ((12, -16, -6), 7, -0.08),
    ((8, 14, 10), 6, 0.15),
    ((-6, -18, 8), 6, 0.12),
    ((14, 6, -12), 5, 0.2),
]


def rotation(nod, tilt):
    a, b = math.radians(nod), math.radians(tilt)
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    return about_y @ about_x


def head(matrix):
    """Susceptibility and signal at echo time 0 of the turned head: an ellipsoid with texture and sources."""
    grid = {"voxel_size": (SIZE,) * 3}
    place = np.einsum("ij,jabc->iabc", AFFINE[:3, :3], np.indices(SHAPE)) + AFFINE[:3, 3, None, None, None]
    own = np.einsum("ji,jabc->iabc", matrix, place)
    inside = sum((x / a) ** 2 for x, a in zip(own, (34, 42, 30), strict=True)) < 1
    waves = np.random.default_rng(4).normal(scale=0.15, size=(6, 3))
    m0 = 100 + 10 * sum(np.sin(np.einsum("i,iabc->abc", wave, own)) for wave in waves)
    chi = np.zeros(SHAPE, np.float32)
    for centre, radius, value in SOURCES:
        where = tuple((matrix @ centre - AFFINE[:3, 3]) / SIZE)
        chi += simulation.sphere(SHAPE, radius=radius, centre=where, chi=value, **grid)
        m0 += simulation.sphere(SHAPE, radius=radius, centre=where, chi=-200 * value, **grid)
    return chi * inside, (m0 * inside).astype(np.float32)


@pytest.fixture(scope="module")
def out(tmp_path_factory, save, process):
    """The output folder of a run on the four acquisitions."""
    folder = tmp_path_factory.mktemp("orientations")
    bids = folder / "bids"
    bids.mkdir()
    for label, turn in POSITIONS.items():
        chi, m0 = head(rotation(*turn))
        field = forward_field(chi, voxel_size=(SIZE,) * 3, b0_dir=(0, 0, 1), space="image")
        signal = simulation.signal(field, np.full(SHAPE, 15.0), m0, echo_times=TIMES, b0=B0)
        signal = simulation.acquire(signal, factor=(1, 1, 1), snr=100, reference=100, seed=len(label))
        for echo, te in enumerate(TIMES, 1):
            told = {"EchoTime": te, "MagneticFieldStrength": B0}
            name = f"sub-01_acq-{label}_echo-{echo}_part-"
            save(bids / "sub-01/anat" / f"{name}mag_MEGRE", np.abs(signal[..., echo - 1]), AFFINE, **told)
            phase = np.angle(signal[..., echo - 1]).astype(np.float32)
            save(bids / "sub-01/anat" / f"{name}phase_MEGRE", phase, AFFINE, Units="rad", **told)
    recipe = Recipe(cosmos="acq", outputs=("qsm",), output_spaces=("GRE",), background="vsharp", inversion="tkd")
    out = process(bids, folder, recipe)
    write_dataset_files(out, datasets=dataset_roots(bids))
    return out


@pytest.mark.slow
def test_map(out):
    anat = out / "sub-01/anat"
    truth, _ = head(np.eye(3))
    mask = nb.load(anat / "sub-01_desc-cosmos_mask.nii.gz").get_fdata() > 0

    core = ndimage.binary_erosion(mask, iterations=2)

    def error(path):
        found = nb.load(path).get_fdata()[core]
        wanted = truth[core] - truth[core].mean()
        return np.linalg.norm(found - found.mean() - wanted) / np.linalg.norm(wanted)

    together, alone = error(anat / "sub-01_desc-cosmos_Chimap.nii.gz"), error(anat / "sub-01_acq-axial_Chimap.nii.gz")
    assert together < 0.9 * alone  # thresholded k-space division, which regularises as little
    told = json.loads((anat / "sub-01_desc-cosmos_Chimap.json").read_text())
    assert [o["Name"] for o in told["Orientations"]] == [f"sub-01_acq-{label}" for label in POSITIONS]
    assert [o["TiltDegrees"] for o in told["Orientations"]] == pytest.approx([0, 22.8, 24, 24], abs=1)
    assert told["ConditionNumber"] < 6
    assert told["PoorlyConditioned"] is False
    assert len(told["Sources"]) == 24
    assert {method["Stage"] for method in told["Methods"]} >= {"background", "reference"}
    assert "inversion" not in {method["Stage"] for method in told["Methods"]}
    assert quality.warnings(told["Quality"]) == []


@pytest.mark.slow
def test_output_is_valid_bids(out):
    assert validate(out) == []


@pytest.mark.slow
def test_page_has_the_map(out):
    text = build_subject_page(out, "01").read_text(encoding="utf-8")
    assert "all positions (COSMOS)" in text
    assert text.count("Susceptibility from all positions") == 4  # two pictures, each with its title twice
    told = json.loads((out / "sub-01/anat/sub-01_desc-cosmos_Chimap.json").read_text())
    assert all(o["RegistrationSimilarity"] > 0.3 for o in told["Orientations"][1:])
