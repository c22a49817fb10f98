"""Work files become outputs: final name, sidecar, compression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from qsmflow.bids.outputs import (
    PRODUCTS,
    atomic,
    copy_file,
    describe_atlas,
    json_text,
    product_path,
    sidecar_path,
    write_text,
)
from qsmflow.interfaces import images


class SaveDerivativeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="file in the work folder: an image for an image product, else any file")
    output_dir = traits.Str(mandatory=True, desc="root of the output tree")
    entities = traits.Dict(traits.Str, traits.Str, mandatory=True, desc="entities of the source acquisition")
    product = traits.Enum(*PRODUCTS, mandatory=True, desc="what the file is: a key of qsmflow.bids.outputs.PRODUCTS")
    extra = traits.Dict(traits.Str, traits.Str, usedefault=True, desc="entities the product leaves open, e.g. echo or atlas")
    metadata = traits.Dict(usedefault=True, desc="content of the sidecar (no sidecar when empty)")
    measured = traits.Dict(usedefault=True, desc="what only the run could know, added to the sidecar")
    scale = traits.Float(1.0, usedefault=True, desc="factor to the product's unit, e.g. from ppm to Hz")
    volume = traits.Range(low=0, desc="index along the fourth axis, for an image with four")


class SaveDerivativeOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the file under its final name")


class SaveDerivative(SimpleInterface):
    """Save a work file as one of the products.

    The sidecar, and the description of an atlas, are there before the image, and the image is read back before it gets its
    final name. The node always runs, so that an output which was deleted comes back.
    """

    input_spec = SaveDerivativeInputSpec
    output_spec = SaveDerivativeOutputSpec
    _always_run = True

    def _run_interface(self, runtime):
        inputs = self.inputs
        path = product_path(inputs.output_dir, inputs.entities, inputs.product, **inputs.extra)
        if "atlas" in inputs.extra:
            describe_atlas(inputs.output_dir, inputs.extra["atlas"])
        metadata = {**inputs.metadata, **inputs.measured}
        if metadata:
            write_text(sidecar_path(path), json_text(metadata))
        if PRODUCTS[inputs.product].is_image:
            volume = inputs.volume if isdefined(inputs.volume) else None
            save_image(inputs.in_file, path, dtype=PRODUCTS[inputs.product].dtype, scale=inputs.scale, volume=volume)
        else:
            copy_file(inputs.in_file, path)
        self._results["out_file"] = str(path)
        return runtime


def save_image(source: str | Path, path: Path, *, dtype: str, scale: float = 1.0, volume: int | None = None) -> None:
    """Write an image under its final name: compressed, whole, and read back before the name appears.

    Parameters
    ----------
    source : str or Path
        Image of three axes, or of four with ``volume`` the index along the fourth.
    path : Path
        Final name, ending in ``.nii.gz``.
    dtype : str
        ``"float32"``, ``"int16"`` (labels) or ``"uint8"`` (masks: everything but 0 becomes 1).
    scale : float
        Factor applied before writing.

    Raises
    ------
    ValueError
        If the image has another number of axes or voxels that are not finite.
    OSError
        If what was written does not read back equal.
    """
    data = images.read(source)
    if data.ndim != (3 if volume is None else 4):
        raise ValueError(f"{source}: an image of shape {data.shape} cannot be saved with volume={volume}")
    data = data if volume is None else data[..., volume]
    bad = data.size - np.count_nonzero(np.isfinite(data))
    if bad:
        raise ValueError(f"{source}: {bad} voxels are not finite")
    if dtype == "uint8":
        data = data != 0
    else:
        data = (np.rint(data * scale) if dtype == "int16" else data * np.float32(scale)).astype(dtype)
    with atomic(path) as temporary:
        images.write(temporary, data, images.read_grid(source))
        if not np.array_equal(images.read(temporary, data.dtype), data):
            raise OSError(f"{path}: what was written does not read back")
