"""Files of one acquisition become magnitude and phase of all echoes."""

from __future__ import annotations

from collections.abc import Iterator
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


def _volumes(what: str) -> traits.List:
    return traits.List(
        traits.Tuple(File(exists=True), traits.Union(None, traits.Int)),
        usedefault=True,
        desc=f"{what}: (path, index along the fourth axis or None) per echo",
    )


class LoadAcquisitionInputSpec(BaseInterfaceInputSpec):
    magnitude = _volumes("magnitude")
    phase = _volumes("phase")
    real = _volumes("real part")
    imag = _volumes("imaginary part")
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
        source, folder = _Source(self.inputs), Path(runtime.cwd)
        if source.has_phase:
            self._results["phase"] = images.write(folder / "phase.nii", source.load_phase(), source.grid)
        self._results["magnitude"] = images.write(folder / "magnitude.nii", source.load_magnitude(), source.grid)
        self._results["report"] = source.report()
        return runtime


class _Source:
    """The volumes of an acquisition, and what is learnt while they are read."""

    def __init__(self, inputs: LoadAcquisitionInputSpec):
        self.volumes = {part: list(getattr(inputs, part)) for part in ("magnitude", "phase", "real", "imag")}
        self.units, self.sign = inputs.phase_units, inputs.phase_sign
        given = [volumes for volumes in self.volumes.values() if volumes]
        if not given or len({len(volumes) for volumes in given}) > 1 or len(self.volumes["real"]) != len(self.volumes["imag"]):
            raise ValueError("every part of an acquisition must have the same number of echoes, at least one")
        self.echoes = len(given[0])
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
        """Phase of all echoes, rad."""
        phase = self._stack(self._phase(echo) for echo in range(self.echoes))
        ranges = [finite_range(phase[..., echo]) for echo in range(self.echoes)]
        self.range = min(low for low, _ in ranges), max(high for _, high in ranges)
        self.scale = phase_scale(*self.range, units=self.units if self.volumes["phase"] else "rad")
        for echo in range(self.echoes):
            phase[..., echo] = self.scale.apply(phase[..., echo])
        self.levels = few_levels(phase[..., 0])
        # Chopping is the same in all echoes, and the first has the least phase of other origin.
        self.chopped = chopped_axes(phase[..., 0], self._magnitude(0))
        for echo in range(self.echoes):
            if self.chopped:
                phase[..., echo] = undo_chopping(phase[..., echo], self.chopped)
            if self.sign == "-":
                np.negative(phase[..., echo], out=phase[..., echo])
        return phase

    def load_magnitude(self) -> np.ndarray:
        """Magnitude of all echoes."""
        magnitude = self._stack(self._magnitude(echo) for echo in range(self.echoes))
        magnitude[self.invalid] = 0
        return magnitude

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

    def _phase(self, echo: int) -> np.ndarray:
        if self.volumes["phase"]:
            return self._read("phase", echo)
        return complex_to_polar(self._read("real", echo), self._read("imag", echo))[1]

    def _magnitude(self, echo: int) -> np.ndarray:
        if self.volumes["magnitude"]:
            return np.nan_to_num(self._read("magnitude", echo), copy=False, posinf=0, neginf=0)
        if self.volumes["real"]:
            return complex_to_polar(self._read("real", echo), self._read("imag", echo))[0]
        return np.ones(self.grid.shape, dtype=np.float32)

    def _read(self, part: str, echo: int) -> np.ndarray:
        path, index = self.volumes[part][echo]
        data = images.read(path, volume=index)
        if data.shape != self.grid.shape:
            raise ValueError(f"{path}: a volume of shape {data.shape} where the others have {self.grid.shape}")
        self.invalid |= ~np.isfinite(data)
        return data

    def _stack(self, volumes: Iterator[np.ndarray]) -> np.ndarray:
        # Column-major, so that each echo is contiguous in memory as it is in the file.
        stack = np.empty((*self.grid.shape, self.echoes), dtype=np.float32, order="F")
        for echo, data in enumerate(volumes):
            stack[..., echo] = data
        return stack
