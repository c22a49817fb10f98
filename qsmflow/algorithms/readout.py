"""Echoes read out in alternating directions: the phase by which odd and even ones differ, its size and its removal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from qsmflow.algorithms.coils import keeps_turns, unwrapped
from qsmflow.algorithms.unwrap.wrapping import TWO_PI, wrap

#: Whole turns of the mean field between two echoes that are thought of.
_MOST_TURNS = 2

#: Refinements of the linear part.
_REFINEMENTS = 3


def bipolar(
    phase: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    voxel_size: Sequence[float],
    threshold: float = 0.1,
    sigma: float = 10.0,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Find, and remove, the phase by which even echoes differ from odd ones (bipolar readout).

    Parameters
    ----------
    phase : ndarray
        Wrapped phase, (X, Y, Z, E), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where the phase is used, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s.
    voxel_size : sequence of float
        Voxel size, mm.
    threshold : float
        Root mean square of the difference from which on it is corrected, rad; 0 corrects always.
    sigma : float
        Standard deviation of the Gaussian that smooths what the difference has beside its linear part, mm.

    Returns
    -------
    phase : ndarray
        Phase of all echoes as if read out in one direction, (X, Y, Z, E), rad, float32; where nothing was corrected, the values
        of the input, and 0 outside the mask.
    asymmetry : ndarray
        What was taken from the even echoes, (X, Y, Z), rad, float32; 0 outside the mask, and everywhere if nothing was.
    asymmetry_size : float
        Root mean square over the mask of the difference that was found, corrected or not, rad.

    Raises
    ------
    ValueError
        If there are fewer than three echoes.

    Notes
    -----
    With ``phi_e = phi_0 + w TE_e`` and a difference G in even echoes, three neighbours give ``2 phi_2 - 2 phi_1 - 2 a (phi_3 -
    phi_1) = 2 G``, where a is the place of TE2 between TE1 and TE3; with an even spacing ``2 a = 1``, and nothing is unwrapped
    (else the step from echo 1 to 3 is, and its whole turns are those that make the mean of G smallest). Triplets around an odd
    echo give -2 G. Both kinds are averaged with equal weight, so that a phase that bends over the echoes, which is the same in
    both, cancels (with four echoes or more). G is a linear function, fitted by the phase steps between neighbouring voxels and
    refined by least squares, plus the rest smoothed as a complex number inside the mask. It is known up to half a turn: its
    mean is taken within a quarter turn of 0, and the remaining doubt is a constant of the field. With an uneven spacing the
    constant of G is not known at all.

    References
    ----------
    Li J, Chang S, Liu T, et al. Phase-corrected bipolar gradients in multi-echo gradient-echo sequences for quantitative
    susceptibility mapping. MAGMA 2015;28:347-355. doi:10.1007/s10334-014-0470-3

    Examples
    --------
    A gradient delay of 0.02 rad per voxel along the readout:

    >>> x = np.arange(-20.0, 20.0)[:, None, None, None] * np.ones((40, 6, 6, 1))
    >>> times = np.array([0.005, 0.010, 0.015, 0.020])
    >>> wrapped = wrap(0.3 * x + 50 * x * times + 0.02 * x * np.array([0, 1, 0, 1])).astype(np.float32)
    >>> inside = np.ones(x.shape[:3], bool)
    >>> _, asymmetry, size = bipolar(wrapped, np.ones_like(wrapped), inside, echo_times=times, voxel_size=(1, 1, 1))
    >>> bool(np.abs(asymmetry - 0.02 * x[..., 0]).max() < 1e-4), round(size, 3)
    (True, 0.231)
    """
    if phase.shape[3] < 3:
        raise ValueError("a difference between odd and even echoes needs at least three echoes")
    mask = np.ascontiguousarray(mask, dtype=bool)
    corrected, asymmetry = np.zeros(phase.shape, np.float32), np.zeros(mask.shape, np.float32)
    corrected[mask] = phase[mask]
    if not mask.any():
        return corrected, asymmetry, 0.0
    rest = _double_difference(phase, magnitude, mask, echo_times)
    linear = _linear(rest)
    rest *= _phasor(-linear)
    if sigma:
        for part in (rest.real, rest.imag):
            ndimage.gaussian_filter(part, [sigma / h for h in voxel_size], mode="constant", output=part)
    half = np.angle(rest)
    half += linear
    half /= 2
    half *= mask
    size = float(np.sqrt(np.mean(np.square(half[mask], dtype=np.float64))))
    if size >= threshold:
        asymmetry = half
        for echo in range(1, phase.shape[3], 2):
            corrected[..., echo] = wrap(corrected[..., echo] - asymmetry) * mask
    return corrected, asymmetry, size


def _double_difference(phase: np.ndarray, magnitude: np.ndarray, mask: np.ndarray, echo_times: Sequence[float]) -> np.ndarray:
    """``exp(2i G)`` with the weight of the data, complex64; 0 outside the mask."""
    sums = {True: np.zeros(mask.shape, np.complex64), False: np.zeros(mask.shape, np.complex64)}
    weights = {kind: np.zeros(mask.shape, np.float32) for kind in sums}
    for k in range(phase.shape[3] - 2):
        before, here, after = (phase[..., e].astype(np.float32, copy=False) for e in (k, k + 1, k + 2))
        weight = magnitude[..., k + 1] * np.sqrt(magnitude[..., k] * magnitude[..., k + 2]) * mask
        twice = 2 * (echo_times[k + 1] - echo_times[k]) / (echo_times[k + 2] - echo_times[k])
        step = wrap(after - before)
        if not keeps_turns(twice):
            step = unwrapped(step, weight, mask)
        is_even = k % 2 == 0  # the middle echo is the second, the fourth, ...
        step *= np.float32(-twice)
        step += 2 * (here - before)
        factor = _phasor(step)
        factor *= weight
        factor *= _least_turn(factor, twice)
        sums[is_even] += factor if is_even else np.conj(factor, out=factor)
        weights[is_even] += weight
        del weight, step, factor  # not beside those of the next triplet
    even, odd = sums[True], sums[False]
    if not odd.any():
        return even
    # Equal weight for both kinds, whatever the decay.
    ratio = np.divide(weights[False], weights[True], out=np.zeros(mask.shape, np.float32), where=weights[True] > 0)
    np.sqrt(ratio, out=ratio)
    even *= ratio
    even += np.divide(odd, ratio, out=odd, where=ratio > 0) * (ratio > 0)
    return even


def _phasor(angle: np.ndarray) -> np.ndarray:
    """``exp(i angle)``, complex64, without temporary volumes."""
    result = np.empty(angle.shape, np.complex64)
    np.cos(angle, out=result.real)
    np.sin(angle, out=result.imag)
    return result


def _least_turn(factor: np.ndarray, twice: float) -> np.complex64:
    """The factor by which whole turns of the step, which are not known, bring the mean angle nearest to 0."""
    mean = float(np.angle(np.sum(factor, dtype=np.complex128)))
    turns = min(range(-_MOST_TURNS, _MOST_TURNS + 1), key=lambda n: (abs(wrap(mean - TWO_PI * twice * n)), abs(n)))
    return np.complex64(np.exp(-1j * TWO_PI * twice * turns))


def _mean_step(factor: np.ndarray) -> complex:
    """Sum over pairs of neighbours along the first axis of one times the conjugate of the other."""
    here, after = factor[:-1], factor[1:]

    def summed(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.einsum("ijk,ijk->", a, b, dtype=np.float64))

    real = summed(here.real, after.real) + summed(here.imag, after.imag)
    return complex(real, summed(here.real, after.imag) - summed(here.imag, after.real))


def _linear(factor: np.ndarray) -> np.ndarray:
    """The linear function of the voxel indices that fits the angle of a complex image best, weighted by its magnitude, rad."""
    size = np.abs(factor)
    total = float(size.sum(dtype=np.float64))
    axes = [np.arange(n, dtype=np.float64) for n in factor.shape]
    profiles = [size.sum(axis=tuple(b for b in range(3) if b != a), dtype=np.float64) for a in range(3)]
    # About the centre of the weights the constant is the mean.
    axes = [axis - float(axis @ profile) / max(total, 1e-30) for axis, profile in zip(axes, profiles, strict=True)]
    grid = np.ix_(*axes)
    weights = np.array([0.0, *(np.angle(_mean_step(np.moveaxis(factor, axis, 0))) for axis in range(3))])

    turned = factor
    for w, axis in zip(weights[:0:-1], axes[::-1], strict=True):
        # In the precision of what there is: another would copy the volume.
        turned = np.einsum("...n,n->...", turned, np.exp(-1j * w * axis).astype(np.complex64))
    weights[0] = np.angle(turned)
    inside = size > 0
    columns = np.stack([np.broadcast_to(c, factor.shape)[inside] for c in (np.ones((1, 1, 1)), *grid)])
    # Sums by einsum, not by BLAS, do not depend on the number of threads; the ridge is for axes of one voxel.
    weighted = columns * size[inside]
    normal = np.einsum("in,jn->ij", weighted, columns) + 1e-12 * max(total, 1e-30) * np.eye(4)
    for _ in range(_REFINEMENTS):
        left = np.angle(factor[inside] * np.exp(-1j * np.einsum("i,in->n", weights, columns)))
        weights += np.linalg.solve(normal, np.einsum("in,n->i", weighted, left))
    return (weights[0] + sum(w * axis for w, axis in zip(weights[1:], grid, strict=True))).astype(np.float32)
