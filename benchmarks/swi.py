"""Susceptibility-weighted images of a simulated head: how dark veins are, and what else is darkened.

    python benchmarks/swi.py [DATASET] [--sub 01]

Writes Markdown. Every method runs at its defaults on what the recipe `consensus` gives it, and the magnitude of the same echo
stands beside them. Contrast is 1 - (mean in veins) / (mean around them), contrast to noise that difference over the standard
deviation around them, in the brain without its outer three voxels.
"""

from __future__ import annotations

import numpy as np
from accuracy import STRONG, VEIN, core, table
from heads import apply_step, argument_parser, load, run
from scipy import ndimage as ndi

from qsmflow import registry
from qsmflow.config import Recipe

#: Options that are scored beside the defaults.
_OPTIONS = [
    ("swi", {"filter": "gaussian"}),
    ("swi", {"filter": "vsharp"}),
    ("swi", {"shape": "triangular"}),
    ("swi", {"shape": "sigmoid"}),
]


def main() -> None:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    head = load(args.dataset, args.sub)
    made = run(Recipe.load("consensus"), head)
    inside = core(head.aligned) & made["mask"]
    veins = inside & (head.aligned["tissue"] == VEIN)
    strong = np.isin(head.aligned["tissue"], STRONG)
    around = inside & ndi.binary_dilation(veins, iterations=3) & ~ndi.binary_dilation(strong)
    far = inside & ~ndi.binary_dilation(strong, iterations=4)
    echo = int(np.argmin(np.abs(np.array(head.echo_times) - 0.06 / head.b0)))  # as the methods choose it
    images = {f"magnitude of echo {echo + 1}": (head.magnitude[..., echo], np.ones(head.grid.shape, np.float32))}
    for name, parameters in [(name, {}) for name in registry.names("swi")] + _OPTIONS:
        found = apply_step("swi", name, arrays=made, context=head.context, parameters=parameters)
        images[" ".join([name, *map(str, parameters.values())])] = found["swi"], found["phase_mask"]
    rows = [[name, *darkness(image, veins, around), float(weight[far].mean())] for name, (image, weight) in images.items()]
    print(f"# Susceptibility-weighted images of {head.name}, sub-{args.sub}\n")
    table("Veins", ["image", "contrast", "contrast to noise", "mean weight far from veins"], rows)


def darkness(image: np.ndarray, veins: np.ndarray, around: np.ndarray) -> tuple[float, float]:
    """Contrast of veins, and contrast to noise."""
    difference = image[around].mean() - image[veins].mean()
    return float(difference / image[around].mean()), float(difference / image[around].std())


if __name__ == "__main__":
    main()
