"""Source separation by R2* on a head whose sources of both signs are known (`decompose.py` has the method of the echoes).

    python benchmarks/separation.py [DATASET] [--sub 01]

Writes Markdown. The susceptibility of a simulated head is taken for the sum of paramagnetic and diamagnetic sources that partly
cancel: to either sign, a smoothly varying 0 to 0.03 ppm are added in all tissue. Field and R2* are made from them by the model
of each method, with noise, and R2 of 12 1/s is measured, or not.
"""

from __future__ import annotations

import numpy as np
from heads import Head, apply_step, argument_parser, load
from scipy import ndimage as ndi

from qsmflow import registry
from qsmflow.algorithms.dipole import forward_field

#: Largest amount of both signs that cancels (ppm), its smoothness (mm), R2 (1/s), noise of the field (ppm) and of R2* (1/s).
HIDDEN, SMOOTH, R2, FIELD_NOISE, RATE_NOISE = 0.03, 8.0, 12.0, 1.5e-3, 1.0


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    head = load(args.dataset, args.sub)
    sources = hidden_sources(head)
    print("| method | R2 | paramagnetic NRMSE % | slope | diamagnetic NRMSE % | slope | R2 taken off, 1/s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in (name for name in registry.names("separation") if "r2star" in registry.find("separation", name).arrays):
        for measured in (True, False):
            cells, rate = scores(head, name, sources, measured)
            print(f"| {name} | {'measured' if measured else 'one value'} | {cells} | {rate:.1f} |", flush=True)


def hidden_sources(head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Strengths of both signs, ppm, that add up to the susceptibility of the head."""
    chi, brain = head.stored["chi"], head.stored["brain"]
    noise = np.random.default_rng(0).standard_normal(brain.shape)
    smooth = ndi.gaussian_filter(noise, [SMOOTH / h for h in head.grid.voxel_size])
    rank = (smooth - smooth[brain].min()) / np.ptp(smooth[brain])
    hidden = HIDDEN * rank * brain
    return np.maximum(chi, 0) * brain + hidden, np.maximum(-chi, 0) * brain + hidden


def scores(head: Head, name: str, sources: tuple[np.ndarray, np.ndarray], measured: bool) -> tuple[str, float]:
    """Errors and slopes of both maps, and the R2 that was taken off."""
    para, dia = sources
    brain, chi = head.stored["brain"], (para - dia).astype(np.float32)
    values = registry.find("separation", name).merged()
    rates = [values.get(key, values.get("relaxivity", 0.0)) * head.b0 for key in ("relaxivity_para", "relaxivity_dia")]
    rng = np.random.default_rng(1)
    field = forward_field(chi, voxel_size=head.grid.voxel_size, b0_dir=head.grid.b0_dir)
    field += FIELD_NOISE * rng.standard_normal(chi.shape, np.float32)
    r2star = R2 + rates[0] * para + rates[1] * dia + RATE_NOISE * rng.standard_normal(chi.shape)
    arrays = {
        "chi": chi,
        "local_field": field * brain,
        "mask": brain,
        "field_error": np.full(chi.shape, FIELD_NOISE, np.float32),
        "r2star": (r2star * brain).astype(np.float32),
        "r2": np.full(chi.shape, R2 * measured, np.float32),
    }
    made = apply_step("separation", name, arrays=arrays, context=head.context, parameters={})
    cells = []
    for found, true in ((made["chi_para"], para), (-made["chi_dia"], dia)):
        error = 100 * np.linalg.norm((found - true)[brain]) / np.linalg.norm(true[brain])
        cells.append(f"{error:.1f} | {np.polyfit(true[brain], found[brain], 1)[0]:.2f}")
    return " | ".join(cells), made["rate"]


if __name__ == "__main__":
    main()
