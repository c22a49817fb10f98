"""Volumes to train the network of ``unet`` on: simulated susceptibility, and what the chain makes of its field.

    python training/volumes.py FOLDER [--first 0] [--count 60]

One file per seed, the same for the same seed. Half of the volumes are brains of random size, shape, pose and contrast (the
packaged template, deformed, its tissues filled with random susceptibility), a fifth the same anatomy with a contrast that no
tissue has, the rest nothing but ellipsoids and cuboids of all sizes. All have veins, texture, now and then strong sources, and
air and bone around them. Field error, main field direction, voxel shape and the removal of the background are random too.
"""

from __future__ import annotations

import argparse
import math
from importlib import resources
from pathlib import Path

import nibabel as nb
import numpy as np
from scipy import ndimage

from qsmflow.algorithms import morphology, phantom, simulation
from qsmflow.algorithms.background.pdf import pdf
from qsmflow.algorithms.background.vsharp import vsharp
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.inversion import unet

SHAPE = (112, 128, 112)

#: Where the brain's extent in the template is, mm.
_CENTRE, _EXTENT = (0, -18, 0), (150, 185, 150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=60, help="number of seeds")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    atlas = template()
    for seed in range(args.first, args.first + args.count):
        volume = make(seed, atlas)
        if volume is not None:
            np.savez(args.folder / f"{seed:04d}.npz", **volume)
            print(seed, flush=True)


def template() -> dict[str, np.ndarray]:
    """The packaged template, its brain mask and nuclei."""
    folder = resources.files("qsmflow.data") / "atlas"

    def load(name: str) -> nb.Nifti1Image:
        with resources.as_file(folder / f"tpl-MNI152NLin2009cAsym_res-01_{name}.nii.gz") as path:
            image = nb.load(path)
            return nb.Nifti1Image(np.asarray(image.dataobj), image.affine)

    brain = load("desc-brain_T1w")
    mask, labels = (np.asarray(load(name).dataobj) for name in ("desc-brain_mask", "atlas-CIT168_dseg"))
    t1w = np.asarray(brain.dataobj, np.float32)
    return {"t1w": t1w, "mask": (mask > 0).astype(np.float32), "labels": labels.astype(np.int16), "affine": brain.affine}


def make(seed: int, atlas: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """What the network sees of one volume (``maps``, ppm), and the truth (ppm); nothing where too little brain is in view."""
    rng = np.random.default_rng(seed)
    t1w, mask, index, size = place(rng, atlas)
    mask = morphology.largest(ndimage.binary_fill_holes(mask))
    if mask.sum() < 1e5:
        return None
    for axis in range(3):
        np.moveaxis(mask, axis, 0)[[0, 1, -2, -1]] = False
    b0_dir = rotation(rng, abs(rng.normal(0, 18))) @ np.array([0, 0, 1.0])
    context = {"voxel_size": tuple(size / size[0] * 1.5), "b0_dir": tuple(b0_dir / np.linalg.norm(b0_dir))}
    kind, chi = susceptibility(rng, t1w, mask, index, atlas)
    chi[~mask] = 0
    inside = np.where(mask, chi - chi[mask].mean(), 0).astype(np.float32)
    local = forward_field(inside, **context, space=str(rng.choice(["kspace", "image"])))
    around = surroundings(rng, mask)
    outer = forward_field(around, **context, space="image", background=float(around[0, 0, 0]))
    total = local + simulation.shim(outer, mask, voxel_size=context["voxel_size"])
    noise, error, field_mask = uncertainty(rng, kind, t1w, chi, total, mask)
    removal = rng.choice(["pdf", "vsharp", "true"], p=[0.6, 0.15, 0.25])
    if removal == "pdf":
        field, known = pdf(((total + noise) * field_mask).astype(np.float32), field_mask, error, **context)
    elif removal == "vsharp":
        measured = ((total + noise) * field_mask).astype(np.float32)
        field, known = vsharp(measured, field_mask, voxel_size=context["voxel_size"])
    else:
        field, known = ((local + noise) * field_mask).astype(np.float32), field_mask
    context |= {"b0": 3.0, "echo_times": (0.005, 0.0115, 0.018, 0.0245)}
    maps = unet.prepare_maps(field * known, known, error * known, **context)
    return {"maps": maps, "truth": np.where(known, chi - chi[known].mean(), 0).astype(np.float32)}


def place(rng: np.random.Generator, atlas: dict[str, np.ndarray]):
    """Template and mask on the grid, in a random pose, with the template's indices there and the voxel size, mm."""
    edge = rng.uniform(1.15, 2.2)
    size = np.array([edge, edge, edge * (rng.uniform(1.2, 2) if rng.random() < 0.25 else 1)])
    turn = rotation(rng, rng.uniform(0, 25)) @ np.diag(rng.choice([-1, 1], 3) * rng.normal(1, 0.06, 3))
    person = phantom.anatomy(int(rng.integers(1 << 30)), warp=rng.uniform(0, 4))
    room = np.maximum(10, 0.35 * (np.array(_EXTENT) - np.array(SHAPE) * size))
    affine = np.eye(4)
    affine[:3, :3] = turn * size
    affine[:3, 3] = np.array(_CENTRE) + rng.uniform(-1, 1, 3) * room - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    points = person.to_template(phantom.world(SHAPE, affine))
    inverse = np.linalg.inv(atlas["affine"])
    index = (np.tensordot(inverse[:3, :3], points, 1) + inverse[:3, 3].reshape(3, 1, 1, 1)).astype(np.float32)
    t1w, mask = (ndimage.map_coordinates(atlas[name], index, order=1, mode="constant") for name in ("t1w", "mask"))
    return t1w, mask > 0.5, index, size


def rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Rotation about a random axis."""
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    angle = math.radians(degrees)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def susceptibility(rng: np.random.Generator, t1w: np.ndarray, mask: np.ndarray, index: np.ndarray, atlas: dict):
    """Kind of the volume and its susceptibility, ppm."""
    kind = str(rng.choice(["brain", "contrast", "shapes"], p=[0.5, 0.2, 0.3]))
    if kind == "shapes":
        chi = np.zeros(mask.shape)
    elif kind == "brain":
        middle, spread = np.array([0, 0.02, 0.02, -0.03, -0.035]), np.array([0.01, 0.02, 0.02, 0.02, 0.025])
        chi = np.interp(t1w, (75, 140, 165, 207, 245), rng.normal(middle, spread))
    else:
        knots = np.sort(rng.uniform(50, 250, 6))
        chi = np.interp(t1w, knots, rng.normal(0, 0.05, 6))
    if kind != "shapes":
        for label in np.unique(atlas["labels"])[1:]:
            share = ndimage.map_coordinates((atlas["labels"] == label).astype(np.float32), index, order=1)
            chi += share * (rng.normal(0.07, 0.06) - chi)
    places = np.argwhere(mask)
    somewhere = lambda: places[rng.integers(len(places))] + rng.uniform(-0.5, 0.5, 3)  # noqa: E731
    counts = {"brain": rng.integers(5, 60), "contrast": rng.integers(5, 60), "shapes": rng.integers(250, 700)}
    count, largest = counts[kind], 22 if kind == "shapes" else 8
    for radius in sorted((np.exp(rng.uniform(math.log(1.2), math.log(largest))) for _ in range(count)), reverse=True):
        centre, axes = somewhere(), radius * np.exp(rng.normal(0, 0.35, 3))
        value = 0.04 * rng.standard_t(3)
        draw(chi, rng, centre, axes, value, share=rng.uniform(0.4, 1), cuboid=rng.random() < 0.2)
    veins = np.zeros(mask.shape, np.float32)
    for _ in range(rng.integers(10, 120)):
        start = places[rng.integers(len(places))]
        steps = rng.normal(size=3) + np.cumsum(rng.normal(0, 0.12, (int(rng.integers(15, 80)), 3)), axis=0)
        path = start + np.cumsum(0.6 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
        phantom.draw_tube(veins, path, rng.uniform(0.25, 1.1))
    chi += veins * (rng.uniform(0.1, 0.4) - chi)
    chi *= 1 + texture(rng, 0.6, 3) * rng.uniform(0, 0.25)
    chi += texture(rng, 0.6, 4) * rng.uniform(0, 0.008)
    if rng.random() < 0.35:
        for _ in range(rng.integers(1, 6)):
            centre, radius = somewhere(), np.exp(rng.uniform(0, math.log(6)))
            axes = radius * np.exp(rng.normal(0, 0.25, 3))
            draw(chi, rng, centre, axes, rng.choice([-1, 1]) * np.exp(rng.uniform(math.log(0.15), math.log(1.5))))
    return kind, chi.astype(np.float32)


def texture(rng: np.random.Generator, finest: float, coarsest: float) -> np.ndarray:
    """Noise of unit standard deviation, smooth over a random number of voxels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE, dtype=np.float32), rng.uniform(finest, coarsest))
    return noise / noise.std()


def draw(
    volume: np.ndarray,
    rng: np.random.Generator,
    centre: np.ndarray,
    axes: np.ndarray,
    value: float,
    share: float = 1.0,
    cuboid: bool = False,
) -> None:
    """Blend an ellipsoid or cuboid of any direction into a volume; its surface is soft over a voxel."""
    turn = rotation(rng, rng.uniform(0, 180))
    reach = math.ceil(max(axes) * (math.sqrt(3) if cuboid else 1) + 1.5)
    low = np.maximum(np.floor(centre).astype(int) - reach, 0)
    high = np.minimum(np.ceil(centre).astype(int) + reach + 1, volume.shape)
    if (low >= high).any():
        return
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    points = np.stack(np.meshgrid(*(np.arange(a, b) - c for a, b, c in zip(low, high, centre, strict=True)), indexing="ij"))
    turned = np.tensordot(turn, points, 1)
    if cuboid:
        depth = np.min([a - np.abs(p) for p, a in zip(turned, axes, strict=True)], axis=0)
    else:
        depth = (1 - np.sqrt(sum((p / a) ** 2 for p, a in zip(turned, axes, strict=True)))) * min(axes)
    volume[box] += share * np.clip(depth + 0.5, 0, 1) * (value - volume[box])


def surroundings(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Susceptibility of bone and air around a brain, ppm."""
    distance = ndimage.distance_transform_edt(~mask)
    result = np.zeros(mask.shape, np.float32)
    gap, thickness = rng.uniform(1, 3.5), rng.uniform(2, 5)
    result[(distance > gap + 1) & (distance < gap + 1 + thickness)] = rng.uniform(-2.2, -0.5)
    result[distance > gap + 1 + thickness + rng.uniform(2, 6)] = rng.uniform(5, 9.4) if rng.random() < 0.8 else 0
    places = np.argwhere((distance > gap) & (distance < 12))
    for _ in range(rng.integers(2, 10)):
        centre = places[rng.integers(len(places))]
        draw(result, rng, centre, rng.uniform(2, 10, 3), 9.4 * rng.uniform(0.3, 1))
    result[distance <= gap] = 0
    return result


def uncertainty(
    rng: np.random.Generator, kind: str, t1w: np.ndarray, chi: np.ndarray, total: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise of the field, the field-error map that goes with it (ppm), and the mask of usable phase."""
    level = np.exp(rng.uniform(math.log(4e-4), math.log(5e-3)))
    signal = 1 + 0.4 * simulation.smooth_variation(SHAPE, seed=int(rng.integers(1 << 30)))
    if kind != "shapes":
        signal *= np.interp(t1w, (60, 150, 245), rng.uniform(0.7, 1.3, 3))
    signal *= np.exp(-rng.uniform(1, 6) * np.abs(chi))
    steepness = np.sqrt(sum(np.gradient(total, axis=axis) ** 2 for axis in range(3)))
    signal *= np.exp(-((steepness / rng.uniform(0.08, 0.4)) ** 2))
    grain = ndimage.gaussian_filter(rng.standard_normal(SHAPE, dtype=np.float32), 1.5)
    signal *= np.exp(0.1 * grain / grain.std())
    deviation = level / np.maximum(signal, 0.02)
    noise = deviation * rng.standard_normal(SHAPE)
    wild = (signal < 0.15) & (rng.random(SHAPE) < 0.3)  # a turn too many, or nearly
    noise[wild] += rng.normal(0, 0.1, wild.sum())
    error = deviation * np.exp(rng.uniform(0.05, 0.3) * rng.standard_normal(SHAPE))
    error[wild] *= rng.uniform(1, 5)
    known = mask.copy()
    if rng.random() < 0.7:
        bad = ndimage.uniform_filter((signal < rng.uniform(0.05, 0.2)).astype(np.float32), 3) > 0.4
        known = morphology.largest(ndimage.binary_opening(known & ~bad))
    return noise, error.astype(np.float32), known


if __name__ == "__main__":
    main()
