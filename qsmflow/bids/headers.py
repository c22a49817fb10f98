"""What the header of an input image says, and whether it can be believed; voxels are not read."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nb
import numpy as np

from qsmflow.bids.problems import Unusable

#: Affines that agree within this distance are the same, mm.
AFFINE_TOLERANCE = 1e-3

#: sform and qform that disagree by more than this about the direction of the main field are reported, degrees.
_DIRECTION_TOLERANCE = 1.0

_BLOCK = 1 << 20

#: What nibabel raises for a file that is no image, or not a whole one.
_UNREADABLE = (
    nb.filebasedimages.ImageFileError, nb.spatialimages.HeaderDataError, OSError, EOFError, zlib.error, ValueError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Header:
    """Shape, affine and data type of an image file; ``notices`` say what is odd about its orientation."""

    path: str
    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype
    notices: tuple[str, ...] = ()

    @property
    def volumes(self) -> int:
        """Number of volumes along the fourth axis."""
        return self.shape[3] if len(self.shape) > 3 else 1

    @property
    def extra_axes(self) -> tuple[int, ...]:
        """Axes beyond the fourth that hold more than one element."""
        return tuple(n for n in self.shape[4:] if n > 1)

    def difference(self, other: Header) -> str:
        """How the grid of this image differs from that of another, in words ('' if it does not)."""
        if self.shape[:3] != other.shape[:3]:
            return f"shape {_times(self.shape[:3])} is not the {_times(other.shape[:3])}"
        gap = float(np.abs(self.affine - other.affine).max())
        return f"affine differs by up to {gap:.3g} mm from that" if gap > AFFINE_TOLERANCE else ""


def read_header(path: str, name: str) -> Header:
    """Read the header of an image and check that the file can hold what it promises.

    Parameters
    ----------
    path : str
        The image file.
    name : str
        What the file is called in messages.

    Returns
    -------
    Header

    Raises
    ------
    Unusable
        If the file is missing, unreadable or too short, or is no real-valued volume with a valid affine.
    """
    if not os.path.exists(path):
        raise Unusable(name, "is a link to a file that is not here", "fetch its content first (e.g. 'datalad get')")
    try:
        image = nb.load(path)
        shape, affine, dtype = tuple(int(n) for n in image.shape), image.affine, image.header.get_data_dtype()
        offset = int(image.dataobj.offset)
    except _UNREADABLE as error:
        detail = " ".join(str(error).split()).replace(path, name)
        raise Unusable(name, f"the NIfTI header cannot be read ({detail})", "convert or copy the file again") from error
    if len(shape) < 3 or min(shape) < 1:
        raise Unusable(name, f"holds no volume (shape {_times(shape)})", "convert the series to a 3D image again")
    if dtype.kind not in "iuf":
        what = "complex values" if dtype.kind == "c" else f"voxels of type {dtype}"
        raise Unusable(name, f"holds {what}", "store magnitude and phase, or real and imaginary part, as images of their own")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise Unusable(name, "the affine in the header is not valid", "convert the series again")
    _check_length(path, name, offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return Header(path, shape, affine, dtype, _orientation_notices(image, name))


def _check_length(path: str, name: str, needed: int) -> None:
    """Raise if the file holds fewer than ``needed`` bytes (decompressed)."""
    held = os.path.getsize(path)
    if path.endswith(".gz"):
        # The last four bytes of a gzip file are its decompressed size modulo 2^32; only where they do not fit (truncated,
        # or several members) is the file read through.
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            if int.from_bytes(file.read(4), "little") == needed % 2**32:
                return
        held = _decompressed_length(path, needed)
    if held < needed:
        raise Unusable(name, f"is cut short: {held} bytes where its header promises {needed}", "copy or convert the file again")


def _decompressed_length(path: str, enough: int) -> int:
    """Bytes that can be decompressed from a gzip file, counted until there are ``enough``."""
    count = 0
    try:
        with gzip.open(path) as file:
            while count < enough and (block := file.read(_BLOCK)):
                count += len(block)
    except (OSError, EOFError, zlib.error):
        return count
    return count


def _orientation_notices(image: nb.Nifti1Image, name: str) -> tuple[str, ...]:
    """What is odd about the orientation in a NIfTI header; the direction of the main field follows from it."""
    if not isinstance(image, nb.Nifti1Pair):
        return ()
    sform, qform = image.header.get_sform(coded=True)[0], image.header.get_qform(coded=True)[0]
    if sform is None and qform is None:
        return (f"{Path(name).name}: the header holds no orientation; the main field is taken along the third axis",)
    if sform is None or qform is None:
        return ()
    angle = np.degrees(np.arccos(np.clip(abs(_direction(sform) @ _direction(qform)), 0, 1)))
    if angle <= _DIRECTION_TOLERANCE:
        return ()
    return (f"{Path(name).name}: sform and qform disagree by {angle:.0f} degrees about the main field; the sform is used",)


def _direction(affine: np.ndarray) -> np.ndarray:
    direction = affine[2, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return direction / np.linalg.norm(direction)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
