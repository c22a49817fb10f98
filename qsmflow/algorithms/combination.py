"""Images of many receive coils become one: their phase offsets are estimated and taken away before the coils are summed.

A signal here is an array (X, Y, Z, E, C), echo before coil, or anything with that ``shape`` from which ``signal[..., e, c]``
gives one complex volume. Nothing else is asked of it, and no more than one coil is held at a time, so that a signal which is
read from files while it is combined needs no more memory with 32 coils than with one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from qsmflow.algorithms.coils import keeps_turns, unwrapped
from qsmflow.algorithms.masking import threshold
from qsmflow.algorithms.unwrap.wrapping import TWO_PI

#: Echo times are rounded in headers; what ASPIRE makes of a ratio this far off an integer is common to all coils.
_ROUNDED = 0.01

#: Combined phase and magnitude of all echoes, and the matching quality.
Combined = tuple[np.ndarray, np.ndarray, np.ndarray]


def roemer(signal: np.ndarray, reference: np.ndarray, *, voxel_size: Sequence[float], sigma: float = 7.0) -> Combined:
    """Combine coils by their sensitivities relative to a reference coil (Roemer).

    Parameters
    ----------
    signal : ndarray
        Complex images, (X, Y, Z, E, C), arbitrary units.
    reference : ndarray
        Complex image of a coil that sees everything (body coil, birdcage), (X, Y, Z, 1), arbitrary units.
    voxel_size : sequence of float
        Voxel size, mm.
    sigma : float
        Standard deviation of the Gaussian that smooths the sensitivities, mm; 0 leaves them unsmoothed.

    Returns
    -------
    phase : ndarray
        Combined phase, wrapped, (X, Y, Z, E), rad, float32.
    magnitude : ndarray
        Combined magnitude, (X, Y, Z, E), in the unit of the reference, float32.
    matching : ndarray
        Matching quality of the first echo, (X, Y, Z), %, float32.

    Raises
    ------
    ValueError
        If the reference has more than one coil.

    Notes
    -----
    With the sensitivity ``S_j = LP(I_j conj(R)) / LP(|R|^2)`` of the first echo (LP: Gaussian) every echo becomes ``sum_j
    conj(S_j) I_j / sum_j |S_j|^2``, for noise that is alike and uncorrelated in the coils. The magnitude has the shading of the
    reference, the phase its phase offset. Matching quality: see :func:`mcpc3ds_coils`. Nothing is masked.

    References
    ----------
    Roemer PB, Edelstein WA, Hayes CE, et al. The NMR phased array. Magn Reson Med 1990;16:192-225. doi:10.1002/mrm.1910160203

    Examples
    --------
    >>> image = np.arange(1, 65, dtype=np.complex64).reshape(4, 4, 4) * 1j
    >>> signal = np.stack([0.5j * image, 2 * image], axis=-1)[..., None, :]
    >>> phase, magnitude, matching = roemer(signal, image[..., None], voxel_size=(1, 1, 1))
    >>> bool(np.allclose(magnitude[..., 0], image.imag, rtol=1e-4)), float(matching.min().round(3))
    (True, 100.0)
    """
    if reference.shape[3] != 1:
        raise ValueError(f"a reference of one coil is needed, this one has {reference.shape[3]}")
    whole = reference[..., 0]
    power = _smooth((whole * whole.conj()).real, voxel_size, sigma)
    safe = np.where(power > 0, power, 1)

    def correction(coil: int) -> tuple[np.ndarray, np.ndarray]:
        sensitivity = _smooth(signal[..., 0, coil] * whole.conj(), voxel_size, sigma) / safe
        return _unit(sensitivity).conj(), np.abs(sensitivity)

    return _sum_coils(signal, correction)


def mcpcc(signal: np.ndarray, *, voxel_size: Sequence[float], radius: float = 5.0) -> Combined:
    """Combine coils after matching their phases in one place (MCPC-C).

    Parameters
    ----------
    signal : ndarray
        Complex images, (X, Y, Z, E, C), arbitrary units.
    voxel_size : sequence of float
        Voxel size, mm.
    radius : float
        Radius of the ball in which the phases are matched, mm.

    Returns
    -------
    phase, magnitude, matching : ndarray
        See :func:`mcpc3ds_coils`.

    Notes
    -----
    ``offset_j = arg sum_ball I_j`` of the first echo: one number per coil. The ball lies where the coil that sees least sees
    most. Offsets that vary in space, as they do at 7 T, let the signal cancel away from the ball: look at the matching quality.

    References
    ----------
    Hammond KE, Lupo JM, Xu D, et al. Development of a robust method for generating 7.0 T multichannel phase images of the
    brain with application to normal volunteers and patients with neurological diseases. NeuroImage 2008;39:1682-1692.
    doi:10.1016/j.neuroimage.2007.10.037

    Examples
    --------
    Coils that differ by a constant phase:

    >>> image = np.zeros((16, 16, 16), np.complex64); image[3:13, 3:13, 3:13] = 1
    >>> signal = np.stack([image * np.exp(1j * p) for p in (0.0, 1.0, 3.0)], axis=-1)[..., None, :]
    >>> _, _, matching = mcpcc(signal, voxel_size=(1, 1, 1))
    >>> float(matching[8, 8, 8].round(3))
    100.0
    """
    turns = _matching_turns(signal, voxel_size, radius)
    return _sum_coils(signal, lambda coil: (turns[coil], None))


def vrc(signal: np.ndarray, *, voxel_size: Sequence[float], radius: float = 5.0, sigma: float = 7.0) -> Combined:
    """Combine coils with the phase of a virtual reference coil.

    Parameters
    ----------
    signal : ndarray
        Complex images, (X, Y, Z, E, C), arbitrary units.
    voxel_size : sequence of float
        Voxel size, mm.
    radius : float
        Radius of the ball in which phases are matched to form the virtual coil, mm.
    sigma : float
        Standard deviation of the Gaussian that smooths the offsets, mm; 0 leaves them unsmoothed.

    Returns
    -------
    phase, magnitude, matching : ndarray
        See :func:`mcpc3ds_coils`.

    Notes
    -----
    The virtual coil V is what MCPC-C makes of the first echo (:func:`mcpcc`); ``offset_j = arg LP(I_j conj(V) / |V|)``. One
    echo is enough, and nothing is unwrapped. V's own phase stays in the result. Where V vanishes in the object, the result has
    a singularity.

    References
    ----------
    Parker DL, Payne A, Todd N, Hadley JR. Phase reconstruction from multiple coil data using a virtual reference coil.
    Magn Reson Med 2014;72:563-569. doi:10.1002/mrm.24932

    Examples
    --------
    >>> image = np.zeros((16, 16, 16), np.complex64); image[3:13, 3:13, 3:13] = 1
    >>> ramp = np.exp(0.1j * np.arange(16.0))[:, None, None]
    >>> signal = np.stack([image * ramp, image / ramp], axis=-1)[..., None, :].astype(np.complex64)
    >>> _, _, matching = vrc(signal, voxel_size=(1, 1, 1), sigma=0.0)
    >>> float(matching[4, 8, 8].round(3))
    100.0
    """
    virtual = np.zeros(signal.shape[:3], np.complex64)
    for coil, turn in enumerate(_matching_turns(signal, voxel_size, radius)):
        image = signal[..., 0, coil]
        virtual += np.abs(image) * image * turn
    return _sum_coils(signal, _against(signal, _unit(virtual), 0, voxel_size, sigma))


def mcpc3d(signal: np.ndarray, *, echo_times: Sequence[float], voxel_size: Sequence[float], sigma: float = 7.0) -> Combined:
    """Combine coils with offsets from two echoes, each unwrapped in each coil (MCPC-3D).

    Parameters
    ----------
    signal : ndarray
        Complex images, (X, Y, Z, E, C), arbitrary units.
    echo_times : sequence of float
        Echo times, ascending, s.
    voxel_size : sequence of float
        Voxel size, mm.
    sigma : float
        Standard deviation of the Gaussian that smooths the offsets, mm; 0 leaves them unsmoothed.

    Returns
    -------
    phase, magnitude, matching : ndarray
        See :func:`mcpc3ds_coils`.

    Raises
    ------
    ValueError
        If there are fewer than two echoes.

    Notes
    -----
    ``offset_j = (TE2 phi_j1 - TE1 phi_j2) / (TE2 - TE1)`` with both phases unwrapped by region growing where there is signal.
    The whole turns between the two echoes are those that bring the median of ``phi_j2 - phi_j1`` nearest to the mean phase
    difference of all coils. It unwraps twice per coil, and an error in a dark part of a coil goes into its offset: prefer
    :func:`mcpc3ds_coils`, which unwraps once.

    References
    ----------
    Robinson S, Grabner G, Witoszynskyj S, Trattnig S. Combining phase images from multi-channel RF coils using 3D phase offset
    maps derived from a dual-echo scan. Magn Reson Med 2011;65:1638-1648. doi:10.1002/mrm.22753

    Examples
    --------
    >>> image = np.zeros((16, 16, 16), np.complex64); image[3:13, 3:13, 3:13] = 1
    >>> ramp = np.arange(16.0)[:, None, None]
    >>> echoes = [np.stack([image * np.exp(1j * (s * ramp + 60 * ramp * t)) for s in (0.1, -0.1)], -1) for t in (0.004, 0.010)]
    >>> _, _, matching = mcpc3d(np.stack(echoes, 3), echo_times=(0.004, 0.010), voxel_size=(1, 1, 1), sigma=0.0)
    >>> float(matching[4, 8, 8].round(3))
    100.0
    """
    product, power = _hermitian(signal, 0, 1)
    seen = _signal(power, voxel_size)
    mean = np.angle(np.sum(product[seen], dtype=np.complex128))
    near, far = echo_times[0], echo_times[1]

    def correction(coil: int) -> tuple[np.ndarray, None]:
        one, two = signal[..., 0, coil], signal[..., 1, coil]
        first, second = (unwrapped(np.angle(image), np.abs(image), seen) for image in (one, two))
        excess = np.median((second - first)[seen]) - mean
        second -= np.float32(TWO_PI * np.rint(excess / TWO_PI))
        offset = (far * first - near * second) / (far - near)
        return _unit(_smooth(np.abs(one) * seen * np.exp(1j * offset, dtype=np.complex64), voxel_size, sigma)).conj(), None

    return _sum_coils(signal, correction)


def mcpc3ds_coils(
    signal: np.ndarray, *, echo_times: Sequence[float], voxel_size: Sequence[float], sigma: float = 7.0
) -> Combined:
    """Combine coils with offsets from two echoes and one unwrapped phase difference (MCPC-3D-S).

    Parameters
    ----------
    signal : ndarray
        Complex images, (X, Y, Z, E, C), arbitrary units.
    echo_times : sequence of float
        Echo times, ascending, s.
    voxel_size : sequence of float
        Voxel size, mm.
    sigma : float
        Standard deviation of the Gaussian that smooths the offsets, mm; 0 leaves them unsmoothed.

    Returns
    -------
    phase : ndarray
        Combined phase, wrapped, (X, Y, Z, E), rad, float32.
    magnitude : ndarray
        Combined magnitude, (X, Y, Z, E), float32.
    matching : ndarray
        Matching quality of the first echo, (X, Y, Z), %, float32.

    Raises
    ------
    ValueError
        If there are fewer than two echoes.

    Notes
    -----
    ``offset_j = arg LP(I_j1 exp(-i m D))`` with ``m = TE1 / (TE2 - TE1)``, LP a Gaussian and D the phase of ``sum_j conj(I_j1)
    I_j2``, in which the offsets cancel. D is unwrapped by region growing where there is signal, unless ``m`` is an integer, so
    that whole turns cancel. The combined echo is ``C = sum_j |I_j| I_j exp(-i offset_j)``, its phase that of C and its
    magnitude ``sqrt(|C|)``. The matching quality is ``100 |sum_j I_j exp(-i offset_j)| / sum_j |I_j|``: 100 where all coils
    agree. Nothing is masked; outside the object the offsets are continued by the tails of the Gaussian. Echoes must have one
    polarity for the phase to be free of offsets; that coils match does not depend on it.

    References
    ----------
    Eckstein K, Dymerska B, Bachrata B, et al. Computationally efficient combination of multi-channel phase data from multi-echo
    acquisitions (ASPIRE). Magn Reson Med 2018;79:2996-3006. doi:10.1002/mrm.26963

    Examples
    --------
    >>> image = np.zeros((16, 16, 16), np.complex64); image[3:13, 3:13, 3:13] = 1
    >>> ramp = np.arange(16.0)[:, None, None]
    >>> echoes = [np.stack([image * np.exp(1j * (s * ramp + 60 * ramp * t)) for s in (0.1, -0.1)], -1) for t in (0.004, 0.010)]
    >>> _, _, matching = mcpc3ds_coils(np.stack(echoes, 3), echo_times=(0.004, 0.010), voxel_size=(1, 1, 1), sigma=0.0)
    >>> float(matching[4, 8, 8].round(3))
    100.0
    """
    product, power = _hermitian(signal, 0, 1)
    seen = _signal(power, voxel_size)
    m = echo_times[0] / (echo_times[1] - echo_times[0])
    difference = np.angle(product)
    if not keeps_turns(m):
        difference = unwrapped(difference, np.sqrt(np.abs(product)), seen)
    common = seen * np.exp(1j * np.float32(m) * difference, dtype=np.complex64)
    return _sum_coils(signal, _against(signal, common, 0, voxel_size, sigma))


def aspire(signal: np.ndarray, *, echo_times: Sequence[float], voxel_size: Sequence[float], sigma: float = 7.0) -> Combined:
    """Combine coils with offsets from two echoes whose times make unwrapping needless (ASPIRE).

    Parameters
    ----------
    signal : ndarray
        Complex images, (X, Y, Z, E, C), arbitrary units.
    echo_times : sequence of float
        Echo times, ascending, s.
    voxel_size : sequence of float
        Voxel size, mm.
    sigma : float
        Standard deviation of the Gaussian that smooths the offsets, mm; 0 leaves them unsmoothed.

    Returns
    -------
    phase, magnitude, matching : ndarray
        See :func:`mcpc3ds_coils`.

    Raises
    ------
    ValueError
        If no two echoes fit.

    Notes
    -----
    As MCPC-3D-S (:func:`mcpc3ds_coils`), but with the two echoes that :func:`aspire_echoes` finds: ``m`` is an integer, whole
    turns of the phase difference cancel, and neither an unwrapping error nor a mask can do harm.

    References
    ----------
    Eckstein K, Dymerska B, Bachrata B, et al. Computationally efficient combination of multi-channel phase data from multi-echo
    acquisitions (ASPIRE). Magn Reson Med 2018;79:2996-3006. doi:10.1002/mrm.26963

    Examples
    --------
    >>> image = np.zeros((16, 16, 16), np.complex64); image[3:13, 3:13, 3:13] = 1
    >>> ramp = np.arange(16.0)[:, None, None]
    >>> echoes = [np.stack([image * np.exp(1j * (s * ramp + 60 * ramp * t)) for s in (0.1, -0.1)], -1) for t in (0.005, 0.010)]
    >>> _, _, matching = aspire(np.stack(echoes, 3), echo_times=(0.005, 0.010), voxel_size=(1, 1, 1), sigma=0.0)
    >>> float(matching[4, 8, 8].round(3))
    100.0
    """
    first, second, m = aspire_echoes(echo_times)
    product, _ = _hermitian(signal, first, second)
    common = _unit(product) ** m
    return _sum_coils(signal, _against(signal, common, first, voxel_size, sigma))


def composer(signal: np.ndarray, reference: np.ndarray, *, voxel_size: Sequence[float], sigma: float = 7.0) -> Combined:
    """Combine coils with offsets from a reference scan of very short echo time (COMPOSER).

    Parameters
    ----------
    signal : ndarray
        Complex images, (X, Y, Z, E, C), arbitrary units.
    reference : ndarray
        Complex images of the same coils at an echo time of about 1 ms or less, (X, Y, Z, C), arbitrary units.
    voxel_size : sequence of float
        Voxel size, mm.
    sigma : float
        Standard deviation of the Gaussian that smooths the offsets, mm; 0 leaves them unsmoothed.

    Returns
    -------
    phase, magnitude, matching : ndarray
        See :func:`mcpc3ds_coils`.

    Raises
    ------
    ValueError
        If the reference has another number of coils.

    Notes
    -----
    ``offset_j = arg LP(R_j)`` with LP a Gaussian: at so short an echo time the field has hardly turned the phase. What it did
    (0.1 rad for 20 Hz and 0.8 ms) is smooth, common to all coils and left to the removal of phase offsets.

    References
    ----------
    Robinson SD, Dymerska B, Bogner W, et al. Combining phase images from array coils using a short echo time reference scan
    (COMPOSER). Magn Reson Med 2017;77:318-327. doi:10.1002/mrm.26093

    Examples
    --------
    >>> image, ramp = np.ones((8, 8, 8), np.complex64), np.exp(0.3j * np.arange(8.0))[:, None, None]
    >>> reference = np.stack([image * ramp, image / ramp], axis=-1)
    >>> _, _, matching = composer(reference[..., None, :] * 1j, reference, voxel_size=(1, 1, 1), sigma=0.0)
    >>> float(matching.min().round(3))
    100.0
    """
    if reference.shape[3] != signal.shape[4]:
        raise ValueError(f"the reference scan has {reference.shape[3]} coils, the acquisition {signal.shape[4]}")
    return _sum_coils(signal, lambda coil: (_unit(_smooth(reference[..., coil], voxel_size, sigma)).conj(), None))


def aspire_echoes(echo_times: Sequence[float]) -> tuple[int, int, int]:
    """The two echoes from which ASPIRE estimates offsets.

    Parameters
    ----------
    echo_times : sequence of float
        Echo times, ascending, s.

    Returns
    -------
    first, second, m : int
        Indices of the echoes, and their ``m = TE_first / (TE_second - TE_first)``, the smallest there is (noise grows with it).

    Raises
    ------
    ValueError
        If ``m`` is an integer (within 0.01) for no two echoes.

    Examples
    --------
    >>> aspire_echoes([0.003, 0.008, 0.016])
    (1, 2, 1)
    """
    found = []
    for first, near in enumerate(echo_times):
        for second in range(first + 1, len(echo_times)):
            m = near / (echo_times[second] - near)
            if round(m) > 0 and abs(m - round(m)) < _ROUNDED:
                found.append((round(m), first, second))
    if not found:
        times = ", ".join(f"{1000 * time:.4g}" for time in echo_times)
        raise ValueError(f"ASPIRE needs two echo times in a ratio of m to m + 1 (best: TE2 = 2 TE1), not {times} ms")
    m, first, second = min(found)
    return first, second, m


def _sum_coils(signal: np.ndarray, correction: Callable[[int], tuple]) -> Combined:
    """Sum the coils.

    ``correction(coil)`` gives the phase factor that takes the coil's offset away, and the weight of the coil (None: its own
    magnitude, whose square the sum then has).
    """
    *shape, echoes, coils = signal.shape
    sums = [np.zeros(shape, np.complex64) for _ in range(echoes)]
    aligned, total, norm = np.zeros(shape, np.complex64), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    weighted = False
    for coil in range(coils):
        turn, weight = correction(coil)
        weighted = weight is not None
        for echo in range(echoes):
            image = signal[..., echo, coil] * turn
            size = np.abs(image)
            if echo == 0:
                aligned += image
                total += size
            sums[echo] += (weight if weighted else size) * image
        if weighted:
            norm += weight * weight
    phase, magnitude = np.empty((*shape, echoes), np.float32), np.empty((*shape, echoes), np.float32)
    for echo, summed in enumerate(sums):
        phase[..., echo] = np.angle(summed)
        size = np.abs(summed)
        magnitude[..., echo] = np.divide(size, norm, out=np.zeros_like(size), where=norm > 0) if weighted else np.sqrt(size)
    matching = np.divide(np.abs(aligned), total, out=np.zeros_like(total), where=total > 0)
    return phase, magnitude, 100 * np.minimum(matching, np.float32(1))


def _against(
    signal: np.ndarray, common: np.ndarray, echo: int, voxel_size: Sequence[float], sigma: float
) -> Callable[[int], tuple]:
    """Corrections for offsets against a phase that all coils share: the phase factors ``common`` of one echo."""

    def correction(coil: int) -> tuple[np.ndarray, None]:
        return _unit(_smooth(signal[..., echo, coil] * common.conj(), voxel_size, sigma)).conj(), None

    return correction


def _hermitian(signal: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """``sum_j conj(I_j,first) I_j,second`` and ``sum_j |I_j,first|^2``."""
    if signal.shape[3] < 2:
        raise ValueError("offsets from a phase difference need at least two echoes")
    product, power = np.zeros(signal.shape[:3], np.complex64), np.zeros(signal.shape[:3], np.float32)
    for coil in range(signal.shape[4]):
        image = signal[..., first, coil]
        product += image.conj() * signal[..., second, coil]
        power += np.abs(image) ** 2
    return product, power


def _matching_turns(signal: np.ndarray, voxel_size: Sequence[float], radius: float) -> list[np.complex64]:
    """Phase factors that make all coils agree in a ball around the voxel where the coil that sees least sees most."""
    coils = signal.shape[4]
    power, least = np.zeros(signal.shape[:3], np.float32), np.full(signal.shape[:3], np.inf, np.float32)
    for coil in range(coils):
        size = np.abs(signal[..., 0, coil])
        power += size * size
        mean = float(size.mean(dtype=np.float64))
        if mean > 0:  # a coil without signal has no say
            np.minimum(least, size / np.float32(mean), out=least)
    seen = _signal(power, voxel_size)
    place = np.argmax(np.where(seen, _smooth(least, voxel_size, radius / 2), -1))
    centre = np.unravel_index(place, seen.shape)
    grid = np.ix_(*((np.arange(n) - c) * h for n, c, h in zip(seen.shape, centre, voxel_size, strict=True)))
    ball = seen & (sum(axis**2 for axis in grid) <= radius**2)
    sums = [signal[..., 0, coil][ball].sum(dtype=np.complex128) for coil in range(coils)]
    return [np.complex64(np.exp(-1j * np.angle(value))) for value in sums]


def _signal(power: np.ndarray, voxel_size: Sequence[float]) -> np.ndarray:
    """Where there is signal, from the sum of squares of the coils."""
    if not power.any():
        raise ValueError("no coil has any signal")
    return threshold(np.sqrt(power)[..., np.newaxis], voxel_size=voxel_size)


def _smooth(image: np.ndarray, voxel_size: Sequence[float], sigma: float) -> np.ndarray:
    """Gaussian over ``sigma`` mm of a real or complex image that is 0 beyond its borders."""
    if sigma == 0:
        return image
    return ndimage.gaussian_filter(image, [sigma / h for h in voxel_size], mode="constant")


def _unit(values: np.ndarray) -> np.ndarray:
    """Complex numbers divided by their magnitude; 1 for 0."""
    size = np.abs(values)
    return np.where(size > 0, values / np.where(size > 0, size, 1), 1).astype(np.complex64, copy=False)
