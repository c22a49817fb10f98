"""Quality metrics: one number each, from arrays.

Every function says what the number is, its unit and which direction is good. A number that cannot be formed (too few voxels)
is NaN; no limit is applied here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from qsmflow.algorithms import dipole, fourier
from qsmflow.algorithms.unwrap import romeo

#: Median of |x| for a standard normal x.
_MAD = 0.6744897501960817


def snr(magnitude: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Signal-to-noise ratio of each echo (dimensionless; higher is better).

    Parameters
    ----------
    magnitude : ndarray, (X, Y, Z, E)
        Magnitude of all echoes, any unit.
    mask : ndarray of bool, (X, Y, Z)
        Where the signal is taken and the noise measured.

    Returns
    -------
    ndarray, (E,)
        Median signal over noise standard deviation; NaN where no block of 2 x 2 x 2 voxels lies in the mask.

    Notes
    -----
    The noise is the median of ``|d| / (0.6745 sqrt(8))`` with ``d`` the mixed difference along all three axes (the diagonal
    Haar detail) of every block inside the mask: smooth anatomy cancels, and no signal-free air is needed. Data that were
    interpolated by zero filling have little noise at that frequency, and their value is too high.

    References
    ----------
    Donoho & Johnstone, Biometrika 81:425, 1994, doi:10.1093/biomet/81.3.425.

    Examples
    --------
    >>> noise = np.random.default_rng(0).standard_normal((20, 20, 20, 1))
    >>> bool(abs(snr(50 + 2 * noise, np.ones((20, 20, 20), bool))[0] - 25) < 1)
    True
    """
    box = _box(mask)
    inside = mask[box]
    blocks = np.ones(tuple(n - 1 for n in inside.shape), bool)
    for corner in np.ndindex(2, 2, 2):
        blocks &= inside[tuple(slice(c, c + n) for c, n in zip(corner, blocks.shape, strict=True))]
    result = []
    for echo in range(magnitude.shape[3]):
        volume = np.asarray(magnitude[..., echo][box], dtype=np.float64)
        detail = np.diff(np.diff(np.diff(volume, axis=0), axis=1), axis=2)
        noise = np.median(np.abs(detail[blocks])) / (_MAD * np.sqrt(8)) if blocks.any() else np.nan
        result.append(np.median(volume[inside]) / noise if noise > 0 else np.nan)
    return np.array(result)


def residues(phase: np.ndarray, mask: np.ndarray) -> float:
    """Phase residues per 1000 voxels of the mask (lower is better).

    Parameters
    ----------
    phase : ndarray, (X, Y, Z)
        Wrapped phase of one echo, rad.
    mask : ndarray of bool, (X, Y, Z)
        Where to count.

    Returns
    -------
    float
        2 x 2 loops around which the wrapped phase steps do not add up to 0, per 1000 voxels.

    Notes
    -----
    Around a residue the unwrapped phase depends on the path that was taken. Noise makes many short pairs; fringe lines that end
    inside the brain come from the combination of coils.

    Examples
    --------
    >>> ramp = np.broadcast_to(np.linspace(0, 9, 20)[:, None, None], (20, 20, 20))
    >>> residues(np.angle(np.exp(1j * ramp)), np.ones(ramp.shape, bool))
    0.0
    """
    return float(1000 * romeo.residues(phase, mask).sum(dtype=np.int64) / np.count_nonzero(mask))


def fit_residual(residual: np.ndarray, mask: np.ndarray) -> float:
    """Median misfit of the phase to a straight line over the echoes (rad; lower is better).

    Parameters
    ----------
    residual : ndarray, (X, Y, Z)
        Magnitude-weighted root-mean-square deviation of the phase from the fitted line, rad.
    mask : ndarray of bool, (X, Y, Z)
        Where to look.

    Returns
    -------
    float
        Median over the mask, rad.

    Examples
    --------
    >>> fit_residual(np.full((2, 2, 2), 0.25), np.ones((2, 2, 2), bool))
    0.25
    """
    return float(np.median(residual[mask]))


def field_range(field: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of a field in the mask (ppm of B0; a narrow range means a good shim).

    Parameters
    ----------
    field : ndarray, (X, Y, Z)
        Total field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where to look.

    Returns
    -------
    tuple of float
        Low and high end, ppm.

    Examples
    --------
    >>> field_range(np.linspace(-1, 1, 101).reshape(101, 1, 1), np.ones((101, 1, 1), bool))
    (-0.98, 0.98)
    """
    low, high = np.percentile(field[mask].astype(np.float64), (1, 99))
    return round(float(low), 6), round(float(high), 6)


def volume(mask: np.ndarray, *, voxel_size: Sequence[float]) -> float:
    """Volume of a mask (ml; 1000 to 1700 ml for the brain of an adult).

    Parameters
    ----------
    mask : ndarray of bool, (X, Y, Z)
        The mask.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.

    Returns
    -------
    float
        Volume, ml.

    Examples
    --------
    >>> volume(np.ones((10, 10, 10), bool), voxel_size=(1, 1, 2))
    2.0
    """
    return float(np.count_nonzero(mask) * np.prod(np.asarray(voxel_size, dtype=float)) / 1000)


def coverage(mask: np.ndarray, brain: np.ndarray) -> float:
    """Share of the brain that has a susceptibility value (0 to 1; higher is better).

    Parameters
    ----------
    mask : ndarray of bool, (X, Y, Z)
        Where susceptibility is given.
    brain : ndarray of bool, (X, Y, Z)
        The brain before unreliable voxels and the rim were given up.

    Returns
    -------
    float
        ``|mask and brain| / |brain|``.

    Examples
    --------
    >>> coverage(np.array([True, False, False, False]), np.array([True, True, False, False]))
    0.5
    """
    total = np.count_nonzero(brain)
    return float(np.count_nonzero(mask & brain) / total) if total else float("nan")


def rim_energy(image: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], width: float = 3.0) -> float:
    """Spread of a map in the outer rim of the mask relative to the interior (dimensionless; near 1 is good).

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Local field or susceptibility, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the map is valid.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    width : float
        Width of the rim, mm.

    Returns
    -------
    float
        Distance between the 5th and the 95th percentile of the voxels nearer than ``width`` to the outside, divided by that of
        all others; NaN when either set has fewer than 10 voxels or the interior is constant.

    Notes
    -----
    Background that was not removed and phase that was wrongly unwrapped gather at the mask's edge. Percentiles, because single
    voxels without a usable phase, which later steps weigh down, would rule a standard deviation. The border of the image counts
    as outside only where the mask does not touch it.

    Examples
    --------
    >>> ball = sum(np.square(a) for a in np.ogrid[-9:10, -9:10, -9:10]) < 64
    >>> noise = np.random.default_rng(0).standard_normal(ball.shape)
    >>> bool(abs(rim_energy(noise, ball, voxel_size=(1, 1, 1)) - 1) < 0.1)
    True
    """
    inner = _core(mask, voxel_size, width)
    rim = mask & ~inner
    if min(np.count_nonzero(rim), np.count_nonzero(inner)) < 10:
        return float("nan")
    outer, inside = (float(np.subtract(*np.percentile(image[part], (95, 5)))) for part in (rim, inner))
    return outer / inside if inside > 0 else float("nan")


def streaks(
    chi: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    width: float = 0.1,
) -> float:
    """Spectral power near the dipole kernel's zero cone relative to the power beside it (dimensionless; near 1 is good).

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where it is valid.
    voxel_size, b0_dir : sequence of float, (3,)
        Voxel size in mm; unit vector of the main field in voxel axes.
    width : float
        The cone is where the kernel's magnitude is below this value.

    Returns
    -------
    float
        Above 1: noise amplified on the cone, seen as streaks at 54.7 degrees; below 1: the cone was not filled.

    Notes
    -----
    ``exp(mean over shells of ln(P_cone / P_beside))`` with the mean power in 16 shells of ``|k|`` from 10 to 90 % of the lowest
    Nyquist frequency, so that the fall of the spectrum with ``|k|`` drops out. The map is demeaned in the mask and 0 outside.

    Examples
    --------
    White noise has no preferred direction:

    >>> noise = np.random.default_rng(0).standard_normal((48, 48, 48)).astype(np.float32)
    >>> ratio = streaks(noise, np.ones(noise.shape, bool), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> bool(abs(ratio - 1) < 0.1)
    True
    """
    box = _box(mask)
    inside = mask[box]
    centred = np.where(inside, chi[box] - np.mean(chi[mask], dtype=np.float64), 0).astype(np.float32)
    shape = fourier.padded_shape(inside.shape)
    power = np.square(np.abs(fourier.rfftn(centred, shape))).astype(np.float64)
    cone = np.abs(dipole.dipole_kernel(shape, voxel_size=voxel_size, b0_dir=b0_dir)) < width
    radius = np.sqrt(sum(k * k for k in fourier.frequencies(shape, voxel_size)))
    shells = 16
    shell = np.digitize(radius, np.linspace(0.1, 0.9, shells + 1) * 0.5 / max(voxel_size))
    on, beside = (
        np.bincount(shell[part], power[part], shells + 2)[1:-1]
        / np.maximum(np.bincount(shell[part], minlength=shells + 2)[1:-1], 1)
        for part in (cone, ~cone)
    )
    usable = (on > 0) & (beside > 0)
    return float(np.exp(np.mean(np.log(on[usable] / beside[usable])))) if usable.any() else float("nan")


def forward_fit(
    chi: np.ndarray,
    local_field: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    known: np.ndarray | None = None,
) -> float:
    """Part of the local field that the susceptibility map does not explain (0 to 1; lower is better).

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm, relative to any reference.
    local_field : ndarray, (X, Y, Z)
        The field it was computed from, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where both are valid.
    voxel_size, b0_dir : sequence of float, (3,)
        Voxel size in mm; unit vector of the main field in voxel axes.
    known : ndarray of bool, (X, Y, Z), optional
        Where in the mask the field is valid, if that is not all of it: one of several orientations.

    Returns
    -------
    float
        ``||K (D M (chi + c) - f - o)|| / ||K f||`` with the constants c and o that make it smallest and K the ``known`` voxels.

    Notes
    -----
    A map is known up to a constant ``c`` (its reference), whose field is that of the mask filled with it; a field is known up
    to ``o``. Both are fitted, so that the number does not depend on the reference.

    Examples
    --------
    >>> ball = sum(np.square(a) for a in np.ogrid[-10:10, -10:10, -10:10]) < 64
    >>> chi = np.where(ball, np.random.default_rng(0).standard_normal(ball.shape), 0).astype(np.float32)
    >>> field = dipole.forward_field(chi, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1))
    >>> forward_fit(np.where(ball, chi + 0.3, 0), field, ball, voxel_size=(1, 1, 1), b0_dir=(0, 0, 1)) < 0.01
    True
    """
    box = _box(mask)
    inside, where = mask[box], (mask if known is None else mask & known)[box]
    context = {"voxel_size": voxel_size, "b0_dir": b0_dir}
    model = dipole.forward_field(np.where(inside, chi[box], 0).astype(np.float32), **context)[where]
    body = dipole.forward_field(inside.astype(np.float32), **context)[where]
    field = local_field[box][where].astype(np.float64)
    size = np.linalg.norm(field)
    if size == 0:
        return float("nan")
    free = np.stack([body, np.ones_like(body)], axis=1).astype(np.float64)
    misfit = model.astype(np.float64) - field
    misfit -= free @ np.linalg.lstsq(free, misfit, rcond=None)[0]
    return float(np.linalg.norm(misfit) / size)


def reference(chi: np.ndarray, region: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Mean and spread of the reference region relative to the whole brain (ppm; a small spread is good).

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm, relative to any reference.
    region : ndarray of bool, (X, Y, Z)
        The reference region.
    mask : ndarray of bool, (X, Y, Z)
        The whole brain.

    Returns
    -------
    tuple of float
        Mean of the region minus mean of the brain, and standard deviation in the region, ppm; NaN for an empty region.

    Examples
    --------
    >>> chi = np.array([0.0, 0.1, 0.2, 0.3])
    >>> mean, sd = reference(chi, chi > 0.15, np.ones(4, bool))
    >>> (round(mean, 3), round(sd, 3))
    (0.1, 0.05)
    """
    inside = region & mask
    if not inside.any():
        return float("nan"), float("nan")
    return float(np.mean(chi[inside], dtype=np.float64) - np.mean(chi[mask], dtype=np.float64)), _sd(chi[inside])


def tail_asymmetry(chi: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], depth: float = 6.0) -> float:
    """Whether the strong sources inside the brain are paramagnetic (-1 to 1; positive is right).

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where it is valid.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    depth : float
        Distance from the outside to keep, mm: artefacts of either sign gather there. A mask without such an interior is used
        whole.

    Returns
    -------
    float
        ``(u - l) / (u + l)`` with u and l the distances of the 99.5th and the 0.5th percentile from the median.

    Notes
    -----
    Iron-rich nuclei and veins make the upper tail heavier than the lower in any brain without large calcifications.
    Reversing the sign of the phase reverses the sign of this number.

    Examples
    --------
    >>> chi = np.random.default_rng(0).exponential(size=(20, 20, 20)) * 0.01
    >>> full = np.ones(chi.shape, bool)
    >>> tail_asymmetry(chi, full, voxel_size=(1, 1, 1)) > 0.5 > -0.5 > tail_asymmetry(-chi, full, voxel_size=(1, 1, 1))
    True
    """
    low, middle, high = np.percentile(chi[_interior(mask, voxel_size, depth)].astype(np.float64), (0.5, 50, 99.5))
    spread = high - low
    return float((high - 2 * middle + low) / spread) if spread > 0 else float("nan")


def iron_contrast(
    chi: np.ndarray, r2star: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float], depth: float = 6.0
) -> float:
    """Susceptibility where R2* is high, relative to the brain's median (ppm; positive is right).

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm.
    r2star : ndarray, (X, Y, Z)
        R2*, 1/s.
    mask : ndarray of bool, (X, Y, Z)
        Where both are valid.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    depth : float
        Distance from the outside to keep, mm: near air R2* is high for another reason. A mask without such an interior is used
        whole.

    Returns
    -------
    float
        Mean of chi weighted by the excess of R2* over its 90th percentile, minus the median of chi, ppm; voxels above the
        99.9th percentile of R2* are left out as failed fits.

    Examples
    --------
    >>> chi = np.zeros((20, 20, 20)); chi[8:12, 8:12, 8:12] = 0.1
    >>> full = np.ones(chi.shape, bool)
    >>> round(iron_contrast(chi, 15 + 200 * chi, full, voxel_size=(1, 1, 1)), 3)
    0.1
    """
    inside = _interior(mask, voxel_size, depth)
    rate, values = r2star[inside].astype(np.float64), chi[inside].astype(np.float64)
    low, high = np.percentile(rate, (90, 99.9))
    weight = np.where(rate <= high, np.maximum(rate - low, 0), 0)
    return float(weight @ values / weight.sum() - np.median(values)) if weight.sum() > 0 else float("nan")


def nuclei_contrast(
    chi: np.ndarray,
    nuclei: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_size: Sequence[float],
    gap: float = 2.0,
    width: float = 4.0,
) -> float:
    """Susceptibility of iron-rich nuclei minus their surroundings (ppm; positive is right, 0.03 to 0.2 in adults).

    Parameters
    ----------
    chi : ndarray, (X, Y, Z)
        Susceptibility, ppm.
    nuclei : ndarray of bool, (X, Y, Z)
        The nuclei (globus pallidus, substantia nigra, red nucleus, …).
    mask : ndarray of bool, (X, Y, Z)
        Where susceptibility is valid.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    gap, width : float
        The surroundings are the shell between ``gap`` and ``gap + width`` mm from the nuclei.

    Returns
    -------
    float
        Difference of the medians, ppm; NaN when there is no nucleus or no shell in the mask.

    Examples
    --------
    >>> chi = np.zeros((24, 24, 24)); chi[10:14, 10:14, 10:14] = 0.12
    >>> round(nuclei_contrast(chi, chi > 0, np.ones(chi.shape, bool), voxel_size=(1, 1, 1)), 3)
    0.12
    """
    inside = nuclei & mask
    if not inside.any():
        return float("nan")
    distance = ndimage.distance_transform_edt(~nuclei, sampling=voxel_size)
    shell = mask & (distance > gap) & (distance <= gap + width)
    if not shell.any():
        return float("nan")
    return float(np.median(chi[inside].astype(np.float64)) - np.median(chi[shell].astype(np.float64)))


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The mask's bounding box."""
    if not mask.any():
        raise ValueError("the mask is empty")
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def _core(mask: np.ndarray, voxel_size: Sequence[float], depth: float) -> np.ndarray:
    """Voxels of the mask farther than ``depth`` mm from the outside."""
    box = _box(mask)
    core = np.zeros_like(mask)
    # One voxel around the box, where the image has one, so that the outside is seen on every side.
    wide = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    core[wide] = ndimage.distance_transform_edt(mask[wide], sampling=voxel_size) > depth
    return core if not mask.all() else mask.copy()


def _interior(mask: np.ndarray, voxel_size: Sequence[float], depth: float) -> np.ndarray:
    """:func:`_core`, or the whole mask when that leaves less than a tenth of it."""
    core = _core(mask, voxel_size, depth)
    return core if np.count_nonzero(core) > 0.1 * np.count_nonzero(mask) else mask


def _sd(values: np.ndarray) -> float:
    return float(np.std(values, dtype=np.float64))
