"""Phase offsets that do not grow with echo time: their estimation and removal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from qsmflow.algorithms.unwrap.growth import label_parts, unwrap_volume
from qsmflow.algorithms.unwrap.wrapping import TWO_PI, wrap

#: How near a factor must be to an integer for whole turns of what it multiplies to be whole turns again.
_INTEGER = 1e-3


def mcpc3ds(
    phase: np.ndarray,
    magnitude: np.ndarray,
    mask: np.ndarray,
    *,
    echo_times: Sequence[float],
    voxel_size: Sequence[float],
    sigma: float = 7.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Remove the phase offset that all echoes share (MCPC-3D-S for combined images).

    Parameters
    ----------
    phase : ndarray
        Wrapped phase, (X, Y, Z, E), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z, E), arbitrary units.
    mask : ndarray of bool
        Where to estimate and correct, (X, Y, Z).
    echo_times : sequence of float
        Echo times, ascending, s.
    voxel_size : sequence of float
        Voxel size, mm.
    sigma : float
        Standard deviation of the Gaussian that smooths the offset, mm; 0 leaves it unsmoothed.

    Returns
    -------
    phase : ndarray
        Phase without the offset, wrapped, (X, Y, Z, E), rad, float32; 0 outside the mask.
    offset : ndarray
        The offset, wrapped, (X, Y, Z), rad, float32; 0 outside the mask.

    Raises
    ------
    ValueError
        If there are fewer than two echoes.

    Notes
    -----
    With ``m = TE1 / (TE2 - TE1)`` the offset is ``phi_1 - m unwrap(phi_2 - phi_1)``. Where ``m`` is an integer, whole turns of
    the phase difference cancel and it is not unwrapped (ASPIRE); otherwise it is unwrapped by region growing, with its median
    within half a turn of 0 in every connected part of the mask. The offset is smoothed as the complex number ``exp(i offset)``,
    over voxels inside the mask only, so that its edge does not pull the estimate towards 0. Echoes must have one polarity.

    Examples
    --------
    A field and an offset that both vary in space:

    >>> x = np.linspace(-1, 1, 20)[:, None, None] * np.ones((20, 4, 4))
    >>> phase = wrap(0.8 * x[..., None] + 300 * x[..., None] * np.array([0.004, 0.012])).astype(np.float32)
    >>> inside = np.ones(x.shape, bool)
    >>> _, offset = mcpc3ds(phase, np.ones_like(phase), inside, echo_times=(0.004, 0.012), voxel_size=(1, 1, 1), sigma=0.0)
    >>> bool(np.allclose(offset, 0.8 * x, atol=1e-5))
    True

    References
    ----------
    Eckstein K, Dymerska B, Bachrata B, et al. Computationally efficient combination of multi-channel phase data from multi-echo
    acquisitions (ASPIRE). Magn Reson Med 2018;79:2996-3006. doi:10.1002/mrm.26963
    """
    if phase.shape[3] < 2:
        raise ValueError("phase-offset removal needs at least two echoes")
    mask = np.ascontiguousarray(mask, dtype=bool)
    first, second = (np.ascontiguousarray(phase[..., e], dtype=np.float32) for e in (0, 1))
    difference = wrap(second - first)
    m = echo_times[0] / (echo_times[1] - echo_times[0])
    if not keeps_turns(m):
        difference = unwrapped(difference, np.sqrt(magnitude[..., 0] * magnitude[..., 1], dtype=np.float32), mask)
    offset = _smooth(wrap(first - np.float32(m) * difference), mask, [sigma / h for h in voxel_size])
    corrected = np.zeros(phase.shape, np.float32)
    corrected[mask] = wrap(phase[mask].astype(np.float32, copy=False) - offset[mask][:, None])
    return corrected, offset


def keeps_turns(factor: float) -> bool:
    """Whether whole turns stay whole turns under a factor, so that phase need not be unwrapped before it is multiplied.

    Examples
    --------
    >>> keeps_turns(2.0), keeps_turns(0.5)
    (True, False)
    """
    return abs(factor - round(factor)) <= _INTEGER


def unwrapped(phase: np.ndarray, magnitude: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Phase of one volume unwrapped by region growing; the median of every connected part is within half a turn of 0.

    Parameters
    ----------
    phase : ndarray
        Wrapped phase, (X, Y, Z), rad.
    magnitude : ndarray
        Magnitude, (X, Y, Z), arbitrary units.
    mask : ndarray of bool
        Where to unwrap, (X, Y, Z).

    Returns
    -------
    ndarray
        Unwrapped phase, (X, Y, Z), rad, float32; outside the mask as it was.

    Examples
    --------
    >>> ramp = np.linspace(-8, 8, 40, dtype=np.float32)[:, None, None] * np.ones((40, 3, 3), np.float32)
    >>> bool(np.allclose(unwrapped(wrap(ramp), np.ones_like(ramp), ramp < 9), ramp, atol=1e-5))
    True
    """
    phase, magnitude, mask = (
        np.ascontiguousarray(a, t) for a, t in ((phase, np.float32), (magnitude, np.float32), (mask, bool))
    )
    turns = unwrap_volume(phase, magnitude, mask, label_parts(mask), weights="romeo4")
    return phase + np.float32(TWO_PI) * turns.reshape(mask.shape).astype(np.float32)


def _smooth(angle: np.ndarray, mask: np.ndarray, sigma: Sequence[float]) -> np.ndarray:
    """Angle of the Gaussian-smoothed complex exponential (the norm of the weights inside the mask cancels in the angle)."""
    if max(sigma) == 0:
        return np.where(mask, angle, 0)
    parts = [np.where(mask, part, 0) for part in (np.sin(angle), np.cos(angle))]
    return np.where(mask, np.arctan2(*(ndimage.gaussian_filter(part, sigma, mode="constant") for part in parts)), 0)
