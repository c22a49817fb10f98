"""The statistics agree with references that are computed another way, and find what was put in."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy.stats import f, mannwhitneyu, t
from statsmodels.stats.anova import anova_lm
from statsmodels.tools.eval_measures import aicc as reference_aicc

from qsmflow.group import ageing, calibration, harmonise, linear, reliability, roc
from qsmflow.group.comparison import compare
from qsmflow.group.model import Model
from qsmflow.group.prepare import Data


def people(number, seed, sites="abc"):
    rng = np.random.default_rng(seed)
    index = [f"sub-{n}" for n in range(number)]
    table = pd.DataFrame({"participant_id": index, "session_id": ""}, index=index)
    table["age"] = rng.uniform(20, 80, number)
    table["sex"] = rng.choice(["F", "M"], number)
    table["site"] = rng.choice(list(sites), number)
    table["group"] = rng.choice(["HC", "MSA", "PD"], number)
    table["y"] = 0.1 + 3e-4 * table["age"] + 0.02 * (table["group"] == "PD") + rng.normal(0, 0.01, number)
    return table


def data(table, *, numeric=("age",), factors=("sex", "site")):
    """As ``prepare`` gives it, with one region."""
    scans = {row: [row] for row in table.index}
    return Data(table, table[["y"]], {"y": "Why"}, numeric, factors, (), (), scans)


MODEL = Model("m", "case-control")


@pytest.fixture(scope="module")
def table():
    return people(60, 1)


@pytest.fixture(scope="module")
def found(table):
    return compare(data(table), MODEL, "HC")


SUM = "y ~ C(group, Sum) + age + C(sex, Sum) + C(site, Sum)"
TREATED = "y ~ C(group, Treatment('HC')) + age + C(sex) + C(site)"


def test_ancova_is_type_three_with_hc3_errors(table, found):
    row, fitted = found["ancova"].iloc[0], smf.ols(SUM, table).fit()
    robust, plain = anova_lm(fitted, typ=3, robust="hc3"), anova_lm(fitted, typ=3)
    for name, term in (("group", "C(group, Sum)"), ("age", "age"), ("sex", "C(sex, Sum)"), ("site", "C(site, Sum)")):
        assert row[f"{name}_p"] == pytest.approx(robust.loc[term, "PR(>F)"], rel=1e-6)
    assert row["group_f"] == pytest.approx(robust.loc["C(group, Sum)", "F"], rel=1e-6)
    ss = plain["sum_sq"]
    assert row["group_eta2"] == pytest.approx(ss["C(group, Sum)"] / (ss["C(group, Sum)"] + ss["Residual"]), rel=1e-6)


def test_differences_are_coefficients_with_hc3_intervals(table, found):
    fitted = smf.ols(TREATED, table).fit(cov_type="HC3", use_t=True)
    for row in found["differences"].itertuples():
        name = f"C(group, Treatment('HC'))[T.{row.group}]"
        assert (row.difference, row.se, row.p) == pytest.approx((fitted.params[name], fitted.bse[name], fitted.pvalues[name]))
        assert (row.low, row.high) == pytest.approx(tuple(fitted.conf_int().loc[name]))


def test_slopes_are_tested_by_products(table, found):
    fitted = smf.ols("y ~ C(group) * age + C(sex) + C(site)", table).fit(cov_type="HC3", use_t=True)
    products = [name for name in fitted.params.index if ":" in name]
    test = fitted.f_test(np.eye(len(fitted.params))[[fitted.params.index.get_loc(name) for name in products]])
    assert found["ancova"]["slope_p"].iloc[0] == pytest.approx(float(test.pvalue), rel=1e-6)


def test_adjusted_means_are_predictions_averaged_over_the_factors(table, found):
    fitted = smf.ols(TREATED, table).fit()
    for row in found["means"].itertuples():
        cells = [
            {"group": row.group, "age": table["age"].mean(), "sex": sex, "site": site} for sex in "FM" for site in "abc"
        ]  # fmt: skip
        assert row.adjusted_mean == pytest.approx(fitted.predict(pd.DataFrame(cells)).mean())
        assert row.mean == pytest.approx(table.loc[table["group"] == row.group, "y"].mean())


def test_a_shift_of_age_changes_nothing_about_groups(table, found):
    moved = compare(data(table.assign(age=table["age"] + 1000)), MODEL, "HC")
    columns = ["difference", "low", "high", "p"]
    assert moved["differences"][columns].to_numpy(float) == pytest.approx(
        found["differences"][columns].to_numpy(float), rel=1e-6
    )


def test_hedges_g_and_its_interval(table, found):
    row = found["differences"].set_index("group").loc["PD"]
    a, b = (table.loc[table["group"] == level, "y"] for level in ("PD", "HC"))
    n1, n2, df = len(a), len(b), len(a) + len(b) - 2
    pooled = np.sqrt(((n1 - 1) * a.var() + (n2 - 1) * b.var()) / df)
    g = (a.mean() - b.mean()) / pooled * (1 - 3 / (4 * df - 1))
    assert row["hedges_g"] == pytest.approx(g, rel=1e-9)
    se = np.sqrt((n1 + n2) / (n1 * n2) + g**2 / (2 * (n1 + n2)))
    assert (row["g_high"] - row["g_low"]) / 2 == pytest.approx(1.96 * se, rel=0.05)  # the small-sample form differs a little


def test_the_published_example_of_an_effect_size():
    """Nigra of 25 controls and 38 patients (Kim et al. 2017): g about 1.85."""
    from statsmodels.stats.meta_analysis import effectsize_smd

    g, _ = effectsize_smd(0.1258, 0.0163, 38, 0.0984, 0.0117, 25)
    assert g == pytest.approx(1.85, abs=0.02)


def test_roc_area_and_delong_variance():
    rng = np.random.default_rng(0)
    sick, well = np.round(rng.normal(1, 1, 23), 1), np.round(rng.normal(0, 1, 31), 1)  # rounded: with ties
    made = roc.roc(sick, well)
    assert made.auc == pytest.approx(mannwhitneyu(sick, well).statistic / (23 * 31))
    kernel = (sick[:, None] > well) + 0.5 * (sick[:, None] == well)
    variance = kernel.mean(axis=1).var(ddof=1) / 23 + kernel.mean(axis=0).var(ddof=1) / 31
    assert made.error == pytest.approx(np.sqrt(variance))
    draws = [roc.roc(rng.choice(sick, 23), rng.choice(well, 31)).auc for _ in range(400)]
    assert made.error == pytest.approx(np.std(draws), rel=0.15)
    assert roc.roc(-sick, -well).auc == pytest.approx(1 - made.auc)
    false, true = roc.roc_curve(sick, well)
    assert np.trapezoid(true, false) == pytest.approx(made.auc)
    best = max((sick >= cut).mean() + (well < cut).mean() for cut in (*sick, *well))
    assert made.sensitivity + made.specificity == pytest.approx(best)


def test_repeated_sessions_are_a_mixed_model():
    rng = np.random.default_rng(5)
    table = people(40, 5)
    twice = pd.concat([table, table], keys=["a", "b"]).reset_index(drop=True)
    twice["age"] += np.repeat([0, 2.0], 40)
    twice["y"] = np.tile(table["y"], 2) + rng.normal(0, 0.004, 80)
    twice.index = [f"scan{n}" for n in range(80)]
    ours = compare(data(twice), MODEL, "HC")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaled = twice.assign(y=twice["y"] * 100)
        reference = smf.mixedlm(TREATED, scaled, groups=scaled["participant_id"]).fit(reml=True)
    for row in ours["differences"].itertuples():
        name = f"C(group, Treatment('HC'))[T.{row.group}]"
        assert row.difference == pytest.approx(reference.params[name] / 100, rel=1e-3)
        assert row.se == pytest.approx(reference.bse[name] / 100, rel=1e-3)
    assert ours["ancova"]["between_participants"].iloc[0] == pytest.approx(0.01**2 / (0.01**2 + 0.004**2), abs=0.15)
    assert (ours["ancova"]["status"] == "fitted").all()


def test_no_variance_between_participants_is_least_squares():
    """Where a gradient search stops short of 0 (and says that it did not converge), as it does in these values."""
    rng, who = np.random.default_rng(42), np.repeat(np.arange(8), 2)
    table = pd.DataFrame({"age": rng.uniform(20, 80, 8)[who] + np.tile([0, 2.0], 8), "sex": rng.choice(["F", "M"], 8)[who]})
    values = 0.1 + rng.normal(0, 0.002, 8)[who] + rng.normal(0, 0.004, 16)
    table["group"] = np.where(who % 2, "PD", "HC")
    made = linear.design(table, numeric=["age"], factors=["sex"], group="group", reference="HC")
    fitted, plain = linear.fit(values, made, who), linear.sm.OLS(values, made.matrix).fit()
    assert fitted.between < 1e-6
    for row in np.eye(4):
        assert fitted.effect(row)[:2] == pytest.approx((row @ plain.params, row @ plain.bse), rel=1e-5)


def _singular(*_, **__):
    raise np.linalg.LinAlgError("Singular matrix")


def _unfinished(*_, **__):
    return SimpleNamespace(converged=False, cov_re_unscaled=np.eye(1))


@pytest.mark.parametrize(("search", "reason"), [(_singular, "failed: singular matrix"), (_unfinished, "did not converge")])
def test_a_mixed_model_that_fails_costs_no_more_than_its_region(search, reason, monkeypatch):
    twice = pd.concat([people(30, 9)] * 2).reset_index(drop=True)
    twice["z"] = twice["y"] + np.random.default_rng(1).normal(0, 0.005, 60)
    twice["y"] += np.random.default_rng(2).normal(0, 0.005, 60)
    both = Data(twice, twice[["y", "z"]], {"y": "Why", "z": "Zed"}, ("age",), (), (), (), {row: [row] for row in twice.index})
    honest = linear.sm.MixedLM.fit
    broken = twice["y"].to_numpy() / twice["y"].std(ddof=0)
    monkeypatch.setattr(
        linear.sm.MixedLM, "fit",
        lambda self, **words: (search if np.allclose(self.endog, broken) else honest)(self, **words),
    )  # fmt: skip
    for table in (compare(both, MODEL, "HC")["ancova"], ageing.age_curves(both, Model("m", "ageing"))["ageing"]):
        row, other = table.set_index("region").loc["y"], table.set_index("region").loc["z"]
        assert reason in row["status"]
        assert row.drop(["structure", "n", "status"]).isna().all()
        assert other["status"] == "fitted"
        assert 0 < other["between_participants"] < 1


def test_values_that_do_not_vary_are_told():
    table = people(20, 3).assign(y=0.1)
    assert compare(data(table), MODEL, "HC")["ancova"]["status"].tolist() == ["the values do not vary beyond the model"]
    assert ageing.age_curves(data(table), Model("m", "ageing"))["curves"].empty


def test_intraclass_correlations_have_the_published_limits():
    """The example of Shrout and Fleiss, with the limits that R's psych package gives."""
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    made = reliability.intraclass(ratings)
    assert made.consistency == pytest.approx((0.71, 0.34, 0.95), abs=0.006)
    assert made.agreement == pytest.approx((0.29, 0.02, 0.76), abs=0.006)


def test_limits_of_agreement_hold_what_they_should():
    rng = np.random.default_rng(2)
    first = rng.normal(0, 1, 2000)
    second = first + 0.5 + rng.normal(0, 0.2, 2000)
    made = reliability.limits_of_agreement(first, second)
    assert np.mean((second - first > made["loa_low"]) & (second - first < made["loa_high"])) == pytest.approx(0.95, abs=0.01)
    assert made["bias_low"] < 0.5 < made["bias_high"]


@pytest.mark.parametrize("form", ageing.CURVES)
def test_the_curve_that_was_put_in_is_chosen(form):
    rng = np.random.default_rng(7)
    age = rng.uniform(8, 85, 150)
    truth = {
        "linear": 0.05 + 5e-4 * age,
        "quadratic": 0.1 - 3e-5 * (age - 50) ** 2,
        "exponential": 0.12 * (1 - np.exp(-0.06 * age)) + 0.02,
    }
    curves = ageing.fit_curves(truth[form] + rng.normal(0, 0.004, 150), age, np.zeros((150, 0)))
    assert min((curve for curve in curves.values() if curve.identified), key=lambda curve: curve.aicc).form == form
    at = np.arange(10.0, 80)
    expected = np.interp(at, np.sort(age), truth[form][np.argsort(age)])
    assert curves[form](at, age.mean()) == pytest.approx(expected, abs=0.003)
    if form == "exponential":
        assert curves[form].rate == pytest.approx(0.06, rel=0.15)
        assert curves[form].coefficients.sum() == pytest.approx(0.14, rel=0.03)  # plateau


def test_an_exponential_is_not_claimed_for_people_on_its_plateau():
    age = np.linspace(45, 80, 60)
    values = 0.1 + 0.02 * (1 - np.exp(-0.09 * age)) + np.random.default_rng(0).normal(0, 0.005, 60)
    assert not ageing.fit_curves(values, age, np.zeros((60, 0)))["exponential"].identified


def test_the_criterion_is_statsmodels_own_up_to_a_constant(table):
    fitted = {name: smf.ols(name, table).fit() for name in ("y ~ age", "y ~ age + I(age**2)")}
    theirs = [reference_aicc(f.llf, len(table), len(f.params) + 1) for f in fitted.values()]
    curves = ageing.fit_curves(table["y"].to_numpy(), table["age"].to_numpy(), np.zeros((60, 0)))
    assert curves["quadratic"].aicc - curves["linear"].aicc == pytest.approx(theirs[1] - theirs[0], rel=1e-6)


@pytest.mark.parametrize("form", ["linear", "exponential"])
def test_bootstrap_bands_are_those_of_resampled_fits(form):
    rng = np.random.default_rng(3)
    age = rng.uniform(10, 80, 60)
    values = 0.1 * (1 - np.exp(-0.05 * age)) + rng.normal(0, 0.006, 60)
    curve, at, none = ageing.fit_curves(values, age, np.zeros((60, 0)))[form], np.array([20.0, 40, 70]), np.zeros((60, 0))
    low, high = ageing.bootstrap(curve, values, age, none, np.arange(60), at, number=400, seed=1)
    draws = []
    for _ in range(60):
        pick = rng.integers(0, 60, 60)
        if form == "linear":
            draws.append(np.polyval(np.polyfit(age[pick], values[pick], 1), at))
        else:
            draws.append(ageing.fit_curves(values[pick], age[pick], none)[form](at, 0.0))
    spread = np.std(draws, axis=0)
    assert (high - low) / 3.92 == pytest.approx(spread, rel=0.35)
    assert np.all((low < curve(at, age.mean())) & (curve(at, age.mean()) < high))


def test_combat_gives_the_numbers_of_neurocombat():
    """Values of neuroCombat 0.2.12 for the same data."""
    rng = np.random.default_rng(3)
    site, age = np.repeat(["a", "b", "c"], 10), rng.uniform(20, 80, 30)
    values = rng.normal(0.1, 0.01, (30, 6)) + 0.0003 * (age - 50)[:, None] + np.repeat([0, 0.02, -0.01], 10)[:, None]
    values[10:20] *= 1.1
    made = harmonise.combat(values, site, age[:, None])
    expected = [
        [0.0934814, 0.1002951, 0.1109385, 0.1083653, 0.1004056, 0.1049783],
        [0.1027818, 0.1124935, 0.096059, 0.1032588, 0.1029641, 0.1173242],
        [0.1178288, 0.132684, 0.1098479, 0.103732, 0.1132987, 0.1112258],
    ]
    assert made[[0, 12, 25]] == pytest.approx(np.array(expected), abs=5e-7)
    values[4, 2] = np.nan
    gap = harmonise.combat(values, site, age[:, None])
    assert np.isnan(gap[4, 2])
    assert np.isfinite(gap).sum() == gap.size - 1


def test_mixed_tests_are_those_of_statsmodels_with_the_degrees_of_freedom_of_participants():
    table = people(30, 9)
    twice = pd.concat([table, table]).reset_index(drop=True)
    twice["y"] += np.random.default_rng(1).normal(0, 0.005, 60)
    made = linear.design(twice, numeric=["age"], factors=["site"])
    fitted = linear.fit(twice["y"].to_numpy(), made, twice["participant_id"].to_numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaled = twice.assign(y=twice["y"] / twice["y"].std(ddof=0))
        reference = smf.mixedlm("y ~ age + C(site, Sum)", scaled, groups=scaled["participant_id"]).fit()
    wald = reference.wald_test_terms(scalar=True).table.loc["C(site, Sum)"]
    assert fitted.joint(made.columns("site"))[0] == pytest.approx(wald["statistic"] / 2, rel=1e-3)
    assert fitted.joint(made.columns("site"))[2] == pytest.approx(f.sf(wald["statistic"] / 2, 2, 26), rel=1e-3)
    estimate, error, low, high, p = fitted.effect(made.columns("age")[0])
    assert estimate / error == pytest.approx(reference.tvalues["age"], rel=1e-3)
    assert high - low == pytest.approx(2 * t.ppf(0.975, 26) * error)
    assert p == pytest.approx(2 * t.sf(abs(reference.tvalues["age"]), 26), rel=1e-3)


def test_molar_susceptibilities():
    """ppm per mM at 20, 25, 30 and 37 degrees: what Curie's law gives for 7.94 and 5.92 Bohr magnetons."""
    for compound, expected in (("gadolinium", (0.338, 0.332, 0.327, 0.319)), ("iron", (0.188, 0.185, 0.182, 0.178))):
        made = [calibration.molar_susceptibility(compound, temperature=t) for t in (20, 25, 30, 37)]
        assert made == pytest.approx(expected, abs=6e-4)
