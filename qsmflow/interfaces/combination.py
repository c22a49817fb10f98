"""Uncombined coils, read one at a time, become magnitude and phase of all echoes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, traits
from scipy import ndimage

from qsmflow import registry
from qsmflow.algorithms.masking import threshold
from qsmflow.algorithms.scaling import finite_range
from qsmflow.interfaces import images
from qsmflow.interfaces.base import StageInputSpec
from qsmflow.interfaces.inputs import PARTS, LoadAcquisitionInputSpec, LoadAcquisitionOutputSpec, Source, volumes
from qsmflow.interfaces.registration import head_motion

#: What a head can move in its coil: shift (mm) and turn (degrees).
_FARTHEST, _STEEPEST = 30.0, 20.0

#: Below this shift (mm) and turn (degrees) a head has not moved.
_STILL = 1.0


class CombineCoilsInputSpec(StageInputSpec, LoadAcquisitionInputSpec):
    algorithm = traits.Enum(*registry.names("coils"), mandatory=True, desc="method of coil combination")
    coils = traits.Range(low=1, mandatory=True, desc="number of coils; all of the first echo come first, then the second echo")
    echo_times = traits.List(traits.Float, mandatory=True, desc="echo times, s")
    reference_magnitude = volumes("magnitude of the reference scan, one volume per coil")
    reference_phase = volumes("phase of the reference scan")
    reference_real = volumes("real part of the reference scan")
    reference_imag = volumes("imaginary part of the reference scan")
    reference_units = traits.Enum("arbitrary", "rad", usedefault=True, desc="unit of the reference scan's phase")


class CombineCoilsOutputSpec(LoadAcquisitionOutputSpec):
    matching = File(exists=True, desc="matching quality of the coils, % (X, Y, Z)")


class CombineCoils(SimpleInterface):
    """Read uncombined coils and combine them; what :class:`qsmflow.interfaces.inputs.LoadAcquisition` does for combined images.

    Phase is brought to radians and slice chopping is undone as there. Files of several volumes that are compressed are unpacked
    for the time of the run, because volumes cannot be picked from them. A reference scan is resampled to the grid of the
    images. A scan of one coil tells about the head, and follows it (:func:`reference_motion`). A scan of all coils tells about
    these, which stay where they are when the head moves, so that it is placed by the headers.
    """

    input_spec = CombineCoilsInputSpec
    output_spec = CombineCoilsOutputSpec

    def _run_interface(self, runtime):
        inputs, folder = self.inputs, Path(runtime.cwd)
        with TemporaryDirectory(dir=folder) as space:
            shared = {"sign": inputs.phase_sign, "folder": Path(space)}
            parts = {part: getattr(inputs, part) for part in PARTS}
            signal = CoilImages(parts, inputs.coils, units=inputs.phase_units, **shared)
            arrays = {"signal": signal}
            reference = {part: getattr(inputs, f"reference_{part}") for part in PARTS}
            told = Told([], [])
            if any(reference.values()):
                count = len(next(filter(None, reference.values())))
                given = CoilImages(reference, count, units=inputs.reference_units, **shared)
                motion, told = reference_motion(given, signal, Path(space)) if count == 1 else (np.eye(4), told)
                arrays["reference"] = Resampled(given, signal.source.grid, motion)
            context = {"voxel_size": signal.source.grid.voxel_size, "echo_times": inputs.echo_times}
            results = registry.apply("coils", inputs.algorithm, arrays=arrays, context=context, parameters=inputs.parameters)
        results["magnitude"][signal.source.invalid] = 0
        for name, value in results.items():
            self._results[name] = images.write(folder / f"{name}.nii", value, signal.source.grid)
        report = signal.source.report()
        self._results["report"] = report | {key: report[key] + value for key, value in told._asdict().items()}
        return runtime


class CoilImages:
    """Complex images of an acquisition, (X, Y, Z, E, C): ``coil_images[..., e, c]`` reads one of them.

    Parameters
    ----------
    volumes : mapping of str to sequence of (path, index)
        Volumes of every part: all coils of the first echo, then those of the second, and so on.
    coils : int
        Number of coils.
    units, sign : str
        As for :class:`qsmflow.interfaces.inputs.Source`.
    folder : Path
        Where compressed files of several volumes are unpacked.
    """

    def __init__(
        self, volumes: Mapping[str, Sequence[tuple[str, int | None]]], coils: int, *, units: str, sign: str, folder: Path
    ):
        paths = dict.fromkeys(path for part in PARTS for path, _ in volumes[part])
        readable = {path: images.unpack(path, folder) for path in paths}
        volumes = {part: [(readable[path], index) for path, index in volumes[part]] for part in PARTS}
        self.source = source = Source(volumes, units=units, sign=sign)
        if not (source.has_phase and source.has_magnitude) or source.count % coils:
            raise ValueError(f"{coils} coils cannot be combined from magnitude and phase of {source.count} volumes")
        self.shape = (*source.grid.shape, source.count // coils, coils)
        ranges = (finite_range(source.stored_phase(volume)) for volume in range(source.count))
        source.learn_scale([(-np.pi, np.pi)] if volumes["real"] else ranges)
        # Chopping is the same in all coils; the one with the most signal shows it best.
        strongest = max(range(coils), key=lambda coil: float(source.magnitude(coil).mean(dtype=np.float64)))
        source.learn_defects(source.scale.apply(source.stored_phase(strongest)), source.magnitude(strongest))

    def __getitem__(self, key: tuple) -> np.ndarray:
        _, echo, coil = key
        volume = echo * self.shape[4] + coil
        phase = self.source.mended(self.source.scale.apply(self.source.stored_phase(volume)))
        return self.source.magnitude(volume) * np.exp(1j * phase, dtype=np.complex64)


class Resampled:
    """The first echo of complex coil images on another grid, (X, Y, Z, C): ``resampled[..., c]`` gives one of them.

    ``motion`` takes points of the grid to those of the images, mm. Real and imaginary part are interpolated, never the phase.
    """

    def __init__(self, coil_images: CoilImages, grid: images.Grid, motion: np.ndarray):
        self.images, self.grid, self.motion = coil_images, grid, motion
        self.shape = (*grid.shape, coil_images.shape[4])

    def __getitem__(self, key: tuple) -> np.ndarray:
        _, coil = key
        image, own = self.images[..., 0, coil], self.images.source.grid
        there = images.Grid(self.grid.shape, self.motion @ self.grid.affine)
        if own.matches(there):
            return image
        transform = np.linalg.inv(own.affine) @ there.affine
        return ndimage.affine_transform(image, transform, output_shape=self.grid.shape, order=1)


class Told(NamedTuple):
    """What a user should know: notices, and warnings with ``what`` and ``remedy``."""

    notices: list[str]
    warnings: list[dict[str, str]]


def reference_motion(reference: CoilImages, signal: CoilImages, folder: Path) -> tuple[np.ndarray, Told]:
    """How the head moved between the images and the scan of a reference coil, and what is to be said about it.

    Parameters
    ----------
    reference, signal : CoilImages
        The reference scan and the images; the first echo of each is compared, of all coils their sum of squares.
    folder : Path
        Where ANTs may write.

    Returns
    -------
    matrix : ndarray, (4, 4)
        From points of the images to those of the reference, mm; the identity (what the headers say) where the registration
        finds more than a head can move in its coil, or nothing that matches better.
    told : Told
        Notices and warnings.
    """
    grid = signal.source.grid
    power = np.zeros(grid.shape, np.float32)
    for coil in range(signal.shape[4]):
        power += signal.source.magnitude(coil) ** 2
    magnitude = np.sqrt(power)
    head = threshold(magnitude[..., np.newaxis], voxel_size=grid.voxel_size)
    scan = "the reference scan of the coils"
    try:
        found = head_motion(reference.source.magnitude(0), reference.source.grid, magnitude, grid, head, folder)
    except RuntimeError:  # ANTs, if the two do not overlap or one has no contrast
        return _not_registered(f"{scan} could not be registered")
    way = f"{found.shift:.1f} mm and {found.turn:.1f} degrees"
    if found.shift > _FARTHEST or found.turn > _STEEPEST:
        return _not_registered(f"the registration of {scan} found {way}, more than a head can move in its coil")
    if found.gain > 0:
        return found.matrix, Told([f"{scan} was registered: the head had moved by {way}"], [])
    if max(found.shift, found.turn) < _STILL:
        return np.eye(4), Told([f"{scan} was placed by the headers: the head had not moved"], [])
    return _not_registered(f"the registration of {scan} found {way}, which match worse than the headers")


def _not_registered(problem: str) -> tuple[np.ndarray, Told]:
    remedy = "it was placed by the headers; check that it shows the same head, or combine without a reference (--coils)"
    return np.eye(4), Told([], [{"what": problem, "remedy": remedy}])
