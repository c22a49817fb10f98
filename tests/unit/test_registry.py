"""What every row of the method table must keep to, checked on a small phantom. A new row is tested by being there."""

import inspect
import re
import string
import typing
from contextlib import suppress
from functools import cache
from importlib import resources

import numpy as np
import pytest
from scipy import ndimage

from qsmflow import registry
from qsmflow.algorithms import simulation
from qsmflow.algorithms.dipole import forward_field
from qsmflow.algorithms.units import GAMMA_BAR
from qsmflow.errors import UsageError


def _rows(wanted=lambda row: True):
    return [pytest.param(row, id=f"{row.stage}-{row.name}") for row in registry.ALGORITHMS if wanted(row)]


def masked(row) -> bool:
    """Whether the methods of the row's stage take a mask."""
    return "mask" in registry.STAGES[row.stage].arrays


ROWS = _rows()

SHAPE = (26, 24, 21)
CONTEXT = {
    "voxel_size": (2.0, 2.0, 2.5),
    "b0_dir": (0.0, 0.6, 0.8),
    "b0": 3.0,
    "echo_times": (0.004, 0.009, 0.0145, 0.02),
}

#: What the first result of a stage should be, the largest error allowed in any method (NRMSE in the mask, after removing the
#: mean where a stage leaves it open), and the input that a method which does nothing would return.
TRUTH = {
    "unwrap": ("unwrapped", 0.05, "phase"),
    "check": ("unwrapped", 0.05, "phase"),
    "field": ("total_field", 0.02, None),
    "relaxometry": ("r2star", 0.15, None),
    "background": ("local_field", 0.75, "total_field"),
    "inversion": ("chi", 0.5, "local_field"),
}

#: Methods that stop before they have explained the phantom's ramp, for which dipoles would have to be far away.
LOOSER = {"tfi": 0.65}

#: Stages whose results are known up to a constant.
UP_TO_CONSTANT = ("unwrap", "check", "background", "inversion")

#: Methods that see the whole volume by design, so that a ramp cut off by its border, or noise outside the mask, leaks in.
WHOLE_VOLUME = ("laplacian",)


@cache
def phantom(noise: float = 0.2) -> dict[str, np.ndarray]:
    """A head of 4 cm with two sources in it and one outside; every array that a stage may ask for, and the truth.

    ``noise`` is in per cent of the signal at echo time 0.
    """
    grid = {"voxel_size": CONTEXT["voxel_size"]}
    mask = simulation.sphere(SHAPE, radius=21.0, **grid) > 0.5
    chi = simulation.sphere(SHAPE, radius=7.0, centre=(10, 13, 11), chi=0.1, **grid)
    chi -= simulation.sphere(SHAPE, radius=6.0, centre=(17, 10, 9), chi=0.08, **grid)
    chi = (chi * mask).astype(np.float32)
    outside = simulation.sphere(SHAPE, radius=3.0, centre=(12, 12, 0), chi=1.0, **grid) * ~mask
    local = forward_field(chi, b0_dir=CONTEXT["b0_dir"], **grid) * mask
    ramp = 0.03 * np.arange(SHAPE[0], dtype=np.float32)[:, None, None]  # as a shim leaves it
    total = local + ramp + forward_field(outside, b0_dir=CONTEXT["b0_dir"], **grid)
    fluid = (simulation.sphere(SHAPE, radius=9.0, **grid) > 0.5) & (np.abs(chi) < 0.03)  # fluid is nearly all the same
    slope = np.abs(np.arange(SHAPE[2]) - SHAPE[2] // 2, dtype=np.float32)
    r2star = np.where(fluid, 1 + 2 * slope, 20 + 200 * np.abs(chi))
    times = np.array(CONTEXT["echo_times"], np.float32)
    unwrapped = 2 * np.pi * GAMMA_BAR * CONTEXT["b0"] * total[..., None] * times
    real, imag = np.random.default_rng(1).normal(size=(2, *unwrapped.shape)) * noise
    # The object goes on outside the mask, as a head outside the brain, with less signal, up to two layers of air.
    density = np.where(np.arange(SHAPE[0])[:, None, None] < 2, 0, 0.4 + 0.6 * mask)
    signal = 100 * np.exp(1j * unwrapped - r2star[..., None] * times) * density[..., None] + real + 1j * imag
    sensitivity = simulation.coil_sensitivities(SHAPE, coils=4, seed=5, **grid)
    coils = np.random.default_rng(3).normal(size=(2, *signal.shape, 4)) * noise
    coils = signal[..., None] * sensitivity[..., None, :] + coils[0] + 1j * coils[1]
    region = mask & (chi > 0.05)
    prior = ndimage.gaussian_filter(mask.astype(np.float32), 1.0)
    prior[:, 12, :] = 0  # a gap to be closed
    rng = np.random.default_rng(2)
    quality = np.clip(0.9 - 0.6 * rng.random(SHAPE) ** 3, 0, 1) * mask
    quality[10:12] = 0  # likewise
    error = (0.002 + 0.002 * rng.random(SHAPE)) * np.where(rng.random(SHAPE) < 0.02, 10, 1)
    arrays = {
        "phase": np.angle(signal), "magnitude": np.abs(signal), "mask": mask, "total_field": total * mask,
        "local_field": local * mask, "field_error": error * mask, "chi": chi,
        "r2star": r2star * mask, "chi_prior": 0.5 * np.maximum(chi, 0),
        "chi_echoes": (chi[..., None] + 1e-3 * noise * rng.normal(size=signal.shape)) * mask[..., None],
        "r2": 12 * (mask & (np.arange(SHAPE[0])[:, None, None] < 13)),  # not measured everywhere
        "quality": quality, "prior": prior, "region": region,
        "unwrapped": unwrapped * mask[..., None], "offset": np.zeros(SHAPE), "signal": coils, "reference": sensitivity,
    }  # fmt: skip
    kinds = {"b": bool, "c": np.complex64}
    arrays = {name: np.ascontiguousarray(a, kinds.get(a.dtype.kind, np.float32)) for name, a in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def run(row, arrays=None, **parameters):
    """Results of a method by name."""
    arrays = arrays or phantom()
    if row.name == "roemer":  # the reference scan of one coil
        arrays = {**arrays, "reference": arrays["reference"].sum(axis=3, keepdims=True)}
    context = {**CONTEXT, "echo_times": (0.004, 0.008, 0.0145, 0.02)} if row.name == "aspire" else CONTEXT
    return registry.apply(row.stage, row.name, arrays=arrays, context=context, parameters=parameters)


@cache
def default(row):
    """Results with default parameters on the phantom, computed once."""
    return run(row)


def content(results) -> bytes:
    return b"".join(np.asarray(value).tobytes() for value in results.values())


def nrmse(result, truth, mask, *, centred) -> float:
    got, want = result[mask].astype(float), truth[mask].astype(float)
    if centred:
        got, want = got - got.mean(axis=0), want - want.mean(axis=0)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("stage", [stage for stage, (_, _, idle) in TRUTH.items() if idle])
def test_the_phantom_is_demanding(stage):
    """A method that returned its input would not pass."""
    name, limit, idle = TRUTH[stage]
    assert nrmse(phantom()[idle], phantom()[name], phantom()["mask"], centred=True) > 2 * limit


def test_names_are_unique_across_stages():
    """Parameters are given by method name alone, so no two stages may share one."""
    names = [row.name for row in registry.ALGORITHMS]
    assert len(names) == len(set(names))
    assert {row.stage for row in registry.ALGORITHMS} == set(registry.STAGES)


@pytest.mark.parametrize("row", ROWS)
class TestRow:
    def test_signature(self, row):
        """Arrays come first and are known to the stage; all else is keyword-only, known context or a typed parameter."""
        stage, hints = registry.STAGES[row.stage], typing.get_type_hints(row.call)
        for p in inspect.signature(row.call).parameters.values():
            assert p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY), p
            if p.kind is p.POSITIONAL_OR_KEYWORD:
                assert p.name in stage.arrays, f"the stage does not offer '{p.name}'"
                assert p.default is p.empty, p
            elif p.default is p.empty:
                assert p.name in registry.CONTEXT, f"unknown context '{p.name}'"
            else:
                choices = typing.get_args(hints[p.name])
                assert hints[p.name] in (int, float, str, bool) or all(isinstance(c, str) for c in choices), p
                assert p.default in choices if choices else type(p.default) is hints[p.name], p

    def test_documentation(self, row):
        """The docstring says what each parameter, and the method as a whole, does; a number has its unit."""
        text = inspect.getdoc(row.call)
        assert re.match(r"[A-Z].*\.$", text.split("\n")[0])
        for section in ("Parameters", "Returns", "Notes|See Also", "References", "Examples"):
            assert re.search(rf"^({section})\n-+$", text, re.M), f"no section {section}"
        for name in inspect.signature(row.call).parameters:
            help_text = registry._parameter_docs(row.call).get(name, "")
            assert len(help_text) > 5, f"'{name}' is not documented"
        assert re.search(r"10\.\d{4,}/", text), "no DOI"

    def test_citations_are_in_the_bibliography(self, row):
        bibliography = resources.files("qsmflow.data").joinpath("references.bib").read_text(encoding="utf-8")
        keys = set(re.findall(r"@\w+\{([^,\s]+)", bibliography))
        assert row.citations
        assert set(row.citations) <= keys

    def test_sentence(self, row):
        """Placeholders are parameters; the sentence ends, and keeps no brace."""
        wanted = {name for _, name, _, _ in string.Formatter().parse(row.sentence) if name}
        assert wanted <= set(row.parameters)
        assert re.fullmatch(r"[A-Z].*[^.]\.", row.describe())
        assert not set("{}") & set(row.describe())

    def test_refuses_unknown_and_mistyped_parameters(self, row):
        with pytest.raises(UsageError, match="no parameter 'nonsense'"):
            row.merged({"nonsense": 1})
        for name, parameter in row.parameters.items():
            if parameter.type is not str or parameter.choices:
                with pytest.raises(UsageError, match=name):
                    row.merged({name: "nonsense"})

    def test_results(self, row):
        """Shape, type, finite everywhere, 0 outside the mask, inputs untouched, twice the same."""
        arrays, stage = phantom(), registry.STAGES[row.stage]
        before = content(arrays)
        results = run(row)
        assert content(arrays) == before, "inputs were changed"
        assert tuple(results) == stage.results
        outside = ~results.get("mask", arrays["mask"])
        for name, value in results.items():
            if np.ndim(value) == 0:
                assert isinstance(value, str) or np.isfinite(value), name
                continue
            wanted = arrays["phase"].shape if name in ("phase", "magnitude") else SHAPE
            assert value.shape == wanted, name
            assert value.dtype == (bool if name == "mask" else np.float32), name
            assert value.flags.c_contiguous, f"{name}: a work file is written from it"
            assert np.isfinite(value).all(), name
            if name != "mask" and masked(row):
                assert not value[outside].any(), f"{name} is not 0 outside the mask"
                assert not np.signbit(value[outside]).any(), f"{name} is -0 outside the mask"
            assert not any(np.shares_memory(value, array) for array in arrays.values()), f"{name} is a view of an input"
        assert content(default(row)) == content(results), "a second run gave other numbers"

    def test_mask_only_shrinks(self, row):
        results = default(row)
        if "mask" in results and row.stage != "mask":
            assert results["mask"].any()
            assert not (results["mask"] & ~phantom()["mask"]).any()


#: Arrays that are never negative in any real input.
POSITIVE = {"magnitude", "field_error", "r2star", "quality"}


@pytest.mark.parametrize("row", _rows(lambda row: row.stage in TRUTH and row.name not in WHOLE_VOLUME))
def test_accuracy(row):
    """The phantom's truth comes back."""
    name, limit, _ = TRUTH[row.stage]
    results = run(row, {**phantom(), "phase": phantom()["unwrapped"]}) if row.stage == "field" else default(row)
    result, mask = next(iter(results.values())), results.get("mask", phantom()["mask"])
    assert nrmse(result, phantom()[name], mask, centred=row.stage in UP_TO_CONSTANT) < LOOSER.get(row.name, limit)


@pytest.mark.parametrize("row", _rows(lambda row: masked(row) and row.name not in WHOLE_VOLUME))
def test_junk_outside_the_mask_does_not_matter(row):
    """Real data hold noise there."""
    arrays = dict(phantom())
    rng = np.random.default_rng(2)
    for name in set(row.arrays) - {"mask", "region"}:
        junk = rng.uniform(-3, 3, arrays[name].shape).astype(np.float32)
        inside = arrays["mask"] if arrays[name].ndim == 3 else arrays["mask"][..., None]
        arrays[name] = np.where(inside, arrays[name], np.abs(junk) if name in POSITIVE else junk)
    for name, value in run(row, arrays).items():
        if isinstance(value, str):
            assert value == default(row)[name]
        else:
            np.testing.assert_allclose(value, default(row)[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("row", _rows(masked))
def test_an_empty_mask_is_survived_or_refused(row):
    """Never NaN and never a crash without words."""
    try:
        results = run(row, {**phantom(), "mask": np.zeros(SHAPE, bool)})
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert all(np.isfinite(value).all() for value in results.values() if not isinstance(value, str))
    assert not refusal or "mask" in refusal or "region" in refusal


@pytest.mark.parametrize(
    "row", _rows(lambda row: row.stage == "inversion" and {"iterations", "tolerance"} <= set(row.parameters))
)
def test_what_has_not_settled_says_so(row, caplog):
    """A map that was left halfway must not pass for the solution; the least squares of iLSQR are meant to stop early."""
    run(row, iterations=1, tolerance=1e-6)
    assert ("stopped after" in caplog.text) == (row.name != "ilsqr")


def candidates(parameter):
    """Values to try, in the hope that one of them changes something."""
    default = parameter.default
    if parameter.choices:
        return [choice for choice in parameter.choices if choice != default]
    if parameter.type is bool:
        return [not default]
    if parameter.type is int:
        tries = (default // 2, 1, 0, default + 1, 2 * default + 1, default + 100)  # the cheap ones first
        return [value for value in tries if value != default]
    return [default * factor for factor in (2, 0.5, 0.1, 10, 0.01)] if default else [0.1, 1.0, 10.0]


@pytest.mark.parametrize("row", ROWS)
def test_every_parameter_changes_something(row):
    """An option that nothing reads is worse than none. Some act only beside another choice, so these are tried as well."""
    switches = [{}] + [
        {other.name: value}
        for other in row.parameters.values()
        if other.choices or other.type is bool
        for value in candidates(other)
    ]
    before = cache(lambda noise, settings: content(run(row, phantom(noise=noise), **dict(settings))))
    for parameter in row.parameters.values():
        # A few iterations tell most parameters apart; only the others pay for all of them.
        briefs = [_brief(row, parameter)] * bool(_brief(row, parameter)) + [{}]
        tries = [(noise, switch | brief) for brief in briefs for noise in (60.0, 3.0) for switch in switches]
        tries = [(noise, settings) for noise, settings in tries if parameter.name not in settings]
        assert any(_changes(row, settings, parameter, noise, before) for noise, settings in tries), parameter.name


def _brief(row, parameter) -> dict[str, int]:
    """Ten iterations at most, where a method has more and the parameter does not govern them."""
    wanted = {name: p for name, p in row.parameters.items() if "iterations" in name and name != "cg_iterations"}
    if parameter.name in (*wanted, "tolerance"):
        return {}
    return {name: 10 for name, p in wanted.items() if p.default > 10}


def _changes(row, settings, parameter, noise, before) -> bool:
    noisy = phantom(noise=noise)  # where all goes well, some parameters have nothing to do
    for value in candidates(parameter):
        with suppress(ValueError):  # out of the parameter's range
            changed = content(run(row, noisy, **settings, **{parameter.name: value}))
            if changed != before(noise, tuple(settings.items())):
                return True
    return False
