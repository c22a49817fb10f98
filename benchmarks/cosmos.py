"""Several orientations of a simulated head against every inversion that has one of them.

    python benchmarks/cosmos.py [DATASET] [--sub 01] [--methods tkd tv ...] [--coarser 1]
        [--background resharp]

Writes Markdown. The true susceptibility of the brain makes the field of each orientation; noise is that of a linear fit over
the dataset's echoes whose first one has a mean signal-to-noise ratio of 100. In the last two tables air and bone around the
brain add to the fields, which are shimmed to second order and go through background removal. Scores are the norm of the error
over that of the truth, both without their means, in the brain and 3 voxels within it. The last table has what the subject's
page tells of the quality of the map, for fields that are more and more in error.
"""

from __future__ import annotations

import copy
import math

import numpy as np
from accuracy import table
from heads import Head, argument_parser, load
from scipy import ndimage as ndi

from qsmflow import registry
from qsmflow.algorithms import metrics, simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.multiorientation import conditioning, cosmos, unexplained
from qsmflow.algorithms.units import hz_per_ppm

#: Nod and tilt of the orientations, degrees.
_POSITIONS = ((0, 0), (25, 0), (0, 25), (0, -25))

_SNR = 100

#: Labels of air and bone in the tissue map, and their susceptibility, ppm.
_AROUND = {14: 9.4, 13: -2.1}


def main() -> None:
    parser = argument_parser(__doc__)
    local = [name for name in registry.names("inversion") if not registry.find("inversion", name).from_total_field]
    parser.add_argument("--methods", nargs="+", default=local, choices=local, help="inversions of one orientation")
    parser.add_argument("--coarser", type=int, default=1, metavar="N", help="average N x N x N voxels first")
    parser.add_argument("--background", default="resharp", choices=registry.names("background"))
    args = parser.parse_args()
    head = load(args.dataset, args.sub)
    scene = Scene(head, args.coarser)
    print(f"# Four orientations of {head.name}, sub-{args.sub}\n")
    found = conditioning(scene.directions)
    turned = conditioning([scene.directions[0]] * 4)  # about the main field, which does not move in the head
    rows = [[what, c.minimum, c.condition, str(c.poor)] for what, c in (("as below", found), ("turned about it", turned))]
    table("Positions of the head in the main field", ["positions", "smallest kernel", "condition number", "poor"], rows)
    even = np.ones_like(scene.error)
    scene.compare("True local fields without noise", scene.clean, args.methods, field_error=even)
    scene.compare(f"True local fields at SNR {_SNR}", scene.noisy(), args.methods)
    scene.compare(
        f"Total fields at SNR {_SNR}, background removed by `{args.background}`", scene.removed(args.background), args.methods
    )
    scene.trust(args.background)


class Scene:
    """A head in four positions, on its own grid: the main field turns."""

    def __init__(self, head: Head, coarser: int):
        tissue, brain = head.stored["tissue"], head.stored["brain"]
        crop = tuple(slice(n // coarser * coarser) for n in brain.shape)

        def mean(volume: np.ndarray) -> np.ndarray:
            return simulation.block_mean(volume[crop].astype(np.float32), factor=(coarser,) * 3)

        self.head, self.mask = head, mean(brain) > 0.5
        self.chi = mean(head.stored["chi"] * brain) * self.mask
        outside = np.select([(tissue == label) & ~brain for label in _AROUND], list(_AROUND.values()), 0)
        self.outside = np.where(self.mask, 0, mean(outside)).astype(np.float32)
        self.magnitude = np.stack([mean(echo) for echo in np.moveaxis(head.magnitude, -1, 0)], axis=-1)
        self.voxel_size = tuple(coarser * h for h in head.grid.voxel_size)
        self.directions = [_direction(*position) for position in _POSITIONS]
        self.clean = [self.field(self.chi, b) for b in self.directions], [self.mask] * 4
        times = np.asarray(head.echo_times)
        signal = self.magnitude / self.magnitude[..., 0][self.mask].mean()
        slope = 2 * math.pi * hz_per_ppm(b0=head.b0) * _SNR * np.sqrt(np.maximum((times * signal) ** 2, 1e-6).sum(axis=-1))
        self.error = (1 / slope).astype(np.float32)
        self.inside = ndi.binary_erosion(self.mask, iterations=3)

    def field(self, chi: np.ndarray, direction: tuple[float, ...], **settings) -> np.ndarray:
        """Field in the mask."""
        return forward_field(chi, voxel_size=self.voxel_size, b0_dir=direction, **settings) * self.mask

    def noisy(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Local fields with noise."""
        rng, (fields, masks) = np.random.default_rng(0), self.clean
        noise = [rng.standard_normal(self.mask.shape, dtype=np.float32) * self.error for _ in fields]
        return [(field + more) * self.mask for field, more in zip(fields, noise, strict=True)], masks

    def removed(self, background: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What background removal leaves of the total fields, and where."""
        made = []
        for field, direction in zip(self.noisy()[0], self.directions, strict=True):
            # Sampled at points, as sources outside a mask are: the continuous kernel of a strong edge rings into the brain.
            around = self.field(self.outside, direction, background=_AROUND[14], space="image")
            total = (field + simulation.shim(around, self.mask, voxel_size=self.voxel_size)) * self.mask
            made.append(self.apply("background", background, direction, total_field=total, mask=self.mask))
        return [one["local_field"] for one in made], [one["mask"] for one in made]

    def apply(self, stage: str, name: str, direction: tuple[float, ...], parameters=None, **arrays) -> dict[str, object]:
        """A method, at its defaults if not told otherwise, with what this scene knows."""
        known = {"field_error": self.error, "magnitude": self.magnitude}
        context = self.head.context | {"voxel_size": self.voxel_size, "b0_dir": direction}
        return registry.apply(stage, name, arrays=known | arrays, context=context, parameters=parameters or {})

    def compare(
        self, title: str, made: tuple[list[np.ndarray], list[np.ndarray]], methods: list[str], field_error=None
    ) -> None:
        """Print the errors of all orientations together and of each method with the first."""
        fields, masks = made
        error = self.error if field_error is None else field_error
        chi, _ = cosmos(fields, masks, self.directions, [error] * 4, voxel_size=self.voxel_size)
        rows = [["cosmos", *self.score(chi)]]
        for name in methods:
            arrays = {"local_field": fields[0], "mask": masks[0], "field_error": error}
            rows.append([name, *self.score(self.apply("inversion", name, self.directions[0], **arrays)["chi"])])
        table(title, ["method", "NRMSE %", "NRMSE %, 3 voxels inside"], rows)

    def trust(self, background: str) -> None:
        """Print what tells good combined maps from useless ones."""
        fields, masks = self.removed(background)
        rng = np.random.default_rng(1)
        more = [9 * self.error * rng.standard_normal(self.mask.shape, dtype=np.float32) for _ in fields]
        cases = {
            "noise alone": self.noisy(),
            "background": (fields, masks),
            "background, 9 times more noise": ([f + n * m for f, n, m in zip(fields, more, masks, strict=True)], masks),
            "background, all but the first moved by half a voxel": (self._moved(fields, masks, 0.5), masks),
            "by one voxel": (self._moved(fields, masks, 1), masks),
            "by two voxels": (self._moved(fields, masks, 2), masks),
            "background, one sign wrong": ([fields[0], -fields[1], *fields[2:]], masks),
            "background, mask one voxel wider": self._wider().removed(background),
        }
        rows = []
        for what, (given, known) in cases.items():
            chi, mask = cosmos(given, known, self.directions, [self.error] * 4, voxel_size=self.voxel_size)
            shares = unexplained(chi, mask, given, known, self.directions, voxel_size=self.voxel_size)
            rim = metrics.rim_energy(chi, mask, voxel_size=self.voxel_size)
            total = math.sqrt(sum(share**2 for share in shares) / len(shares))
            rows.append([what, *self.score(chi), f"{total:.2f}", f"{chi[mask].std():.3f}", f"{rim:.1f}"])
        table("Quality", ["fields", "NRMSE %", "NRMSE %, 3 voxels inside", "unexplained", "spread, ppm", "rim"], rows)

    @staticmethod
    def _moved(fields: list[np.ndarray], masks: list[np.ndarray], far: float) -> list[np.ndarray]:
        pairs = zip(fields[1:], masks[1:], strict=True)
        return [fields[0], *(ndi.shift(field, (far, -far, 0), order=1) * mask for field, mask in pairs)]

    def _wider(self) -> Scene:
        """The same head with a mask that takes a layer of what is around it for brain."""
        wider = copy.copy(self)
        wider.mask = ndi.binary_dilation(self.mask)
        return wider

    def score(self, chi: np.ndarray) -> list[float]:
        """Errors in the brain and inside."""
        return [100 * _error(chi, self.chi, where) for where in (self.mask, self.inside)]


def _direction(nod: float, tilt: float) -> tuple[float, float, float]:
    """The main field in a head that nods and tilts."""
    a, b = math.radians(nod), math.radians(tilt)
    return math.sin(b) * math.cos(a), math.sin(a), math.cos(a) * math.cos(b)


def _error(found: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    found, truth = (volume[where].astype(np.float64) for volume in (found, truth))
    found, truth = found - found.mean(), truth - truth.mean()
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


if __name__ == "__main__":
    main()
