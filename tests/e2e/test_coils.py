"""Uncombined coils of a bipolar acquisition through the command line: the map is that of one perfect coil and one polarity."""

import json
import os
import subprocess
import sys

import nibabel as nb
import numpy as np
import pytest

from qsmflow.algorithms import simulation
from qsmflow.algorithms.dipole import forward_field

SHAPE, VOXEL, B0, TIMES = (36, 34, 30), (2.0, 2.0, 2.0), 3.0, (0.005, 0.011, 0.017, 0.023)
AFFINE = np.diag([*VOXEL, 1.0])
SETTINGS = ("--background", "vsharp", "--inversion", "tkd", "--output-spaces", "GRE", "--outputs", "qsm", "--nprocs", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory, save):
    """What the command says and writes for two subjects with the same sources: uncombined and bipolar, and perfect."""
    root = tmp_path_factory.mktemp("coils")
    body = simulation.sphere(SHAPE, voxel_size=VOXEL, radius=26) > 0.5
    chi = simulation.sphere(SHAPE, voxel_size=VOXEL, radius=6, centre=(22, 17, 15), chi=0.2)
    chi += simulation.sphere(SHAPE, voxel_size=VOXEL, radius=5, centre=(12, 17, 15), chi=-0.1)
    field = forward_field(chi, voxel_size=VOXEL, b0_dir=(0, 0, 1), space="image") + 0.15 * simulation.smooth_variation(
        SHAPE, seed=4
    )
    image = simulation.signal(field, 20.0 * body, 500.0 * body, echo_times=TIMES, b0=B0)
    array = simulation.coil_sensitivities(SHAPE, voxel_size=VOXEL, coils=8, seed=6, variation=2.0)
    delay = np.exp(0.04j * (np.arange(SHAPE[0]) - 17.5))[:, None, None]
    noise = np.random.default_rng(1).normal(size=(2, *image.shape, 8))
    for label in ("coils", "perfect"):
        for echo, te in enumerate(TIMES):
            data = image[..., echo] + noise[0, ..., echo, 0] + 1j * noise[1, ..., echo, 0]
            if label == "coils":
                data = image[..., echo, None] * array + noise[0, ..., echo, :] + 1j * noise[1, ..., echo, :]
                data = data * delay[..., None] if echo % 2 else data
            for part, values in (("mag", np.abs(data)), ("phase", np.angle(data))):
                path = root / f"bids/sub-{label}/anat/sub-{label}_echo-{echo + 1}_part-{part}_MEGRE"
                units = {"Units": "rad"} if part == "phase" else {}
                save(path, values.astype(np.float32), AFFINE, EchoTime=te, MagneticFieldStrength=B0, **units)
    (root / "bids/dataset_description.json").write_text('{"Name": "coils", "BIDSVersion": "1.10.0"}')
    words = [sys.executable, "-m", "qsmflow", "bids", "out", "participant", *SETTINGS]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "out", chi, body


def load(out, label, name):
    return nb.load(out / f"sub-{label}" / "anat" / f"sub-{label}_{name}.nii.gz").get_fdata()


@pytest.mark.slow
def test_the_map_is_that_of_a_perfect_coil(run):
    out, chi, _ = run
    found = {label: load(out, label, "Chimap") for label in ("coils", "perfect")}
    both = (found["coils"] != 0) & (found["perfect"] != 0)
    assert both.sum() > 0.9 * np.count_nonzero(found["perfect"])
    difference = (found["coils"] - found["perfect"])[both]
    # Eight coils have less noise than one; what else differs must be less than that noise.
    assert difference.std() < 0.35 * found["perfect"][both].std()
    for label in found:
        ball = (chi > 0.15) & both
        assert 0.1 < found[label][ball].mean() - found[label][both & ~ball].mean() < 0.22


@pytest.mark.slow
def test_matching_and_polarity_are_told(run):
    out, _, body = run
    matching = load(out, "coils", "desc-coilmatching_T2starw")
    assert matching[body].mean() > 99
    assert not list(out.glob("sub-perfect/anat/*coilmatching*"))
    quality = {label: json.loads((out / f"sub-{label}/anat/sub-{label}_desc-qc_stats.json").read_text()) for label in (
        "coils", "perfect")}  # fmt: skip
    assert quality["coils"]["metrics"]["coil_matching"] > 99
    assert "coil_matching" not in quality["perfect"]["metrics"]
    told = {label: " ".join(content["notices"]) for label, content in quality.items()}
    assert "8 uncombined coils" in told["coils"]
    assert "corrected (bipolar readout)" in told["coils"]
    assert "not corrected, because it is below the threshold" in told["perfect"]
    assert ["Echo polarity", "bipolar"] in quality["coils"]["reporting_table"]
    assert ["Coil combination", "mcpc3ds-coils (sigma = 7)"] in quality["coils"]["reporting_table"]
    text = {label: content["methods"]["text"] for label, content in quality.items()}
    assert "MCPC-3D-S" in text["coils"].partition("phase offsets")[0]
    assert "receive coils" not in text["perfect"]
    sidecar = json.loads((out / "sub-coils/anat/sub-coils_Chimap.json").read_text())
    assert [method["Stage"] for method in sidecar["Methods"]][:3] == ["coils", "readout", "offset"]
    perfect = json.loads((out / "sub-perfect/anat/sub-perfect_Chimap.json").read_text())
    assert [method["Stage"] for method in perfect["Methods"]][:2] == ["readout", "offset"]
    assert list(out.glob("sub-coils/figures/*desc-coilmatching*.png"))
