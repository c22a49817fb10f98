"""All dipole inversions on a simulated head: accuracy from the true and from the measured local field, time, memory, pictures.

    python benchmarks/inversions.py [DATASET] [--sub 01] [--methods tkd tv ...] [--pictures OUT.png] [--inputs FOLDER]
        [--no-speed]

Writes Markdown. Every method runs at its defaults, once from the true local field in the true brain mask with equal weights,
and once from what the recipe `consensus` gives it; methods that start from the total field get that one. Scores are those of
``accuracy.py``, costs those of ``speed.py`` (one thread, on the recipe's field). Iterations are what a method logs.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import speed
from accuracy import CHI_TITLES, apply, chi_score, table
from heads import Head, argument_parser, load
from matplotlib.figure import Figure

from qsmflow import registry
from qsmflow.config import Recipe
from qsmflow.interfaces.regions import expected_chi

#: Titles of the two inputs.
_INPUTS = ("true local field", "field of the recipe")

#: Range of the pictures of susceptibility and of its error, ppm.
_RANGE = 0.15


class _Iterations(logging.Handler):
    """Adds up the iterations that methods log."""

    def __init__(self):
        super().__init__()
        self.counts: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.counts += [int(count) for count in re.findall(r"(\d+) iterations", record.getMessage())]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=registry.names("inversion"), choices=registry.names("inversion"))
    parser.add_argument("--pictures", type=Path, metavar="PNG", help="also draw all maps side by side")
    parser.add_argument("--inputs", type=Path, metavar="FOLDER", help="keep what the recipe gives here, and use it again")
    parser.add_argument("--no-speed", action="store_true", help="leave out time and memory")
    parser.set_defaults(stage=None, threads=1, repeats=1)
    args = parser.parse_args()
    head = load(args.dataset, args.sub)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.inputs or Path(temporary)
        if not (folder / "context.json").exists():
            speed.prepare(head, Recipe.load("consensus"), folder)
        measured = {path.stem: np.load(path) for path in (folder / "inversion").glob("*.npy")}
        print(f"# Inversions on {head.name}, sub-{args.sub}\n")
        maps, iterations = accuracy(head, args.methods, measured)
        if args.pictures:
            draw(head, maps, args.pictures)
        if not args.no_speed:
            costs(speed.measurements(args, str(folder), [("inversion", name) for name in args.methods]), iterations)


def accuracy(
    head: Head, methods: list[str], measured: dict[str, np.ndarray]
) -> tuple[dict[str, list[np.ndarray]], dict[str, int]]:
    """Print scores from both inputs; return the maps of each method, and its iterations on the field of the recipe."""
    true = {
        "mask": head.stored["brain"],
        "field_error": np.full(head.grid.shape, 1e-3, np.float32),
        "magnitude": head.magnitude,
    }
    true |= {name: head.stored[name] for name in ("local_field", "total_field", "r2star")}
    true["chi_prior"] = expected_chi(head.stored["nuclei"], "CIT168")
    maps: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    iterations: dict[str, int] = {}
    counter = _Iterations()
    logger = logging.getLogger("qsmflow")
    logger.addHandler(counter)
    logger.setLevel(logging.INFO)
    for title, arrays, truth in zip(_INPUTS, (true, measured), (head.stored, head.aligned), strict=True):
        rows = []
        for name in methods:
            counter.counts.clear()
            maps[name].append(apply(head, "inversion", name, **arrays)["chi"])
            iterations[name] = sum(counter.counts)
            rows.append([name, *chi_score(maps[name][-1], truth), "+".join(map(str, counter.counts)) or ""])
        table(f"From the {title}", ["method", *CHI_TITLES, "iterations"], rows)
    logger.removeHandler(counter)
    return maps, iterations


def costs(found: Iterable[tuple[tuple[str, str], dict[str, float]]], iterations: dict[str, int]) -> None:
    """Print time and memory, each method as soon as it is measured."""

    def row(name: str, cost: dict[str, float]) -> list:
        count = iterations[name]
        each = cost["transforms"] / count if count else ""
        return [name, round(cost["transforms"]), count or "", each, cost["volumes"]]

    columns = ["method", "transforms", "iterations", "transforms per iteration", "peak memory, volumes"]
    table("Cost on the field of the recipe, one thread", columns, (row(name, cost) for (_, name), cost in found))


def draw(head: Head, maps: dict[str, list[np.ndarray]], path: Path) -> None:
    """One row per method: both maps and their errors in an axial slice through the deep nuclei."""
    level = int(np.argmax((head.stored["nuclei"] > 0).sum(axis=(0, 1))))
    inside = head.stored["brain"][:, :, level]
    figure = Figure(figsize=(9, 2.4 * (len(maps) + 1)), facecolor="black", layout="compressed")
    axes = figure.subplots(len(maps) + 1, 4, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for column, truth in enumerate((head.stored, head.aligned)):
        shown = [maps[name][column][:, :, level] for name in maps]
        want = truth["chi"][:, :, level]
        axes[0, 2 * column].set_title(f"truth\n({_INPUTS[column]})", color="white", fontsize=9)
        axes[0, 2 * column].imshow(_centred(want, inside).T, cmap="gray", origin="lower", vmin=-_RANGE, vmax=_RANGE)
        for row, (name, got) in enumerate(zip(maps, shown, strict=True), start=1):
            error = _centred(got, inside) - _centred(want, inside)
            for offset, (what, picture) in enumerate((("", _centred(got, inside)), (" minus truth", error))):
                axis = axes[row, 2 * column + offset]
                axis.set_title(name + what, color="white", fontsize=9)
                axis.imshow(picture.T, cmap="gray", origin="lower", vmin=-_RANGE, vmax=_RANGE)
    figure.savefig(path, dpi=100, facecolor="black")


def _centred(slice_: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Without its mean inside, 0 outside."""
    return np.where(inside, slice_ - slice_[inside].mean(), 0)


if __name__ == "__main__":
    main()
