"""Train the network of the inversion ``unet`` and write it as an ONNX file.

    pip install '.[train]'
    python training/volumes.py VOLUMES --count 60
    python training/volumes.py VOLUMES --first 1000 --count 67
    python training/train.py VOLUMES qsmflow/data/network/unet.onnx [--steps 8000] [--validation 6] [--threads 2]

Takes the volumes in the order of their names; the first ones are kept to validate on, and tell the error of the network against
that of the map it starts from. The same volumes, steps and number of threads give the same network on the same machine.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

#: Channels of the levels; each level has half the resolution of the one before.
_CHANNELS = (48, 64, 96)

#: What brings linear map, WH-QSM, local field and field error to about 1, and the correction from it, per ppm.
_SCALES, _CORRECTION = (10.0, 10.0, 30.0, 100.0), 0.1

#: Largest step size of the optimiser, and cubes per step.
_RATE, _BATCH = 2e-4, 2

#: Edge of the cubes to train on, and width of their border that does not count, voxels.
_CUBE, _BORDER = 48, 4

#: Errors below this count by their square, larger ones by their size, ppm; weight of the errors of differences.
_SMALL, _DIFFERENCES = 0.02, 0.3


class UNet(nn.Module):
    """A U-Net without biases, on blocks of two voxels an edge: maps, errors and the correction scale together."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scales", torch.tensor(_SCALES).reshape(1, -1, 1, 1, 1))
        steps = list(itertools.pairwise(_CHANNELS))
        self.first = nn.Conv3d(8 * len(_SCALES), _CHANNELS[0], 3, padding=1, bias=False)
        self.before = nn.ModuleList(_Block(fine) for fine, _ in steps)
        self.down = nn.ModuleList(nn.Conv3d(fine, coarse, 2, stride=2, bias=False) for fine, coarse in steps)
        self.middle = nn.Sequential(_Block(_CHANNELS[-1]), _Block(_CHANNELS[-1]))
        self.up = nn.ModuleList(nn.ConvTranspose3d(coarse, fine, 2, stride=2, bias=False) for fine, coarse in steps)
        self.after = nn.ModuleList(_Block(fine) for fine, _ in steps)
        self.last = nn.Conv3d(_CHANNELS[0], 8, 3, padding=1, bias=False)
        with torch.no_grad():
            self.last.weight.mul_(0.1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """The correction of WH-QSM, ppm."""
        x = self.first(_to_blocks(maps * self.scales))
        passed = []
        for block, down in zip(self.before, self.down, strict=True):
            passed.append(block(x))
            x = down(passed[-1])
        x = self.middle(x)
        for up, block in reversed(list(zip(self.up, self.after, strict=True))):
            x = block(up(x) + passed.pop())
        return _from_blocks(self.last(x)) * _CORRECTION


class _Block(nn.Module):
    """Two convolutions and what they add to their input."""

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.outer = nn.Conv3d(width, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.inner.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.outer.weight, nonlinearity="relu")
        with torch.no_grad():
            self.outer.weight.mul_(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(functional.relu(self.inner(x)))


def _to_blocks(x: torch.Tensor) -> torch.Tensor:
    """The eight voxels of each block as channels."""
    n, c, *shape = x.shape
    x = x.reshape(n, c, shape[0] // 2, 2, shape[1] // 2, 2, shape[2] // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, 8 * c, *(s // 2 for s in shape))


def _from_blocks(x: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`_to_blocks`."""
    n, c, *shape = x.shape
    x = x.reshape(n, c // 8, 2, 2, 2, *shape).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(n, c // 8, *(2 * s for s in shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("volumes", type=Path, help="folder that volumes.py wrote")
    parser.add_argument("output", type=Path, help="the ONNX file")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--validation", type=int, default=6, help="volumes to validate on")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    volumes = [_read(path) for path in sorted(args.volumes.glob("*.npz"))]
    network = UNet()
    train(network, volumes[args.validation :], args.steps)
    for number, volume in enumerate(volumes[: args.validation]):
        print(f"validation {number}: error {errors(network, volume)[0]:.3f}, started from {errors(network, volume)[1]:.3f}")
    export(network, args.output)


def _read(path: Path) -> np.ndarray:
    """Maps and truth of a volume, stacked; float16 to hold them all."""
    with np.load(path) as volume:
        return np.concatenate([volume["maps"], volume["truth"][None]]).astype(np.float16)


def train(network: UNet, volumes: list[np.ndarray], steps: int) -> None:
    """Minimise the error in random cubes, at random signs and in random mirror images."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    history: list[tuple[float, float]] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * _RATE + _RATE * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        cubes = torch.from_numpy(np.stack([_cube(volumes, rng) for _ in range(_BATCH)]))
        corrections = network(cubes[:, :-1])[:, 0]
        loss = sum(_loss(cube, correction) for cube, correction in zip(cubes, corrections, strict=True)) / _BATCH
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append((loss.item(), float(sum(_loss(cube, torch.zeros_like(cube[0])) for cube in cubes)) / _BATCH))
        if (step + 1) % 250 == 0:
            after, before = np.mean(history, axis=0)
            print(f"step {step + 1}: error {after / before:.3f} of that at the start", flush=True)
            history.clear()


def _cube(volumes: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A cube with enough brain in it; all but the field error may change sign."""
    while True:
        volume = volumes[rng.integers(len(volumes))]
        corner = [rng.integers(0, n - _CUBE + 1) for n in volume.shape[1:]]
        cube = volume[(slice(None), *(slice(c, c + _CUBE) for c in corner))]
        if (cube[3] > 0).mean() > 0.35:
            break
    cube = cube.astype(np.float32)
    for axis in (1, 2, 3):
        if rng.random() < 0.5:
            cube = np.flip(cube, axis)
    if rng.random() < 0.5:
        cube = cube.transpose(0, 2, 1, 3)
    sign = np.array([1, 1, 1, 0, 1]) * rng.choice([-1, 1]) + [0, 0, 0, 1, 0]
    return np.ascontiguousarray(cube * sign.reshape(-1, 1, 1, 1).astype(np.float32))


def _loss(cube: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """Size of the error, by that of the truth and of the error at the start: neither easy nor hard cubes count for all."""
    start, truth, mask = cube[1], cube[-1], (cube[3] > 0).float()
    counted = functional.pad(torch.ones([_CUBE - 2 * _BORDER] * 3), [_BORDER] * 6) * mask
    before = (start - truth) * mask
    return _size(before + correction * mask, counted) / (_size(before, counted) + _size(truth * mask, counted))


def _size(error: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Sum over the voxels that count of errors and of differences between the errors of neighbours."""
    penalty = lambda x: torch.sqrt(x.square() + _SMALL**2) - _SMALL  # noqa: E731
    result = (penalty(error) * counted).sum()
    for axis in range(3):
        differences = penalty(error.diff(dim=axis)) * counted.narrow(axis, 0, _CUBE - 1)
        result = result + _DIFFERENCES * differences.sum()
    return result


def errors(network: UNet, volume: np.ndarray) -> tuple[float, float]:
    """Relative error in the mask of the network's map, and of the one it starts from."""
    maps, truth = torch.from_numpy(volume[None, :-1].astype(np.float32)), torch.from_numpy(volume[-1].astype(np.float32))
    mask = maps[0, 3] > 0
    with torch.no_grad():
        chi = maps[0, 1] + network(maps)[0, 0]
    chi, start, truth = (a[mask] - a[mask].mean() for a in (chi, maps[0, 1], truth))
    return float((chi - truth).norm() / truth.norm()), float((start - truth).norm() / truth.norm())


def export(network: UNet, path: Path) -> None:
    """Write the network for volumes whose edges are multiples of eight, its weights in half precision."""
    axes = {2: "x", 3: "y", 4: "z"}
    example = torch.zeros(1, len(_SCALES), 16, 16, 16)
    options = {"input_names": ["maps"], "output_names": ["correction"], "dynamic_axes": {"maps": axes, "correction": axes}}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter that follows this one needs a package more
        torch.onnx.export(network.eval(), (example,), buffer, dynamo=False, opset_version=17, **options)
    model = onnx.load_from_string(buffer.getvalue())
    graph, casts = model.graph, []
    for weight in [w for w in graph.initializer if len(w.dims) == 5 and w.name != "scales"]:
        half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), f"{weight.name}.half")
        casts.append(onnx.helper.make_node("Cast", [half.name], [weight.name], to=onnx.TensorProto.FLOAT))
        graph.initializer.remove(weight)
        graph.initializer.append(half)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
