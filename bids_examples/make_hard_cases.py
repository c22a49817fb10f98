"""Make ``hard_cases``: one tiny BIDS dataset per trap of real data, and ``cases.json`` with what must come out of each.

Usage: ``python bids_examples/make_hard_cases.py [FOLDER]`` (default: ``hard_cases`` beside this file). The voxels mean nothing;
headers, names and sidecars are what is tried. Every entry of ``cases.json`` lists runs: the options, the names of the
acquisitions that can be processed, the problems (file, words of the message) and the notices (acquisition, words; that
there is no T1w goes without saying).
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nb
import numpy as np

TIMES = (0.005, 0.010, 0.015)
COMMON = {"MagneticFieldStrength": 3.0, "MRAcquisitionType": "3D", "Manufacturer": "Siemens"}
DESCRIPTION = {"Name": "A hard case", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}

Files = dict[str, object]


@dataclass(frozen=True)
class Nifti:
    """A NIfTI file to be: ``held`` is the fraction of its bytes that are there, ``codes`` are those of sform and qform."""

    shape: tuple[int, ...] = (4, 4, 4)
    affine: tuple = ((1, 0, 0, -2), (0, 1, 0, -2), (0, 0, 1, -2), (0, 0, 0, 1))
    dtype: str = "int16"
    slope: float = 1.0
    intercept: float = 0.0
    codes: tuple[int, int] = (1, 1)
    qform: tuple | None = None
    held: float = 1.0

    def to_bytes(self) -> bytes:
        """The file, or the beginning of it."""
        count = int(np.prod(self.shape))
        values = (np.arange(count) * 7919 % 4096).reshape(self.shape).astype(self.dtype)  # does not compress to nothing
        image = nb.Nifti1Image(values, np.array(self.affine, dtype=float))
        image.set_sform(np.array(self.affine, dtype=float), code=self.codes[0])
        image.set_qform(np.array(self.qform or self.affine, dtype=float), code=self.codes[1])
        image.header.set_slope_inter(self.slope, self.intercept)
        content = image.to_bytes()
        return content[: int(len(content) * self.held)]


IMAGE = Nifti()


def gre(
    prefix: str = "sub-01",
    *,
    times=TIMES,
    parts=("mag", "phase"),
    image: Nifti = IMAGE,
    suffix: str = "MEGRE",
    **metadata: object,
) -> Files:
    """Files of a multi-echo acquisition; a metadata value None leaves the key out."""
    folder = "/".join(piece for piece in prefix.split("_") if piece.startswith(("sub-", "ses-"))) + "/anat"
    files: Files = {}
    for part in parts:
        for number, time in enumerate(times, start=1):
            name = f"{folder}/{prefix}_echo-{number}_part-{part}_{suffix}"
            files[f"{name}.nii"] = image
            content = {**COMMON, "EchoTime": time, **({"Units": "arbitrary"} if part == "phase" else {}), **metadata}
            files[f"{name}.json"] = {key: value for key, value in content.items() if value is not None}
    return files


def name(part: str, echo: int, prefix: str = "sub-01", extension: str = ".nii") -> str:
    """Path of one file of :func:`gre` for a participant without session."""
    return f"{prefix.partition('_')[0]}/anat/{prefix}_echo-{echo}_part-{part}_MEGRE{extension}"


def changed(files: Files, changes: Files) -> Files:
    """Files with some replaced, some removed (None), and sidecars updated where the change is a dict."""
    result = dict(files)
    for path, change in changes.items():
        if change is None:
            result.pop(path)
        elif isinstance(change, dict) and isinstance(result.get(path), dict):
            merged = {**result[path], **change}
            result[path] = {key: value for key, value in merged.items() if value is not None}
        else:
            result[path] = change
    return result


def run(acquisitions=("sub-01",), problems=(), notices=(), **options: object) -> dict:
    """What must come out of reading a case with some options."""
    return {
        "options": options,
        "acquisitions": list(acquisitions),
        "problems": [list(item) for item in problems],
        "notices": [list(item) for item in notices],
    }


def bad(path: str, *words: str, **options: object) -> dict:
    """A run that gives one problem and no acquisition."""
    return run((), [(path, *words)], **options)


def shifted(affine: tuple, by: float) -> tuple:
    """An affine with its origin moved along x."""
    rows = [list(row) for row in affine]
    rows[0][3] += by
    return tuple(map(tuple, rows))


def rotation(degrees: float) -> tuple:
    """An affine turned about x."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return ((1, 0, 0, -2), (0, float(c), float(-s), -2), (0, float(s), float(c), -2), (0, 0, 0, 1))


T1W = {"sub-01/anat/sub-01_T1w.nii": IMAGE, "sub-01/anat/sub-01_T1w.json": {"MagneticFieldStrength": 3.0}}


def echo_time_cases() -> dict[str, tuple[Files, list[dict]]]:
    """Echo times that are unsorted, doubled, in another unit, missing or contradictory."""
    in_ms = {name(part, n, extension=".json"): {"EchoTime": 5.0 * n} for part in ("mag", "phase") for n in (1, 2, 3)}
    without = {name(part, 2, extension=".json"): {"EchoTime": None} for part in ("mag", "phase")}
    return {
        "te-unsorted": (gre(times=(0.015, 0.005, 0.010)), [run(notices=[("sub-01", "sorted by EchoTime")])]),
        "te-duplicate": (gre(times=(0.005, 0.005, 0.015)), [bad("echo-2_part-mag", "same EchoTime", "echo-1_part-mag")]),
        "te-milliseconds": (
            changed(gre(), in_ms),
            [run((), [(name(part, n), "looks like ms") for part in ("mag", "phase") for n in (1, 2, 3)])],
        ),
        "te-missing": (
            changed(gre(), without), [run((), [(name(part, 2), "has no EchoTime") for part in ("mag", "phase")])],
        ),
        "te-missing-magnitude": (
            changed(gre(), {name("mag", 2, extension=".json"): {"EchoTime": None}}),
            [run(notices=[("sub-01", "EchoTime of part-mag taken from")])],
        ),
        "te-contradictory": (
            changed(gre(), {name("phase", 3, extension=".json"): {"EchoTime": 0.020}}),
            [bad(name("phase", 3), "0.02 s is not the 0.015 s", "echo-3_part-mag")],
        ),
        "te-text": (
            changed(gre(), {name("mag", 1, extension=".json"): {"EchoTime": "5 ms"}}),
            [bad(name("mag", 1), "not a positive number")],
        ),
    }  # fmt: skip


def form_cases() -> dict[str, tuple[Files, list[dict]]]:
    """Forms in which a signal comes: parts, 4D files, inheritance, few echoes."""
    folder = "sub-01/anat"
    four_d = {f"{folder}/sub-01_part-{part}_MEGRE.nii": replace(IMAGE, shape=(4, 4, 4, 3)) for part in ("mag", "phase")}
    sidecar = {**COMMON, "EchoTime": list(TIMES)}
    four_d |= {
        f"{folder}/sub-01_part-mag_MEGRE.json": sidecar,
        f"{folder}/sub-01_part-phase_MEGRE.json": {**sidecar, "Units": "rad"},
    }
    inherited = {path: content for path, content in gre("sub-02").items() if path.endswith(".nii")}
    inherited |= {f"echo-{n}_MEGRE.json": {"EchoTime": time} for n, time in enumerate(TIMES, start=1)}
    inherited |= {
        "MEGRE.json": {**COMMON, "MagneticFieldStrength": 1.5},
        "sub-02/sub-02_MEGRE.json": {"MagneticFieldStrength": 7.0},
    }
    inherited |= {"sub-02/anat/sub-02_part-phase_MEGRE.json": {"Units": "rad"}}
    unnamed = {path.replace("_part-mag", ""): content for path, content in gre().items()}
    single = {f"{folder}/sub-01_part-{part}_T2starw.nii": IMAGE for part in ("mag", "phase")}
    single |= {
        f"{folder}/sub-01_part-{part}_T2starw.json": {**COMMON, "EchoTime": 0.02, "Units": "rad"} for part in ("mag", "phase")
    }
    many = {
        **gre("sub-01_ses-a_acq-x_run-1"), **gre("sub-01_ses-a_acq-x_run-2"), **gre("sub-01_ses-b"),
        "sub-01/ses-a/anat/sub-01_ses-a_acq-mprage_run-1_T1w.nii": IMAGE,
        "sub-01/ses-a/anat/sub-01_ses-a_acq-mprage_run-2_T1w.nii": IMAGE,
    }  # fmt: skip
    two_runs = ["sub-01_ses-a_acq-x_run-1", "sub-01_ses-a_acq-x_run-2"]
    chosen, elsewhere = "run-2_T1w.nii was chosen out of 2", "comes from another session"
    in_a = [(acquisition, chosen) for acquisition in two_runs]
    in_b = [("sub-01_ses-b", chosen), ("sub-01_ses-b", elsewhere)]
    two = ("sub-01", "two points")
    everything = gre(parts=("mag", "phase", "real", "imag"))
    return {
        "form-4d": (four_d, [run()]),
        "form-real-imag": (gre(parts=("real", "imag")), [run()]),
        "form-all-parts": (everything, [run(notices=[("sub-01", "left aside, because there is phase")])]),
        "form-only-real": (gre(parts=("mag", "real")), [bad(name("real", 1), "without part-imag"), run(outputs=["r2star"])]),
        "form-no-part": (unnamed, [run(notices=[("sub-01", "without a 'part-' entity")])]),
        "form-inheritance": (inherited, [run(["sub-02"])]),
        "form-sessions": (
            many,
            [
                run([*two_runs, "sub-01_ses-b"], notices=[*in_a, *in_b]),
                run(["sub-01_ses-b"], notices=in_b, session_label=["ses-b"]),
                run(two_runs[1:], notices=in_a[1:], bids_filters={"megre": {"run": 2}}),
                run(["sub-01_ses-b"], notices=in_b, bids_filters={"megre": {"acquisition": None}}),
                run(two_runs, notices=in_a, bids_filters={"megre": {"acquisition": "*"}}),
            ],
        ),
        "form-one-echo": (
            single,
            [run(notices=[("sub-01", "one echo")]), bad("part-mag_T2starw", "gives no R2*", outputs=["r2star"])],
        ),
        "form-two-echoes": (gre(times=TIMES[:2]), [run(notices=[two])]),
        "form-no-magnitude": (
            gre(parts=("phase",)),
            [run(notices=[("sub-01", "no magnitude")]), bad(name("phase", 1), "without magnitude", outputs=["r2star"])],
        ),
        "form-no-phase": (gre(parts=("mag",)), [bad(name("mag", 1), "no phase image"), run(outputs=["r2star"])]),
        "form-echo-missing": (
            changed(gre(), {name("phase", 2): None, name("phase", 2, extension=".json"): None}),
            [bad(name("mag", 2), "echo 2 has no part-phase"), run(notices=[two], bids_filters={"megre": {"echo": [1, 3]}})],
        ),
        "form-doubled": (
            {**gre(), name("mag", 1, extension=".nii.gz"): IMAGE}, [bad(name("mag", 1), "is echo 1 as")],
        ),
        "form-2d": (gre(MRAcquisitionType="2D"), [run(notices=[("sub-01", "the acquisition is 2D")])]),
    }  # fmt: skip


def header_cases() -> dict[str, tuple[Files, list[dict]]]:
    """Headers: grids that differ, orientation, files that are damaged or too short, odd data types."""
    flipped = ((-1, 0, 0, 2), (0, 1, 0, -2), (0, 0, 1, -2), (0, 0, 0, 1))
    sagittal = ((0, 0, 1.5, -2), (1, 0, 0, -2), (0, 1, 0, -2), (0, 0, 0, 1))
    coronal = ((1, 0, 0, -2), (0, 0, 2, -2), (0, -1, 0, 2), (0, 0, 0, 1))
    stored = {"las": flipped, "sagittal": sagittal, "coronal": coronal, "oblique": rotation(30)}
    turned: Files = {}
    for label, affine in stored.items():
        turned |= gre(f"sub-01_acq-{label}", image=replace(IMAGE, affine=affine, shape=(3, 5, 4)))
    one = name("phase", 2)
    apart = shifted(IMAGE.affine, 0.5)
    cut = {**changed(gre(), {one: None}), one + ".gz": replace(IMAGE, shape=(4, 4, 200), held=0.5)}
    cut = changed(cut, {path: replace(IMAGE, shape=(4, 4, 200)) for path, item in cut.items() if item is IMAGE})
    return {
        "header-orientations": (turned, [run([f"sub-01_acq-{label}" for label in sorted(stored)])]),
        "header-unoriented": (gre(image=replace(IMAGE, codes=(0, 0))), [run(notices=[("sub-01", "no orientation")])]),
        "header-two-orientations": (
            gre(image=replace(IMAGE, qform=rotation(20))), [run(notices=[("sub-01", "disagree by 20 degrees")])],
        ),
        "header-shapes": (
            changed(gre(), {name("mag", 3): replace(IMAGE, shape=(4, 4, 5))}),
            [bad(name("mag", 3), "4 x 4 x 5 is not the 4 x 4 x 4", "echo-1_part-mag")],
        ),
        "header-affines": (
            changed(gre(), {one: replace(IMAGE, affine=apart)}), [bad(one, "differs by up to 0.5 mm", "echo-1_part-mag")],
        ),
        "header-corrupt": (changed(gre(), {one: b"not an image" * 40}), [bad(one, "header cannot be read")]),
        "header-empty": (changed(gre(), {one: b""}), [bad(one, "header cannot be read")]),
        "header-short": (changed(gre(), {one: replace(IMAGE, held=0.8)}), [bad(one, "cut short")]),
        "header-short-gz": (cut, [bad(one + ".gz", "cut short")]),
        "header-complex": (changed(gre(), {one: replace(IMAGE, dtype="complex64")}), [bad(one, "complex values")]),
        "header-8bit": (gre(image=replace(IMAGE, dtype="uint8")), [run(notices=[("sub-01", "only 8 bits")])]),
        "header-t1w": (
            {**gre(), **T1W, "sub-01/anat/sub-01_T1w.nii": replace(IMAGE, held=0.9)},
            [run(problems=[("sub-01_T1w.nii", "cut short")])],
        ),
    }  # fmt: skip


def coil_cases() -> dict[str, tuple[Files, list[dict]]]:
    """Uncombined coils, which must never be counted as echoes, and reference scans for their combination."""
    by_name: Files = {}
    by_reconstruction = gre(times=TIMES[:2])
    for coil in ("01", "02", "03"):
        by_name |= gre(f"sub-01_coil-{coil}", times=TIMES[:2])
        by_reconstruction |= gre(f"sub-01_rec-coil{coil}", times=TIMES[:2])
    list_too_short = {
        f"sub-01/anat/sub-01_part-{part}_MEGRE{extension}": content
        for part in ("mag", "phase")
        for extension, content in ((".nii", replace(IMAGE, shape=(4, 4, 4, 8))), (".json", {**COMMON, "EchoTime": 0.01}))
    }
    two = ("sub-01", "two points")
    both = [name(part, n) for part in ("mag", "phase") for n in (1, 2)]
    per_echo, eight = (gre(times=TIMES[:2], image=replace(IMAGE, shape=(4, 4, 4, n))) for n in (32, 8))
    five = {
        f"sub-01/anat/sub-01_part-{part}_MEGRE{extension}": content
        for part in ("mag", "phase")
        for extension, content in (
            (".nii", replace(IMAGE, shape=(4, 4, 4, 2, 8))),
            (".json", {**COMMON, "Units": "arbitrary", "EchoTime": TIMES[:2]}),
        )
    }
    one_less = changed(by_name, {name("phase", 2, "sub-01_coil-03", end): None for end in (".nii", ".json")})
    otherwise = {path.replace("coil-0", "coil-") if "part-phase" in path else path: item for path, item in by_name.items()}
    late = changed(by_name, {name("mag", 2, "sub-01_coil-02", ".json"): {"EchoTime": 0.011}})
    doubly = gre("sub-01_coil-01", times=TIMES[:2], image=replace(IMAGE, shape=(4, 4, 4, 3)))
    body = gre("sub-01_acq-coilref", times=(0.002,), MagneticFieldStrength=None)
    short = gre("sub-01_acq-ute", times=(0.001,), image=replace(IMAGE, shape=(4, 4, 4, 8)))
    coils, guessed = ("sub-01", "uncombined coils"), ("sub-01", "uncombined coils: the volumes of every echo")
    spaced = gre(times=(0.004, 0.010, 0.016), image=replace(IMAGE, shape=(4, 4, 4, 2)))
    return {
        "coils-4d": (
            per_echo,
            [
                run(notices=[two, guessed]), bad(both[0], "--coils is none", coils="none"),
                run(notices=[two, guessed], coils="vrc"),
                bad(both[0], "no reference scan", "acq-coilref", coils="roemer"),
            ],
        ),
        "coils-5d": (five, [run(notices=[two, ("sub-01", "8 uncombined coils")])]),
        "coils-5d-per-echo": (
            gre(times=TIMES[:2], image=replace(IMAGE, shape=(4, 4, 4, 1, 8))),
            [run(notices=[two, ("sub-01", "8 uncombined coils")])],
        ),
        "coils-5d-twice": (
            gre(times=TIMES[:2], image=replace(IMAGE, shape=(4, 4, 4, 2, 4))),
            [run((), [(path, "2 volumes of 4 coils", "echo- out of its name") for path in both])],
        ),
        "coils-4d-one-time": (
            list_too_short,
            [run((), [(f"part-{part}_MEGRE.nii", "8 volume(s)", "never counted as echoes") for part in ("mag", "phase")])],
        ),
        "coils-named": (
            by_name,
            [
                run(notices=[two, ("sub-01", "3 uncombined coils")]),
                run(notices=[two, ("sub-01", "only one coil (02)")], bids_filters={"megre": {"coil": "02"}}),
            ],
        ),
        "coils-named-one-less": (one_less, [bad("echo-2_part-phase", "2 coil(s)", "with 3")]),
        "coils-named-otherwise": (
            otherwise, [run((), [(f"coil-1_echo-{n}_part-phase", "has other coils (01, 02, 03, 1, 2, 3)") for n in (1, 2)])],
        ),
        "coils-named-late": (late, [bad("coil-02_echo-2_part-mag", "EchoTime is not that of sub-01_coil-01_echo-2")]),
        "coils-named-doubly": (
            doubly,
            [run((), [(f"echo-{n}_part-{p}", "one coil by its name, but holds 3") for n in (1, 2) for p in ("mag", "phase")])],
        ),
        "coils-no-phase": (
            {path: content for path, content in eight.items() if "part-mag" in path},
            [bad(both[0], "no phase"), bad(both[0], "without both magnitude and phase", outputs=["r2star"])],
        ),
        "coils-reconstruction": (
            by_reconstruction,
            [
                run(notices=[two, ("sub-01", "left aside, because there are combined images: 3 uncombined coils")]),
                run(notices=[two], bids_filters={"megre": {"reconstruction": None}}),
                run(notices=[two, coils], bids_filters={"megre": {"reconstruction": "*"}}),
            ],
        ),
        "coils-reference": (
            {**eight, **body, **short},
            [
                run(["sub-01"], notices=[two, guessed], bids_filters={"megre": {"acquisition": None}}),
                run(["sub-01"], notices=[two, guessed], bids_filters={"megre": {"acquisition": None}}, coils="roemer"),
                run(
                    notices=[two, guessed], coils="composer",
                    bids_filters={"megre": {"acquisition": None}, "coil_reference": {"acquisition": "ute"}},
                ),
                bad(
                    "acq-coilref", "1 coils for an acquisition of 8", coils="composer",
                    bids_filters={"megre": {"acquisition": None}},
                ),
                bad(
                    "acq-ute", "reference scan of 8 coils", coils="roemer",
                    bids_filters={"megre": {"acquisition": None}, "coil_reference": {"acquisition": "ute"}},
                ),
            ],
        ),
        "coils-aspire": (
            spaced,
            [
                bad(both[0], "not 4, 10, 16 ms", "mcpc3ds-coils", coils="aspire"),
                run(notices=[("sub-01", "2 uncombined coils")]),
            ],
        ),
    }  # fmt: skip


def metadata_cases() -> dict[str, tuple[Files, list[dict]]]:
    """Field strength, units, filtered phase, broken sidecars."""
    filtered = gre(ImageType=["ORIGINAL", "PRIMARY", "P", "SWI"])
    broken = {**gre("sub-01"), **gre("sub-02"), name("mag", 2, "sub-02", ".json"): b'{"EchoTime": 0.01'}
    phase_paths = [name("phase", n) for n in (1, 2, 3)]
    return {
        "field-missing": (
            gre(MagneticFieldStrength=None),
            [bad(name("mag", 1), "MagneticFieldStrength is missing", "--b0"), run(b0=3.0), run(outputs=["r2star"])],
        ),
        "field-gauss": (
            gre(MagneticFieldStrength=30000), [bad(name("mag", 1), "30000 is not in tesla"), run(outputs=["r2star"])],
        ),
        "field-differs": (
            changed(gre(), {name("phase", 3, extension=".json"): {"MagneticFieldStrength": 7.0}}),
            [bad(name("mag", 1), "differs between images", "3.0 T or 7.0 T"),
             run(b0=7.0, notices=[("sub-01", "B0 is 7 T as asked for")])],
        ),
        "field-frequency": (
            gre(ImagingFrequency=123.25), [run(notices=[("sub-01", "B0 is 2.89472 T, from ImagingFrequency")])],
        ),
        "units-missing": (gre(Units=None), [run(notices=[("sub-01", "phase without Units")])]),
        "units-unknown": (gre(Units="Hz"), [run((), [(path, "Units 'Hz'") for path in phase_paths])]),
        "filtered-phase": (
            filtered,
            [run((), [(path, "filtered phase", "SWI") for path in phase_paths]),
             run(outputs=["r2star"], notices=[("sub-01", "phase is not used")])],
        ),
        "sidecar-broken": (broken, [run(["sub-01"], [("sub-02_echo-2_part-mag_MEGRE.json", "not a valid JSON object")])]),
    }  # fmt: skip


def dataset_cases() -> dict[str, tuple[Files, list[dict]]]:
    """Folders that are no dataset, or hold nothing to do."""
    return {
        "dataset-undescribed": (
            {**gre(), "dataset_description.json": None},
            [bad("", "no dataset_description.json"), run(skip_bids_validation=True)],
        ),
        "dataset-empty": ({"participants.tsv": b"participant_id\n"}, [bad("", "holds no participant")]),
        "dataset-without-gre": (
            dict(T1W),
            [bad("", "no MEGRE or T2starw image"), bad("sub-01", "no MEGRE or T2starw image", participant_label=["01"])],
        ),
        "dataset-filtered-out": (
            gre(), [bad("", "that the BIDS filter lets through", bids_filters={"megre": {"acquisition": "x"}})],
        ),
    }  # fmt: skip


def cases() -> dict[str, tuple[Files, list[dict]]]:
    """All cases: name -> (files, runs)."""
    groups = (echo_time_cases, form_cases, header_cases, coil_cases, metadata_cases, dataset_cases)
    return {case: content for group in groups for case, content in group().items()}


def write(root: Path, files: Files) -> None:
    """Write the files of one case."""
    for path, content in {"dataset_description.json": DESCRIPTION, **files}.items():
        if content is None:
            continue
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Nifti):
            whole = replace(content, held=1.0).to_bytes() if path.endswith(".gz") else content.to_bytes()
            if path.endswith(".gz"):
                packed = gzip.compress(whole, mtime=0)
                whole = packed[: int(len(packed) * content.held)]
            target.write_bytes(whole)
        elif isinstance(content, bytes):
            target.write_bytes(content)
        else:
            target.write_text(json.dumps(content, indent=1) + "\n")


def main(folder: Path) -> None:
    """Write all cases and their table; only a folder that an earlier run has made is replaced."""
    if (folder / "cases.json").is_file():
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty")
    table = {}
    for case, (files, runs) in cases().items():
        write(folder / case, files)
        table[case] = runs
    (folder / "cases.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "hard_cases")
