"""Coil combination: its memory at full size, and how well coils match on a head with known truth; and the bipolar readout.

    python benchmarks/coils.py memory [--coils 4 8 32] [--echoes 5] [--first 4] [--shape 192 224 160] [--methods NAME ...]
        [--folder PATH]
    python benchmarks/coils.py head [DATASET] [--coils 16] [--variation 2 6] [--snr 100 15]
    python benchmarks/coils.py readout [DATASET]

``memory`` writes uncombined coils (a file per echo and part, 16 bit, uncompressed; ``4 * voxels * echoes * coils`` bytes,
deleted at the end) and reference scans of half the resolution, and combines them in a process of its own, whose largest
resident size it tells. ``aspire`` needs a first echo time (ms) of 5. ``head`` gives the images of the head smooth
sensitivities whose phases vary by so many radians, and noise; it tells the matching quality, the phase residues of the first
echo in the brain, and how far the total field is from that of the head's own images (half the range of the middle 68 %; noise
counts, so the best possible combination is told too). ``readout`` tells what is found in the head's echoes as they are, and
after a linear phase was added to the even ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nb
import numpy as np
from heads import Head, default_dataset, load

from qsmflow import registry
from qsmflow.algorithms import simulation
from qsmflow.algorithms.unwrap.romeo import residues
from qsmflow.algorithms.unwrap.wrapping import wrap

#: Field strength (T), echo spacing and echo time of the reference scans (s) of the files that are written.
B0, SPACING, SHORT = 3.0, 0.005, 0.0008

#: One combination in a process of its own; it tells its peak memory, its processor time and the matching in the object.
_CHILD = """
import json, os, resource, sys, time
import nibabel as nb, numpy as np
from qsmflow.interfaces.combination import CombineCoils
inputs = json.load(open(sys.argv[1]))
parts = [name for name in inputs if name.endswith(("magnitude", "phase"))]
volumes = {part: [tuple(volume) for volume in inputs.pop(part)] for part in parts}
os.chdir(sys.argv[2])
start = time.process_time()
outputs = CombineCoils(**volumes, **inputs).run().outputs
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
matching, magnitude = (np.asarray(nb.load(getattr(outputs, name)).dataobj) for name in ("matching", "magnitude"))
inside = magnitude[..., 0] > 0.5 * np.percentile(magnitude[..., 0], 99)
print(json.dumps({"peak": peak, "seconds": seconds, "matching": float(matching[inside].mean())}))
"""


def write(folder: Path, shape: tuple[int, ...], coils: int, times: list[float], *, step: float, uniform: bool = False) -> dict:
    """Write the files of a scan, one coil at a time; its volumes as :class:`qsmflow.interfaces.combination.CombineCoils` takes
    them.

    ``step`` is the voxel size (mm); a ``uniform`` scan has one coil that sees everything alike.
    """
    axes = np.ix_(*(np.linspace(-1, 1, n) for n in shape))
    inside = sum(axis**2 for axis in axes) < 0.8
    field = 0.5 * simulation.smooth_variation(shape, seed=1)
    image = simulation.signal(field, 25.0 * inside, 1500.0 * inside, echo_times=times, b0=B0)
    files = {}
    for part in ("magnitude", "phase"):
        for echo in range(len(times)):
            header = nb.Nifti1Header()
            header.set_data_dtype(np.int16)
            header.set_data_shape((*shape, coils))
            header.set_sform(np.diag([step, step, step, 1]), code=1)
            header.set_data_offset(352)
            header["magic"] = b"n+1"
            path = folder / f"{part}{echo}_{times[0]}_{coils}.nii"
            path.write_bytes(header.binaryblock + bytes(4))
            files[part, echo] = path
    rng = np.random.default_rng(2)
    for coil in range(coils):
        angle = 2 * np.pi * coil / coils
        square = (axes[0] - 1.2 * np.cos(angle)) ** 2 + (axes[1] - 1.2 * np.sin(angle)) ** 2 + axes[2] ** 2
        turn = np.exp(1j * (coil + 3 * simulation.smooth_variation(shape, seed=coil + 5)), dtype=np.complex64)
        received = 1 if uniform else turn / (1 + square).astype(np.float32)
        for echo in range(len(times)):
            noisy = image[..., echo] * received
            noisy += 5 * rng.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
            for part, values in (("magnitude", np.abs(noisy)), ("phase", np.angle(noisy) * (4095 / np.pi))):
                with files[part, echo].open("ab") as file:
                    file.write(np.rint(values).astype(np.int16).tobytes(order="F"))
    return {
        part: [(str(files[part, echo]), coil) for echo in range(len(times)) for coil in range(coils)]
        for part in ("magnitude", "phase")
    }


def memory(options: argparse.Namespace) -> None:
    """Print a line per number of coils and method."""
    times = [options.first / 1000 + SPACING * echo for echo in range(options.echoes)]
    half = tuple(n // 2 for n in options.shape)
    print("coils  echoes  method          peak GB  CPU s  matching %")
    for coils in options.coils:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            folder = Path(place)
            volumes = write(folder, tuple(options.shape), coils, times, step=1.0)
            scans = {
                "roemer": write(folder, half, 1, [SHORT], step=2.0, uniform=True),
                "composer": write(folder, half, coils, [SHORT], step=2.0),
            }
            for method in options.methods:
                parameters = registry.find("coils", method).merged()
                inputs = {"algorithm": method, "parameters": parameters, "version": 1, "coils": coils, "echo_times": times}
                told = folder / "inputs.json"
                reference = {f"reference_{part}": value for part, value in scans.get(method, {}).items()}
                told.write_text(json.dumps({**inputs, **volumes, **reference}))
                command = [sys.executable, "-c", _CHILD, str(told), place]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                result = json.loads(done.stdout.splitlines()[-1])
                numbers = f"{result['peak']:7.2f}  {result['seconds']:5.0f}  {result['matching']:10.2f}"
                print(f"{coils:5d}  {options.echoes:6d}  {method:14s}  {numbers}", flush=True)


def total_field(head: Head, phase: np.ndarray, magnitude: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Total field after offset removal and ROMEO, ppm."""
    arrays = {"phase": phase, "magnitude": magnitude, "mask": brain}
    for stage, name in (("offset", "mcpc3ds"), ("unwrap", "romeo"), ("field", "wls")):
        arrays |= registry.apply(stage, name, arrays=arrays, context=head.context, parameters={})
    return arrays["total_field"][brain]


def on_head(options: argparse.Namespace) -> None:
    """Print a line per variation, noise and method."""
    head, rng = load(options.dataset), np.random.default_rng(0)
    brain, image = head.stored["brain"] > 0, head.magnitude * np.exp(1j * head.phase)
    wanted, level = total_field(head, head.phase, head.magnitude, brain), float(np.median(head.magnitude[..., 0][brain]))
    print("variation  SNR  method          matching %  lowest 0.1 %  residues  field, ppb")
    for variation in options.variation:
        size = {"voxel_size": head.grid.voxel_size}
        array = simulation.coil_sensitivities(brain.shape, coils=options.coils, seed=11, variation=variation, **size)
        for snr in options.snr:
            signal = (image[..., None] * array[..., None, :]).astype(np.complex64)
            signal += level / snr * rng.standard_normal((*signal.shape, 2), np.float32).view(np.complex64)[..., 0]
            ideal = signal * array.conj()[..., None, :]
            matching = 100 * np.abs((ideal[..., 0, :] / np.abs(array)).sum(-1)) / np.abs(signal[..., 0, :]).sum(-1)
            results = {"(truth)": (np.angle(ideal.sum(-1)), np.abs(ideal.sum(-1)), matching)}
            for method in ("mcpc3ds-coils", "mcpc3d", "vrc", "mcpcc"):
                found = registry.apply("coils", method, arrays={"signal": signal}, context=head.context, parameters={})
                results[method] = tuple(found.values())
            for method, (phase, magnitude, matching) in results.items():
                low, high = np.percentile(total_field(head, phase.astype(np.float32), magnitude, brain) - wanted, (16, 84))
                count = int(residues(phase[..., 0], brain).sum())
                quality = f"{matching[brain].mean():10.2f}  {np.percentile(matching[brain], 0.1):12.1f}"
                print(f"{variation:9g}  {snr:3g}  {method:14s}  {quality}  {count:8d}  {500 * (high - low):13.2f}", flush=True)


def readout(options: argparse.Namespace) -> None:
    """Print a line per slope of the phase in even echoes."""
    head = load(options.dataset)
    brain = head.stored["brain"] > 0
    x = (np.arange(brain.shape[0], dtype=np.float32) - brain.shape[0] / 2)[:, None, None, None]
    print("rad per voxel  found, rad  corrected  left, rad (rms)")
    for slope in (0.0, 0.005, 0.01, 0.02, 0.06):
        phase = head.phase.copy()
        phase[..., 1::2] = wrap(phase[..., 1::2] + np.float32(slope) * x)
        arrays = {"phase": phase, "magnitude": head.magnitude, "mask": brain}
        found = registry.apply("readout", "bipolar", arrays=arrays, context=head.context, parameters={})
        left = float(np.sqrt(np.mean(wrap(found["phase"] - head.phase)[brain] ** 2)))
        done = "yes" if found["asymmetry"].any() else "no"
        print(f"{slope:13g}  {found['asymmetry_size']:10.4f}  {done:9s}  {left:.4f}", flush=True)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("memory")
    command.set_defaults(run=memory)
    command.add_argument("--coils", type=int, nargs="+", default=[4, 8])
    command.add_argument("--echoes", type=int, default=5)
    command.add_argument("--first", type=float, default=4.0, help="first echo time, ms; the others follow every 5 ms")
    command.add_argument("--shape", type=int, nargs=3, default=[192, 224, 160])
    command.add_argument("--methods", nargs="+", default=["mcpc3ds-coils"])
    command.add_argument("--folder", type=Path, help="where the files go (default: the system's temporary folder)")
    for name, run in (("head", on_head), ("readout", readout)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("dataset", type=Path, nargs="?", default=default_dataset())
        if name == "head":
            command.add_argument("--coils", type=int, default=16)
            command.add_argument("--variation", type=float, nargs="+", default=[2.0, 6.0])
            command.add_argument("--snr", type=float, nargs="+", default=[100.0, 15.0])
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
