"""What automatic weights of the variational inversions are worth on a simulated head.

    python benchmarks/tuning.py [DATASET] [--sub 01] [--methods tv ...] [--coarser 1] [--no-recipe]

Writes Markdown: the weight that each rule chooses and its scores, beside the default and the best of seven weights, from the
true local field with noise of a signal-to-noise ratio of 100 (as in ``cosmos.py``) and from the field of the recipe.
"""

from __future__ import annotations

import logging
import re

import numpy as np
from accuracy import table
from cosmos import Scene
from heads import argument_parser, load, run

from qsmflow.config import Recipe

#: Methods that can choose their weight by all rules, with their default.
_METHODS = {"tv": 2e-4, "fansi": 1e-4, "l1qsm": 5e-2}

_RULES = ("none", "lcurve", "discrepancy", "frequency")


class _Chosen(logging.Handler):
    """Keeps the weight that a method logs."""

    def __init__(self):
        super().__init__()
        self.weight = ""

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r"weight (\S+) chosen", record.getMessage())
        if found or "stays" in record.getMessage():
            self.weight = found[1] if found else f"{self.weight} (stays)"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=["tv"], choices=list(_METHODS))
    parser.add_argument("--coarser", type=int, default=1, metavar="N", help="average N x N x N voxels first")
    parser.add_argument("--no-recipe", action="store_true", help="leave out the field of the recipe")
    args = parser.parse_args()
    head = load(args.dataset, args.sub)
    scene = Scene(head, args.coarser)
    print(f"# Automatic weights on {head.name}, sub-{args.sub}\n")
    fields, _ = scene.noisy()
    compare(scene, args.methods, "True local field at SNR 100", {"local_field": fields[0], "mask": scene.mask})
    if not args.no_recipe:
        if args.coarser > 1:
            raise SystemExit("the recipe's field is not on a coarser grid")
        made = run(Recipe.load("consensus"), head)
        measured = {name: made[name] for name in ("local_field", "mask", "field_error")}
        compare(scene, args.methods, "Field of the recipe", measured)


def compare(scene: Scene, methods: list[str], title: str, arrays: dict[str, np.ndarray]) -> None:
    """Print weights and errors of the default, of each rule and of the best weight."""
    logger, chosen = logging.getLogger("qsmflow"), _Chosen()
    logger.addHandler(chosen)
    logger.setLevel(logging.INFO)
    rows = []
    for name in methods:

        def score(name=name, **parameters: object) -> list[float]:
            return scene.score(scene.apply("inversion", name, scene.directions[0], parameters=parameters, **arrays)["chi"])

        for rule in _RULES:
            chosen.weight = f"{_METHODS[name]:.2g}"
            errors = score(tune=rule)
            rows.append([name, rule, chosen.weight, *errors])
        weights = _METHODS[name] * np.logspace(-1, 1, 7)
        scores = [score(lambda_=float(weight)) for weight in weights]
        best = int(np.argmin([inside for _, inside in scores]))
        rows.append([name, "best of seven", f"{weights[best]:.2g}", *scores[best]])
    logger.removeHandler(chosen)
    table(title, ["method", "rule", "weight", "NRMSE %", "NRMSE %, 3 voxels inside"], rows)


if __name__ == "__main__":
    main()
