"""Fields and signals whose truth is known: analytic bodies, the gradient-echo signal and its acquisition, ways of storage.

The field of any susceptibility map is :func:`qsmflow.algorithms.dipole.forward_field`; heads are made by
:mod:`qsmflow.algorithms.phantom`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft

from qsmflow.algorithms.units import hz_per_ppm


def sphere(
    shape: Sequence[int], *, voxel_size: Sequence[float], radius: float, centre: Sequence[float] | None = None, chi: float = 1.0
) -> np.ndarray:
    """Susceptibility of a homogeneous sphere, with partial volume at its surface.

    Parameters
    ----------
    shape : sequence of int, (3,)
        Grid.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    radius : float
        Radius, mm.
    centre : sequence of float, (3,), optional
        Centre in voxels; ``shape // 2`` by default.
    chi : float
        Susceptibility against the medium, ppm.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, float32.

    Notes
    -----
    Voxels cut by the surface are sampled at 6 x 6 x 6 points.

    Examples
    --------
    >>> volume = sphere((24, 24, 24), voxel_size=(1, 1, 1), radius=8).sum()
    >>> bool(abs(volume / (4 / 3 * np.pi * 8**3) - 1) < 1e-3)
    True
    """
    position = _positions(shape, voxel_size, centre)
    return _partial_volume(position, voxel_size, lambda p: np.sqrt(sum(a * a for a in p)) - radius, chi)


def sphere_field(
    shape: Sequence[int],
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    radius: float,
    centre: Sequence[float] | None = None,
    chi: float = 1.0,
) -> np.ndarray:
    """Analytic field of a homogeneous sphere, Lorentz-corrected.

    Parameters
    ----------
    shape, voxel_size, radius, centre, chi
        As in :func:`sphere`.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.

    Returns
    -------
    ndarray, (X, Y, Z)
        Field, ppm of B0, float32.

    Notes
    -----
    Outside ``chi/3 (a/r)^3 (3 cos^2(theta) - 1)``, inside 0; first order in ``chi``.

    References
    ----------
    Salomir et al., Concepts Magn Reson B 19:26, 2003, doi:10.1002/cmr.b.10083.

    Examples
    --------
    A twelfth of chi at the pole, two radii from the centre:

    >>> field = sphere_field((33, 33, 33), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), radius=8)
    >>> round(float(field[16, 16, 32]) * 12, 6)
    1.0
    """
    position = _positions(shape, voxel_size, centre)
    square = sum(a * a for a in position)
    along = sum(a * b for a, b in zip(position, b0_dir, strict=True))
    square = np.maximum(square, 1e-12)
    outside = chi / 3 * (radius**2 / square) ** 1.5 * (3 * along**2 / square - 1)
    return np.where(square > radius**2, outside, 0).astype(np.float32)


def cylinder(
    shape: Sequence[int],
    *,
    voxel_size: Sequence[float],
    axis: Sequence[float],
    radius: float,
    centre: Sequence[float] | None = None,
    chi: float = 1.0,
) -> np.ndarray:
    """Susceptibility of a homogeneous cylinder that runs through the whole grid, with partial volume at its surface.

    Parameters
    ----------
    shape, voxel_size, radius, centre, chi
        As in :func:`sphere`.
    axis : sequence of float, (3,)
        Unit vector of the cylinder's axis in voxel axes.

    Returns
    -------
    ndarray, (X, Y, Z)
        Susceptibility, ppm, float32.

    Examples
    --------
    >>> area = cylinder((24, 24, 3), voxel_size=(1, 1, 1), axis=(0, 0, 1), radius=8)[..., 1].sum()
    >>> bool(abs(area / (np.pi * 8**2) - 1) < 2e-3)
    True
    """

    def outside(p: Sequence[np.ndarray]) -> np.ndarray:
        along = sum(a * u for a, u in zip(p, axis, strict=True))
        return np.sqrt(np.maximum(sum(a * a for a in p) - along**2, 0)) - radius

    return _partial_volume(_positions(shape, voxel_size, centre), voxel_size, outside, chi)


def cylinder_field(
    shape: Sequence[int],
    *,
    voxel_size: Sequence[float],
    b0_dir: Sequence[float],
    axis: Sequence[float],
    radius: float,
    centre: Sequence[float] | None = None,
    chi: float = 1.0,
) -> np.ndarray:
    """Analytic field of an infinite homogeneous cylinder, Lorentz-corrected.

    Parameters
    ----------
    shape, voxel_size, axis, radius, centre, chi
        As in :func:`cylinder`.
    b0_dir : sequence of float, (3,)
        Unit vector of the main field in voxel axes.

    Returns
    -------
    ndarray, (X, Y, Z)
        Field, ppm of B0, float32.

    Notes
    -----
    Outside ``chi/2 sin^2(theta) (a/rho)^2 cos(2 phi)``, inside ``chi/6 (3 cos^2(theta) - 1)``, with theta between axis and main
    field and phi from the main field's projection on the cross-section.

    References
    ----------
    Yablonskiy & Haacke, Magn Reson Med 32:749, 1994, doi:10.1002/mrm.1910320610.

    Examples
    --------
    Inside a vein along the main field, a third of chi:

    >>> field = cylinder_field((9, 9, 1), voxel_size=(1, 1, 1), b0_dir=(0, 0, 1), axis=(0, 0, 1), radius=3, chi=0.3)
    >>> round(float(field[4, 4, 0]), 4), abs(float(field[0, 4, 0]))
    (0.1, 0.0)
    """
    position = _positions(shape, voxel_size, centre)
    u, b = np.asarray(axis, float), np.asarray(b0_dir, float)
    cosine = float(u @ b)
    across = b - cosine * u
    along = sum(a * c for a, c in zip(position, u, strict=True))
    square = np.maximum(sum(a * a for a in position) - along**2, 1e-12)
    projection = sum(a * c for a, c in zip(position, across, strict=True))
    outside = chi / 2 * radius**2 / square * (2 * projection**2 / square - across @ across)
    return np.where(square > radius**2, outside, chi / 6 * (3 * cosine**2 - 1)).astype(np.float32)


def shim(field: np.ndarray, mask: np.ndarray, *, voxel_size: Sequence[float]) -> np.ndarray:
    """Take out what a scanner's shim coils of first and second order can: the solid harmonics that fit best inside the mask.

    Parameters
    ----------
    field : ndarray, (X, Y, Z)
        Field, ppm.
    mask : ndarray of bool, (X, Y, Z)
        Where the field is made homogeneous.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.

    Returns
    -------
    ndarray, (X, Y, Z)
        Shimmed field, ppm, float32; corrected outside the mask too.

    Notes
    -----
    Least squares of nine harmonics (degrees 0 to 2) over the mask. They have no Laplacian: the local field stays as it is.

    Examples
    --------
    >>> x, y, z = np.mgrid[-4.:5, -4.:5, -4.:5]
    >>> bool(abs(shim(3 + x + x * y - z * z + y * y, x * x < 9, voxel_size=(1, 1, 1))).max() < 1e-4)
    True
    """
    centre = [float(index.mean()) for index in np.nonzero(mask)]
    # Centimetres keep the columns of the fit of one size.
    x, y, z = (a / 10 for a in _positions(field.shape, voxel_size, centre))
    terms = (x**0, x, y, z, x * y, x * z, y * z, x**2 - y**2, 2 * z**2 - x**2 - y**2)
    inside = np.stack([np.broadcast_to(t, field.shape)[mask] for t in terms], axis=1)
    # Sums by einsum, not by BLAS, do not depend on the number of threads.
    normal, right = np.einsum("ni,nj->ij", inside, inside), np.einsum("ni,n->i", inside, field[mask].astype(np.float64))
    weights = np.linalg.solve(normal, right)
    return (field - sum(w * t for w, t in zip(weights, terms, strict=True))).astype(np.float32)


def smooth_variation(shape: Sequence[int], *, seed: int) -> np.ndarray:
    """A smooth random volume within [-1, 1], as the phase offset or the sensitivity of a receive coil varies over a head.

    Parameters
    ----------
    shape : sequence of int, (3,)
        Grid.
    seed : int
        Seed of the random coefficients.

    Returns
    -------
    ndarray, (X, Y, Z)
        float32, largest magnitude 1.

    Notes
    -----
    A polynomial of third degree with normal coefficients in coordinates that run from -1 to 1 over the grid.

    Examples
    --------
    >>> volume = smooth_variation((8, 9, 10), seed=1)
    >>> volume.shape, float(abs(volume).max())
    ((8, 9, 10), 1.0)
    """
    rng = np.random.default_rng(seed)
    axes = np.ix_(*(np.linspace(-1, 1, n) for n in shape))
    powers = [p for p in itertools.product(range(4), repeat=3) if 0 < sum(p) <= 3]
    weights = rng.normal(size=len(powers))
    result = sum(w * axes[0] ** i * axes[1] ** j * axes[2] ** k for w, (i, j, k) in zip(weights, powers, strict=True))
    return (result / np.abs(result).max()).astype(np.float32)


def signal(
    field: np.ndarray,
    r2star: np.ndarray,
    m0: np.ndarray,
    *,
    echo_times: Sequence[float],
    b0: float,
    offset: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Multi-echo gradient-echo signal, free of noise.

    Parameters
    ----------
    field : ndarray, (X, Y, Z)
        Total field, ppm of B0.
    r2star : ndarray, (X, Y, Z)
        R2*, 1/s.
    m0 : ndarray, (X, Y, Z)
        Signal at echo time 0.
    echo_times : sequence of float, (E,)
        Echo times, s.
    b0 : float
        Main field strength, T.
    offset : ndarray, (X, Y, Z), or float
        Phase at echo time 0, rad.

    Returns
    -------
    ndarray, (X, Y, Z, E)
        Signal, complex64.

    Notes
    -----
    ``S(TE) = m0 exp(-R2* TE) exp(i (offset + 2 pi gamma_bar B0 field TE))``.

    Examples
    --------
    1 ppm at 3 T turns by pi in 3.914 ms:

    >>> one = np.ones((1, 1, 1))
    >>> echo = signal(one, 0 * one, one, echo_times=[3.914e-3], b0=3.0)
    >>> round(float(echo.real.item()), 4)
    -1.0
    """
    rate = np.asarray(-r2star + 2j * math.pi * hz_per_ppm(b0=b0) * field, dtype=np.complex64)
    start = (m0 * np.exp(1j * np.asarray(offset, np.float32))).astype(np.complex64)
    return np.stack([start * np.exp(rate * np.float32(te)) for te in echo_times], axis=-1)


def coil_sensitivities(
    shape: Sequence[int], *, voxel_size: Sequence[float], coils: int, seed: int, variation: float = 1.0
) -> np.ndarray:
    """Complex sensitivities of an array of receive coils around the third axis.

    Parameters
    ----------
    shape : sequence of int, (3,)
        Grid.
    voxel_size : sequence of float, (3,)
        Voxel size, mm.
    coils : int
        Number of coils, C.
    seed : int
        Seed of the phases.
    variation : float
        Largest change of a coil's phase over the grid, beside its constant, rad.

    Returns
    -------
    ndarray, (X, Y, Z, C)
        Sensitivities, complex64; a signal times them is what the coils receive.

    Notes
    -----
    The magnitude is ``1 / (1 + (d / a)^2)`` with d the distance from the coil's centre, on an ellipse around the grid, and a
    half the largest side of the grid. The phase is a constant within (-pi, pi) plus a :func:`smooth_variation`.

    Examples
    --------
    >>> array = coil_sensitivities((8, 8, 6), voxel_size=(2, 2, 2), coils=4, seed=0)
    >>> array.shape, bool(abs(array[7, 4, 3, 0]) > 2 * abs(array[0, 4, 3, 0]))
    ((8, 8, 6, 4), True)
    """
    rng = np.random.default_rng(seed)
    half = [n * h / 2 for n, h in zip(shape, voxel_size, strict=True)]
    position = _positions(shape, voxel_size, [(n - 1) / 2 for n in shape])
    result = np.empty((*shape, coils), np.complex64)
    for coil, constant in enumerate(rng.uniform(-math.pi, math.pi, coils)):
        angle = 2 * math.pi * coil / coils
        centre = 1.2 * half[0] * math.cos(angle), 1.2 * half[1] * math.sin(angle), 0.0
        square = sum((p - c) ** 2 for p, c in zip(position, centre, strict=True))
        phase = constant + variation * smooth_variation(shape, seed=seed + coil + 1)
        result[..., coil] = np.exp(1j * phase) / (1 + square / max(half) ** 2)
    return result


def acquire(fine: np.ndarray, *, factor: Sequence[int], snr: float, reference: float, seed: int) -> np.ndarray:
    """Acquire a finely sampled signal with larger voxels and with noise.

    Parameters
    ----------
    fine : ndarray, (X, Y, Z, E)
        Complex signal on the fine grid, noise free.
    factor : sequence of int, (3,)
        Fine voxels per acquired voxel along each axis; divides the shape.
    snr : float
        Signal-to-noise ratio of a signal of magnitude ``reference``; 0 for no noise.
    reference : float
        Magnitude for which ``snr`` holds.
    seed : int
        Seed of the noise.

    Returns
    -------
    ndarray, (X / factor, Y / factor, Z / factor, E)
        Acquired signal, complex64.

    Notes
    -----
    The outer k-space is left out, as a scanner does, so that dephasing within a voxel, partial volume and Gibbs ringing are
    real. The centre of an acquired voxel is the centre of the fine voxels it replaces. Noise is white, complex and Gaussian,
    with standard deviation ``reference / snr`` in each part.

    Examples
    --------
    >>> low = acquire(np.ones((8, 8, 8, 1), np.complex64), factor=(2, 2, 2), snr=0, reference=1, seed=0)
    >>> low.shape, bool(np.allclose(low, 1))
    ((4, 4, 4, 1), True)
    """
    if any(n % f for n, f in zip(fine.shape, factor, strict=False)):
        raise ValueError(f"shape {fine.shape[:3]} is not a multiple of {tuple(factor)}")
    shape = [n // f for n, f in zip(fine.shape, factor, strict=False)]
    result = np.empty((*shape, fine.shape[3]), np.complex64)
    for echo in range(fine.shape[3]):
        result[..., echo] = _reduce(fine[..., echo], shape, factor)
    if snr:
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal((*result.shape, 2), dtype=np.float32) * np.float32(reference / snr)
        result += noise[..., 0] + 1j * noise[..., 1]
    return result


def block_mean(volume: np.ndarray, *, factor: Sequence[int]) -> np.ndarray:
    """Mean over blocks of ``factor`` voxels: the truth on the grid that :func:`acquire` gives.

    Parameters
    ----------
    volume : ndarray, (X, Y, Z)
        Volume on the fine grid.
    factor : sequence of int, (3,)
        Fine voxels per block along each axis; divides the shape.

    Returns
    -------
    ndarray, (X / factor, Y / factor, Z / factor)
        float32.

    Examples
    --------
    >>> block_mean(np.arange(8.0).reshape(2, 2, 2), factor=(2, 2, 2)).item()
    3.5
    """
    split = [n for size, f in zip(volume.shape, factor, strict=True) for n in (size // f, f)]
    return volume.reshape(split).mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32)


def reorient(volume: np.ndarray, affine: np.ndarray, *, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """Store an image with its axes in another order and direction, without interpolation.

    Parameters
    ----------
    volume : ndarray, (X, Y, Z) or (X, Y, Z, E)
        Image.
    affine : ndarray, (4, 4)
        Voxel indices to scanner mm (RAS+).
    codes : str
        Where the new axes point to, nearest: one letter of R/L, A/P, S/I for each, such as ``"LAS"`` (radiological), ``"PSR"``
        (sagittal slices) or ``"RSA"`` (coronal slices).

    Returns
    -------
    volume, affine : ndarray
        The same voxels at the same places of the scanner.

    Examples
    --------
    >>> volume, affine = reorient(np.zeros((4, 5, 6)), np.eye(4), codes="PSL")
    >>> volume.shape
    (5, 6, 4)
    >>> affine @ (0, 0, 0, 1)
    array([3., 4., 0., 1.])
    """
    world = ["RL".find, "AP".find, "SI".find]
    old = _closest_axes(affine)
    order, flips = [], []
    for code in codes:
        axis, end = next((a, find(code)) for a, find in enumerate(world) if find(code) >= 0)
        source = next(i for i, (a, _) in enumerate(old) if a == axis)
        order.append(source)
        flips.append((old[source][1] < 0) != bool(end))
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (source, flip) in enumerate(zip(order, flips, strict=True)):
        change[source, new] = -1 if flip else 1
        change[source, 3] = volume.shape[source] - 1 if flip else 0
    stored = volume.transpose(*order, *range(3, volume.ndim))
    stored = stored[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    return np.ascontiguousarray(stored), affine @ change


def tilt(affine: np.ndarray, shape: Sequence[int], *, degrees: float, axis: int = 0) -> np.ndarray:
    """Turn a field of view about its centre, as an oblique slab is planned on the scanner.

    Parameters
    ----------
    affine : ndarray, (4, 4)
        Voxel indices to scanner mm.
    shape : sequence of int, (3,)
        Grid.
    degrees : float
        Angle.
    axis : int
        Scanner axis to turn about: 0 (x, right), 1 (y, anterior) or 2 (z, superior).

    Returns
    -------
    ndarray, (4, 4)
        Affine of the turned grid; the main field stays along the scanner's z.

    Examples
    --------
    >>> turned = tilt(np.eye(4), (5, 5, 5), degrees=90)
    >>> np.round(turned @ (2, 2, 2, 1), 6) + 0, np.round(turned[2, :3], 6) + 0
    (array([2., 2., 2., 1.]), array([0., 1., 0.]))
    """
    i, j = (k for k in range(3) if k != axis)
    angle = math.radians(degrees) * (-1 if axis == 1 else 1)
    turn = np.eye(4)
    turn[i, i] = turn[j, j] = math.cos(angle)
    turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
    centre = (affine @ [*((n - 1) / 2 for n in shape), 1])[:3]
    turn[:3, 3] = centre - turn[:3, :3] @ centre
    return turn @ affine


def _positions(shape: Sequence[int], voxel_size: Sequence[float], centre: Sequence[float] | None) -> list[np.ndarray]:
    """Distance from ``centre`` along each axis, mm, shaped for broadcasting."""
    centre = [n // 2 for n in shape] if centre is None else centre
    return list(np.ix_(*((np.arange(n) - c) * h for n, c, h in zip(shape, centre, voxel_size, strict=True))))


def _partial_volume(
    position: Sequence[np.ndarray], voxel_size: Sequence[float], outside: Callable, chi: float, samples: int = 6
) -> np.ndarray:
    """``chi`` times the fraction of each voxel inside a body given by its signed distance, positive outside."""
    distance = np.broadcast_to(outside(position), tuple(p.size for p in position))
    result = (distance < 0).astype(np.float64)
    cut = np.abs(distance) < math.hypot(*voxel_size) / 2
    points = [np.broadcast_to(p, distance.shape)[cut] for p in position]
    steps = [(np.arange(samples) + 0.5) / samples - 0.5] * 3
    inside = [
        outside([p + d * h for p, d, h in zip(points, step, voxel_size, strict=True)]) < 0 for step in itertools.product(*steps)
    ]
    result[cut] = np.mean(inside, axis=0)
    return (chi * result).astype(np.float32)


def _reduce(volume: np.ndarray, shape: Sequence[int], factor: Sequence[int]) -> np.ndarray:
    """Keep the inner k-space, so that ``shape`` voxels fill the same field of view."""
    spectrum = scipy.fft.fftn(volume)
    for axis, (n, f) in enumerate(zip(shape, factor, strict=True)):
        k = np.rint(np.fft.fftfreq(n) * n).astype(int)
        # A shift by (f - 1) / 2 fine voxels moves the samples to the centres of the blocks.
        ramp = np.exp(1j * math.pi * k * (f - 1) / (n * f)) / f
        spectrum = np.take(spectrum, k, axis) * np.expand_dims(ramp, [a for a in range(3) if a != axis]).astype(np.complex64)
    return scipy.fft.ifftn(spectrum)


def _closest_axes(affine: np.ndarray) -> list[tuple[int, float]]:
    """For each array axis the scanner axis it runs along most nearly, and the sign; every scanner axis once."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(itertools.permutations(range(3)), key=lambda order: sum(abs(cosines[a, i]) for i, a in enumerate(order)))
    return [(a, float(np.sign(cosines[a, i]))) for i, a in enumerate(best)]
