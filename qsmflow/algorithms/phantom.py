"""Heads whose susceptibility is known: a template's anatomy, filled with the magnetic properties of tissue.

A head is made once in template space (:func:`head_phantom`) and then placed on the grid of an acquisition (:func:`place`),
with the :class:`Anatomy` of a person.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import ndimage

#: Labels of the tissue map.
TISSUES = {
    "Caudate": 1,
    "GPe": 2,
    "Putamen": 3,
    "RedNucleus": 4,
    "Dentate": 5,
    "SNr": 6,
    "Thalamus": 7,
    "WM": 8,
    "GM": 9,
    "CSF": 10,
    "Vein": 11,
    "Bone": 13,
    "Air": 14,
    "Scalp": 15,
    "Calcification": 16,
    "GPi": 17,
    "SNc": 18,
    "STN": 19,
    "Accumbens": 21,
}

#: Deep nuclei: CIT168 label of the left side (right: 100 more), plateau of the iron (mg/100 g wet) and rate of its approach
#: (1/year), myelin-like susceptibility (ppm), R2 (1/s). Plateaus after Hallgren & Sourander; their curves give the rates of
#: pallidum, putamen and caudate, the others share 0.05.
_NUCLEI = {
    "Putamen": (1, 14.62, 0.04, -0.040, 13.0),
    "Caudate": (2, 9.66, 0.05, -0.030, 12.0),
    "Accumbens": (3, 7.0, 0.05, -0.025, 12.0),
    "GPe": (5, 22.5, 0.09, -0.045, 13.0),
    "GPi": (6, 19.3, 0.09, -0.050, 13.0),
    "SNc": (7, 16.6, 0.05, -0.030, 13.0),
    "RedNucleus": (8, 19.48, 0.05, -0.050, 13.0),
    "SNr": (9, 18.46, 0.05, -0.030, 13.0),
    "STN": (16, 17.0, 0.05, -0.035, 13.0),
    "Dentate": (None, 10.35, 0.05, -0.010, 13.0),
    "Thalamus": (None, 4.76, math.inf, -0.038, 12.0),
}

#: Nuclei that the atlas does not have: centre (right side) and semi-axes of an ellipsoid, mm in template space.
_ELLIPSOIDS = {"Dentate": ((15, -57, -36), (5, 9, 5)), "Thalamus": ((11, -18, 7), (8, 13, 8))}

#: Air inside the head: dark voxels within these ellipsoids (centre, semi-axes; mm) are air, the other ones bone.
_CAVITIES = (
    ((0, 71, -17), (18, 9, 17)),  # frontal sinus
    ((0, 40, -42), (17, 32, 17)),  # ethmoid cells and nasal cavity
    ((0, 10, -48), (18, 17, 13)),  # sphenoid sinus
    ((28, 38, -72), (17, 19, 22)),  # maxillary sinuses
    ((-28, 38, -72), (17, 19, 22)),
    ((0, 8, -75), (9, 11, 11)),  # pharynx
    ((50, -33, -46), (13, 18, 17)),  # mastoid cells
    ((-50, -33, -46), (13, 18, 17)),
)

#: Large veins: points along the midline or the right side (mm in template space) and radius (mm).
_LARGE_VEINS = (
    (((4, 4, 5), (4, -8, 13), (3, -22, 15), (2, -34, 10), (0, -42, 8)), 1.0),  # internal cerebral vein
    (((0, -42, 8), (0, -52, 4), (0, -66, -2), (0, -82, -8)), 2.0),  # great cerebral vein and straight sinus
    (((12, -2, 24), (16, 8, 26), (22, 14, 30)), 0.8),  # septal and medullary tributaries
    (((14, -28, 22), (20, -34, 26), (28, -38, 28)), 0.8),
)

#: T1w intensity of cerebrospinal fluid, of grey matter (from, to) and of white matter (from, to) in the template.
_KNOTS = (75.0, 140.0, 165.0, 207.0, 245.0)
#: Iron-like and myelin-like susceptibility (ppm), R2 (1/s) and steady-state signal at these intensities.
_IRON = (0.0, 0.026, 0.029, 0.037, 0.040)
_MYELIN = (0.0, -0.009, -0.015, -0.063, -0.078)
_R2 = (1.5, 11.0, 11.0, 12.5, 12.8)
_M0 = (0.55, 0.90, 0.93, 1.0, 1.02)

#: Susceptibility of iron in tissue, ppm per mg/100 g.
_PPM_PER_IRON = 0.009
#: R2' per field strength and susceptibility of either sign, 1/s/T/ppm.
_R2PRIME = 38.0
#: Susceptibility of air and of bone, ppm.
_AIR, _BONE = 9.4, -2.1
#: Venous blood: susceptibility (ppm) and R2 (1/s).
_BLOOD = (0.30, 12.0)


@dataclass(frozen=True, eq=False)
class Head:
    """Maps of a head, all of shape (X, Y, Z).

    ``paramagnetic`` and ``diamagnetic`` in ppm against water, ``r2star`` in 1/s, ``m0`` the steady-state gradient-echo signal,
    ``t1w`` the T1-weighted contrast; ``mask`` the brain, ``labels`` those of the atlas, ``tissue`` those of :data:`TISSUES`;
    ``affine`` from voxels to mm.
    """

    paramagnetic: np.ndarray
    diamagnetic: np.ndarray
    r2star: np.ndarray
    m0: np.ndarray
    t1w: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    tissue: np.ndarray
    affine: np.ndarray

    @property
    def chi(self) -> np.ndarray:
        """Susceptibility, ppm."""
        return self.paramagnetic + self.diamagnetic


@dataclass(frozen=True, eq=False)
class Anatomy:
    """How one person differs from the template: ``affine`` (4, 4), then smooth waves, from the person's mm to the template's.

    Component i of the displacement is ``sum_j amplitude[i, j] cos(wave[i, j] . x + phase[i, j])``.
    """

    affine: np.ndarray
    amplitude: np.ndarray
    wave: np.ndarray
    phase: np.ndarray

    def to_template(self, points: np.ndarray) -> np.ndarray:
        """Template coordinates of points (3, ...) of the person, mm."""
        moved = np.tensordot(self.affine[:3, :3], points, 1) + self.affine[:3, 3].reshape(3, *[1] * (points.ndim - 1))
        result = moved.copy()
        for i in range(3):
            for a, k, p in zip(self.amplitude[i], self.wave[i], self.phase[i], strict=True):
                result[i] += a * np.cos(np.tensordot(k, moved, 1) + p)
        return result


def anatomy(seed: int, *, affine_sd: float = 0.03, warp: float = 2.5) -> Anatomy:
    """The anatomy of a random person.

    Parameters
    ----------
    seed : int
        Which person.
    affine_sd : float
        Standard deviation of the size along each axis; a third of it for shears.
    warp : float
        Size of the smooth displacement along each axis, mm; below about 5 it cannot fold.

    Returns
    -------
    Anatomy

    Notes
    -----
    Four waves of 70 to 160 mm for each component of the displacement.

    Examples
    --------
    >>> point = np.array([10.0, 20.0, 30.0])
    >>> bool(np.allclose(anatomy(0, affine_sd=0, warp=0).to_template(point), point))
    True
    """
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] += np.diag(rng.normal(0, affine_sd, 3)) + np.triu(rng.normal(0, affine_sd / 3, (3, 3)), 1)
    direction = rng.normal(size=(3, 4, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    wave = direction * (2 * math.pi / rng.uniform(70, 160, (3, 4, 1)))
    amplitude = warp / 2 * rng.uniform(0.5, 1.0, (3, 4)) * rng.choice([-1, 1], (3, 4))
    return Anatomy(affine, amplitude, wave, rng.uniform(0, 2 * math.pi, (3, 4)))


def iron_susceptibility(structure: str, *, age: float) -> float:
    """Susceptibility that iron gives a deep nucleus at some age.

    Parameters
    ----------
    structure : str
        Name of a nucleus, as in :data:`TISSUES`.
    age : float
        Age, years.

    Returns
    -------
    float
        ppm.

    Notes
    -----
    ``0.009 ppm per mg/100 g`` times an iron content of ``plateau (1 - exp(-rate age))``.

    References
    ----------
    Hallgren & Sourander, J Neurochem 3:41, 1958, doi:10.1111/j.1471-4159.1958.tb12607.x.

    Examples
    --------
    >>> [round(iron_susceptibility("Putamen", age=age), 3) for age in (20, 40, 80)]
    [0.072, 0.105, 0.126]
    """
    _, plateau, rate, _, _ = _NUCLEI[structure]
    return _PPM_PER_IRON * plateau * (1 - math.exp(-rate * age))


def whole_head(coarse: np.ndarray, brain: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whole-head T1w on a brain's fine grid, from a whole head of every second voxel and a finer brain.

    Parameters
    ----------
    coarse : ndarray, (ceil(X / 2), ceil(Y / 2), ceil(Z / 2))
        Whole head; its voxel (i, j, k) lies on voxel (2i, 2j, 2k) of the fine grid.
    brain : ndarray, (X, Y, Z)
        Brain on the fine grid, in the same units.
    mask : ndarray of bool, (X, Y, Z)
        Brain mask.

    Returns
    -------
    ndarray, (X, Y, Z)
        float32; the brain inside the mask, the head linearly interpolated outside.

    Examples
    --------
    >>> whole_head(np.array([[[0.0]], [[4.0]]]), np.full((3, 1, 1), 9.0), np.array([0, 0, 1], bool).reshape(3, 1, 1)).ravel()
    array([0., 2., 9.], dtype=float32)
    """
    half = np.diag([0.5, 0.5, 0.5])
    head = ndimage.affine_transform(coarse.astype(np.float32), half, output_shape=mask.shape, order=1, mode="nearest")
    return np.where(mask, brain, head).astype(np.float32)


def head_phantom(
    t1w: np.ndarray,
    mask: np.ndarray,
    labels: np.ndarray,
    *,
    affine: np.ndarray,
    b0: float,
    age: float = 40.0,
    shifts: Mapping[str, float] | None = None,
    calcification: float = -1.5,
    veins: int = 60,
    seed: int = 0,
) -> Head:
    """A head in template space with the susceptibility and relaxation of its tissues.

    Parameters
    ----------
    t1w : ndarray, (X, Y, Z)
        Whole-head T1w template with the intensities of ICBM 152 (0 to 255).
    mask : ndarray of bool, (X, Y, Z)
        Brain mask.
    labels : ndarray of int, (X, Y, Z)
        CIT168 nuclei.
    affine : ndarray, (4, 4)
        Voxel indices to template mm.
    b0 : float
        Main field strength, T; scales R2'.
    age : float
        Age, years: sets the iron of the deep nuclei.
    shifts : mapping of str to float
        Paramagnetic susceptibility to add to a nucleus, ppm, such as ``{"SNc": 0.03}``.
    calcification : float
        Susceptibility of a calcified pineal gland, ppm; 0 for none.
    veins : int
        Number of small random veins.
    seed : int
        Seed of the veins and of the fine structure.

    Returns
    -------
    Head
        In template space.

    Raises
    ------
    ValueError
        If a shift names no deep nucleus.

    Notes
    -----
    Iron (positive) and myelin (negative susceptibility) follow the T1w intensity within the brain, so that tissue has structure
    and partial volume; nuclei, veins and calcification are blended over it by their volume fraction. Iron and myelin vary by
    8 % over 2 mm. ``R2* = R2 + 38 B0 (|chi+| + |chi-|)``.

    References
    ----------
    Marques et al., Magn Reson Med, 2021, doi:10.1002/mrm.28716.
    Hallgren & Sourander, J Neurochem 3:41, 1958, doi:10.1111/j.1471-4159.1958.tb12607.x.

    Examples
    --------
    White matter and nothing else:

    >>> one = np.ones((9, 9, 9))
    >>> head = head_phantom(218 * one, one > 0, 0 * one, affine=np.eye(4), b0=3.0, veins=0, calcification=0)
    >>> bool(abs(np.median(head.chi) + 0.028) < 0.003)
    True
    """
    shifts = dict(shifts or {})
    if unknown := sorted(shifts.keys() - _NUCLEI.keys()):
        raise ValueError(f"no deep nucleus {', '.join(unknown)}; known: {', '.join(_NUCLEI)}")
    rng = np.random.default_rng(seed)
    affine = np.asarray(affine, float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    position = world(mask.shape, affine)
    maps, tissue = _brain(t1w)
    for name, fraction in _nuclei(labels, position, spacing, fluid=np.clip((120 - t1w) / 40, 0, 1)):
        _, _, _, myelin, r2 = _NUCLEI[name]
        iron = iron_susceptibility(name, age=age) + shifts.get(name, 0.0)
        _blend(maps, tissue, name, fraction, iron=iron, myelin=myelin, r2=r2, m0=0.95)
    _blend(maps, tissue, "Vein", _veins(mask, affine, rng, veins), iron=_BLOOD[0], r2=_BLOOD[1], m0=1.0)
    if calcification:
        pineal = _ellipsoid(position, (0, -27, 3), (2.5, 3.0, 2.5), spacing)
        _blend(maps, tissue, "Calcification", pineal, myelin=calcification, r2=30.0, m0=0.5)
    texture = _texture(mask.shape, rng, spacing)
    iron, myelin = maps["iron"] * texture, maps["myelin"] * texture
    r2star = maps["r2"] + _R2PRIME * b0 * (np.abs(iron) + np.abs(myelin))
    maps = {"paramagnetic": iron, "diamagnetic": myelin, "r2star": r2star, "m0": maps["m0"]}
    air = _surround(maps, tissue, t1w, mask, position, spacing)
    return Head(
        **maps,
        t1w=(t1w * (1 - air)).astype(np.float32),
        mask=mask.astype(bool),
        labels=labels.astype(np.int16),
        tissue=tissue,
        affine=affine,
    )


def place(
    head: Head,
    *,
    shape: Sequence[int],
    affine: np.ndarray,
    person: Anatomy | None = None,
    pose: np.ndarray | None = None,
) -> Head:
    """A head as a person lying in the scanner, sampled on the grid of an acquisition.

    Parameters
    ----------
    head : Head
        From :func:`head_phantom`.
    shape : sequence of int, (3,)
        Grid.
    affine : ndarray, (4, 4)
        Voxel indices to scanner mm.
    person : Anatomy, optional
        Whose head it is; the template's by default.
    pose : ndarray, (4, 4), optional
        Rigid transform from the person's mm to scanner mm: how the head lies; the identity by default.

    Returns
    -------
    Head
        On the new grid.

    Notes
    -----
    Linear interpolation; nearest neighbour for labels. Below the template its last slice goes on, as a neck.

    Examples
    --------
    >>> one = np.ones((6, 6, 6))
    >>> head = head_phantom(218 * one, one > 0, 0 * one, affine=np.eye(4), b0=3.0)
    >>> place(head, shape=(4, 4, 4), affine=np.diag([2.0, 2, 2, 1])).mask.shape
    (4, 4, 4)
    """
    points = world(shape, affine if pose is None else np.linalg.inv(pose) @ affine)
    if person is not None:
        points = person.to_template(points)
    inverse = np.linalg.inv(head.affine)
    index = np.tensordot(inverse[:3, :3], points, 1) + inverse[:3, 3].reshape(3, 1, 1, 1)
    index = index.astype(np.float32)

    def sample(volume: np.ndarray) -> np.ndarray:
        if volume.dtype == bool:
            return ndimage.map_coordinates(volume.astype(np.float32), index, order=1, mode="nearest") > 0.5
        return ndimage.map_coordinates(volume, index, order=0 if volume.dtype == np.int16 else 1, mode="nearest")

    volumes = {f.name: sample(getattr(head, f.name)) for f in fields(head) if f.name != "affine"}
    return replace(head, **volumes, affine=np.asarray(affine, float))


def world(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Coordinates (3, X, Y, Z) of all voxels, mm."""
    axes = np.ix_(*(np.arange(n, dtype=np.float32) for n in shape))
    return np.stack([sum(float(c) * a for c, a in zip(row[:3], axes, strict=True)) + float(row[3]) for row in affine[:3]])


def _brain(t1w: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Iron, myelin, R2 and signal of brain tissue by its T1w intensity, and the tissue's label."""
    properties = {"iron": _IRON, "myelin": _MYELIN, "r2": _R2, "m0": _M0}
    maps = {name: np.interp(t1w, _KNOTS, values).astype(np.float32) for name, values in properties.items()}
    classes = np.array([TISSUES["CSF"], TISSUES["GM"], TISSUES["WM"]], np.int16)
    return maps, classes[np.digitize(t1w, (110, 185))]


def _texture(shape: Sequence[int], rng: np.random.Generator, spacing: np.ndarray) -> np.ndarray:
    """Random factor about 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 2.0 / spacing, mode="wrap")
    return 1 + 0.08 * noise / float(noise.std())


def _blend(maps: dict[str, np.ndarray], tissue: np.ndarray, name: str, fraction: np.ndarray, **values) -> None:
    """Replace ``fraction`` of each voxel by a tissue with these values (numbers or arrays); those not given are 0."""
    for key, volume in maps.items():
        volume += fraction * (np.float32(values.get(key, 0.0)) - volume)
    tissue[fraction > 0.5] = TISSUES[name]


def _nuclei(labels: np.ndarray, position: np.ndarray, spacing: np.ndarray, fluid: np.ndarray):
    """Names and volume fractions of the deep nuclei; their borders are softened over 0.4 mm."""
    for name, (label, *_) in _NUCLEI.items():
        if label is None:
            (x, y, z), axes = _ELLIPSOIDS[name]
            fraction = sum(_ellipsoid(position, (side * x, y, z), axes, spacing) for side in (-1, 1)) * (1 - fluid)
            fraction *= ~np.isin(labels, [n + side for n, *_ in _NUCLEI.values() if n for side in (0, 100)])
        else:
            fraction = ndimage.gaussian_filter(np.isin(labels, (label, label + 100)).astype(np.float32), 0.4 / spacing)
        yield name, np.clip(fraction, 0, 1)


def _ellipsoid(position: np.ndarray, centre: Sequence[float], axes: Sequence[float], spacing: np.ndarray) -> np.ndarray:
    """Volume fraction of an ellipsoid, with a linear ramp of one voxel at its surface."""
    scaled = [(p - c) / a for p, c, a in zip(position, centre, axes, strict=True)]
    radius = np.sqrt(sum(s * s for s in scaled))
    depth = (1 - radius) * min(axes) / float(spacing.mean())
    return np.clip(depth + 0.5, 0, 1).astype(np.float32)


def _veins(mask: np.ndarray, affine: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Volume fraction of the large veins, of the sagittal sinus and of ``count`` small random veins within the brain."""
    result = np.zeros(mask.shape, np.float32)
    inverse, spacing = np.linalg.inv(affine), float(np.linalg.norm(affine[:3, 0]))
    to_voxels = lambda p: p @ inverse[:3, :3].T + inverse[:3, 3]  # noqa: E731
    for points, radius in _LARGE_VEINS:
        for side in (-1, 1):
            draw_tube(result, to_voxels(_resample(np.array(points, float) * (side, 1, 1), spacing / 2)), radius / spacing)
    column = round(float(-affine[0, 3] / affine[0, 0]))
    if 0 <= column < mask.shape[0] and mask[column].any():
        rows = np.flatnonzero(mask[column].any(axis=1))
        crest = mask.shape[2] - 1 - np.argmax(mask[column][rows, ::-1], axis=1)
        crest = ndimage.gaussian_filter1d(crest.astype(float), 6 / spacing) + 2 / spacing
        above = crest > np.median(crest) - 60 / spacing
        draw_tube(result, np.stack([np.full(above.sum(), column), rows[above], crest[above]], axis=1), 3.5 / spacing)
    inside = np.argwhere(ndimage.binary_erosion(mask, iterations=max(1, round(4 / spacing))))
    for start in inside[rng.integers(len(inside), size=count)] if len(inside) else ():
        steps = rng.normal(size=3) + np.cumsum(rng.normal(0, 0.12, (int(rng.integers(20, 70)), 3)), axis=0)
        path = start + np.cumsum(0.7 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
        draw_tube(result, path, rng.uniform(0.4, 1.0) / spacing)
    return result


def _resample(points: np.ndarray, step: float) -> np.ndarray:
    """Points every ``step`` along a polyline."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    along = np.arange(0, length[-1], step)
    return np.stack([np.interp(along, length, column) for column in points.T], axis=1)


def draw_tube(volume: np.ndarray, path: np.ndarray, radius: float) -> None:
    """Draw a tube of ``radius`` voxels along a path into a volume of fractions."""
    reach = math.ceil(radius + 1)
    thin = min(1.0, math.pi * radius**2)
    for point in path:
        low = np.maximum(np.floor(point).astype(int) - reach, 0)
        high = np.minimum(np.floor(point).astype(int) + reach + 2, volume.shape)
        if (low >= high).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.ix_(*(np.arange(a, b) - c for a, b, c in zip(low, high, point, strict=True)))
        distance = np.sqrt(sum(a * a for a in axes))
        # A vein thinner than a voxel fills only part of it.
        np.maximum(volume[box], thin * np.clip(max(radius, 0.5) + 0.5 - distance, 0, 1), out=volume[box])


def _surround(maps: dict, tissue: np.ndarray, t1w: np.ndarray, mask: np.ndarray, position: np.ndarray, spacing: np.ndarray):
    """Put scalp, bone and air around the brain; returns the volume fraction of air."""
    outside = _outside(t1w, mask)
    dark = np.clip((52 - t1w) / 16, 0, 1).astype(np.float32)
    cavity = np.zeros(mask.shape, bool)
    for centre, axes in _CAVITIES:
        cavity |= sum(((p - c) / a) ** 2 for p, c, a in zip(position, centre, axes, strict=True)) < 1
    # Dura and fluid, 2 mm of them, keep bone and air off the brain.
    gap = ndimage.distance_transform_edt(~mask, sampling=spacing)
    air = np.maximum(outside, dark * cavity) * (gap > 2)
    # Skin is dark too where it meets the air: no bone within 5 mm of it.
    depth = ndimage.distance_transform_edt(outside < 0.5, sampling=spacing)
    bone = np.maximum(dark * ~cavity * (depth > 5), _skull(gap, depth, position, spacing)) * (gap > 2)
    soft = (0.6 + 0.4 * np.clip(t1w / 150, 0, 1)).astype(np.float32)
    _blend(maps, tissue, "Scalp", (~mask).astype(np.float32), r2star=28.0, m0=soft)
    _blend(maps, tissue, "Bone", bone, diamagnetic=_BONE, r2star=400.0, m0=0.06)
    _blend(maps, tissue, "Air", air, paramagnetic=_AIR)
    return air


def _outside(t1w: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Volume fraction of the air around the head: what is dark and reaches the side of the grid."""
    regions, _ = ndimage.label((t1w < 40) & ~mask)
    sides = np.concatenate([regions[[0, -1]].ravel(), regions[:, [0, -1]].ravel(), regions[:, :, -1].ravel()])
    outside = np.isin(regions, np.unique(sides[sides > 0]))
    return np.clip(ndimage.gaussian_filter(outside.astype(np.float32), 0.7), 0, 1)


def _skull(inner: np.ndarray, outer: np.ndarray, position: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Volume fraction of the vault: from a quarter to two thirds of the way from brain to skin, above the base of the skull."""
    depth = inner / np.maximum(inner + outer, 1e-6)
    thickness = np.maximum(inner + outer, 1.0) / float(spacing.mean())
    shell = np.minimum((depth - 0.25) * thickness + 0.5, (0.67 - depth) * thickness + 0.5)
    base = np.clip((position[2] + 10 - 0.25 * position[1]) / 8, 0, 1)
    return (np.clip(shell, 0, 1) * base * (outer > 0)).astype(np.float32)
