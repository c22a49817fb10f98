"""Phantoms: susceptibility of vials against the concentration of a paramagnetic compound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import constants
from scipy.stats import t as t_distribution

from qsmflow.errors import DatasetError
from qsmflow.group.collect import Cohort, read_table
from qsmflow.group.model import Model
from qsmflow.group.prepare import Data

#: Effective magnetic moments in Bohr magnetons: Gd3+, and high-spin Mn2+ and Fe3+.
MOMENTS = {"gadolinium": 7.94, "manganese": 5.92, "iron": 5.92}

_TABLE = "phantom.tsv"


def molar_susceptibility(compound: str, *, temperature: float) -> float:
    """Susceptibility that Curie's law gives to a paramagnetic ion.

    Parameters
    ----------
    compound : str
        Key of :data:`MOMENTS`.
    temperature : float
        Degrees Celsius.

    Returns
    -------
    float
        ppm (SI) per mmol/l.

    Notes
    -----
    ``chi = mu0 N_A (p mu_B)^2 / (3 k_B T)`` with the effective moment p.

    Examples
    --------
    >>> round(molar_susceptibility("gadolinium", temperature=20), 3), round(molar_susceptibility("iron", temperature=37), 3)
    (0.338, 0.178)
    """
    bohr = constants.physical_constants["Bohr magneton"][0]
    moment = (MOMENTS[compound] * bohr) ** 2
    kelvin = temperature + constants.zero_Celsius
    # one mmol/l is one mol/m3; ppm
    return constants.mu_0 * constants.N_A * moment / (3 * constants.k * kelvin) * 1e6


def concentrations(cohort: Cohort, model: Model) -> dict[str, float]:
    """Concentration of every vial in mM, from the model or from ``phantom.tsv`` in the dataset.

    Raises
    ------
    DatasetError
        If there is none, a number cannot be read, or fewer than three are known.
    """
    if model.concentrations:
        return dict(model.concentrations)
    path = Path(cohort.bids_dir, _TABLE)
    what = "with the columns name (of the region) and concentration (mM), or give 'concentrations:' in a model file"
    table = read_table(path, "name", f"write it {what}")
    if "concentration" not in table:
        raise DatasetError(f"{path} has no column 'concentration'; write it {what}")
    numbers = pd.to_numeric(table["concentration"], errors="coerce")
    if numbers.isna().any():
        raise DatasetError(f"{path}: the concentration of {', '.join(table.loc[numbers.isna(), 'name'])} is not a number")
    return dict(zip(table["name"], numbers.astype(float), strict=True))


def calibrate(cohort: Cohort, data: Data, model: Model) -> dict[str, pd.DataFrame]:
    """Regress susceptibility on concentration for every scan.

    Parameters
    ----------
    cohort, data, model
        As of the other analyses.

    Returns
    -------
    dict of DataFrame
        ``calibration`` one row per scan, ``vials`` one per scan and vial.

    Notes
    -----
    Weighted least squares ``chi = intercept + slope c`` with weights ``n / sd^2`` of the vials, where the region table has
    them. The intercept takes up the reference. ``ratio`` is the slope over Curie's molar susceptibility; ``loa_low`` and
    ``loa_high`` are Bland and Altman's limits of measured minus expected susceptibility.

    References
    ----------
    Deh et al., Magn Reson Med 81:1229, 2019, doi:10.1002/mrm.27410.
    """
    known = concentrations(cohort, model)
    regions = cohort.regions.set_index(["acquisition", "name"])
    expected = molar_susceptibility(model.compound, temperature=model.temperature)
    rows, vials = [], []
    for scan in data.people.index:
        names = [name for name in data.values if name in known and np.isfinite(data.values.at[scan, name])]
        c = np.array([known[name] for name in names])
        if len(set(c)) < 3:
            raise DatasetError(
                f"{scan}: {len(set(c))} different concentrations among the regions with values ({', '.join(data.values)}); a "
                f"slope needs at least 3. The concentrations are known for: {', '.join(known)}"
            )
        chi = data.values.loc[scan, names].to_numpy(float)
        rows.append({"scan": scan, "n": len(c), **_regress(c, chi, _weights(regions, scan, names, model), expected)})
        vials += [{"scan": scan, "name": v, "concentration": a, "chi": b} for v, a, b in zip(names, c, chi, strict=True)]
    return {"calibration": pd.DataFrame(rows), "vials": pd.DataFrame(vials)}


def _weights(regions: pd.DataFrame, scan: str, names: list[str], model: Model) -> np.ndarray:
    """``n / sd^2``, or equal weights where these are not known for all vials (or several scans were averaged)."""
    spread = model.measure.rsplit("_", 1)[0] + "_sd"
    places = [(scan, name) for name in names]
    if spread not in regions or not all(place in regions.index for place in places):
        return np.ones(len(names))
    n, sd = (pd.to_numeric(regions.loc[places, key], errors="coerce").to_numpy(float) for key in ("n_voxels", spread))
    weights = n / sd**2
    return weights if np.all(np.isfinite(weights)) and np.all(weights > 0) else np.ones(len(names))


def _regress(c: np.ndarray, chi: np.ndarray, weights: np.ndarray, expected: float) -> Mapping[str, float]:
    result = sm.WLS(chi, sm.add_constant(c), weights=weights / weights.mean()).fit()
    (intercept, slope), (low, high) = result.params, result.conf_int()[1]
    apart = chi - expected * c
    bias, spread = float(apart.mean()), float(apart.std(ddof=1))
    offset = t_distribution.ppf(0.975, result.df_resid) * result.bse[0]
    return {
        "slope": slope, "slope_se": result.bse[1], "slope_low": low, "slope_high": high, "intercept": intercept,
        "intercept_low": intercept - offset, "intercept_high": intercept + offset, "r2": result.rsquared,
        "sd_residual": math.sqrt(np.sum((chi - result.predict()) ** 2) / result.df_resid), "expected": expected,
        "ratio": slope / expected, "bias": bias, "loa_low": bias - 1.96 * spread, "loa_high": bias + 1.96 * spread,
    }  # fmt: skip
