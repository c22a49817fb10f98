"""Background field removal: every method from the true total field and from the raw echoes, and what limits them.

    python benchmarks/background.py [DATASET] [--sub 01]

Writes Markdown. Scored like `accuracy.py`; cost and memory come from `speed.py --stage background --threads 1`.
"""

from __future__ import annotations

import numpy as np
from accuracy import CHI_TITLES, STRONG, chi_score, core, field_score, table
from heads import Head, apply_step, argument_parser, load, run
from scipy import ndimage as ndi

from qsmflow import registry
from qsmflow.algorithms import morphology, passes
from qsmflow.config import Recipe

#: Options that are scored beside the defaults.
_OPTIONS = [
    ("resharp", {"prior": "energy"}),
    ("resharp", {"radius": 3.0}),
    ("resharp", {"radius": 3.0, "prior": "energy"}),
    ("pdf", {"weighted": False}),
    ("iharperella", {"peel": 0}),
]


def main() -> None:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    head = load(args.dataset, args.sub)
    made = run(Recipe.load("consensus"), head)
    settings = [(name, {}) for name in registry.names("background")] + _OPTIONS
    print(f"# Background field removal on {head.name}, sub-{args.sub}\n")
    methods(head, made, settings)
    errors(head, made)
    erosion(head, made, [("pdf", {}), ("vsharp", {}), ("resharp", {})])
    two_passes(head, made)


def methods(head: Head, made: dict[str, np.ndarray], settings: list) -> None:
    """Local fields from the true field in the true mask, and from the measured one in the recipe's mask."""
    truth, even = head.stored, np.ones(head.grid.shape, np.float32)
    rows = []
    for name, parameters in settings:
        row = [label(name, parameters)]
        for field, mask, error, wanted in (
            (truth["total_field"], truth["brain"], even, truth),
            (made["total_field"], made["field_mask"], made["field_error"], head.aligned),
        ):
            result = remove(head, name, parameters, field, mask, error)
            score = field_score(result["local_field"], wanted, "local_field")
            row += [score["nrmse"], score["xsim"], f"{result['mask'].sum() / wanted['brain'].sum():.0%}"]
        rows.append(row)
    titles = [
        f"{what}{source}" for source in (" from the true field", " from the echoes") for what in ("NRMSE %", "XSIM", "kept")
    ]
    table("Methods", ["method", *titles], rows)


def errors(head: Head, made: dict[str, np.ndarray]) -> None:
    """The total field's own error, on top of the true local field: what no background removal can undo."""
    truth, mask = head.aligned, made["field_mask"]
    where = core(truth) & mask
    error = np.where(mask, made["total_field"] - truth["total_field"], 0)
    error = np.where(mask, error - np.median(error[mask]), 0)
    depth = ndi.distance_transform_edt(truth["brain"])
    strong = ndi.binary_dilation(np.isin(truth["tissue"], STRONG), iterations=2)
    worst = np.zeros(mask.shape, bool)
    worst.flat[np.argsort(np.where(where, np.abs(error), 0), axis=None)[-10:]] = True
    places = {
        "everywhere": mask,
        "all but the ten worst voxels": mask & ~worst,
        "all but 2 voxels around veins, calcification, microbleeds": mask & ~strong,
        "deeper than 5 voxels, without those": mask & ~strong & (depth > 5),
    }
    rows = []
    for what, kept in places.items():
        score = field_score((truth["local_field"] + error * kept) * mask, truth, "local_field")
        rows.append([what, f"{(kept & where).sum() / where.sum():.1%}", score["nrmse"], score["xsim"]])
    table("True local field plus the error of the total field", ["error taken from", "of the voxels", "NRMSE %", "XSIM"], rows)


def erosion(head: Head, made: dict[str, np.ndarray], settings: list) -> None:
    """What taking layers off the recipe's mask does to the local field and the susceptibility."""
    rows = []
    for layers in (0, 1):
        size = min(head.grid.voxel_size)
        mask = morphology.erode(made["field_mask"], 1.05 * layers * size, head.grid.voxel_size)
        for name, parameters in settings:
            result = remove(head, name, parameters, made["total_field"], mask, made["field_error"])
            score = field_score(result["local_field"], head.aligned, "local_field")
            chi = inverted(head, made, result)
            coverage = f"{(chi[head.aligned['brain']] != 0).mean():.0%}"
            rows.append(
                [layers, label(name, parameters), score["nrmse"], score["xsim"], *chi_score(chi, head.aligned), coverage]
            )
    titles = ["local field NRMSE %", "local field XSIM", *(f"chi {title}" for title in CHI_TITLES), "coverage"]
    table("Layers taken off the mask first, from the echoes", ["layers", "method", *titles], rows)


def two_passes(head: Head, made: dict[str, np.ndarray]) -> None:
    """One pass and two, with PDF and TV, in the recipe's mask."""
    mask = made["field_mask"]
    reliable = passes.reliable(mask, made["quality"], threshold=Recipe().reliable_quality)
    results = [remove(head, "pdf", {}, made["total_field"], kept, made["field_error"]) for kept in (reliable, mask)]
    first, second = (inverted(head, made, result) for result in results)
    chi, _, _ = passes.merge(first, results[0]["mask"], second, results[1]["mask"])
    rows = [["one", *chi_score(second, head.aligned)], ["two", *chi_score(chi, head.aligned)]]
    table(f"Two passes, {(mask & ~reliable).sum() / mask.sum():.2%} from the second", ["passes", *CHI_TITLES], rows)


def inverted(head: Head, made: dict[str, np.ndarray], result: dict[str, object]) -> np.ndarray:
    """Susceptibility by TV from what background removal gave."""
    arrays = {"magnitude": head.magnitude, "field_error": made["field_error"], **result}
    return apply_step("inversion", "tv", arrays=arrays, context=head.context, parameters={})["chi"]


def remove(head: Head, name: str, parameters: dict, field, mask, error) -> dict[str, object]:
    arrays = {"total_field": field, "mask": mask, "field_error": error}
    return apply_step("background", name, arrays=arrays, context=head.context, parameters=parameters)


def label(name: str, parameters: dict) -> str:
    return f"{name} ({', '.join(f'{key} {value}' for key, value in parameters.items())})" if parameters else name


if __name__ == "__main__":
    main()
