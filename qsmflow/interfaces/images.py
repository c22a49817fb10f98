"""The only code that writes a NIfTI header, and the only one that reads voxels (``bids.headers`` looks at headers)."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nb
import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie: its 3D shape and its affine (voxel indices to scanner mm, RAS+)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Voxel size along the array axes, mm."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def b0_dir(self) -> tuple[float, float, float]:
        """Unit vector of the main field in voxel axes: the scanner's z axis seen through the rotation of the affine."""
        direction = self.affine[2, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(v) for v in direction / np.linalg.norm(direction))

    def matches(self, other: Grid, atol: float = 1e-3) -> bool:
        """Whether both grids have the same shape and the same affine within ``atol`` mm."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, atol=atol)


def read_grid(path: str | Path) -> Grid:
    """The grid of an image file; only the header is read."""
    image = nb.load(path)
    return Grid(tuple(int(n) for n in image.shape[:3]), image.affine)


def read(path: str | Path, dtype: type = np.float32, volume: int | None = None) -> np.ndarray:
    """The voxels of an image file with slope and intercept applied, as ``dtype`` (``bool``: non-zero).

    ``volume`` picks one of the volumes, counted as they are stored (the fourth axis first); it then is the only one that is
    read.
    """
    image = nb.load(path)
    if volume is None:
        data = np.asanyarray(image.dataobj)
    else:
        place = np.unravel_index(volume, image.shape[3:], order="F")
        data = np.asanyarray(image.dataobj[(slice(None),) * 3 + place]).reshape(image.shape[:3])
    return data != 0 if dtype is bool else np.ascontiguousarray(data, dtype=dtype)


def unpack(path: str | Path, folder: Path) -> str:
    """A file of several volumes that can be read by the volume: a copy in ``folder`` of a compressed one, any other itself."""
    if not str(path).endswith(".gz") or len(nb.load(path).shape) < 4:
        return str(path)
    copy = folder / f"{len(list(folder.iterdir()))}.nii"
    with gzip.open(path) as packed, copy.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    return str(copy)


def write(path: str | Path, data: np.ndarray, grid: Grid) -> str:
    """Write ``data`` on ``grid``: bool as uint8, integers as int16 or int32, everything else as float32. Returns the path.

    Both the qform and the sform hold the affine (code 1, scanner), as far as a qform can.
    """
    if data.shape[:3] != grid.shape:
        raise ValueError(f"{path}: array of shape {data.shape} does not fit a grid of {grid.shape}")
    if data.dtype == bool:
        data = data.astype(np.uint8)
    elif np.issubdtype(data.dtype, np.integer):
        data = data.astype(np.int16 if np.abs(data).max(initial=0) < 2**15 else np.int32)
    else:
        data = data.astype(np.float32, copy=False)
    image = nb.Nifti1Image(data, grid.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1, strip_shears=True)
    nb.save(image, path)
    return str(path)
