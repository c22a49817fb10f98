#!/usr/bin/env python3
"""Make ``cohort``: 24 simulated people, half of them with more iron in the substantia nigra, and their region tables.

    python bids_examples/make_cohort.py [OUTPUT_DIR] [--work DIR] [--only LABEL ...]

Every person is simulated as in ``make_study.py`` and processed by the participant level with the default recipe, from the
images alone: masks and regions come from its own brain extraction and registration. What is kept is what the group level reads,
the truth of every region, and the images of two people. At the end the region values are compared with the truth. A run that
was stopped goes on with the same ``--work``; with ``--only`` some people are made and compared, and nothing is kept.
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

#: How many.
PEOPLE = 24
#: Paramagnetic susceptibility that patients have more in both parts of the substantia nigra, ppm.
SHIFT = 0.03
#: Standard deviation between people, per nucleus, ppm.
SPREAD = 0.006
#: People whose images are kept.
KEPT = ("03", "10")
NUCLEI = ("Putamen", "Caudate", "Accumbens", "GPe", "GPi", "SNc", "RedNucleus", "SNr", "STN", "Dentate", "Thalamus")

README = f"""# Example cohort

{PEOPLE} simulated people of 20 to 80 years, half of them controls, half with Parkinson's disease (`participants.tsv`), each
scanned once as in the example study (3 T, four echoes, 2.5 mm, and a T1w). No measured person is in it. The images of two
people are kept here; `make_cohort.py` makes all of them again.

- `derivatives/qsmflow`: region tables and quality metrics of all people, as the participant level wrote them from the images
  alone, with the default recipe.
- `derivatives/truth/truth.tsv`: what the images were made from: mean susceptibility (ppm) of the voxels of every region, `chi`
  against water and `chi_brain` against the mean of the brain, and what was added to the region's iron for this person (the
  patient's {SHIFT} ppm in SNc and SNr and a random part with a standard deviation of {SPREAD} ppm). Iron grows with age along
  the curves of Hallgren and Sourander.

Anatomy: ICBM 152 2009c nonlinear asymmetric template, copyright 1993-2009 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033), and CIT168 atlas
(Pauli et al. 2018, doi:10.1038/sdata.2018.63, CC BY 4.0), both deformed.
"""


def people() -> list[study.Person]:
    """The participants: a dozen of 20 to 80 years, one of 25 to 75; ages evenly in both groups, sexes in turn by pairs."""
    rng = np.random.default_rng(20240)
    moves = np.random.default_rng(20241).uniform(-4, 4, (PEOPLE, 6)).round(1)  # of the head between the scans: mm, degrees
    found = []
    for number in range(PEOPLE):
        group, pair = ("control", "PD")[number % 2], number % 12 // 2
        shifts = {name: round(float(shift), 4) for name, shift in zip(NUCLEI, rng.normal(0, SPREAD, len(NUCLEI)), strict=True)}
        if group == "PD":
            shifts |= {name: round(shifts[name] + SHIFT, 4) for name in ("SNc", "SNr")}
        youngest, years = (20, 60) if number < 12 else (25, 50)
        age = round(youngest + years * (pair + 0.25 * (number % 2)) / 5.25)
        turn = round(float(rng.uniform(-12, 12)), 1)
        label, sex = f"{number + 1:02}", "FM"[(pair + number) % 2 if pair % 3 else pair % 2]
        found.append(study.Person(label, age, sex, group, 100 + number, shifts, turn, "RAS", moves[number], "RAS"))
    return found


def main() -> None:
    """Simulate, process, and keep what belongs to the example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", nargs="?", type=Path, default=Path(__file__).parent / "cohort")
    parser.add_argument("--work", type=Path, help="where images and results of everyone go and stay (default: not kept)")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="make and compare these people, keep nothing")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    raw, out = work / "raw", work / "out"
    describe(raw)
    wanted = [person for person in people() if not options.only or person.label in options.only]
    simulate_all(wanted, raw, work / "simulated")
    told = ["--outputs", "qsm,rois", "--output-spaces", "GRE", "--skip-bids-validation", "-w", str(work / "work")]
    labels = ["--participant-label", *(person.label for person in wanted)]
    if code := qsmflow([str(raw), str(out), "participant", *told, *labels]):
        raise SystemExit(code)
    rows = true_values(wanted, raw / "derivatives" / "truth")
    compare(rows, out)
    if not options.only:
        shutil.rmtree(options.output, ignore_errors=True)
        keep(raw, out, options.output)
        write_truth(rows, options.output / "derivatives" / "truth")
    if not options.work:
        shutil.rmtree(work)


def simulate_all(wanted: list[study.Person], raw: Path, done: Path) -> None:
    """Simulate whom an earlier run has not; ``done`` holds an empty file for everybody whose images are complete."""
    done.mkdir(exist_ok=True)
    template = study.load_template()
    for person in wanted:
        if not (done / person.label).exists():
            print(f"sub-{person.label}", flush=True)
            study.simulate(person, template, raw)
            (done / person.label).touch()


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
    for name in ("MEGRE.json", "T1w.json"):
        study.write_json(root / name, study.SIDECARS[name])


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


def true_values(wanted: list[study.Person], folder: Path) -> list[tuple]:
    """What the images were made from: participant, index, name, susceptibility against water and against the brain, shift."""
    table = resources.files("qsmflow.data") / "atlas" / "tpl-MNI152NLin2009cAsym_atlas-CIT168_dseg.tsv"
    lines = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    numbers = {values[0]: name for name, values in phantom._NUCLEI.items()}
    rows = []
    for person in wanted:
        name = folder / f"sub-{person.label}" / "anat" / f"sub-{person.label}"
        chi = nb.load(f"{name}_Chimap.nii.gz").get_fdata()
        labels = nb.load(f"{name}_space-GRE_atlas-CIT168_dseg.nii.gz").get_fdata().astype(int)
        brain = chi[nb.load(f"{name}_desc-brain_mask.nii.gz").get_fdata() > 0].mean()
        indices = [int(line[0]) for line in lines]
        means = ndimage.mean(chi, labels, indices)
        for index, line, mean in zip(indices, lines, means, strict=True):
            shift = person.shifts.get(numbers.get(index % 100, ""), 0.0)
            rows.append((f"sub-{person.label}", index, line[1], f"{mean:.4f}", f"{mean - brain:.4f}", f"{shift:.4f}"))
    return rows


def compare(rows: list[tuple], out: Path) -> None:
    """Print the difference of the region values from the truth, both relative to the whole brain, over people and sides."""
    errors: dict[str, list[float]] = {}
    for who in dict.fromkeys(row[0] for row in rows):
        lines = (out / who / "anat" / f"{who}_atlas-CIT168_stats.tsv").read_text().splitlines()
        place = lines[0].split("\t").index("chi_brain_mean")
        measured = {line.split("\t")[1]: float(line.split("\t")[place].replace("n/a", "nan")) for line in lines[1:]}
        for _, _, name, _, true, _ in (row for row in rows if row[0] == who):
            errors.setdefault(name[:-2], []).append(measured[name] - float(true))
    print("\n| region | mean error, ppm | mean size of the error | largest |\n| --- | --- | --- | --- |")
    for name, values in errors.items():
        found = np.array(values)
        print(f"| {name} | {found.mean():+.4f} | {np.abs(found).mean():.4f} | {np.abs(found).max():.4f} |")


def write_truth(rows: list[tuple], root: Path) -> None:
    """Write the true mean of every region."""
    root.mkdir(parents=True)
    study.write_tsv(root / "truth.tsv", [("participant_id", "index", "name", "chi", "chi_brain", "shift"), *rows])
    description = {
        **study.SIDECARS["derivatives/truth/dataset_description.json"],
        "Name": "Truth of the qsmflow example cohort",
    }
    study.write_json(root / "dataset_description.json", description)
    (root / ".bidsignore").write_text("truth.tsv\n")


if __name__ == "__main__":
    main()
