"""The table: every method by stage, with its function, its citations and its methods sentence.

A method is a plain function plus one row here. The function's *signature* owns parameter names, types and defaults, its
*docstring* owns the help text; the row adds what a function cannot say. Everything that lists methods (command line,
documentation, provenance, methods text, tests) reads this module and nothing else.

How a signature is read:

- positional parameters are arrays, taken by name from what the stage offers (:attr:`Stage.arrays`);
- a keyword without a default is acquisition context (:data:`CONTEXT`);
- a keyword with a default is a parameter that a user can set.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from qsmflow.errors import UsageError, nearest

#: What an acquisition can tell a method: keyword names without default, and what they are.
CONTEXT = {
    "voxel_size": "voxel size along the three array axes, mm",
    "b0_dir": "unit vector of the main field in voxel axes",
    "b0": "main field strength, T",
    "echo_times": "echo times, s",
}


@dataclass(frozen=True)
class Stage:
    """One step of the chain: what its methods may take (``arrays``) and must give (``results``)."""

    name: str
    title: str
    arrays: tuple[str, ...]
    results: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Parameter:
    """One user-settable parameter of a method, as its signature and docstring describe it."""

    name: str
    type: type
    default: object
    help: str
    choices: tuple | None = None

    def check(self, value: object, method: str) -> object:
        """Return ``value`` in the parameter's type, or raise :class:`UsageError` naming method and parameter."""
        wanted = f"{method}: parameter '{self.name}' must be {self.type.__name__}, not {value!r}"
        if self.type is bool:
            if not isinstance(value, bool):
                raise UsageError(wanted)
            return value
        if isinstance(value, bool):
            raise UsageError(wanted)
        try:
            result = self.type(value)
        except (TypeError, ValueError) as error:
            raise UsageError(wanted) from error
        if self.type is int and result != float(value):
            raise UsageError(wanted)
        if self.choices and result not in self.choices:
            raise UsageError(
                f"{method}: parameter '{self.name}' must be one of {', '.join(map(str, self.choices))}, not {value!r}"
            )
        return result


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    ``version`` is raised whenever the numbers of the method change, because cached results are keyed by inputs, not by code.
    """

    stage: str
    name: str
    function: str
    citations: tuple[str, ...]
    sentence: str
    version: int = 1
    experimental: bool = False

    @property
    def call(self) -> Callable:
        """The function itself, imported on first use."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(f"qsmflow.algorithms.{module}"), name)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays the method takes, in order."""
        return tuple(p.name for p in _signature(self.call) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))

    @property
    def context(self) -> tuple[str, ...]:
        """Names of the acquisition context the method needs."""
        return tuple(p.name for p in _signature(self.call) if p.kind is p.KEYWORD_ONLY and p.default is p.empty)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The user's parameters, in the order of the signature."""
        return _parameters(self.call)

    @property
    def from_total_field(self) -> bool:
        """Whether an inversion starts from the total field, so that no background removal comes before it."""
        return self.stage == "inversion" and "total_field" in self.arrays

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return inspect.getdoc(self.call).split("\n", 1)[0]

    def merged(self, values: Mapping[str, object] | None = None) -> dict[str, object]:
        """All parameters with their values: ``values`` checked, defaults for the rest."""
        known = self.parameters
        for key in values or {}:
            if key not in known:
                raise UsageError(f"{self.name}: no parameter '{key}'{nearest(key, known)}")
        return {key: p.check((values or {}).get(key, p.default), self.name) for key, p in known.items()}

    def describe(self, values: Mapping[str, object] | None = None) -> str:
        """The methods sentence with the actual values filled in."""
        return self.sentence.format(**{k: _text(v) for k, v in self.merged(values).items()})


STAGES = {
    stage.name: stage
    for stage in (
        Stage("coils", "coil combination", ("signal", "reference"), ("phase", "magnitude", "matching"), optional=True),
        Stage(
            "readout",
            "readout correction",
            ("phase", "magnitude", "mask"),
            ("phase", "asymmetry", "asymmetry_size"),
            optional=True,
        ),
        Stage("offset", "phase-offset removal", ("phase", "magnitude", "mask"), ("phase", "offset"), optional=True),
        Stage("unwrap", "phase unwrapping", ("phase", "magnitude", "mask"), ("phase",)),
        Stage(
            "check",
            "check of the unwrapped phase",
            ("phase", "magnitude", "mask"),
            ("phase", "before", "after", "used"),
            optional=True,
        ),
        Stage("field", "field mapping", ("phase", "magnitude", "mask"), ("total_field", "field_error", "residual")),
        Stage("relaxometry", "relaxometry", ("magnitude", "phase", "mask"), ("r2star", "t2star", "s0")),
        Stage("mask", "masking", ("magnitude", "quality", "prior"), ("mask",)),
        Stage("background", "background field removal", ("total_field", "mask", "field_error"), ("local_field", "mask")),
        Stage(
            "inversion",
            "dipole inversion",
            ("local_field", "total_field", "mask", "field_error", "magnitude", "r2star", "chi_prior"),
            ("chi",),
        ),
        Stage("reference", "referencing", ("chi", "mask", "r2star", "region"), ("chi", "shift"), optional=True),
        Stage(
            "swi",
            "susceptibility-weighted imaging",
            ("magnitude", "phase", "chi", "mask"),
            ("swi", "minip", "phase_mask"),
            optional=True,
        ),
        Stage(
            "separation",
            "source separation",
            ("chi", "chi_echoes", "local_field", "mask", "field_error", "magnitude", "r2star", "r2"),
            ("chi_para", "chi_dia", "rate"),
            optional=True,
        ),
    )
}

ALGORITHMS = (
    Algorithm(
        "coils",
        "mcpc3ds-coils",
        "combination:mcpc3ds_coils",
        ("eckstein2018",),
        "The receive coils were combined by MCPC-3D-S: their phase offsets were estimated from the first two echoes with one"
        " unwrapped phase difference, smoothed with a Gaussian of {sigma} mm and removed before the magnitude-weighted sum.",
    ),
    Algorithm(
        "coils",
        "aspire",
        "combination:aspire",
        ("eckstein2018",),
        "The receive coils were combined by ASPIRE: their phase offsets were estimated from two echoes whose times make"
        " unwrapping needless, smoothed with a Gaussian of {sigma} mm and removed before the magnitude-weighted sum.",
    ),
    Algorithm(
        "coils",
        "mcpc3d",
        "combination:mcpc3d",
        ("robinson2011",),
        "The receive coils were combined by MCPC-3D: their phase offsets were computed from the first two echoes, unwrapped in"
        " every coil, smoothed with a Gaussian of {sigma} mm and removed before the magnitude-weighted sum.",
    ),
    Algorithm(
        "coils",
        "vrc",
        "combination:vrc",
        ("parker2014",),
        "The receive coils were combined with the phase of a virtual reference coil, formed by matching their phases within"
        " {radius} mm of one place; the offsets against it were smoothed with a Gaussian of {sigma} mm.",
    ),
    Algorithm(
        "coils",
        "mcpcc",
        "combination:mcpcc",
        ("hammond2008",),
        "The receive coils were combined after matching their phases within {radius} mm of one place (MCPC-C).",
    ),
    Algorithm(
        "coils",
        "roemer",
        "combination:roemer",
        ("roemer1990", "avants2011"),
        "The receive coils were combined by their sensitivities relative to a reference coil (Roemer), smoothed with a Gaussian"
        " of {sigma} mm. The scan of that coil was registered to the images with a rigid transform (ANTs), unless the report"
        " says that it was placed by the headers.",
        version=2,
    ),
    Algorithm(
        "coils",
        "composer",
        "combination:composer",
        ("robinson2017composer",),
        "The receive coils were combined by COMPOSER: their phase offsets were taken from a reference scan of short echo time,"
        " smoothed with a Gaussian of {sigma} mm and removed before the magnitude-weighted sum.",
    ),
    Algorithm(
        "readout",
        "bipolar",
        "readout:bipolar",
        ("li2015bipolar",),
        "Odd and even echoes were tested for the phase difference of a bipolar readout (linear, and smooth over {sigma} mm);"
        " it was removed where its root mean square reached {threshold} rad.",
    ),
    Algorithm(
        "offset",
        "mcpc3ds",
        "coils:mcpc3ds",
        ("eckstein2018",),
        "Echo-independent phase offsets were estimated from the first two echoes by MCPC-3D-S, smoothed with a Gaussian of"
        " {sigma} mm and removed.",
    ),
    Algorithm(
        "unwrap",
        "romeo",
        "unwrap.romeo:romeo",
        ("dymerska2021",),
        "Phase was unwrapped with ROMEO ({mode} mode, template echo {template}, weights {weights}, at most {seeds} seed(s) per"
        " part; in template mode, voxels of a quality up to {uncertain} again in space).",
        version=2,
    ),
    Algorithm(
        "unwrap",
        "bestpath",
        "unwrap.bestpath:bestpath",
        ("abdulrahman2007",),
        "Phase was unwrapped echo by echo along the most reliable edges first (best path).",
    ),
    Algorithm(
        "unwrap",
        "laplacian",
        "unwrap.laplacian:laplacian",
        ("schofield2003",),
        "Phase was unwrapped echo by echo by inverting its Laplacian (solver {solver}, zero padding of {pad} voxels with fft).",
    ),
    Algorithm(
        "unwrap",
        "temporal",
        "unwrap.temporal:temporal",
        ("itoh1982",),
        "Phase was unwrapped voxel by voxel along the echoes by prediction from the preceding echoes.",
    ),
    Algorithm(
        "check",
        "consistency",
        "unwrap.check:consistency",
        ("dymerska2021", "abdulrahman2007"),
        "The unwrapped phase was checked for walls of jumps (at most {walls} cross-sections of the mask) and for echoes off the"
        " line through all (in at most {bent} of the mask), to be unwrapped again (fallback: {fallback}) if it failed.",
    ),
    Algorithm(
        "field",
        "wls",
        "field:weighted_least_squares",
        ("robinson2017",),
        "The total field was fitted to the unwrapped phase by least squares weighted with the squared magnitude"
        " (intercept: {intercept}).",
    ),
    Algorithm(
        "field",
        "complexfield",
        "field:complex_fit",
        ("liu2013", "kressler2010"),
        "The total field was fitted to the complex signal of all echoes by nonlinear least squares, from the unwrapped phase on"
        " (intercept: {intercept}, at most {iterations} Gauss-Newton steps).",
    ),
    Algorithm(
        "relaxometry",
        "arlo",
        "relaxometry:arlo",
        ("pei2015",),
        "R2* was computed by auto-regression on linear operations (ARLO) from the signal power pooled over {fwhm} voxels,"
        " without echoes after a loss of signal ({dropout} standard deviations; noise floor: {floor}).",
    ),
    Algorithm(
        "relaxometry",
        "nonlinear",
        "relaxometry:nonlinear",
        ("golub2003",),
        "R2* was fitted by nonlinear least squares with variable projection (at most {iterations} Newton steps) to the signal"
        " power pooled over {fwhm} voxels, without echoes after a loss of signal ({dropout} standard deviations; noise floor:"
        " {floor}).",
    ),
    Algorithm(
        "relaxometry",
        "loglinear",
        "relaxometry:loglinear",
        ("salvador2005",),
        "R2* was computed by a line through the logarithm of the signal, weighted with its power pooled over {fwhm} voxels,"
        " without echoes after a loss of signal ({dropout} standard deviations; noise floor: {floor}).",
    ),
    Algorithm(
        "relaxometry",
        "numart2s",
        "relaxometry:numart2s",
        ("hagberg2002",),
        "R2* was computed by numerical integration (NumART2*, corrected for the trapezoidal rule: {correct}) of the signal"
        " pooled over {fwhm} voxels, without echoes after a loss of signal ({dropout} standard deviations; noise floor:"
        " {floor}).",
    ),
    Algorithm(
        "relaxometry",
        "complexdecay",
        "relaxometry:complex_decay",
        ("derochefort2008", "golub2003"),
        "R2* was fitted together with the field to the complex signal by nonlinear least squares (at most {iterations} steps),"
        " pooled over {fwhm} voxels after demodulation, without echoes after a loss of signal ({dropout} standard deviations);"
        " where the phase lay off its line by {bend} standard deviations, to the magnitudes instead.",
        version=2,
    ),
    Algorithm(
        "mask",
        "template",
        "masking:from_template",
        ("avants2011", "fonov2011"),
        "The brain was extracted by an affine registration of the magnitude to the ICBM 152 2009c template with ANTs, closed"
        " with a sphere of {close} mm.",
    ),
    Algorithm(
        "mask",
        "threshold",
        "masking:threshold",
        ("otsu1979",),
        "Tissue was separated from air by Otsu's threshold on the magnitude, multiplied by {factor}, smoothed over"
        " {smooth} mm.",
    ),
    Algorithm(
        "mask",
        "robust",
        "masking:robust",
        ("eckstein2021",),
        "Tissue was separated from air by a threshold of {factor} times the noise or {share} of the bright tissue's magnitude,"
        " smoothed by majorities in boxes of {box} mm.",
    ),
    Algorithm(
        "mask",
        "quality",
        "masking:from_quality",
        ("dymerska2021", "stewart2022"),
        "Voxels with unreliable phase (ROMEO quality below {threshold}) were excluded and holes smaller than {fill} mm closed.",
    ),
    Algorithm(
        "background",
        "vsharp",
        "background.vsharp:vsharp",
        ("wu2012", "li2011"),
        "The background field was removed by V-SHARP with radii from {max_radius} to {min_radius} mm and a deconvolution"
        " threshold of {threshold}.",
        version=2,
    ),
    Algorithm(
        "background",
        "sharp",
        "background.vsharp:sharp",
        ("schweser2011",),
        "The background field was removed by SHARP with a radius of {radius} mm and a deconvolution threshold of {threshold}.",
    ),
    Algorithm(
        "background",
        "smv",
        "background.vsharp:smv_filter",
        ("schweser2011",),
        "The background field was removed by subtracting the mean over spheres of {radius} mm, without deconvolution.",
    ),
    Algorithm(
        "background",
        "resharp",
        "background.resharp:resharp",
        ("sun2014",),
        "The background field was removed by RESHARP with a radius of {radius} mm and a penalty of weight {lambda_} (prior:"
        " {prior}).",
        version=2,
    ),
    Algorithm(
        "background",
        "ismv",
        "background.ismv:ismv",
        ("wen2014",),
        "The background field was removed by iterated spherical means (iSMV) with a radius of {radius} mm and at most"
        " {iterations} iterations.",
    ),
    Algorithm(
        "background",
        "lbv",
        "background.lbv:lbv",
        ("zhou2014",),
        "The background field was removed by solving the Laplacian boundary value problem (LBV) after {peel} layers of voxels"
        " had been taken off.",
    ),
    Algorithm(
        "background",
        "pdf",
        "background.pdf:pdf",
        ("liu2011pdf",),
        "The background field was removed by projection onto dipole fields (PDF; at most {iterations} iterations, tolerance"
        " {tolerance}).",
        version=3,
    ),
    Algorithm(
        "background",
        "harperella",
        "background.harperella:harperella",
        ("li2014",),
        "The background field was removed by HARPERELLA from the Laplacian of the combined phase with a radius of {radius} mm.",
        version=2,
        experimental=True,
    ),
    Algorithm(
        "background",
        "iharperella",
        "background.harperella:iharperella",
        ("li2014",),
        "The background field was removed by iHARPERELLA from the Laplacian of the combined phase (at most {iterations}"
        " iterations).",
        version=2,
        experimental=True,
    ),
    Algorithm(
        "inversion",
        "tkd",
        "inversion.direct:tkd",
        ("shmueli2009",),
        "Susceptibility was computed by thresholded k-space division (threshold {threshold}).",
    ),
    Algorithm(
        "inversion",
        "tsvd",
        "inversion.direct:tsvd",
        ("wharton2010",),
        "Susceptibility was computed by truncated k-space division (threshold {threshold}).",
    ),
    Algorithm(
        "inversion",
        "tikhonov",
        "inversion.direct:tikhonov",
        ("bilgic2014l2", "hansen1993"),
        "Susceptibility was computed by closed-form inversion with an L2 penalty ({penalty}, weight {lambda_}, tuning:"
        " {tune}).",
    ),
    Algorithm(
        "inversion",
        "rts",
        "inversion.rts:rts",
        ("kames2018",),
        "Susceptibility was computed by rapid two-step inversion ({steps} conjugate-gradient steps, then total variation where"
        " the dipole kernel is below {threshold}).",
    ),
    Algorithm(
        "inversion",
        "ndi",
        "inversion.ndi:ndi",
        ("polak2020",),
        "Susceptibility was computed by nonlinear dipole inversion ({iterations} steps of gradient descent).",
    ),
    Algorithm(
        "inversion",
        "tv",
        "inversion.tv:tv",
        ("bilgic2014tv", "milovic2018", "milovic2021"),
        "Susceptibility was computed by total-variation regularised inversion (weight {lambda_}, tuning:"
        " {tune}; ADMM, at most {iterations} iterations).",
        version=2,
    ),
    Algorithm(
        "inversion",
        "fansi",
        "inversion.fansi:fansi",
        ("milovic2018", "milovic2021"),
        "Susceptibility was computed by nonlinear inversion with a variational penalty ({penalty}, weight {lambda_}, tuning:"
        " {tune}; ADMM, at most {iterations} iterations).",
        version=2,
    ),
    Algorithm(
        "inversion",
        "whqsm",
        "inversion.fansi:whqsm",
        ("milovic2019",),
        "Susceptibility was computed by nonlinear total-variation inversion (weight {lambda_}) together with a weakly harmonic"
        " field (weight {beta}; ADMM, at most {iterations} iterations).",
        version=2,
    ),
    Algorithm(
        "inversion",
        "l1qsm",
        "inversion.fansi:l1qsm",
        ("milovic2022", "milovic2021"),
        "Susceptibility was computed by nonlinear inversion with an L1 data term and total variation (weight {lambda_},"
        " tuning: {tune}; ADMM, at most {iterations} iterations).",
    ),
    Algorithm(
        "inversion",
        "hdqsm",
        "inversion.hdqsm:hdqsm",
        ("lambert2022",),
        "Susceptibility was computed by hybrid data-fidelity inversion with total variation (weight {lambda_}; {iterations_l1}"
        " ADMM iterations with an L1, at most {iterations} with a reweighted L2 data term).",
    ),
    Algorithm(
        "inversion",
        "sstv",
        "singlestep.sharp:sstv",
        ("chatnuntawech2017",),
        "Susceptibility was computed from the total field in a single step with spherical mean values (radii from {max_radius}"
        " to {min_radius} mm) and total variation (weight {lambda_}, ADMM, at most {iterations} iterations).",
    ),
    Algorithm(
        "inversion",
        "sstgv",
        "singlestep.sharp:sstgv",
        ("chatnuntawech2017", "bredies2010"),
        "Susceptibility was computed from the total field in a single step with spherical mean values (radii from {max_radius}"
        " to {min_radius} mm) and second-order total generalised variation (weight {lambda_}, ratio {ratio}, ADMM, at most"
        " {iterations} iterations).",
        version=2,
    ),
    Algorithm(
        "inversion",
        "tgv",
        "singlestep.tgv:tgv",
        ("langkammer2015", "bredies2010"),
        "Susceptibility was computed from the Laplacian of the total field in a single step with second-order total generalised"
        " variation (TGV-QSM; weight {lambda_}, ratio {ratio}, ADMM, at most {iterations} iterations; the outer"
        " {peel} voxels of the mask without data).",
        version=2,
    ),
    Algorithm(
        "inversion",
        "medi",
        "inversion.medi:medi",
        ("liu2011medi", "liu2012", "liu2013"),
        "Susceptibility was computed by morphology-enabled dipole inversion (MEDI; {data} data term, weight {lambda_}, {edges}"
        " of the magnitude's gradients taken for edges, MERIT beyond {merit} standard deviations,"
        " spherical mean values of {smv_radius} mm).",
        version=2,
    ),
    Algorithm(
        "inversion",
        "medi0",
        "inversion.medi:medi0",
        ("liu2013", "liu2018"),
        "Susceptibility was computed by morphology-enabled dipole inversion with the ventricles' fluid (R2* below"
        " {fluid_r2star} 1/s) made uniform and zero (MEDI+0; {data} data term, weight {lambda_}, weight of the"
        " fluid {fluid_weight}).",
        version=2,
    ),
    Algorithm(
        "inversion",
        "ilsqr",
        "inversion.ilsqr:ilsqr",
        ("li2011", "li2015"),
        "Susceptibility was computed by iterative least squares with streaks estimated within {cone} of the zero cone of the"
        " dipole kernel and subtracted (iLSQR; at most {iterations} iterations).",
    ),
    Algorithm(
        "inversion",
        "star",
        "inversion.star:star",
        ("wei2015",),
        "Susceptibility was computed by total variation at two levels (STAR): sources beyond {strong} ppm, then the rest"
        " (weight {lambda_}) without the field within them.",
        experimental=True,
    ),
    Algorithm(
        "inversion",
        "unet",
        "inversion.unet:unet",
        ("jin2017", "zhang2022", "bollmann2019", "milovic2019"),
        "Susceptibility was computed by weak-harmonic QSM and a weighted linear inversion, and improved with a U-Net that was"
        " trained on simulated susceptibility alone (ONNX Runtime).",
        experimental=True,
    ),
    Algorithm(
        "inversion",
        "tfi",
        "singlestep.tfi:tfi",
        ("liu2017",),
        "Susceptibility was computed from the total field by preconditioned total field inversion (TFI; {data} data term,"
        " weight {lambda_}, preconditioner {outside} outside the brain, started from a projection onto dipole fields).",
        experimental=True,
        version=2,
    ),
    Algorithm(
        "inversion",
        "qsip",
        "singlestep.qsip:qsip",
        ("poynton2015", "treit2021", "li2021"),
        "Susceptibility was computed from the Laplacian of the total field in a single step by inversion of a perturbation"
        " model with a prior (after QSIP, total variation of the difference from the prior with weight {lambda_} ppm mm, ADMM,"
        " at most {iterations} iterations; the outer {peel} voxels of the mask without data): nuclei of the atlas at the middle"
        " of their plausible ranges, 0 elsewhere.",
        experimental=True,
        version=2,
    ),
    Algorithm(
        "reference",
        "brain",
        "reference:brain",
        ("bilgic2024",),
        "Susceptibility is given relative to the mean of the whole brain mask.",
    ),
    Algorithm(
        "reference",
        "csf",
        "reference:csf",
        ("straub2017", "liu2018"),
        "Susceptibility is given relative to ventricular cerebrospinal fluid (R2* below {max_r2star} 1/s within {radius} mm of"
        " the brain's centre).",
    ),
    Algorithm(
        "reference",
        "region",
        "reference:region",
        ("bilgic2024",),
        "Susceptibility is given relative to the mean of the chosen region.",
    ),
    Algorithm(
        "swi",
        "swi",
        "swi.weighting:swi",
        ("haacke2004", "haacke2009"),
        "The susceptibility-weighted image is the magnitude of one echo (echo {echo}, where 0 is the one nearest to 60 ms over"
        " the field strength in tesla) times a {shape} phase mask (power {power}) of its filtered phase ({filter} filter),"
        " projected by the minimum over slabs of {thickness} mm.",
    ),
    Algorithm(
        "swi",
        "clearswi",
        "swi.weighting:clearswi",
        ("eckstein2021",),
        "The susceptibility-weighted image was made from all echoes with CLEAR-SWI ({shape} phase mask, strength {power},"
        " high-pass of {sigma} mm, sensitivity estimated over {evenness} mm), projected by the minimum over slabs of"
        " {thickness} mm.",
    ),
    Algorithm(
        "swi",
        "tswi",
        "swi.weighting:tswi",
        ("liu2014tswi",),
        "The magnitude of one echo was weighted with the susceptibility of {source} sources (true SWI, {low} to {high} ppm,"
        " power {power}), and projected by the minimum over slabs of {thickness} mm.",
        experimental=True,
    ),
    Algorithm(
        "swi",
        "smwi",
        "swi.weighting:smwi",
        ("gho2014",),
        "The magnitude of all echoes was weighted with the susceptibility of {source} sources (SMWI, threshold {threshold} ppm,"
        " power {power}), and projected by the minimum over slabs of {thickness} mm.",
    ),
    Algorithm(
        "separation",
        "r2starqsm",
        "separation.rates:r2starqsm",
        ("dimov2022", "dimov2022histology"),
        "Paramagnetic and diamagnetic sources were told apart by R2*QSM: they cancel in the susceptibility and add up in the"
        " part of R2* beyond R2 ({relaxivity} 1/s per ppm and tesla; where R2 was not measured, {baseline} 1/s, and 0 stands"
        " for the median of what the susceptibility leaves).",
    ),
    Algorithm(
        "separation",
        "chisep",
        "separation.chisep:chisep",
        ("shin2021",),
        "Paramagnetic and diamagnetic sources were fitted to the local field and to the part of R2* beyond R2 at once"
        " (chi-separation with total variation of weight {lambda_} ppm mm; {relaxivity_para} and {relaxivity_dia} 1/s per ppm"
        " and tesla; where R2 was not measured, {baseline} 1/s, and 0 stands for the median of what the susceptibility"
        " leaves).",
        experimental=True,
    ),
    Algorithm(
        "separation",
        "decompose",
        "separation.decompose:decompose",
        ("chen2021decompose",),
        "Paramagnetic and diamagnetic component susceptibility were separated with DECOMPOSE-QSM, a least-squares fit of three"
        " pools (up to {max_chi} ppm, common decay up to {max_r0} 1/s, {starts} starting values of each susceptibility) to the"
        " complex signal made of the magnitude and the susceptibility of every echo.",
        experimental=True,
    ),
)

_TABLE = {(row.stage, row.name): row for row in ALGORITHMS}


def names(stage: str) -> tuple[str, ...]:
    """Names of the methods of a stage, in the order of the table."""
    return tuple(row.name for row in ALGORITHMS if row.stage == stage)


def find(stage: str, name: str) -> Algorithm:
    """The row of a method.

    Raises
    ------
    UsageError
        If the stage has no such method; the message gives the nearest known name.

    Examples
    --------
    >>> find("inversion", "tkd").merged()
    {'threshold': 0.15, 'correct': False}
    """
    try:
        return _TABLE[stage, name]
    except KeyError:
        raise UsageError(f"{STAGES[stage].title}: no method '{name}'{nearest(name, names(stage))}") from None


def apply(stage: str, name: str, *, arrays: Mapping, context: Mapping, parameters: Mapping) -> dict[str, object]:
    """Call a method with what its signature asks for; return its results by the stage's names."""
    row = find(stage, name)
    missing = [key for key in row.arrays if arrays.get(key) is None]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}")
    result = row.call(
        *(arrays[key] for key in row.arrays), **{key: context[key] for key in row.context}, **row.merged(parameters)
    )
    wanted = STAGES[stage].results
    return dict(zip(wanted, result if len(wanted) > 1 else (result,), strict=True))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _signature(function: Callable):
    return inspect.signature(function).parameters.values()


@cache
def _parameters(function: Callable) -> dict[str, Parameter]:
    hints, texts = typing.get_type_hints(function), _parameter_docs(function)
    result = {}
    for p in _signature(function):
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty:
            hint, choices = hints[p.name], None
            if typing.get_origin(hint) is typing.Literal:
                choices = typing.get_args(hint)
                hint = type(choices[0])
            result[p.name] = Parameter(p.name, hint, p.default, texts[p.name], choices)
    return result


def _parameter_docs(function: Callable) -> dict[str, str]:
    """Descriptions of the parameters, read from the numpydoc section of the docstring."""
    match = re.search(r"\nParameters\n-+\n(.*?)(?=\n\w[^\n]*\n-+\n|\Z)", inspect.getdoc(function), re.S)
    texts: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", match.group(1).strip("\n")) if match else ():
        head, _, body = block.partition("\n")
        for name in head.split(" : ")[0].split(","):
            texts[name.strip()] = " ".join(body.split())
    return texts
