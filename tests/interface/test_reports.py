"""The report's interfaces on small files with an oblique affine."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from qsmflow.algorithms import dipole
from qsmflow.config import Recipe
from qsmflow.interfaces import images
from qsmflow.interfaces.images import Grid
from qsmflow.interfaces.reports import AcquisitionReport, SaveFigures
from qsmflow.reports import gallery
from qsmflow.reports.page import build_subject_page

SHAPE = (24, 22, 18)
ECHO_TIMES = [0.005, 0.011, 0.02]


@pytest.fixture(scope="module")
def grid():
    turn = np.deg2rad(20)
    rotation = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.5, 1.5, 2.0])
    affine[:3, 3] = 18, -16, -18
    return Grid(SHAPE, affine)


@pytest.fixture(scope="module")
def files(grid, tmp_path_factory):
    """All results of an acquisition: a ball with two paramagnetic nuclei, noise, and a table of regions."""
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("results")
    centred = [(np.arange(n) - (n - 1) / 2) * h for n, h in zip(SHAPE, grid.voxel_size, strict=True)]
    radius2 = sum(np.square(a) for a in np.ix_(*centred))
    brain, mask = radius2 < 15.5**2, radius2 < 14**2
    labels = np.zeros(SHAPE, np.int16)
    labels[8:11, 9:13, 7:11], labels[13:16, 9:13, 7:11] = 5, 105
    chi = (np.where(labels > 0, 0.14, 0) + 0.01 * rng.standard_normal(SHAPE)).astype(np.float32) * mask
    chi -= chi[mask].mean() * mask
    field = dipole.forward_field(chi, voxel_size=grid.voxel_size, b0_dir=grid.b0_dir) * mask
    total = field + 0.1 * np.linspace(-1, 1, SHAPE[0])[:, None, None] * brain
    phase = total[..., None] * 2 * np.pi * 127.7 * np.array(ECHO_TIMES) + 0.02 * rng.standard_normal((*SHAPE, 3))
    magnitude = brain[..., None] * 200 * np.exp(-20 * np.array(ECHO_TIMES)) + 4 * rng.standard_normal((*SHAPE, 3))
    arrays = {
        "magnitude": np.abs(magnitude), "phase": np.angle(np.exp(1j * phase)), "unwrapped": phase, "mask": mask,
        "brain_mask": brain, "quality": brain * 0.9, "total_field": total, "local_field": field, "field_error": 0.002 * brain,
        "residual": 0.05 * brain, "chi": chi, "r2star": (20 + 150 * np.maximum(chi, 0)) * brain, "labels": labels,
        "reference_region": labels == 5, "swi": brain * 100, "minip": brain * 50, "phase_mask": brain * 0.5,
        "chi_para": np.maximum(chi, 0), "chi_dia": np.minimum(chi, 0),
    }  # fmt: skip
    paths = {name: images.write(folder / f"{name}.nii", array, grid) for name, array in arrays.items()}
    rows = ["index\tname\themisphere\tn_voxels\tchi_mean\tchi_brain_mean\tchi_brain_p05\tchi_brain_p95"]
    rows += ["5\tGPe_L\tL\t48\t0.1\t0.15\t0.11\t0.2", "105\tGPe_R\tR\t48\t0.1\t0.16\t0.11\t0.2", "7\tX_L\tL\t0" + "\tn/a" * 4]
    (folder / "regions.tsv").write_text("\n".join(rows) + "\n")
    (folder / "names.tsv").write_text("index\tname\n5\tGPe_L\n105\tGPe_R\n")
    return paths | {"regions": str(folder / "regions.tsv"), "label_table": str(folder / "names.tsv")}


def run(tmp_path, monkeypatch, files, *, pictures=True, **options):
    monkeypatch.chdir(tmp_path)
    if not pictures:
        monkeypatch.setattr(gallery, "PICTURES", gallery.PICTURES[-3:-2])  # drawing takes most of the time
    settings = {
        "name": "sub-01_run-1",
        "echo_times": ECHO_TIMES,
        "b0": 3.0,
        "recipe": Recipe().to_toml(),
        "registration": "t1w",
    }
    outputs = AcquisitionReport(**files, **settings | options).run().outputs
    return outputs, json.loads(Path(outputs.quality_file).read_text())


def test_everything(tmp_path, monkeypatch, files, grid):
    outputs, content = run(
        tmp_path, monkeypatch, files,
        metadata={"Manufacturer": "GE", "ImageType": ["A", "B"]}, sources=["bids:raw:x"], notices=["one"], mask_notices=["two"],
        loaded={"notices": ["three"], "warnings": [{"what": "odd", "remedy": "look"}]},
        warnings=[{"what": "far", "remedy": "go"}],
    )  # fmt: skip
    names = [Path(path).name for path in outputs.figures]
    assert len(names) == 30
    assert all(re.fullmatch(r"sub-01_run-1_desc-[a-z]+_[A-Za-z0-9]+\.(png|json)", name) for name in names)
    assert {name.removesuffix(".png") for name in names if name.endswith("png")} == {
        name.removesuffix(".json") for name in names if name.endswith("json")
    }
    assert content["acquisition"] == "sub-01_run-1"
    assert content["notices"] == ["one", "three", "two"]
    assert content["warnings"][:2] == [{"what": "odd", "remedy": "look"}, {"what": "far", "remedy": "go"}]
    assert content["inputs"]["shape"] == list(SHAPE)
    assert content["inputs"]["b0_dir"] == pytest.approx(grid.b0_dir, abs=1e-6)
    assert content["inputs"]["sources"] == ["bids:raw:x"]
    assert content["recipe"]["hash"] == Recipe().hash
    assert ["Scanner", "GE"] in content["reporting_table"]
    assert set(content["methods"]["citations"]) >= {"pauli2018", "bilgic2014tv"}


def test_metrics_of_a_known_object(tmp_path, monkeypatch, files):
    metrics = run(tmp_path, monkeypatch, files, pictures=False)[1]["metrics"]
    assert metrics["snr_echo1"] == pytest.approx(200 * np.exp(-0.1) / 4, rel=0.1)
    assert metrics["snr_echo3"] < metrics["snr_echo2"] < metrics["snr_echo1"]
    assert metrics["residues_echo1"] == 0
    assert metrics["unwrapping_walls"] == metrics["unwrapping_bent"] == 0
    assert metrics["fit_residual"] == pytest.approx(0.05)
    assert metrics["field_range"] == pytest.approx(0.2 * 2 * 14 / 34.5, abs=0.05)
    assert metrics["mask_volume"] == pytest.approx(4 / 3 * np.pi * 1.4**3, rel=0.05)
    assert metrics["coverage"] == pytest.approx((14 / 15.5) ** 3, abs=0.04)
    assert metrics["forward_fit"] < 0.05
    assert metrics["tail_asymmetry"] > 0
    assert metrics["iron_contrast"] > 0.05
    assert metrics["nuclei_contrast"] == pytest.approx(0.14, abs=0.01)
    assert metrics["regions_plausible"] == 1
    assert metrics["left_right"] == pytest.approx(0.01)
    assert "reference_mean" not in metrics  # the whole brain
    assert metrics["polarity"] == 1
    assert not {"registration_template", "registration_t1w"} & set(metrics)  # not given here


def test_a_prior_from_the_ranges_is_told_beside_them(tmp_path, monkeypatch, files):
    told = run(tmp_path, monkeypatch, files, pictures=False, recipe=Recipe(inversion="qsip").to_toml())[1]["warnings"]
    assert any("took their middle as prior" in warning["what"] for warning in told)
    assert not any(
        "as prior" in warning["what"] for warning in run(tmp_path, monkeypatch, files, pictures=False)[1]["warnings"]
    )


def test_spoiled_results_move_the_metrics(tmp_path, monkeypatch, files, grid):
    """Noise widens the spread, a reversed sign turns the polarity, and a poor match is told with what to do."""
    chi, mask = images.read(files["chi"]), images.read(files["mask"], bool)
    noise = 0.2 * np.random.default_rng(0).standard_normal(SHAPE) * mask
    found = {}
    for name, spoiled in {"good": chi, "noisy": chi + noise, "reversed": -chi}.items():
        given = files | {"chi": images.write(tmp_path / f"{name}.nii", spoiled.astype(np.float32), grid)}
        match = {"registration_template": 0.9 if name == "good" else 0.1, "registration_t1w": 0.8}
        found[name] = run(tmp_path, monkeypatch, given, pictures=False, **match)[1]
    spread = {name: content["metrics"]["brain_sd"] for name, content in found.items()}
    assert spread["good"] == pytest.approx(np.std(chi[mask]), rel=1e-3)
    assert spread["noisy"] > 0.2 > 3 * spread["good"]
    assert [found[name]["metrics"]["polarity"] for name in ("good", "reversed")] == [1, -1]
    assert found["good"]["metrics"]["registration_template"] == 0.9
    told = [[warning["what"] for warning in found[name]["warnings"]] for name in ("good", "noisy", "reversed")]
    assert not any("match" in what for what in told[0])
    assert "match with the template is 0.10 nat (expected: at least 0.4)" in told[1]
    assert told[2][0].startswith("susceptibility looks inverted")


def test_a_wrongly_unwrapped_echo_is_measured_flagged_and_the_check_told(tmp_path, monkeypatch, files, grid):
    phase = images.read(files["unwrapped"]).copy()
    phase[: SHAPE[0] // 2, ..., 1] += 4 * np.pi
    wrong = images.write(tmp_path / "wrong.nii", phase, grid)
    given = files | {"unwrapped": wrong}
    content = run(tmp_path, monkeypatch, given, pictures=False, unwrapping_notices=["failed its check"])[1]
    assert "failed its check" in content["notices"]
    assert content["metrics"]["unwrapping_walls"] == pytest.approx(1, abs=0.3)
    assert content["metrics"]["unwrapping_bent"] == pytest.approx(0.5, abs=0.1)
    flagged = " ".join(warning["what"] for warning in content["warnings"])
    assert "walls in the unwrapped phase" in flagged
    assert "echoes off the line" in flagged


def test_reference_region(tmp_path, monkeypatch, files):
    recipe = Recipe(reference="region", reference_region="GPe_L").to_toml()
    content = run(tmp_path, monkeypatch, files, pictures=False, recipe=recipe)[1]
    assert content["metrics"]["reference_mean"] == pytest.approx(0.136, abs=0.005)
    assert content["metrics"]["reference_sd"] == pytest.approx(0.01, abs=0.003)
    assert dict(content["reporting_table"])["Reference region"].startswith("GPe_L; mean +0.13")


def test_reference_without_its_region_has_a_mean_all_the_same(tmp_path, monkeypatch, files, grid):
    chi = images.read(files["chi"])
    mask = images.read(files["mask"], bool)
    shifted = images.write(tmp_path / "shifted.nii", (chi - 0.02 * mask).astype(np.float32), grid)
    given = {key: path for key, path in files.items() if key != "reference_region"} | {"chi": shifted}
    content = run(tmp_path, monkeypatch, given, pictures=False, recipe=Recipe(reference="csf").to_toml())[1]
    assert content["metrics"]["reference_mean"] == pytest.approx(0.02, abs=1e-4)
    assert content["metrics"]["reference_sd"] is None
    assert dict(content["reporting_table"])["Reference region"].endswith("SD not measured")


def test_magnitude_and_mask_are_enough(tmp_path, monkeypatch, files):
    given = {name: files[name] for name in ("magnitude", "mask")}
    recipe = Recipe(outputs=("r2star",)).to_toml()
    outputs, content = run(tmp_path, monkeypatch, given, recipe=recipe, b0=None, registration="")
    assert [Path(path).name for path in outputs.figures] == [
        "sub-01_run-1_desc-outline_mask.png",
        "sub-01_run-1_desc-outline_mask.json",
    ]
    assert set(content["metrics"]) == {"snr_echo1", "snr_echo2", "snr_echo3", "mask_volume"}


def test_one_echo(tmp_path, monkeypatch, files, grid):
    given = {name: path for name, path in files.items() if name not in ("r2star", "residual")}
    for name in ("magnitude", "phase", "unwrapped"):
        given[name] = images.write(tmp_path / f"{name}.nii", images.read(files[name])[..., :1], grid)
    outputs, content = run(
        tmp_path, monkeypatch, given, echo_times=[0.02], skipped={"offset": "one echo", "relaxometry": "one echo"}
    )
    assert "sub-01_run-1_desc-unwrapping_MEGRE.png" in [Path(path).name for path in outputs.figures]
    assert "residues_echo2" not in content["metrics"]
    assert "(one echo)" in content["methods"]["text"]


def test_the_same_files_give_the_same_bytes_wherever_they_lie(tmp_path, monkeypatch, files):
    contents = []
    for name in ("here", "there"):
        folder = tmp_path / name
        folder.mkdir()
        few = {key: files[key] for key in ("magnitude", "mask", "chi", "local_field")}
        copies = {key: str(folder / Path(path).name) for key, path in few.items()}
        for key, path in few.items():
            Path(copies[key]).write_bytes(Path(path).read_bytes())
        outputs, _ = run(folder, monkeypatch, copies)
        contents.append([Path(path).read_bytes() for path in (*outputs.figures, outputs.quality_file)])
    assert contents[0] == contents[1]


def test_saved_figures_replace_those_of_an_earlier_run(tmp_path):
    folder, work = tmp_path / "out/sub-01/figures", tmp_path / "work"
    folder.mkdir(parents=True)
    work.mkdir()
    kept = ("sub-01_run-12_desc-old_Chimap.png", "sub-01_desc-old_Chimap.png", "sub-01_run-1_acq-x_desc-old_Chimap.png")
    for name in (
        *kept,
        "sub-01_run-1_desc-old_Chimap.png",
        "sub-01_run-1_desc-old_Chimap.json",
        "sub-01_run-1_desc-new_mask.png",
    ):
        (folder / name).write_text("old")
    new = [work / "sub-01_run-1_desc-new_mask.png", work / "sub-01_run-1_desc-new_mask.json"]
    for path in new:
        path.write_text("new")
    result = SaveFigures(
        in_files=[str(path) for path in new], output_dir=str(tmp_path / "out"), entities={"sub": "01", "run": "1"}
    ).run()
    assert result.outputs.out_files == [str(folder / path.name) for path in new]
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(kept, "old") | {
        path.name: "new" for path in new
    }


def test_page_of_what_was_saved(tmp_path, monkeypatch, files):
    out = tmp_path / "out"
    outputs, _ = run(tmp_path, monkeypatch, files, notices=["<b>bold</b>"])
    SaveFigures(in_files=outputs.figures, output_dir=str(out), entities={"sub": "01", "run": "1"}).run()
    anat = out / "sub-01/anat"
    anat.mkdir()
    (anat / "sub-01_run-1_desc-qc_stats.json").write_bytes(Path(outputs.quality_file).read_bytes())
    (anat / "sub-01_run-1_atlas-CIT168_stats.tsv").write_bytes(Path(files["regions"]).read_bytes())
    text = build_subject_page(out, "01").read_text(encoding="utf-8")
    assert text.count("data:image/webp") == 15
    assert "&lt;b&gt;bold" in text
    assert len(text) < 3e6


@pytest.mark.slow
def test_size_of_a_page_with_a_whole_head(tmp_path, monkeypatch, shared, files):
    """All pictures at the matrix of a whole head, filled with noise, which no compression can make small."""
    truth, raw = shared / "data/head/derivatives/truth/sub-01/anat", shared / "data/head/sub-01/anat"
    mask, grid = images.read(truth / "sub-01_desc-brain_mask.nii.gz", bool), images.read_grid(truth / "sub-01_Chimap.nii.gz")
    noise = np.random.default_rng(0).standard_normal(grid.shape).astype(np.float32)
    chi = images.read(truth / "sub-01_Chimap.nii.gz") + 0.03 * noise * mask
    phase = np.stack([images.read(raw / f"sub-01_echo-{e}_part-phase_MEGRE.nii.gz") / 4096 * np.pi for e in (1, 4)], axis=-1)
    magnitude = np.stack([images.read(raw / f"sub-01_echo-{e}_part-mag_MEGRE.nii.gz") for e in (1, 4)], axis=-1)
    arrays = {
        "magnitude": magnitude, "phase": phase, "unwrapped": phase, "mask": mask, "brain_mask": mask, "quality": np.abs(noise),
        "total_field": noise * mask, "local_field": noise * mask, "field_error": np.abs(noise) * mask, "chi": chi,
        "residual": np.abs(noise), "r2star": 20 + 5 * noise,
        "labels": np.rint(images.read(truth / "sub-01_desc-cit168_dseg.nii.gz")).astype(np.int16),
    }  # fmt: skip
    paths = {name: images.write(tmp_path / f"{name}.nii", array, grid) for name, array in arrays.items()}
    outputs, content = run(tmp_path, monkeypatch, paths, echo_times=[0.004, 0.028], name="sub-01")
    out = tmp_path / "out"
    SaveFigures(in_files=outputs.figures, output_dir=str(out), entities={"sub": "01"}).run()
    (out / "sub-01/anat").mkdir()
    (out / "sub-01/anat/sub-01_desc-qc_stats.json").write_text(json.dumps(content))
    assert build_subject_page(out, "01").stat().st_size < 4e6
