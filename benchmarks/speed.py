"""Speed of every method in Fourier transforms of the padded volume, and its peak memory in volumes.

    python benchmarks/speed.py [DATASET] [--sub 01] [--threads 1] [--repeats 3]

Writes Markdown. Every method runs in a process of its own, on what it gets in the recipe `consensus`: once to compile and warm
up, then ``--repeats`` times, each between two blocks of transforms (`scipy.fft.rfftn`, float32, of the padded volume) with the
same number of threads. A method's cost is the median of its time over that of its neighbouring transforms. With one thread,
processor time counts, which other programs on the machine disturb least; with more, the clock. Memory is the largest resident
size of one more run beyond that before it, without the results (Linux only). Registration is no array method and left out,
and so is the combination of coils, which combined images do not need (see `coils.py`).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import scipy.fft
from heads import Head, apply_step, argument_parser, load, run

from qsmflow import registry
from qsmflow.algorithms import fourier
from qsmflow.config import Recipe
from qsmflow.interfaces.threads import limit_threads, thread_environment

#: What the array work of the recipe from phase to susceptibility may cost, transforms.
_BAR = 1500

#: Transforms in a block.
_BLOCK = 7

#: Steps of the recipe that are no methods of a stage, and how often it takes each.
_HELPERS = (("quality", "map", 1), ("mask", "combine", 2))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of the transforms and of every method")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of every method")
    parser.add_argument("--stage", nargs="+", help="measure the methods of these stages alone")
    parser.add_argument("--one", nargs=3, metavar=("STAGE", "METHOD", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with limit_threads(args.threads):
            print(json.dumps(measure(*args.one, args.threads, args.repeats)))
        return
    head = load(args.dataset, args.sub)
    recipe = Recipe.load("consensus")
    with tempfile.TemporaryDirectory() as folder:
        prepare(head, recipe, Path(folder))
        # Coil combination has uncombined data of its own: benchmarks/coils.py.
        steps = [(row.stage, row.name) for row in registry.ALGORITHMS if row.stage != "coils"]
        steps += [helper[:2] for helper in _HELPERS]
        report(head, recipe, measurements(args, folder, steps), args.threads)


def prepare(head: Head, recipe: Recipe, folder: Path) -> None:
    """Run the recipe and keep in ``folder`` what each stage gets; weighted images are made of its results."""

    def save(stage, arrays):
        (folder / stage).mkdir(parents=True)
        wanted = {key for row in registry.ALGORITHMS if row.stage == stage for key in row.arrays} | {"phase", "magnitude"}
        if stage == "mask":
            wanted |= {"masks"}
        for key in wanted & set(arrays):
            np.save(folder / stage / f"{key}.npy", np.asarray(arrays[key]))

    def keep(stage, name, *, arrays, context, parameters):
        if not (folder / stage).exists():
            save(stage, arrays)
        return apply_step(stage, name, arrays=arrays, context=context, parameters=parameters)

    made = run(recipe, head, keep)
    save("swi", made | {"mask": made["field_mask"]})
    np.save(folder / "reference/region.npy", head.aligned["nuclei"] > 0)
    np.save(folder / "mask/masks.npy", np.stack([made["mask"], head.magnitude[..., 0] > 0]))
    (folder / "context.json").write_text(json.dumps({key: np.asarray(v).tolist() for key, v in head.context.items()}))


def measurements(
    args: argparse.Namespace, folder: str, steps: Iterable[tuple[str, str]]
) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
    """(stage, method) and what was measured, each in a fresh process."""
    for stage, name in steps:
        if args.stage and stage not in args.stage:
            continue
        command = [sys.executable, __file__, "--one", stage, name, folder]
        command += ["--threads", str(args.threads), "--repeats", str(args.repeats)]
        environment = os.environ | thread_environment(args.threads)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        yield (stage, name), json.loads(done.stdout)


def measure(stage: str, name: str, folder: str, threads: int, repeats: int) -> dict[str, float]:
    """Cost in transforms, its spread, seconds and peak memory in volumes of one step."""
    arrays = {path.stem: np.load(path) for path in sorted((Path(folder) / stage).glob("*.npy"))}
    context = json.loads((Path(folder) / "context.json").read_text())
    clock = time.process_time if threads == 1 else time.perf_counter
    shape = fourier.padded_shape(arrays["magnitude"].shape[:3])
    volume = np.random.default_rng(0).standard_normal(shape, np.float32)

    def work():
        return apply_step(stage, name, arrays=arrays, context=context, parameters={})

    def block():
        return [timed(clock, lambda: scipy.fft.rfftn(volume)) for _ in range(_BLOCK)]

    work()  # compiles
    seconds, units = [], []
    before = block()
    for _ in range(repeats):
        seconds.append(timed(clock, work))
        after = block()
        units.append(seconds[-1] / float(np.median(before + after)))
        before = after
    floats = 4 * int(np.prod(arrays["magnitude"].shape[:3]))
    middle = float(np.median(units))
    return {
        "transforms": middle,
        "spread": (max(units) - min(units)) / middle,
        "seconds": float(np.median(seconds)),
        "unit": float(np.median(before)),
        "volumes": peak_memory(work) / floats,
    }


def timed(clock: Callable[[], float], work: Callable[[], object]) -> float:
    start = clock()
    work()
    return clock() - start


def peak_memory(work: Callable[[], dict]) -> int:
    """Bytes that ``work`` holds at its peak beyond what was there before and what it gives."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    result = work()
    given = sum(value.nbytes for value in result.values() if isinstance(value, np.ndarray))
    return max(0, _status("VmHWM") - before - given)


def _status(key: str) -> int:
    """An entry of the process's status, bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def report(head: Head, recipe: Recipe, measured: Iterable[tuple[tuple[str, str], dict[str, float]]], threads: int) -> None:
    """The table of all steps, line by line as they are measured, and the sum of the recipe."""
    shape = fourier.padded_shape(head.grid.shape)
    what = f"volume {'x'.join(map(str, head.grid.shape))} padded to {'x'.join(map(str, shape))}, {threads} thread(s)"
    print(f"# Speed on {head.name}: {what}\n")
    print("| stage | method | transforms | spread | seconds | peak memory, volumes |")
    print("| --- | --- | --- | --- | --- | --- |")
    found = {}
    for (stage, name), values in measured:
        numbers = f"{values['transforms']:.0f} | {values['spread']:.0%} | {values['seconds']:.2f} | {values['volumes']:.1f}"
        print(f"| {stage} | {name} | {numbers} |", flush=True)
        found[stage, name] = values
    print(f"\nOne transform: {1000 * np.median([values['unit'] for values in found.values()]):.1f} ms.")
    if not found.keys() >= {*recipe.methods, *(helper[:2] for helper in _HELPERS)} - {("coils", recipe.coils)}:
        return
    methods = [(stage, name, 1) for stage, name in recipe.methods if stage not in ("coils", "relaxometry")]
    total = sum(times * found[stage, name]["transforms"] for stage, name, times in (*methods, *_HELPERS))
    largest = max(found[stage, name]["volumes"] for stage, name, _ in (*methods, *_HELPERS))
    print(
        f"\nAll array work of `{recipe.name}` from phase to susceptibility: {total:.0f} transforms (at most {_BAR}: "
        f"{'held' if total <= _BAR else 'missed'}), peak {largest:.1f} volumes."
    )


if __name__ == "__main__":
    main()
