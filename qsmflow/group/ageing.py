"""Values against age: straight line, parabola, saturating exponential; chosen by AICc, with bootstrap bands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from qsmflow.group.linear import Design, NotFittedError, adjust, design, fit
from qsmflow.group.model import Model
from qsmflow.group.prepare import Data

CURVES = ("linear", "quadratic", "exponential")

#: Rates of the exponential that are tried, 1/year. Outside of them the curve is a step or a line.
_RATES = np.geomspace(0.005, 0.3, 90)

#: Iron in mg per 100 g of wet tissue: plateau, rate (1/year), start. Not read in the paper itself: two laboratories that
#: took them from it independently agree, one by these coefficients, one by values at 30 years with four digits.
HALLGREN = {"GP": (21.41, 0.09, 0.37), "Putamen": (14.62, 0.04, 0.46), "Caudate": (9.66, 0.05, 0.33)}
_HALLGREN_NAMES = {
    "gp": "GP", "gpe": "GP", "gpi": "GP", "pallidum": "GP", "globuspallidus": "GP", "pu": "Putamen", "putamen": "Putamen",
    "ca": "Caudate", "caudate": "Caudate", "cn": "Caudate",
}  # fmt: skip


def hallgren(region: str, age: np.ndarray) -> np.ndarray | None:
    """Iron that Hallgren and Sourander found in a nucleus, mg per 100 g of wet tissue; None for others.

    Regions go by the names of the packaged atlas and by usual ones, of one side or of both.

    References
    ----------
    Hallgren & Sourander, J Neurochem 3:41, 1958, doi:10.1111/j.1471-4159.1958.tb12607.x.

    Examples
    --------
    >>> hallgren("Putamen", np.array([10.0, 50.0, 90.0])).round(1).tolist()
    [5.3, 13.1, 14.7]
    >>> [round(float(hallgren(name, 30)), 2) for name in ("Caudate", "Putamen", "Pallidum")]
    [7.83, 10.68, 20.34]
    """
    words = [
        word for word in region.replace("-", " ").replace("_", " ").lower().split() if word not in ("l", "r", "left", "right")
    ]
    key = _HALLGREN_NAMES.get("".join(words))
    if key is None:
        return None
    plateau, rate, start = HALLGREN[key]
    return plateau * (1 - np.exp(-rate * np.asarray(age, float))) + start


@dataclass(frozen=True, eq=False)
class Curve:
    """A fitted curve: ``form`` of :data:`CURVES`, coefficients of its columns and of the covariates; ``rate`` (exponential)."""

    form: str
    coefficients: np.ndarray
    aicc: float
    rate: float = math.nan
    identified: bool = True

    def __call__(self, age: np.ndarray, centre: float) -> np.ndarray:
        """The curve at the mean of the covariates."""
        columns = basis(self.form, age, centre, self.rate)
        return columns @ self.coefficients[: columns.shape[1]]


def basis(form: str, age: np.ndarray, centre: float, rate: float = math.nan) -> np.ndarray:
    """Columns of a curve: 1 with the centred age, its square, or ``1 - exp(-rate age)``."""
    age = np.asarray(age, float)
    one = np.ones_like(age)
    if form == "exponential":
        return np.column_stack([one, 1 - np.exp(-rate * age)])
    return np.column_stack([one, age - centre, (age - centre) ** 2][: 2 if form == "linear" else 3])


def aicc(residual: float, scans: int, parameters: int) -> float:
    """Akaike's criterion with the correction for small samples; ``parameters`` includes the variance.

    References
    ----------
    Hurvich & Tsai, Biometrika 76:297, 1989, doi:10.1093/biomet/76.2.297.

    Examples
    --------
    >>> round(aicc(10.0, 20, 3), 3)
    -6.363
    """
    if scans - parameters - 1 <= 0:
        return math.inf
    return (
        scans * math.log(max(residual, 1e-300) / scans)
        + 2 * parameters
        + 2 * parameters * (parameters + 1) / (scans - parameters - 1)
    )


def fit_curves(values: np.ndarray, age: np.ndarray, covariates: np.ndarray) -> dict[str, Curve]:
    """All curves for one region, by least squares.

    Parameters
    ----------
    values, age : ndarray, (scans,)
    covariates : ndarray, (scans, covariates)
        Centred.

    Returns
    -------
    dict of Curve

    Notes
    -----
    The exponential is ``a (1 - exp(-b age)) + c``. Its start is the best of 90 rates between 0.005 and 0.3 per year (for a
    given rate the rest is linear); a trust-region method finishes. It counts as identified when the rate stays within these
    limits and somebody is younger than 40, since older people lie on its plateau.
    """
    found = {}
    for form in ("linear", "quadratic"):
        columns = np.column_stack([basis(form, age, age.mean()), covariates])
        coefficients = np.linalg.lstsq(columns, values, rcond=None)[0]
        residual = float(np.sum((values - columns @ coefficients) ** 2))
        found[form] = Curve(form, coefficients, aicc(residual, len(values), columns.shape[1] + 1))
    found["exponential"] = _exponential(values, age, covariates)
    return found


def _exponential(values: np.ndarray, age: np.ndarray, covariates: np.ndarray) -> Curve:
    coefficients, rate, _ = _profile(values, age, covariates, np.ones((1, len(values))))

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.column_stack([basis("exponential", age, 0.0, parameters[0]), covariates]) @ parameters[1:] - values

    start = np.array([rate[0], *coefficients[0]])
    free = np.full(len(start) - 1, np.inf)
    limits = ([_RATES[0] * 0.999, *-free], [_RATES[-1] * 1.001, *free])
    best = least_squares(residuals, start, bounds=limits, x_scale=np.maximum(np.abs(start), 1e-6), xtol=1e-10).x
    inside = 1.01 * _RATES[0] < best[0] < 0.99 * _RATES[-1]
    residual = float(np.sum(residuals(best) ** 2))
    return Curve(
        "exponential", best[1:], aicc(residual, len(values), len(best) + 1), float(best[0]), bool(inside and age.min() < 40)
    )


def _profile(
    values: np.ndarray, age: np.ndarray, covariates: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best rate of :data:`_RATES` for every row of weights, with its coefficients and residual sum of squares."""
    best = np.full(len(weights), np.inf)
    rates = np.empty(len(weights))
    coefficients = np.empty((len(weights), 2 + covariates.shape[1]))
    for rate in _RATES:
        found, residual = _weighted(np.column_stack([basis("exponential", age, 0.0, rate), covariates]), values, weights)
        better = residual < best
        best[better], rates[better], coefficients[better] = residual[better], rate, found[better]
    return coefficients, rates, best


def _weighted(columns: np.ndarray, values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares for many sets of weights at once: coefficients (sets, columns), residual sums of squares (sets,)."""
    size = columns.shape[1]
    squares = (weights @ (columns[:, :, None] * columns[:, None, :]).reshape(len(columns), -1)).reshape(-1, size, size)
    right = weights @ (columns * values[:, None])
    # A factor's level may be absent from a resample; a trace of ridge keeps its column from being singular.
    ridge = 1e-10 * np.trace(squares, axis1=1, axis2=2)[:, None, None] * np.eye(size)
    coefficients = np.linalg.solve(squares + ridge, right[..., None])[..., 0]
    fitted = coefficients @ columns.T
    return coefficients, np.einsum("bn,bn->b", weights, (values - fitted) ** 2)


def bootstrap(
    curve: Curve, values: np.ndarray, age: np.ndarray, covariates: np.ndarray, participants: np.ndarray, at: np.ndarray, *,
    number: int, seed: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Confidence band of a curve.

    Parameters
    ----------
    curve : Curve
        Its form is fitted to every resample.
    values, age : ndarray, (scans,)
    covariates : ndarray, (scans, covariates)
    participants : ndarray, (scans,)
        Who was scanned; participants are drawn, with all their scans.
    at : ndarray, (ages,)
        Where the band is wanted.
    number, seed : int
        Resamples, and the seed of their draw.

    Returns
    -------
    low, high : ndarray, (ages,)
        2.5th and 97.5th percentile.
    """
    who, member = np.unique(participants, return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(who), np.full(len(who), 1 / len(who)), size=number)
    weights = draws[:, member].astype(float)
    if curve.form == "exponential":
        coefficients, rates, _ = _profile(values, age, covariates, weights)
        lines = coefficients[:, :1] + coefficients[:, 1:2] * (1 - np.exp(-rates[:, None] * at))
    else:
        columns = basis(curve.form, age, age.mean())
        coefficients, _ = _weighted(np.column_stack([columns, covariates]), values, weights)
        lines = coefficients[:, : columns.shape[1]] @ basis(curve.form, at, age.mean()).T
    low, high = np.percentile(lines, [2.5, 97.5], axis=0)
    return low, high


def age_curves(data: Data, model: Model) -> dict[str, pd.DataFrame]:
    """Fit every region.

    Parameters
    ----------
    data : Data
    model : Model

    Returns
    -------
    dict of DataFrame
        ``ageing`` one row per region, ``curves`` one per region and year with fit, band and iron, ``adjusted`` one per scan and
        region with the value after the covariates' part was taken off.

    Notes
    -----
    ``slope`` is that of the straight line with its HC3 interval (or of a mixed model where there are several sessions per
    participant). The curve is the one with the lowest AICc among those that are identified.
    """
    factors, numeric = data.factors, [name for name in data.numeric if name != model.age]
    whole = design(data.people, numeric=[model.age, *numeric], factors=factors)
    age = data.people[model.age].to_numpy(float)
    at = np.arange(math.floor(age.min()), math.ceil(age.max()) + 1.0)
    rows, lines, points = [], [], []
    for region in data.values:
        keep = data.values[region].notna().to_numpy()
        label = {"region": region, "structure": data.names[region]}
        made, y = whole.rows(keep), data.values[region].to_numpy(float)[keep]
        people = data.people.loc[keep]
        try:
            if len(y) < made.matrix.shape[1] + 3 or made.deficient:
                raise NotFittedError("too few values for the covariates")
            row, line, adjusted = _region(region, data, model, made, y, people, at)
        except NotFittedError as error:
            rows.append({**label, "n": len(y), "status": str(error)})
            continue
        rows.append({**label, **row})
        lines.append(pd.DataFrame({"region": region, "age": at, **line}))
        points.append(
            pd.DataFrame({"scan": people.index, "region": region, "age": age[keep], "value": y, "adjusted": adjusted})
        )
    table = pd.DataFrame(rows)
    if "slope_p" in table:
        table.insert(table.columns.get_loc("slope_p") + 1, "slope_q", adjust(table["slope_p"], model.fdr)[0])
    empty = pd.DataFrame()
    return {"ageing": table, "curves": pd.concat(lines) if lines else empty, "adjusted": pd.concat(points) if points else empty}


def _region(
    region: str, data: Data, model: Model, made: Design, y: np.ndarray, people: pd.DataFrame, at: np.ndarray
) -> tuple[Mapping[str, object], Mapping[str, np.ndarray], np.ndarray]:
    """Row, line and adjusted values of one region."""
    who, age = people["participant_id"].to_numpy(), people[model.age].to_numpy(float)
    others = made.matrix[:, [i for i, name in enumerate(made.names) if name not in ("intercept", model.age)]]
    fitted = fit(y, made, who)
    slope = fitted.effect(made.columns(model.age)[0])
    row = {
        "n": len(y),
        "status": "fitted",
        "slope": slope[0],
        "slope_se": slope[1],
        "slope_low": slope[2],
        "slope_high": slope[3],
    }
    row["slope_p"] = slope[4]
    for name in data.factors:
        row[f"{name}_p"] = fitted.joint(made.columns(name))[2]
    if fitted.between is not None:
        row["between_participants"] = fitted.between
    curves = fit_curves(y, age, others)
    chosen = min((curve for curve in curves.values() if curve.identified), key=lambda curve: curve.aicc)
    row |= {f"aicc_{form}": curve.aicc for form, curve in curves.items()}
    row["exponential_identified"] = curves["exponential"].identified
    row["curve"] = chosen.form
    row |= _parameters(chosen, age.mean())
    value = chosen(at, age.mean())
    part = others @ chosen.coefficients[-others.shape[1] :] if others.shape[1] else 0.0
    residual = y - part - chosen(age, age.mean())
    row["r2"] = 1 - float(np.sum(residual**2) / np.sum((y - y.mean()) ** 2))
    row["sd_residual"] = float(np.sqrt(np.sum(residual**2) / max(len(y) - len(chosen.coefficients), 1)))
    low, high = (np.full(len(at), np.nan),) * 2
    if model.bootstrap:
        low, high = bootstrap(chosen, y, age, others, who, at, number=model.bootstrap, seed=model.seed)
    iron, line = hallgren(region, at) if model.of_iron else None, {"fit": value, "low": low, "high": high}
    return row, line | ({"iron": iron} if iron is not None else {}), y - part


def _parameters(curve: Curve, centre: float) -> dict[str, float]:
    """What is read from a curve: its values have units of the measure, years and 1/year."""
    c = curve.coefficients
    if curve.form == "exponential":
        return {"plateau": float(c[0] + c[1]), "start": float(c[0]), "rate": curve.rate}
    if curve.form == "quadratic":
        return {"peak_age": float(centre - c[1] / (2 * c[2])) if c[2] else math.nan, "curvature": float(c[2])}
    return {}
