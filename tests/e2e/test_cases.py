"""Acquisitions that lack something, or bring something ready-made, run to the end on a few voxels."""

import csv
import json

import nibabel as nb
import numpy as np
import pytest

from qsmflow.algorithms import simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.units import hz_per_ppm
from qsmflow.bids.outputs import product_path
from qsmflow.config import Recipe

SHAPE, VOXEL, B0 = (24, 26, 22), (2.0, 2.0, 2.5), 3.0
AFFINE = np.diag([*VOXEL, 1.0])

#: Participant: echoes and parts that it has.
SCANS = {
    "one": (1, ("mag", "phase")),
    "two": (2, ("mag", "phase")),
    "three": (3, ("mag", "phase")),
    "phaseonly": (3, ("phase",)),
    "onephase": (1, ("phase",)),
}
SETTINGS = {"name": "small", "background": "vsharp", "inversion": "tkd", "output_spaces": ("GRE",)}


@pytest.fixture(scope="module")
def truth():
    """Two balls in a body; chi (ppm), labels, local field (ppm), mask."""
    x, y, z = (i - (n - 1) / 2 for i, n in zip(np.indices(SHAPE), SHAPE, strict=True))
    body = (x / 10) ** 2 + (y / 11) ** 2 + (z / 9) ** 2 <= 1
    labels = np.zeros(SHAPE, np.int16)
    for index, centre in ((1, 4), (2, -4)):
        labels[(x - centre) ** 2 + y**2 + z**2 <= 7] = index
    chi = np.choose(labels, [0, 0.2, 0.1]).astype(np.float32)
    field = forward_field(chi, voxel_size=VOXEL, b0_dir=(0, 0, 1), space="image")
    return chi, labels, field, body


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, save, truth):
    chi, _, field, body = truth
    root = tmp_path_factory.mktemp("small")
    rate, times = 20 + 200 * chi, (0.006, 0.014, 0.022)
    clean = simulation.signal(field + 0.1, rate, 500 * body, echo_times=times, b0=B0, offset=0.0)
    data = simulation.acquire(clean, factor=(1, 1, 1), snr=100, reference=500, seed=3)
    for label, (echoes, parts) in SCANS.items():
        suffix = "MEGRE" if echoes > 1 else "T2starw"
        for echo, te in enumerate(times[-echoes:] if echoes == 1 else times[:echoes]):
            for part in parts:
                name = f"sub-{label}" + f"_echo-{echo + 1}" * (echoes > 1) + f"_part-{part}_{suffix}"
                values = np.abs(data[..., echo]) if part == "mag" else np.angle(data[..., 2 if echoes == 1 else echo])
                units = {"Units": "rad"} if part == "phase" else {}
                save(root / f"sub-{label}/anat/{name}", values, AFFINE, EchoTime=te, MagneticFieldStrength=B0, **units)
    return root


@pytest.fixture(scope="module")
def missing(dataset, process, tmp_path_factory):
    return process(dataset, tmp_path_factory.mktemp("missing"), Recipe(**SETTINGS), *SCANS, reports=("one", "onephase"))


def load(out, label, name):
    return nb.load(out / f"sub-{label}" / f"{name.format(f'sub-{label}')}.nii.gz").get_fdata()


def contrasts(chi, labels):
    """Each ball against the rest of the map."""
    rest = chi[(chi != 0) & (labels == 0)].mean()
    return [chi[labels == index].mean() - rest for index in (1, 2)]


@pytest.mark.parametrize("label", SCANS)
def test_whatever_is_missing(missing, label, truth):
    chi = load(missing, label, "anat/{}_Chimap")
    first, second = contrasts(chi, truth[1])
    assert 0.08 < first < 0.25
    assert 0.03 < second < 0.15
    folder = missing / f"sub-{label}" / "anat"
    echoes, parts = SCANS[label]
    assert bool(list(folder.glob("*_R2starmap.nii.gz"))) == (echoes > 1 and "mag" in parts)
    assert bool(list(folder.glob("*_desc-combined_T2starw.nii.gz"))) == ("mag" in parts)
    assert len(list(folder.glob("*_desc-unwrapped_*.nii.gz"))) == echoes


def test_one_echo_is_told(missing):
    quality = json.loads((missing / "sub-one/anat/sub-one_desc-qc_stats.json").read_text())
    assert any("part of a head" in notice for notice in quality["notices"])
    assert quality["metrics"]["snr_echo1"] > 20
    assert "iron_contrast" not in quality["metrics"]


def test_magnitude_only(dataset, process, tmp_path, truth):
    root = tmp_path / "bids"
    for path in (dataset / "sub-three/anat").glob("*_part-mag_*"):
        target = root / "sub-three/anat" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    out = process(root, tmp_path, Recipe(**SETTINGS, outputs=("r2star",)), "three", reports=("three",))
    rate, mask = load(out, "three", "anat/{}_R2starmap"), load(out, "three", "anat/{}_desc-brain_mask") > 0
    assert mask.sum() > 0.8 * truth[3].sum()
    assert np.median(np.abs(rate - 20 - 200 * truth[0])[mask & truth[3]]) < 2
    assert not list(out.rglob("*Chimap*"))


@pytest.mark.parametrize("product", ["total_field", "local_field", "brain_mask", "labels"])
def test_ready_made(dataset, process, save, tmp_path, truth, product):
    _, labels, field, body = truth
    hz = (field * body * hz_per_ppm(b0=B0)).astype(np.float32)
    data = {"total_field": hz, "local_field": hz, "brain_mask": body.astype(np.uint8), "labels": labels}[product]
    for label in ("three", "onephase"):
        extra = {"atlas": "balls"} if product == "labels" else {}
        path = product_path(tmp_path / "given", {"sub": label}, product, **extra)
        save(path.with_name(path.name.removesuffix(".nii.gz")), data, AFFINE)
    recipe = Recipe(**SETTINGS)
    out = process(dataset, tmp_path, recipe, "three", "onephase", derivatives=(tmp_path / "given",))
    for label in ("three", "onephase"):
        first, second = contrasts(load(out, label, "anat/{}_Chimap"), labels)
        assert 0.08 < first < 0.25
        assert 0.03 < second < 0.15
        if product == "local_field":
            found = load(out, label, "fmap/{}_desc-local_fieldmap")
            np.testing.assert_allclose(found[found != 0], hz[found != 0], atol=1e-3)
        if product == "brain_mask":
            np.testing.assert_array_equal(load(out, label, "anat/{}_desc-brain_mask"), body)
        if product == "labels":
            table = next((out / f"sub-{label}/anat").glob("*_stats.tsv"))
            rows = {row["index"]: row for row in csv.DictReader(table.read_text().splitlines(), delimiter="\t")}
            chi = load(out, label, "anat/{}_Chimap")
            assert float(rows["1"]["chi_mean"]) == pytest.approx(chi[labels == 1].mean(), abs=1e-5)


def test_sources_with_a_map_of_r2(dataset, process, save, tmp_path, truth):
    """The balls are paramagnetic, with 200 1/s per ppm beyond an R2 of 20 1/s; a map that lies elsewhere is left aside."""
    for label, affine in (("three", AFFINE), ("two", np.diag([*VOXEL[:2], 3.0, 1.0]))):
        save(tmp_path / f"given/sub-{label}/anat/sub-{label}_R2map", np.full(SHAPE, 20, np.float32), affine)
    atlas = save(tmp_path / "balls", truth[1], AFFINE)
    parameters = {"r2starqsm": {"relaxivity": 200 / B0}}
    recipe = Recipe(**SETTINGS, atlas=atlas, reference="none", separation="r2starqsm", parameters=parameters)
    out = process(dataset, tmp_path, recipe, "two", "three", derivatives=(tmp_path / "given",), reports=("two", "three"))
    chi, para, dia = (load(out, "three", f"anat/{{}}{name}_Chimap") for name in ("", "_desc-paramagnetic", "_desc-diamagnetic"))
    assert para.min() == 0
    assert dia.max() == 0
    ball = (truth[1] == 1) & (chi != 0)
    both = np.maximum(load(out, "three", "anat/{}_R2starmap") - 20, 0) / 200
    np.testing.assert_allclose(para[chi != 0], np.maximum(both + chi, 0)[chi != 0] / 2, atol=1e-5)
    assert para[ball].mean() > 0.08  # 0.098
    assert dia[ball].mean() > -0.03
    told = {label: json.loads((out / f"sub-{label}/anat/sub-{label}_desc-paramagnetic_Chimap.json").read_text()) for label in (
        "two", "three")}  # fmt: skip
    assert told["three"]["RateWithoutSources"] == 20
    assert 15 < told["two"]["RateWithoutSources"] < 22  # 17.9
    assert told["two"]["RateWithoutSources"] != 20
    assert told["three"]["Methods"][-1]["Method"] == "r2starqsm"
    table = (out / "sub-three/anat/sub-three_atlas-balls_stats.tsv").read_text().splitlines()
    row = dict(zip(*(line.split("\t") for line in table[:2]), strict=True))
    assert float(row["para_mean"]) == pytest.approx(para[ball].mean(), abs=1e-5)
    assert float(row["dia_mean"]) == pytest.approx(dia[ball].mean(), abs=1e-5)
    quality = {label: json.loads((out / f"sub-{label}/anat/sub-{label}_desc-qc_stats.json").read_text()) for label in told}
    assert "taken ready-made: sub-three_R2map.nii.gz" in quality["three"]["notices"]
    assert any("sub-two_R2map.nii.gz, because it does not lie on" in notice for notice in quality["two"]["notices"])
    assert "R2*QSM" in quality["three"]["methods"]["text"]
    assert list((out / "sub-three/figures").glob("*desc-sources_Chimap.png"))


@pytest.mark.parametrize("reference", ["csf", "region", "none"])
def test_references_and_an_atlas_by_path(dataset, process, save, tmp_path, truth, reference):
    atlas = save(tmp_path / "balls", truth[1], AFFINE)
    zero = save(tmp_path / "zero", (truth[1] == 2).astype(np.uint8), AFFINE)
    region = {"reference_region": zero} if reference == "region" else {}
    recipe = Recipe(**SETTINGS, atlas=atlas, reference=reference, **region)
    # Fluid is found by its R2*; without one the map stays as it is.
    labels = ("onephase",) if reference == "csf" else ("two", "onephase")
    out = process(dataset, tmp_path, recipe, *labels)
    for label in labels:
        chi = load(out, label, "anat/{}_Chimap")
        assert contrasts(chi, truth[1])[0] > 0.08
        assert (out / f"sub-{label}/anat/sub-{label}_atlas-balls_stats.tsv").is_file()
        if reference == "region":
            assert abs(chi[(truth[1] == 2) & (chi != 0)].mean()) < 1e-5
