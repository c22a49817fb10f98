#!/usr/bin/env python3
"""Make ``study``: two simulated people, with the truth beside them.

    python bids_examples/make_study.py [OUTPUT_DIR] [--participant-label 01 02]

Needs nothing but the installed package: its template and its simulation. The same call gives the same bytes.

Each head is simulated on a grid of 1.25 mm that is larger than the field of view (so that the field of sinuses, skull and neck
is there), its complex signal is reduced to 2.5 mm in k-space, and noise is added. Magnitude and phase are stored as integers,
as a scanner does.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import nibabel as nb
import numpy as np
import scipy.fft
from scipy import ndimage

from qsmflow.algorithms import phantom, simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.units import hz_per_ppm
from qsmflow.interfaces.images import Grid

B0 = 3.0
ECHO_TIMES = (0.005, 0.0115, 0.018, 0.0245)
SNR = 60
T1W_SNR = 40
FACTOR = (2, 2, 2)
T1W_VOXEL, T1W_SHAPE = 1.5, (120, 150, 124)
#: Grid of the simulation, its voxel size (mm), and the part of it that is acquired.
SHAPE, VOXEL, FOV_START, FOV = (160, 208, 208), 1.25, (12, 20, 58), (136, 168, 136)


@dataclass(frozen=True)
class Person:
    """One participant, and how the two scans were planned."""

    label: str
    age: int
    sex: str
    group: str
    seed: int
    shifts: dict
    turn: float
    storage: str
    t1w_move: tuple
    t1w_storage: str


PEOPLE = (
    Person("01", 34, "F", "control", 1, {}, 0, "RAS", (3.0, -2.0, 4.0, 2.5, -4.0, 3.0), "RAS"),
    Person("02", 66, "M", "patient", 2, {"SNc": 0.03, "SNr": 0.03}, 12, "LAS", (-2.0, 3.0, 2.0, -3.0, 2.0, 5.0), "PSR"),
)

README = """# Example study

Two simulated people (`participants.tsv`), each with a multi-echo gradient echo (3 T, four echoes, 2.5 mm; magnitude and phase)
and a T1-weighted image (1.5 mm) of the whole head. No measured person is in it.

What real data bring is there: air, bone and veins in and around the brain, a field that is shimmed but not homogeneous,
dephasing within voxels, noise, a receive phase that is not zero at echo time 0, phase in arbitrary units (-4096 to 4094, by
slope and intercept), magnitude and phase set to 0 outside the head, metadata inherited from the top level. For the T1w the head
had moved. The slices of `sub-02` are oblique (12 degrees) and stored with the first axis to the left; its T1w is stored in
sagittal slices. Both parts of the substantia nigra of `sub-02` have 0.03 ppm more than is usual at that age.

`derivatives/truth` holds what the images were made from, on the grid of the gradient echo.

Anatomy: ICBM 152 2009c nonlinear asymmetric template, copyright 1993-2009 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033), and CIT168 atlas
(Pauli et al. 2018, doi:10.1038/sdata.2018.63, CC BY 4.0), both deformed.
"""

TRUTH_README = """# Truth of the example study

What the images of the study were made from, averaged over their voxels.

- `Chimap`: susceptibility against water, ppm (air 9.4, bone -2.1).
- `desc-total_fieldmap`: the field after a shim of second order, Hz; `desc-local_fieldmap`: the field of the brain alone, its
  susceptibility taken relative to its mean. Both are 0 outside the brain.
- `R2starmap`: R2* of the tissue, 1/s, without what gradients of the field within a voxel add to it; 0 outside the brain.
- `magnitude`: signal at echo time 0 without receive sensitivity; 0 outside the brain.
- `desc-tissue_dseg`, `atlas-CIT168_dseg`: the label that fills most of the voxel.
"""

TEXTS = {"README.md": README, "derivatives/truth/README.md": TRUTH_README}

_DESCRIPTION = {
    "Name": "qsmflow example study: simulated heads with known susceptibility",
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "License": "CC-BY-4.0",
    "Authors": ["The qsmflow developers"],
    "GeneratedBy": [{"Name": "make_study.py", "Description": "Simulation by qsmflow.algorithms"}],
}
_SCANNER = {"Manufacturer": "Simulated", "MagneticFieldStrength": B0, "MRAcquisitionType": "3D"}

#: Sidecars that hold for all participants.
SIDECARS = {
    "dataset_description.json": _DESCRIPTION,
    "participants.json": {
        "age": {"Description": "Age of the participant", "Units": "year"},
        "sex": {"Description": "Sex of the participant", "Levels": {"F": "female", "M": "male"}},
        "group": {"Description": "Group", "Levels": {"control": "healthy", "patient": "more iron in the substantia nigra"}},
    },
    "MEGRE.json": {
        **_SCANNER,
        "ImagingFrequency": round(hz_per_ppm(b0=B0), 6),
        "RepetitionTimeExcitation": 0.035,
        "FlipAngle": 15,
        "ScanningSequence": "GR",
        "PulseSequenceType": "Gradient echo",
        "PulseSequenceDetails": "Monopolar readout",
        "PhaseEncodingDirection": "j",
    },
    "T1w.json": {**_SCANNER, "PulseSequenceType": "MPRAGE"},
    "derivatives/truth/dataset_description.json": {
        **_DESCRIPTION,
        "Name": "Truth of the qsmflow example study",
        "DatasetType": "derivative",
        "SourceDatasets": [{"URL": "../.."}],
    },
    "derivatives/truth/Chimap.json": {"SkullStripped": False, "Units": "ppm"},
    "derivatives/truth/R2starmap.json": {"SkullStripped": True, "Units": "1/s"},
    "derivatives/truth/fieldmap.json": {"SkullStripped": True, "Units": "Hz"},
    "derivatives/truth/magnitude.json": {"SkullStripped": True},
    "derivatives/truth/mask.json": {"Type": "Brain"},
    "derivatives/truth/space-GRE_dseg.json": {"SpatialReference": "The gradient echo of the participant"},
    "derivatives/truth/atlas-CIT168_description.json": {"Name": "CIT168 subcortical atlas", "License": "CC-BY-4.0"},
}


def main() -> None:
    """Write the dataset."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", nargs="?", type=Path, default=Path(__file__).parent / "study")
    everybody = [person.label for person in PEOPLE]
    parser.add_argument("--participant-label", nargs="+", choices=everybody, default=everybody, help="whose images to make")
    args = parser.parse_args()
    root = args.output
    shutil.rmtree(root, ignore_errors=True)
    write_dataset(root)
    template = load_template()
    for person in PEOPLE:
        if person.label in args.participant_label:
            print(f"sub-{person.label}")
            simulate(person, template, root)


def load_template() -> dict:
    """The packaged template on its 1 mm grid."""
    folder = resources.files("qsmflow.data") / "atlas"

    def load(name: str) -> nb.Nifti1Image:
        with resources.as_file(folder / f"tpl-MNI152NLin2009cAsym_{name}.nii.gz") as path:
            image = nb.load(path)
            return nb.Nifti1Image(np.asarray(image.dataobj), image.affine)

    mask = load("res-01_desc-brain_mask").get_fdata() > 0
    head, brain = load("res-02_T1w"), load("res-01_desc-brain_T1w")
    labels = np.asarray(load("res-01_atlas-CIT168_dseg").dataobj)
    t1w = phantom.whole_head(np.asarray(head.dataobj), np.asarray(brain.dataobj), mask)
    return {"t1w": t1w, "mask": mask, "labels": labels, "affine": brain.affine}


def simulate(person: Person, template: dict, root: Path) -> None:
    """Write all images of one participant."""
    arrays = (template["t1w"], template["mask"], template["labels"])
    head = phantom.head_phantom(
        *arrays, affine=template["affine"], b0=B0, age=person.age, shifts=person.shifts, seed=person.seed
    )
    body = phantom.anatomy(person.seed)
    gradient_echo(person, head, body, root)
    t1w(person, head, body, root)


def gradient_echo(person: Person, head: phantom.Head, body: phantom.Anatomy, root: Path) -> None:
    """Simulate the multi-echo acquisition of one participant; write it and its truth."""
    affine = simulation.tilt(centred(SHAPE, VOXEL, (0, -18, -12)), SHAPE, degrees=person.turn)
    head = phantom.place(head, shape=SHAPE, affine=affine, person=body)
    context = {"voxel_size": (VOXEL, VOXEL, VOXEL), "b0_dir": Grid(SHAPE, affine).b0_dir, "space": "image"}
    with scipy.fft.set_workers(2):
        total = forward_field(head.chi, **context, background=float(head.paramagnetic.max()))
        total = simulation.shim(total, head.mask, voxel_size=context["voxel_size"])
        local = forward_field(np.where(head.mask, head.chi - head.chi[head.mask].mean(), 0), **context)
        offset = 1.5 * simulation.smooth_variation(SHAPE, seed=10 + person.seed)
        gain = 1 + 0.25 * simulation.smooth_variation(SHAPE, seed=20 + person.seed)
        clean = simulation.signal(total, head.r2star, head.m0 * gain, echo_times=ECHO_TIMES, b0=B0, offset=offset)
        data = simulation.acquire(clean, factor=FACTOR, snr=SNR, reference=1.0, seed=30 + person.seed)
    inside = simulation.block_mean(head.tissue != phantom.TISSUES["Air"], factor=FACTOR) > 0.1
    data[~ndimage.binary_closing(np.pad(inside, 6), iterations=6)[6:-6, 6:-6, 6:-6]] = 0
    acquired = affine @ np.diag([*FACTOR, 1.0])
    acquired[:3, 3] = (affine @ [*(s + (f - 1) / 2 for s, f in zip(FOV_START, FACTOR, strict=True)), 1])[:3]
    low = tuple(slice(s // f, (s + n) // f) for s, n, f in zip(FOV_START, FOV, FACTOR, strict=True))
    write_echoes(person, data[low], acquired, root)
    fine = tuple(slice(s, s + n) for s, n in zip(FOV_START, FOV, strict=True))
    write_truth(person, head, total, local, fine, acquired, root / "derivatives" / "truth")


def t1w(person: Person, head: phantom.Head, body: phantom.Anatomy, root: Path) -> None:
    """Simulate and write the T1-weighted image of one participant, with the head in another position."""
    affine = centred(T1W_SHAPE, T1W_VOXEL, (0, -18, 18))
    move = np.eye(4)
    for axis, degrees in enumerate(person.t1w_move[3:]):
        move = simulation.tilt(move, (1, 1, 1), degrees=degrees, axis=axis)
    move[:3, 3] += person.t1w_move[:3]
    placed = phantom.place(head, shape=T1W_SHAPE, affine=affine, person=body, pose=move)
    gain = 1 + 0.2 * simulation.smooth_variation(T1W_SHAPE, seed=40 + person.seed)
    clean = (placed.t1w * gain).astype(np.complex64)[..., None]
    image = simulation.acquire(clean, factor=(1, 1, 1), snr=T1W_SNR, reference=210.0, seed=50 + person.seed)
    image = np.abs(image[..., 0]) * ndimage.binary_dilation(placed.tissue != phantom.TISSUES["Air"])
    stored, affine = simulation.reorient(0.3 * image, affine, codes=person.t1w_storage)
    save(root / f"sub-{person.label}" / "anat" / f"sub-{person.label}_T1w.nii.gz", stored, affine, np.uint8)


def write_echoes(person: Person, data: np.ndarray, affine: np.ndarray, root: Path) -> None:
    """Write magnitude and phase of every echo with their sidecars, stored as the participant's scan was."""
    data, affine = simulation.reorient(data, affine, codes=person.storage)
    scale = 180 / np.abs(data).max()
    folder = root / f"sub-{person.label}" / "anat"
    for echo, te in enumerate(ECHO_TIMES):
        name = f"sub-{person.label}_echo-{echo + 1}_part-"
        common = {"EchoTime": te, "EchoNumber": echo + 1}
        save(folder / f"{name}mag_MEGRE.nii.gz", np.abs(data[..., echo]) * scale, affine)
        write_json(folder / f"{name}mag_MEGRE.json", {**common, "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]})
        # 12 bits over the circle: phase 0 is stored as 2048 and read as 0.
        phase = np.rint(np.angle(data[..., echo]) / np.pi * 2048 + 2048) % 4096
        save(folder / f"{name}phase_MEGRE.nii.gz", phase, affine, slope=2, intercept=-4096)
        write_json(
            folder / f"{name}phase_MEGRE.json",
            {**common, "ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"], "Units": "arbitrary"},
        )


def write_truth(
    person: Person, head: phantom.Head, total: np.ndarray, local: np.ndarray, fov: tuple, affine: np.ndarray, root: Path
) -> None:
    """Write what the images were made from, on their grid; the smallest step that is stored is ``slope``."""
    brain, hz = head.mask[fov], hz_per_ppm(b0=B0)

    def mean(volume: np.ndarray) -> np.ndarray:
        return simulation.block_mean(volume, factor=FACTOR)

    mask = mean(brain) >= 0.5
    images = {
        "anat/{}_Chimap": (mean(head.chi[fov]), 0.001),
        "anat/{}_R2starmap": (mean(head.r2star[fov]) * mask, 0.2),
        "anat/{}_desc-brain_mask": (mask, 1),
        "anat/{}_desc-tissue_dseg": (most_frequent(head.tissue[fov]), 1),
        "anat/{}_space-GRE_atlas-CIT168_dseg": (most_frequent(head.labels[fov]), 1),
        "fmap/{}_desc-total_fieldmap": (mean(total[fov]) * mask * hz, 0.1),
        "fmap/{}_desc-local_fieldmap": (mean(local[fov]) * mask * hz, 0.05),
        "fmap/{}_magnitude": (mean(head.m0[fov]) * mask, 0.01),
    }
    name = f"sub-{person.label}"
    for pattern, (volume, slope) in images.items():
        stored, where = simulation.reorient(volume / slope, affine, codes=person.storage)
        save(root / name / f"{pattern.format(name)}.nii.gz", stored, where, np.uint8 if slope == 1 else np.int16, slope)


def most_frequent(labels: np.ndarray) -> np.ndarray:
    """The label that fills most of each block."""
    shape = [n // f for n, f in zip(labels.shape, FACTOR, strict=True)]
    result, most = np.zeros(shape, np.int16), np.zeros(shape, np.float32)
    for label in np.unique(labels):
        share = simulation.block_mean(labels == label, factor=FACTOR)
        result[share > most] = label
        most = np.maximum(most, share)
    return result


def save(path: Path, stored: np.ndarray, affine: np.ndarray, dtype: type = np.int16, slope: float = 1, intercept: float = 0):
    """Write rounded values, to be read as ``slope * stored + intercept``."""
    image = nb.Nifti1Image(np.rint(stored).astype(dtype), affine)
    image.header.set_slope_inter(slope, intercept)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(image, path)


def centred(shape: tuple, voxel: float, centre: tuple) -> np.ndarray:
    """Affine of an axial grid around a point of the scanner, mm."""
    affine = np.diag([voxel, voxel, voxel, 1.0])
    affine[:3, 3] = [c - (n - 1) / 2 * voxel for c, n in zip(centre, shape, strict=True)]
    return affine


def write_json(path: Path, content: dict) -> None:
    """Write a sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_dataset(root: Path) -> None:
    """Write what is common to all participants."""
    truth = root / "derivatives" / "truth"
    for name, content in TEXTS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    people = [(f"sub-{p.label}", p.age, p.sex, p.group) for p in PEOPLE]
    write_tsv(root / "participants.tsv", [("participant_id", "age", "sex", "group"), *people])
    for name, content in SIDECARS.items():
        write_json(root / name, content)
    write_tsv(truth / "desc-tissue_dseg.tsv", [("index", "name"), *((index, name) for name, index in phantom.TISSUES.items())])
    labels = resources.files("qsmflow.data") / "atlas" / "tpl-MNI152NLin2009cAsym_atlas-CIT168_dseg.tsv"
    write_tsv(truth / "space-GRE_atlas-CIT168_dseg.tsv", [line.split("\t")[:2] for line in labels.read_text().splitlines()])


def write_tsv(path: Path, rows: list) -> None:
    """Write a table."""
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))


if __name__ == "__main__":
    main()
