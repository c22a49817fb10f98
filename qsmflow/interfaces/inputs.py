"""Files of one acquisition become magnitude and phase of all echoes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from qsmflow.algorithms.scaling import (
    PhaseScale,
    chopped_axes,
    complex_to_polar,
    few_levels,
    finite_range,
    phase_scale,
    undo_chopping,
)
from qsmflow.interfaces import images

#: The parts that a signal may come in.
PARTS = ("magnitude", "phase", "real", "imag")


def volumes(what: str) -> traits.List:
    """A trait for the volumes of one part."""
    return traits.List(
        traits.Tuple(File(exists=True), traits.Union(None, traits.Int)),
        usedefault=True,
        desc=f"{what}: (path, index of the volume in the file or None) per echo",
    )


class LoadAcquisitionInputSpec(BaseInterfaceInputSpec):
    magnitude = volumes("magnitude")
    phase = volumes("phase")
    real = volumes("real part")
    imag = volumes("imaginary part")
    phase_units = traits.Enum("arbitrary", "rad", usedefault=True, desc="unit of the phase as the sidecars give it")
    phase_sign = traits.Enum("auto", "+", "-", usedefault=True, desc="'-' negates the phase; 'auto' leaves it to a later check")


class LoadAcquisitionOutputSpec(TraitedSpec):
    magnitude = File(exists=True, desc="magnitude (X, Y, Z, E); ones where the acquisition has none")
    phase = File(exists=True, desc="phase (X, Y, Z, E), rad; undefined where the acquisition has none")
    report = traits.Dict(desc="phase_range, scaling, chopped_axes, invalid_voxels, has_magnitude, notices, warnings")


class LoadAcquisition(SimpleInterface):
    """Read all echoes, bring the phase to radians and undo slice chopping; whatever was done or found is reported.

    Voxels with a NaN or an infinity anywhere get magnitude 0 in all echoes, so that every mask leaves them out. One
    four-dimensional array is held at a time.
    """

    input_spec = LoadAcquisitionInputSpec
    output_spec = LoadAcquisitionOutputSpec

    def _run_interface(self, runtime):
        given = {part: getattr(self.inputs, part) for part in PARTS}
        source = Source(given, units=self.inputs.phase_units, sign=self.inputs.phase_sign)
        folder = Path(runtime.cwd)
        if source.has_phase:
            self._results["phase"] = images.write(folder / "phase.nii", source.load_phase(), source.grid)
        self._results["magnitude"] = images.write(folder / "magnitude.nii", source.load_magnitude(), source.grid)
        self._results["report"] = source.report()
        return runtime


class Source:
    """The volumes of an acquisition, and what is learnt while they are read.

    Parameters
    ----------
    volumes : mapping of str to sequence of (path, index)
        Volumes of every part in :data:`PARTS`, all in the same order.
    units : str
        Unit of the phase as the sidecars give it.
    sign : str
        ``"-"`` negates the phase.
    """

    def __init__(self, volumes: Mapping[str, Sequence[tuple[str, int | None]]], *, units: str, sign: str):
        self.volumes = {part: list(volumes[part]) for part in PARTS}
        self.units, self.sign = units, sign
        given = [volumes for volumes in self.volumes.values() if volumes]
        if not given or len({len(volumes) for volumes in given}) > 1 or len(self.volumes["real"]) != len(self.volumes["imag"]):
            raise ValueError("every part of an acquisition must have the same number of echoes, at least one")
        self.count = len(given[0])
        self.grid = images.read_grid(given[0][0][0])
        self.invalid = np.zeros(self.grid.shape, dtype=bool)
        self.range: tuple[float, float] | None = None
        self.scale: PhaseScale | None = None
        self.chopped: tuple[int, ...] = ()
        self.levels: int | None = None

    @property
    def has_phase(self) -> bool:
        return bool(self.volumes["phase"] or self.volumes["real"])

    @property
    def has_magnitude(self) -> bool:
        return bool(self.volumes["magnitude"] or self.volumes["real"])

    def load_phase(self) -> np.ndarray:
        """Phase of all volumes, rad."""
        phase = self._stack(self.stored_phase(volume) for volume in range(self.count))
        self.learn_scale(finite_range(phase[..., volume]) for volume in range(self.count))
        for volume in range(self.count):
            phase[..., volume] = self.scale.apply(phase[..., volume])
        # Chopping is the same in all echoes, and the first has the least phase of other origin.
        self.learn_defects(phase[..., 0], self.magnitude(0))
        for volume in range(self.count):
            phase[..., volume] = self.mended(phase[..., volume])
        return phase

    def load_magnitude(self) -> np.ndarray:
        """Magnitude of all volumes."""
        magnitude = self._stack(self.magnitude(volume) for volume in range(self.count))
        magnitude[self.invalid] = 0
        return magnitude

    def learn_scale(self, ranges: Iterable[tuple[float, float]]) -> None:
        """Find the scale of the phase from the ranges of all volumes."""
        ranges = list(ranges)
        self.range = min(low for low, _ in ranges), max(high for _, high in ranges)
        self.scale = phase_scale(*self.range, units=self.units if self.volumes["phase"] else "rad")

    def learn_defects(self, phase: np.ndarray, magnitude: np.ndarray) -> None:
        """Find out from one volume whether phase was rounded to few levels, and whether slices were chopped."""
        self.levels = few_levels(phase)
        self.chopped = chopped_axes(phase, magnitude)

    def mended(self, phase: np.ndarray) -> np.ndarray:
        """Phase in radians without chopping and with the sign that was asked for."""
        if self.chopped:
            phase = undo_chopping(phase, self.chopped)
        return -phase if self.sign == "-" else phase

    def report(self) -> dict[str, object]:
        """What was done and found, after both were loaded."""
        notices, warnings = [], []
        invalid = int(self.invalid.sum())
        if invalid:
            notices.append(f"{invalid} voxels ({invalid / self.invalid.size:.2%}) hold NaN or infinities and were set to 0")
        if self.chopped:
            axes = ", ".join("ijk"[axis] for axis in self.chopped)
            notices.append(f"the phase alternated by pi from slice to slice along voxel axis {axes} (chopping); corrected")
        if self.levels:
            notices.append(f"the phase was rounded to {self.levels} levels per turn")
        if self.scale and self.scale.warning:
            remedy = "check the scale; phase in radians should have Units 'rad' in its sidecar"
            warnings.append({"what": self.scale.warning, "remedy": remedy})
        return {
            "phase_range": list(self.range) if self.range else None,
            "scaling": self.scale.how if self.scale else None,
            "chopped_axes": list(self.chopped),
            "invalid_voxels": invalid,
            "has_magnitude": self.has_magnitude,
            "notices": notices,
            "warnings": warnings,
        }

    def stored_phase(self, volume: int) -> np.ndarray:
        """Phase of one volume as it is stored."""
        if self.volumes["phase"]:
            return self._read("phase", volume)
        return complex_to_polar(self._read("real", volume), self._read("imag", volume))[1]

    def magnitude(self, volume: int) -> np.ndarray:
        """Magnitude of one volume; ones where there is none."""
        if self.volumes["magnitude"]:
            return np.nan_to_num(self._read("magnitude", volume), copy=False, posinf=0, neginf=0)
        if self.volumes["real"]:
            return complex_to_polar(self._read("real", volume), self._read("imag", volume))[0]
        return np.ones(self.grid.shape, dtype=np.float32)

    def _read(self, part: str, volume: int) -> np.ndarray:
        path, index = self.volumes[part][volume]
        data = images.read(path, volume=index)
        if data.shape != self.grid.shape:
            raise ValueError(f"{path}: a volume of shape {data.shape} where the others have {self.grid.shape}")
        self.invalid |= ~np.isfinite(data)
        return data

    def _stack(self, volumes: Iterator[np.ndarray]) -> np.ndarray:
        # Column-major, so that each echo is contiguous in memory as it is in the file.
        stack = np.empty((*self.grid.shape, self.count), dtype=np.float32, order="F")
        for place, data in enumerate(volumes):
            stack[..., place] = data
        return stack
