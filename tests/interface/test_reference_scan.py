"""Reference scans of the coils after the head has moved: registered where they show the head, not where they show the coils."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from qsmflow import registry
from qsmflow.algorithms.unwrap.wrapping import wrap
from qsmflow.interfaces import combination, images
from qsmflow.interfaces.combination import CoilImages, CombineCoils, Resampled
from qsmflow.interfaces.registration import Motion

#: Grids of the images and of the reference scan, mm from the centre of the scanner.
FINE = images.Grid((48, 52, 44), np.array([[4.0, 0, 0, -94], [0, 4, 0, -102], [0, 0, 4, -86], [0, 0, 0, 1]]))
COARSE = images.Grid((32, 36, 30), np.array([[6.0, 0, 0, -93], [0, 6, 0, -105], [0, 0, 6, -87], [0, 0, 0, 1]]))

COILS = 6

#: A nod of 3 degrees and a shift of 4 mm between the images and the reference scan.
C, S = math.cos(math.radians(3)), math.sin(math.radians(3))
NOD = np.array([[1, 0, 0, 0], [0, C, -S, 3.2], [0, S, C, 2.4], [0, 0, 0, 1]])
STILL = np.eye(4)

#: Centre (mm), width (mm) and height (rad) of places where the phase is steep, as above the sinuses.
STEEP = (((0, 50, -30), 18, 6.0), ((40, 0, 20), 14, 3.0), ((-40, -20, 0), 14, -3.0))


def head(place):
    """Magnitude and phase of a head at points of its own, mm."""
    texture, bends = (
        sum(np.sin(np.einsum("i,iabc->abc", wave, place)) for wave in np.random.default_rng(seed).normal(0, width, (8, 3)))
        for seed, width in ((1, 0.12), (2, 0.06))
    )
    radius = np.sqrt(sum((x / half) ** 2 for x, half in zip(place, (68, 84, 70), strict=True)))
    phase = 0.9 * bends
    for centre, width, height in STEEP:
        phase += height * np.exp(-sum((x - c) ** 2 for x, c in zip(place, centre, strict=True)) / (2 * width**2))
    return (100 + 10 * texture) / (1 + np.exp(60 * (radius - 1))), phase


def sensitivity(place, coil):
    """What a coil of the array receives at points of the scanner: it stays where it is when the head moves."""
    angle = 2 * math.pi * coil / COILS
    slope = np.random.default_rng(coil).normal(0, 0.01, 3)
    square = (place[0] - 100 * math.cos(angle)) ** 2 + (place[1] - 100 * math.sin(angle)) ** 2 + place[2] ** 2
    return np.exp(1j * (coil + np.einsum("i,iabc->abc", slope, place))) / (1 + square / 90**2)


@functools.cache
def receive(grid, *, array, nodded=False, time=1.0):
    """Images of the head, (X, Y, Z, C): in the array, or in one coil that sees everything."""
    place = np.einsum("ij,jabc->iabc", grid.affine[:3, :3], np.indices(grid.shape)) + grid.affine[:3, 3, None, None, None]
    back = np.linalg.inv(NOD if nodded else STILL)
    magnitude, phase = head(np.einsum("ij,jabc->iabc", back[:3, :3], place) + back[:3, 3, None, None, None])
    image = magnitude * np.exp(1j * time * phase)
    image = np.stack([image * sensitivity(place, coil) for coil in range(COILS)] if array else [image], axis=-1)
    noise = np.random.default_rng(3).normal(0, 1.7, (2, *image.shape))
    return (image + noise[0] + 1j * noise[1]).astype(np.complex64)


@pytest.fixture
def volumes(tmp_path):
    """Write complex images; their volumes as the interface takes them."""

    def volumes(name, data, grid):
        parts = {"magnitude": np.abs(data), "phase": np.angle(data)}
        paths = {part: images.write(tmp_path / f"{name}_{part}.nii", values, grid) for part, values in parts.items()}
        return {part: [(path, coil) for coil in range(data.shape[3])] for part, path in paths.items()}

    return volumes


@pytest.fixture
def combine(volumes, tmp_path):
    """Combine the coils as the app does: phase, matching and report."""
    signal = volumes("signal", receive(FINE, array=True), FINE)

    def combine(algorithm, scan):
        given = {f"reference_{part}": value for part, value in volumes("reference", scan, COARSE).items()}
        settings = {"algorithm": algorithm, "parameters": registry.find("coils", algorithm).merged(), "version": 1}
        units = {"phase_units": "rad", "reference_units": "rad"}
        node = CombineCoils(coils=COILS, echo_times=[0.005], **settings, **units, **signal, **given)
        outputs = node.run(cwd=tmp_path).outputs
        return images.read(outputs.phase)[..., 0], images.read(outputs.matching), outputs.report

    return combine


@pytest.fixture
def placed(volumes, tmp_path):
    """Combine the coils with the reference placed by a motion that is given: phase and matching."""

    def placed(algorithm, scan, motion):
        files = {"signal": (receive(FINE, array=True), FINE), "reference": (scan, COARSE)}
        loaded = {
            name: CoilImages(
                {"real": [], "imag": [], **volumes(f"{name}_of_its_own", *file)}, file[0].shape[3],
                units="rad", sign="auto", folder=tmp_path,
            )
            for name, file in files.items()
        }  # fmt: skip
        arrays = {"signal": loaded["signal"], "reference": Resampled(loaded["reference"], FINE, motion)}
        context = {"voxel_size": FINE.voxel_size, "echo_times": [0.005]}
        results = registry.apply("coils", algorithm, arrays=arrays, context=context, parameters={})
        return results["phase"][..., 0], results["matching"]

    return placed


def error(phase):
    """How far a phase is from that of the head, but for a constant: root mean square in the head, rad."""
    truth = receive(FINE, array=False)[..., 0]
    difference = np.exp(1j * phase) * truth.conj() / np.abs(truth)
    inside = np.abs(truth) > 60
    return float(np.sqrt(np.mean(np.angle(difference[inside] / difference[inside].mean()) ** 2)))


def test_reference_coil_follows_the_head(combine, placed):
    """The phase takes over that of the reference, which belongs to the head: where it was is not where it is."""
    scan = receive(COARSE, array=False, nodded=True)
    phase, matching, report = combine("roemer", scan)
    np.testing.assert_array_equal(combine("roemer", scan)[0], phase)
    assert error(placed("roemer", scan, STILL)[0]) > 0.3
    assert error(phase) < 0.06
    assert error(phase) < 1.05 * error(placed("roemer", scan, NOD)[0])
    assert matching[np.abs(receive(FINE, array=False)[..., 0]) > 60].mean() > 99.7
    (notice,) = report["notices"]
    assert "was registered: the head had moved by 4.0 mm and 3." in notice
    assert report["warnings"] == []


def test_coils_stay_where_they_are(combine, placed):
    """A scan of the same coils is placed by the headers, which match the coils better than the motion of the head does."""
    scan = receive(COARSE, array=True, nodded=True, time=0.1)
    phase, matching, report = combine("composer", scan)
    assert report["notices"] == report["warnings"] == []
    by_headers, moved = placed("composer", scan, STILL), placed("composer", scan, NOD)
    assert np.abs(wrap(phase - by_headers[0])).max() < 1e-5
    inside = np.abs(receive(FINE, array=False)[..., 0]) > 60
    assert 100 - matching[inside].mean() < 0.6 * (100 - moved[1][inside].mean())


@pytest.mark.parametrize(
    ("shift", "turn", "gain", "kind", "words"),
    [
        (45.0, 2.0, 0.1, "warnings", "45.0 mm and 2.0 degrees, more than a head can move"),
        (5.0, 25.0, 0.1, "warnings", "5.0 mm and 25.0 degrees, more than a head can move"),
        (5.0, 2.0, -0.1, "warnings", "5.0 mm and 2.0 degrees, which match worse than the headers"),
        (0.2, 0.1, -0.1, "notices", "the head had not moved"),
    ],
)
def test_what_cannot_be_believed_is_not_used(combine, placed, monkeypatch, shift, turn, gain, kind, words):
    monkeypatch.setattr(combination, "head_motion", lambda *_: Motion(NOD, shift, turn, gain))
    scan = receive(COARSE, array=False)
    phase, _, report = combine("roemer", scan)
    assert np.abs(wrap(phase - placed("roemer", scan, STILL)[0])).max() < 1e-5
    (told,) = report["notices"] + report["warnings"]
    assert words in (told["what"] if kind == "warnings" else told)
    assert report[kind]


@pytest.mark.parametrize(("content", "words"), [("nothing", "could not be registered"), ("noise", "more than a head can move")])
def test_a_scan_without_a_head(combine, content, words):
    noise = np.random.default_rng(0).normal(size=(2, *COARSE.shape, 1))
    scan = (noise[0] + 1j * noise[1]).astype(np.complex64) * (content == "noise")
    phase, _, report = combine("roemer", scan)
    (warning,) = report["warnings"]
    assert words in warning["what"]
    assert "placed by the headers" in warning["remedy"]
    assert np.isfinite(phase).all()
