#!/usr/bin/env python3
"""Make ``cohort``: twelve simulated people, half of them with more iron in the substantia nigra, and their region tables.

    python bids_examples/make_cohort.py [OUTPUT_DIR] [--work DIR]

Every person is simulated as in ``make_study.py`` (without a T1w) and processed by the participant level with the default
recipe, given the true masks and labels: registration takes longer than everything else together. What is
kept is what the group level reads, the truth of every region, and the images of two people. Making it takes half an
hour; a run that was stopped goes on with the same ``--work``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from importlib import resources
from pathlib import Path

import make_study as study
import nibabel as nb
import numpy as np
from scipy import ndimage

from qsmflow.algorithms import phantom
from qsmflow.cli.run import main as qsmflow

#: Paramagnetic susceptibility that patients have more in both parts of the substantia nigra, ppm.
SHIFT = 0.03
#: Standard deviation between people, per nucleus, ppm.
SPREAD = 0.006
#: People whose images are kept.
KEPT = ("03", "10")
NUCLEI = ("Putamen", "Caudate", "Accumbens", "GPe", "GPi", "SNc", "RedNucleus", "SNr", "STN", "Dentate", "Thalamus")

README = f"""# Example cohort

Twelve simulated people of 20 to 80 years, six controls and six with Parkinson's disease (`participants.tsv`), each scanned
once as in the example study (3 T, four echoes, 2.5 mm), without a T1w. No measured person is in it. The images of two people
are kept here; `make_cohort.py` makes all of them again.

- `derivatives/qsmflow`: region tables and quality metrics of all people, as the participant level wrote them when it was given
  the true brain masks and atlas labels, so that errors of registration are not among those of these tables.
- `derivatives/truth/truth.tsv`: what the images were made from: mean susceptibility (against water, ppm) of the voxels of every
  region, and what was added to the region's iron for this person (the patient's {SHIFT} ppm in SNc and SNr and a random part
  with a standard deviation of {SPREAD} ppm). Iron grows with age along the curves of Hallgren and Sourander.

Anatomy: ICBM 152 2009c nonlinear asymmetric template, copyright 1993-2009 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033), and CIT168 atlas
(Pauli et al. 2018, doi:10.1038/sdata.2018.63, CC BY 4.0), both deformed.
"""


def people() -> list[study.Person]:
    """The participants: ages evenly from 20 to 80 in both groups, sexes alternating in pairs."""
    rng = np.random.default_rng(20240)
    found = []
    for number in range(12):
        group, pair = ("control", "PD")[number % 2], number // 2
        shifts = {name: round(float(shift), 4) for name, shift in zip(NUCLEI, rng.normal(0, SPREAD, len(NUCLEI)), strict=True)}
        if group == "PD":
            shifts |= {name: round(shifts[name] + SHIFT, 4) for name in ("SNc", "SNr")}
        age = round(20 + 60 * (pair + 0.25 * (number % 2)) / 5.25)
        turn = round(float(rng.uniform(-12, 12)), 1)
        label, sex = f"{number + 1:02}", "FM"[(pair + number) % 2 if pair % 3 else pair % 2]
        found.append(study.Person(label, age, sex, group, 100 + number, shifts, turn, "RAS", (), ""))
    return found


def main() -> None:
    """Simulate, process, and keep what belongs to the example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", nargs="?", type=Path, default=Path(__file__).parent / "cohort")
    parser.add_argument("--work", type=Path, help="where images and results of everyone go and stay (default: not kept)")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    raw, out = work / "raw", work / "out"
    describe(raw)
    template = study.load_template()
    for person in people():
        if not (raw / "derivatives/truth" / f"sub-{person.label}").is_dir():
            print(f"sub-{person.label}", flush=True)
            arrays = (template["t1w"], template["mask"], template["labels"])
            settings = {"affine": template["affine"], "b0": study.B0, "age": person.age, "seed": person.seed}
            head = phantom.head_phantom(*arrays, shifts=person.shifts, **settings)
            study.gradient_echo(person, head, phantom.anatomy(person.seed), raw)
    told = ["--outputs", "qsm,rois", "--output-spaces", "GRE", "--skip-bids-validation", "-w", str(work / "work")]
    if code := qsmflow([str(raw), str(out), "participant", *told, "-d", str(ready_made(raw, work / "given"))]):
        raise SystemExit(code)
    shutil.rmtree(options.output, ignore_errors=True)
    keep(raw, out, options.output)
    if not options.work:
        shutil.rmtree(work)


def ready_made(raw: Path, root: Path) -> Path:
    """The true masks and labels, and nothing else of the truth, as results of another pipeline."""
    shutil.rmtree(root, ignore_errors=True)
    truth = raw / "derivatives" / "truth"
    for pattern in ("desc-brain_mask.nii.gz", "space-GRE_atlas-CIT168_dseg.nii.gz"):
        for path in sorted(truth.glob(f"sub-*/anat/*_{pattern}")):
            copy = root / path.relative_to(truth)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    study.write_json(root / "dataset_description.json", study.SIDECARS["derivatives/truth/dataset_description.json"])
    return root


def describe(root: Path) -> None:
    """Write what is common to all participants."""
    root.mkdir(parents=True, exist_ok=True)
    rows = [(f"sub-{p.label}", p.age, p.sex, p.group) for p in people()]
    study.write_tsv(root / "participants.tsv", [("participant_id", "age", "sex", "group"), *rows])
    (root / "README.md").write_text(README)
    groups = {"control": "healthy", "PD": "Parkinson's disease: more iron in the substantia nigra"}
    dictionary = study.SIDECARS["participants.json"] | {"group": {"Description": "Group", "Levels": groups}}
    name = {"Name": "qsmflow example cohort: simulated heads with known susceptibility"}
    study.write_json(root / "dataset_description.json", study.SIDECARS["dataset_description.json"] | name)
    study.write_json(root / "participants.json", dictionary)
    study.write_json(root / "MEGRE.json", study.SIDECARS["MEGRE.json"])


def keep(raw: Path, out: Path, root: Path) -> None:
    """Copy what belongs to the example."""
    describe(root)
    for label in KEPT:
        shutil.copytree(raw / f"sub-{label}", root / f"sub-{label}")
    derived = root / "derivatives" / "qsmflow"
    names = ("dataset_description.json", "README.md", ".bidsignore", "descriptions.tsv")
    for path in (*(out / name for name in names), *sorted(out.glob("sub-*/anat/*_stats.*"))):
        copy = derived / path.relative_to(out)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    description = json.loads((derived / "dataset_description.json").read_text())
    links = {"SourceDatasets": [{"URL": "../.."}], "DatasetLinks": {"raw": "../.."}}
    study.write_json(derived / "dataset_description.json", description | links)
    truth(raw / "derivatives" / "truth", root / "derivatives" / "truth")


def truth(folder: Path, root: Path) -> None:
    """Write the true mean of every region."""
    table = resources.files("qsmflow.data") / "atlas" / "tpl-MNI152NLin2009cAsym_atlas-CIT168_dseg.tsv"
    lines = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    numbers = {values[0]: name for name, values in phantom._NUCLEI.items()}
    rows = [("participant_id", "index", "name", "chi", "shift")]
    for person in people():
        name = folder / f"sub-{person.label}" / "anat" / f"sub-{person.label}"
        chi = nb.load(f"{name}_Chimap.nii.gz").get_fdata()
        labels = nb.load(f"{name}_space-GRE_atlas-CIT168_dseg.nii.gz").get_fdata().astype(int)
        indices = [int(line[0]) for line in lines]
        means = ndimage.mean(chi, labels, indices)
        for index, line, mean in zip(indices, lines, means, strict=True):
            shift = person.shifts.get(numbers.get(index % 100, ""), 0.0)
            rows.append((f"sub-{person.label}", index, line[1], f"{mean:.4f}", f"{shift:.4f}"))
    root.mkdir(parents=True)
    study.write_tsv(root / "truth.tsv", rows)
    description = {
        **study.SIDECARS["derivatives/truth/dataset_description.json"],
        "Name": "Truth of the qsmflow example cohort",
    }
    study.write_json(root / "dataset_description.json", description)
    (root / ".bidsignore").write_text("truth.tsv\n")


if __name__ == "__main__":
    main()
