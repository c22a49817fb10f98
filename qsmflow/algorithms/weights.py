"""Data weights from error maps, the same for every stage that weights."""

from __future__ import annotations

import numpy as np


def error_weights(field_error: np.ndarray, mask: np.ndarray, *, alike: float | None = None) -> np.ndarray:
    """Data weights from a field-error map: the inverse error, at most 1.

    Parameters
    ----------
    field_error : ndarray, (X, Y, Z)
        Standard deviation of the field, any unit; non-positive or non-finite values get weight 0.
    mask : ndarray of bool, (X, Y, Z)
        Where weights are wanted.
    alike : float, optional
        Errors up to this many times their median weigh 1, instead of those of the best tenth of the mask.

    Returns
    -------
    ndarray, (X, Y, Z)
        float32 in [0, 1], 0 outside the mask.

    Examples
    --------
    >>> error_weights(np.array([1.0, 1.0, 2.0, 0.0]), np.array([True, True, True, False]))
    array([1. , 1. , 0.5, 0. ], dtype=float32)
    """
    usable = mask & np.isfinite(field_error) & (field_error > 0)
    if not usable.any():
        raise ValueError("the field error is not positive anywhere in the mask")
    weights = np.zeros(mask.shape, np.float32)
    best = alike * np.median(field_error[usable]) if alike else np.percentile(field_error[usable], 10, method="lower")
    np.divide(best, field_error, out=weights, where=usable, casting="same_kind")
    return np.minimum(weights, 1)
