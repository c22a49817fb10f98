"""Uncombined coils, read one at a time, become magnitude and phase of all echoes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from nipype.interfaces.base import File, SimpleInterface, traits
from scipy import ndimage

from qsmflow import registry
from qsmflow.algorithms.scaling import finite_range
from qsmflow.interfaces import images
from qsmflow.interfaces.base import StageInputSpec
from qsmflow.interfaces.inputs import PARTS, LoadAcquisitionInputSpec, LoadAcquisitionOutputSpec, Source, volumes


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
    for the time of the run, because volumes cannot be picked from them. The reference scan is resampled to the grid of the
    images by the headers of both: it is not registered.
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
            if any(reference.values()):
                count = len(next(filter(None, reference.values())))
                given = CoilImages(reference, count, units=inputs.reference_units, **shared)
                arrays["reference"] = Resampled(given, signal.source.grid)
            context = {"voxel_size": signal.source.grid.voxel_size, "echo_times": inputs.echo_times}
            results = registry.apply("coils", inputs.algorithm, arrays=arrays, context=context, parameters=inputs.parameters)
        results["magnitude"][signal.source.invalid] = 0
        for name, value in results.items():
            self._results[name] = images.write(folder / f"{name}.nii", value, signal.source.grid)
        self._results["report"] = signal.source.report()
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
    """The first echo of complex coil images on another grid, (X, Y, Z, C): ``resampled[..., c]`` gives one of them."""

    def __init__(self, coil_images: CoilImages, grid: images.Grid):
        self.images, self.grid = coil_images, grid
        self.shape = (*grid.shape, coil_images.shape[4])

    def __getitem__(self, key: tuple) -> np.ndarray:
        _, coil = key
        image, own = self.images[..., 0, coil], self.images.source.grid
        if own.matches(self.grid):
            return image
        transform = np.linalg.inv(own.affine) @ self.grid.affine
        return ndimage.affine_transform(image, transform, output_shape=self.grid.shape, order=1)
