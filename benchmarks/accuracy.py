"""Accuracy of every method on a simulated head, and of every recipe from raw echoes to susceptibility.

    python benchmarks/accuracy.py [DATASET] [--sub 01] [--derivatives OUT]

Writes Markdown. Everything is scored in the true brain mask eroded by 3 voxels with the metrics of the PyPI package qsm-ci;
what a method leaves out there counts as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from heads import Head, apply_step, argument_parser, load, run
from qsm_ci import qsm_eval
from scipy import ndimage as ndi

from qsmflow import registry
from qsmflow.algorithms.units import hz_per_ppm
from qsmflow.config import RECIPES, Recipe
from qsmflow.interfaces import images
from qsmflow.interfaces.regions import expected_chi

#: R2* is scored below this rate, 1/s: above it the signal is gone after one echo.
_FAST_DECAY = 80.0

#: Labels of strong sources in the tissue map: vein, calcification, microbleed.
VEIN = 11
STRONG = (VEIN, 16, 20)

_CHI = ("nrmse", "nrmse_detrend", "xsim", "dgm_linearity", "hfen")
CHI_TITLES = ("NRMSE %", "detrended NRMSE %", "XSIM", "deep-grey linearity error", "HFEN %")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--derivatives", type=Path, metavar="OUT", help="also score what a run wrote")
    args = parser.parse_args()
    head = load(args.dataset, args.sub)
    print(f"# Accuracy on {head.name}, sub-{args.sub}\n")
    from_truth(head)
    if head.misplaced:
        misplacement(head)
    from_echoes(head)
    made = recipes(head)
    field_errors(head, made["consensus"])
    limits(head, Recipe.load("consensus"), made["consensus"])
    if args.derivatives:
        derivatives(head, args.derivatives, args.sub)


def from_truth(head: Head) -> None:
    """Background removal and inversion, each from its true input."""
    truth = head.stored
    arrays = {"mask": truth["brain"], "field_error": np.full(head.grid.shape, 1e-3, np.float32), "magnitude": head.magnitude}
    rows = []
    for name in registry.names("background"):
        made = apply(head, "background", name, **arrays, total_field=truth["total_field"])
        kept = (made["mask"] & truth["brain"]).sum() / truth["brain"].sum()
        score = field_score(made["local_field"], truth, "local_field")
        rows.append([name, score["nrmse"], score["xsim"], f"{kept:.0%}"])
    table("Background removal from the true total field", ["method", "NRMSE %", "XSIM", "mask kept"], rows)
    arrays |= {"r2star": truth["r2star"], "chi_prior": expected_chi(truth["nuclei"], "CIT168")}
    fields = {name: truth[name] for name in ("total_field", "local_field")}
    rows: dict[bool, list[list]] = {False: [], True: []}
    for name in registry.names("inversion"):
        made = apply(head, "inversion", name, **arrays, **fields)
        rows[registry.find("inversion", name).from_total_field].append([name, *chi_score(made["chi"], truth)])
    made = apply(head, "inversion", "qsip", **{**arrays, "chi_prior": np.zeros(head.grid.shape, np.float32)}, **fields)
    rows[True].append(["qsip, prior 0", *chi_score(made["chi"], truth)])
    table("Inversion of the true local field", ["method", *CHI_TITLES], rows[False])
    for background in registry.names("background"):
        made = apply(head, "background", background, **arrays, total_field=truth["total_field"])
        chi = apply(head, "inversion", "tv", **{**arrays, **made})["chi"]
        rows[True].append([f"{background}, then tv", *chi_score(chi, truth)])
    table("From the true total field to susceptibility, in one step and in two", ["method", *CHI_TITLES], rows[True])


def misplacement(head: Head) -> None:
    """What a perfect result would be scored at, when it lies where the images are."""
    rows = []
    for name in ("total_field", "local_field"):
        score = field_score(head.aligned[name], head.stored, name)
        rows.append([name.replace("_", " "), score["nrmse"], score["nrmse_detrend"], score["xsim"], "", ""])
    rows.append(["susceptibility", *chi_score(head.aligned["chi"], head.stored)])
    inside = core(head.stored)
    moved, fixed = head.aligned["r2star"], head.stored["r2star"]
    keep = inside & (fixed < _FAST_DECAY)
    rows.append(["R2*", 100 * np.linalg.norm((moved - fixed)[keep]) / np.linalg.norm(fixed[keep]), "", "", "", ""])
    table("The truth where the images are, scored against the truth as stored", ["map", *CHI_TITLES], rows)


def from_echoes(head: Head) -> None:
    """Unwrapping with field mapping, and relaxometry, from the raw echoes in the true brain mask."""
    mask = head.aligned["brain"]
    arrays = {"magnitude": head.magnitude, "mask": mask}
    removed = {name: apply(head, "offset", name, **arrays, phase=head.phase)["phase"] for name in registry.names("offset")}
    rows = []
    for offset, phase in {"none": head.phase, **removed}.items():
        for unwrap in registry.names("unwrap"):
            unwrapped = apply(head, "unwrap", unwrap, **arrays, phase=phase)["phase"]
            for fit in registry.names("field"):
                made = apply(head, "field", fit, **arrays, phase=unwrapped)["total_field"]
                scores = [field_score(made, truth, "total_field")["nrmse"] for truth in (head.stored, head.aligned)]
                inside = core(head.aligned)
                error = (made - head.aligned["total_field"])[inside]
                rows.append([f"{offset}, {unwrap}, {fit}", *scores, 1000 * float(np.median(abs(error - np.median(error))))])
    titles = ["NRMSE % as stored", "NRMSE % aligned", "median error aligned, 1e-3 ppm"]
    table("Total field from the raw echoes", ["offset, unwrapping, field mapping", *titles], rows)
    rows = []
    for name in registry.names("relaxometry"):
        made = apply(head, "relaxometry", name, **arrays, phase=head.phase)["r2star"]
        rows.append([name, r2star_score(made, head.stored), r2star_score(made, head.aligned)])
    table(f"R2* where the truth is below {_FAST_DECAY:g} 1/s", ["method", "NRMSE % as stored", "NRMSE % aligned"], rows)


def recipes(head: Head) -> dict[str, dict[str, np.ndarray]]:
    """Every recipe from the raw echoes, the true brain mask in place of a registered one; what each made."""
    made = {name: run(Recipe.load(name), head) for name in RECIPES}
    rows = [row for name, maps in made.items() for row in chain_rows(head, name, maps)]
    table("Recipes from the raw echoes, true brain mask", _CHAIN_TITLES, rows)
    return made


def field_errors(head: Head, made: dict[str, np.ndarray]) -> None:
    """Where the total field of a recipe is wrong, in its mask."""
    truth, mask = head.aligned, made["field_mask"] & head.aligned["brain"]
    error = np.where(mask, made["total_field"] - truth["total_field"], 0).astype(np.float64)
    error[mask] -= np.median(error[mask])
    depth = ndi.distance_transform_edt(truth["brain"])
    deep = mask & (depth > 3)
    strong = deep & ndi.binary_dilation(np.isin(truth["tissue"], STRONG), iterations=2)
    bent = deep & (made["residual"] > 3 * np.median(made["residual"][mask]))
    places = {
        "first layer of voxels": mask & (depth <= 1),
        "second and third layer": mask & (depth > 1) & (depth <= 3),
        "deeper": deep,
        "deeper, within 2 voxels of veins, calcification, microbleeds": strong,
        "deeper, elsewhere": deep & ~strong,
        "deeper, misfit above 3 times its median": bent,
    }
    rows = []
    for what, where in places.items():
        squares = error[where] ** 2
        share = squares.sum() / (error[mask] ** 2).sum()
        typical = np.median(made["field_error"][where])
        values = (1000 * v for v in (np.sqrt(squares.mean()), np.median(np.sqrt(squares)), typical))
        rows.append([what, f"{where.sum() / mask.sum():.1%}", f"{share:.1%}", *(f"{value:.1f}" for value in values)])
    titles = ["share of voxels", "share of squared error", "rms error", "median error", "median of the field-error map"]
    table("Error of the total field, 1e-3 ppm, where the images are", ["where", *titles], rows)


def limits(head: Head, recipe: Recipe, made: dict[str, np.ndarray]) -> None:
    """Where the recipe loses accuracy: true inputs replaced by measured ones, one after the other."""
    truth, mask = head.aligned, made["field_mask"]
    even = np.ones(head.grid.shape, np.float32)
    noise = made["field_error"] * np.random.default_rng(0).standard_normal(mask.shape, dtype=np.float32)
    cases = {
        "true local field": (truth["local_field"], truth["brain"], even, False),
        "true total field": (truth["total_field"], truth["brain"], even, True),
        "and the recipe's mask": (truth["total_field"], mask, even, True),
        "and the recipe's field error as weight": (truth["total_field"], mask, made["field_error"], True),
        "and noise as large as the field error": (truth["total_field"] + noise, mask, made["field_error"], True),
        "the measured total field instead (the recipe)": (made["total_field"], mask, made["field_error"], True),
        "the same without weights": (made["total_field"], mask, even, True),
    }
    rows = []
    for what, (field, where, error, background) in cases.items():
        arrays = {"mask": where, "field_error": error, "magnitude": head.magnitude}
        local, score = field * where, {}
        if background:
            arrays |= apply(head, "background", recipe.background, **arrays, total_field=local)
            local = arrays.pop("local_field")
            score = field_score(local, truth, "local_field")
        chi = apply(head, "inversion", recipe.inversion, **arrays, local_field=local)["chi"]
        rows.append([what, score.get("nrmse", ""), score.get("xsim", ""), *chi_score(chi, truth)])
    title = f"What limits `{recipe.name}`, scored where the images are"
    table(title, ["input", "local field NRMSE %", "XSIM", *(f"chi {name}" for name in CHI_TITLES)], rows)


def derivatives(head: Head, out: Path, label: str) -> None:
    """What a run wrote."""
    made, folder = {}, out / f"sub-{label}"
    patterns = {
        "total_field": "fmap/*_desc-total_fieldmap.nii.gz",
        "local_field": "fmap/*_desc-local_fieldmap.nii.gz",
        "chi": f"anat/sub-{label}_Chimap.nii.gz",
        "r2star": "anat/*_R2starmap.nii.gz",
        "labels": "anat/*_atlas-CIT168_dseg.nii.gz",
    }
    for name, pattern in patterns.items():
        for path in sorted(folder.glob(pattern))[:1]:
            if not images.read_grid(path).matches(head.grid):
                raise SystemExit(f"{path}: not on the grid of the input images")
            made[name] = np.nan_to_num(images.read(path))
            if name.endswith("field"):
                made[name] /= np.float32(hz_per_ppm(b0=head.b0))
    if "chi" not in made:
        raise SystemExit(f"{out}: no {patterns['chi']} for sub-{label}")
    table("Derivatives of a run", _CHAIN_TITLES, chain_rows(head, "run", made))
    rows = []
    for what, truth in truths(head):
        coverage = (made["chi"][truth["brain"]] != 0).mean()
        rows.append([what, coverage, *(nuclei_score(made, truth) if "labels" in made else [""] * 3)])
    table("Coverage and nuclei of a run", ["truth", "coverage", "mean Dice", "smallest Dice", "rms error of means, ppm"], rows)


_CHAIN_TITLES = [
    "recipe", "truth", "chi NRMSE %", "detrended %", "XSIM", "deep-grey linearity error", "HFEN %",
    "total field NRMSE %", "local field NRMSE %", "local field XSIM", "R2* NRMSE %",
]  # fmt: skip


def chain_rows(head: Head, name: str, made: dict[str, np.ndarray]) -> list[list]:
    """One row per truth for the maps of one chain; maps that it does not have stay empty."""
    rows = []
    for what, truth in truths(head):
        row = [name, what, *chi_score(made["chi"], truth)]
        row.append(field_score(made["total_field"], truth, "total_field")["nrmse"] if "total_field" in made else "")
        local = field_score(made["local_field"], truth, "local_field") if "local_field" in made else {}
        row += [local.get("nrmse", ""), local.get("xsim", "")]
        row.append(r2star_score(made["r2star"], truth) if "r2star" in made else "")
        rows.append(row)
    return rows


def truths(head: Head) -> list[tuple[str, dict[str, np.ndarray]]]:
    """The truth as stored and, where the images lie elsewhere, where the images are."""
    return [("as stored", head.stored), ("aligned", head.aligned)] if head.misplaced else [("as stored", head.stored)]


def apply(head: Head, stage: str, name: str, **arrays: np.ndarray) -> dict[str, object]:
    """A method at its defaults."""
    return apply_step(stage, name, arrays=arrays, context=head.context, parameters={})


def core(truth: dict[str, np.ndarray]) -> np.ndarray:
    """Where everything is scored."""
    return ndi.binary_erosion(truth["brain"], iterations=3)


def field_score(made: np.ndarray, truth: dict[str, np.ndarray], name: str) -> dict[str, float]:
    return qsm_eval.field_metrics(made.astype(np.float64), truth[name].astype(np.float64), core(truth))


def chi_score(made: np.ndarray, truth: dict[str, np.ndarray]) -> list[float]:
    score = partial(qsm_eval.challenge_metrics, seg=truth["tissue"])
    want = np.where(truth["brain"], truth["chi"], 0)  # air around it would reach into the brain through the scores' filters
    found = score(made.astype(np.float64), want.astype(np.float64), core(truth))
    return [found[key] for key in _CHI]


def r2star_score(made: np.ndarray, truth: dict[str, np.ndarray]) -> float:
    keep = core(truth) & (truth["r2star"] < _FAST_DECAY)
    error = made[keep].astype(np.float64) - truth["r2star"][keep]
    return float(100 * np.linalg.norm(error) / np.linalg.norm(truth["r2star"][keep].astype(np.float64)))


def nuclei_score(made: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> list[float]:
    """Mean and smallest Dice of the nuclei of 20 voxels or more; root mean square error of their mean susceptibility."""
    labels, dice, bias = np.rint(made["labels"]).astype(int), [], []
    for index in np.unique(truth["nuclei"][truth["nuclei"] > 0]):
        found, true = labels == index, truth["nuclei"] == index
        if true.sum() >= 20:
            dice.append(2 * (found & true).sum() / (found.sum() + true.sum()))
            if found.any():
                bias.append(float(made["chi"][found].mean()) - float(truth["chi"][true].mean()))
    return [float(np.mean(dice)), float(min(dice)), float(np.sqrt(np.mean(np.square(bias))))]


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Print a Markdown table."""
    print(f"## {title}\n")
    print(f"| {' | '.join(columns)} |")
    print(f"|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(text(value) for value in row)} |", flush=True)
    print(flush=True)


def text(value: object) -> str:
    """Percentages with one digit, fractions with three."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"
    return str(value)


if __name__ == "__main__":
    main()
