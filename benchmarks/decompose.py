"""DECOMPOSE-QSM on voxels of known pools: what noise does to its components, and the time per voxel.

    python benchmarks/decompose.py [--snr 50] [--echoes 5] [--last 0.03] [--b0 3]

Writes Markdown. Echoes are equally spaced from a fifth of the last echo time on; SNR is that of the signal at echo time 0 over
the noise of its real part. Truth is the components' definition, on the phase followed in steps of 5 microseconds. The pools are
plausible mixtures, not measurements. Time is processor time of one thread, once for these voxels and once at three starts.
"""

from __future__ import annotations

import argparse
import time

import numba
import numpy as np
from accuracy import table

from qsmflow.algorithms.separation.decompose import decompose
from qsmflow.algorithms.units import hz_per_ppm

#: chi+ and chi- (ppm), R0 (1/s), and the fractions of the paramagnetic, the diamagnetic and the neutral pool.
_VOXELS = {
    "deep grey matter": (0.15, -0.05, 25.0, (0.30, 0.15, 0.55)),
    "cortex": (0.08, -0.05, 18.0, (0.20, 0.20, 0.60)),
    "white matter": (0.06, -0.08, 18.0, (0.15, 0.40, 0.45)),
    "iron alone": (0.10, 0.0, 20.0, (0.50, 0.0, 0.50)),
    "calcium alone": (0.0, -0.10, 20.0, (0.0, 0.50, 0.50)),
    "neither": (0.0, 0.0, 15.0, (0.0, 0.0, 1.0)),
}
_COUNT = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--snr", type=float, default=50.0)
    parser.add_argument("--echoes", type=int, default=5)
    parser.add_argument("--last", type=float, default=0.03, help="last echo time, s")
    parser.add_argument("--b0", type=float, default=3.0)
    args = parser.parse_args()
    times = np.linspace(args.last / 5, args.last, args.echoes)
    print(f"# DECOMPOSE-QSM at {args.b0:g} T, {args.echoes} echoes to {1000 * args.last:g} ms, SNR {args.snr:g}\n")
    rng = np.random.default_rng(0)
    data, rows = [], []
    for name, pools in _VOXELS.items():
        exact = signal(*pools, times, args.b0)
        noise = rng.normal(size=(2, _COUNT, args.echoes)) / args.snr
        data.append(exact + noise[0] + 1j * noise[1])
        found = separate(data[-1], times, args.b0)
        for part, source, true, values in zip(("PCS", "DCS"), (0, 1), truth(*pools, times, args.b0), found, strict=True):
            amount = 1000 * pools[source] * pools[3][source]
            rows.append([name, part, *ppb(amount, 1000 * true, *(1000 * x for x in statistics(values)))])
    table("Components, ppb", ["voxel", "component", "C chi", "truth", "median", "mean", "sd"], rows)
    numba.set_num_threads(1)
    for starts in (2, 3):
        before = time.process_time()
        separate(np.concatenate(data), times, args.b0, starts=starts)
        spent = (time.process_time() - before) / (len(data) * _COUNT)
        print(f"Time per voxel with {starts} starts of each susceptibility: {1e6 * spent:.0f} microseconds.")


def signal(para: float, dia: float, r0: float, fractions: tuple[float, ...], times: np.ndarray, b0: float) -> np.ndarray:
    """Signal of a voxel at all times."""
    gamma = 2 * np.pi * hz_per_ppm(b0=b0)
    dephasing, turning = 2 * np.pi * gamma / (9 * np.sqrt(3)), 2 / 3 * gamma
    iron = fractions[0] * np.exp((-dephasing + 1j * turning) * para * times)
    myelin = fractions[1] * np.exp((dephasing + 1j * turning) * dia * times)
    return (iron + myelin + fractions[2]) * np.exp(-r0 * times)


def truth(
    para: float, dia: float, r0: float, fractions: tuple[float, ...], times: np.ndarray, b0: float
) -> tuple[float, float]:
    """PCS and DCS by their definition, ppm."""
    fine = np.arange(0, times[-1] + 5e-6, 5e-6)
    turning = 2 / 3 * 2 * np.pi * hz_per_ppm(b0=b0)
    found = []
    for sources in ((para, 0.0), (0.0, dia)):
        phase = np.interp(times, fine, np.unwrap(np.angle(signal(*sources, r0, fractions, fine, b0))))
        found.append(float(phase.sum() / (turning * times.sum())))
    return found[0], found[1]


def separate(data: np.ndarray, times: np.ndarray, b0: float, **parameters: int) -> tuple[np.ndarray, np.ndarray]:
    """PCS and DCS of complex signals (voxels, echoes)."""
    shape = (len(data), 1, 1, len(times))
    chi = np.angle(data) / (2 / 3 * 2 * np.pi * hz_per_ppm(b0=b0) * times)
    arrays = chi.reshape(shape), np.abs(data).reshape(shape), np.ones(shape[:3], bool)
    para, dia = decompose(*arrays, b0=b0, echo_times=times, **parameters)
    return para.ravel(), dia.ravel()


def statistics(values: np.ndarray) -> tuple[float, float, float]:
    return float(np.median(values)), float(values.mean()), float(values.std())


def ppb(*values: float) -> list[str]:
    return [f"{value + 0.0:.1f}" for value in values]


if __name__ == "__main__":
    main()
