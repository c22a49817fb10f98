"""Registration on a small synthetic brain: known motion is found, labels go there and back, and twice is the same."""

import numpy as np
import pytest
from scipy import ndimage

from qsmflow.interfaces import images, registration
from qsmflow.interfaces.registration import Register, Warp

GRID = images.Grid((40, 44, 36), np.array([[-4.0, 0, 0, 70], [0, 4, 0, -80], [0, 0, 4, -60], [0, 0, 0, 1]]))


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    """A brain-like image with its mask and labels, and the same moved by 8 mm along x."""
    folder = tmp_path_factory.mktemp("brain")
    x, y, z = np.indices(GRID.shape)
    inside = ((x - 20) / 14) ** 2 + ((y - 22) / 16) ** 2 + ((z - 18) / 12) ** 2 < 1
    rng = np.random.default_rng(5)
    texture = ndimage.gaussian_filter(rng.normal(size=GRID.shape), 2)
    image = (inside * (100 + 600 * texture)).astype(np.float32)
    labels = np.zeros(GRID.shape, np.int16)
    labels[16:20, 20:24, 16:20], labels[24:28, 20:24, 16:20] = 3, 7
    files = {}
    for name, data in {"image": image, "mask": inside, "labels": labels}.items():
        files[name] = images.write(folder / f"{name}.nii", data, GRID)
        files[f"moved_{name}"] = images.write(folder / f"moved_{name}.nii", np.roll(data, -2, axis=0), GRID)
    return files


def misplaced(brain):
    """Mutual information of the two images as they lie, without registration."""
    ants = registration._ants()
    fixed, moving = registration._read(brain["image"]), registration._read(brain["moved_image"])
    return -float(ants.image_similarity(fixed, moving, "MattesMutualInformation"))


def test_rigid_motion_is_found_and_labels_follow(brain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = (
        Register(
            moving=brain["moved_image"],
            moving_mask=brain["moved_mask"],
            fixed=brain["image"],
            fixed_mask=brain["mask"],
            kind="Rigid",
        )
        .run()
        .outputs
    )
    warped = (
        Warp(
            in_file=brain["labels"],
            reference=brain["moved_image"],
            transforms=found.inverse,
            flags=found.inverse_flags,
            labels=True,
        )
        .run()
        .outputs.out_file
    )
    assert found.similarity > 1.3 * misplaced(brain)
    got, expected = images.read(warped, np.int16), images.read(brain["moved_labels"], np.int16)
    assert images.read_grid(warped).matches(GRID)
    for label in (3, 7):
        overlap = 2 * ((got == label) & (expected == label)).sum() / ((got == label).sum() + (expected == label).sum())
        assert overlap > 0.9
    assert set(np.unique(got)) == {0, 3, 7}


def test_deformable_registration_with_focus_improves_on_nothing_and_repeats(brain, tmp_path, monkeypatch):
    similarity = []
    for run in ("one", "two"):
        folder = tmp_path / run
        folder.mkdir()
        monkeypatch.chdir(folder)
        found = (
            Register(
                moving=brain["moved_image"],
                moving_mask=brain["moved_mask"],
                fixed=brain["image"],
                focus=brain["labels"],
                kind="SyN",
            )
            .run()
            .outputs
        )
        assert len(found.forward) == len(found.inverse) == 3
        assert found.inverse_flags == [True, False, False]
        back = (
            Warp(
                in_file=brain["moved_image"],
                reference=brain["image"],
                transforms=found.forward,
                flags=found.forward_flags,
                labels=False,
            )
            .run()
            .outputs.out_file
        )
        similarity.append((found.similarity, images.read(back)))
    assert similarity[0][0] == similarity[1][0]
    assert np.array_equal(similarity[0][1], similarity[1][1])
    fixed, inside = images.read(brain["image"]), images.read(brain["mask"], bool)
    assert np.corrcoef(similarity[0][1][inside], fixed[inside])[0, 1] > 0.9
    assert np.corrcoef(images.read(brain["moved_image"])[inside], fixed[inside])[0, 1] < 0.8
