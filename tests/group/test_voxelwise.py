"""Maps in template space: mean and spread, and a planted difference that is found where it is."""

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

from qsmflow.cli.run import main
from qsmflow.cli.validator import validate
from qsmflow.group.voxelwise import Moments, permutation_test, smooth

SHAPE, PLANTED = (24, 28, 24), (slice(6, 12), slice(6, 12), slice(6, 12))


@pytest.fixture(scope="module")
def maps(cohort_on_disk, tmp_path_factory):
    """Fourteen people with maps of 1 mm; patients have 0.03 ppm more in a cube."""
    truth = cohort_on_disk(tmp_path_factory.mktemp("voxels"), 14)
    rng = np.random.default_rng(0)
    inside = np.zeros(SHAPE, bool)
    inside[2:-2, 2:-2, 2:-2] = True
    truth.maps = []
    for who, group in zip(truth.people["participant_id"], truth.people["group"], strict=True):
        chi = np.where(inside, rng.normal(0.02, 0.02, SHAPE), 0)
        chi[PLANTED] += 0.03 * (group == "PD")
        path = truth.out / who / "anat" / f"{who}_space-MNI152NLin2009cAsym_res-1_Chimap.nii.gz"
        nb.save(nb.Nifti1Image(chi.astype(np.float32), np.diag([1.0, 1, 1, 1])), path)
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(
            '{"SkullStripped": true, "Resolution": {"1": "1 mm"}, "SpatialReference": "simulated", "Units": "ppm"}'
        )
        truth.maps.append(chi)
    model = truth.bids.parent / "vox.yml"
    settings = "{permutations: 200, fwhm: 3, resolution: 2}"
    model.write_text(f"{{name: vox, analysis: case-control, covariates: [age], voxelwise: {settings}}}")
    assert main([str(truth.bids), str(truth.out), "group", "--model", str(model), "--voxelwise"]) == 0
    return truth


def test_the_difference_is_where_it_was_planted(maps):
    found = nb.load(maps.out / "group_vox_group-PD_t_thresholded.nii.gz")
    values, planted = found.get_fdata(), np.zeros(SHAPE, bool)
    planted[PLANTED] = True
    planted = planted[::2, ::2, ::2]
    assert found.affine[0, 0] == 2
    assert (values[planted] > 0).mean() > 0.8
    edge = np.zeros(SHAPE, bool)
    edge[3:15, 3:15, 3:15] = True  # smoothing carries the effect 3 mm beyond the cube
    assert (values[~edge[::2, ::2, ::2]] == 0).all()
    logp = nb.load(maps.out / "group_vox_group-PD_logp.nii.gz").get_fdata()
    assert logp.max() == pytest.approx(np.log10(201), rel=1e-3)  # the smallest p that 200 permutations can give


def test_mean_and_spread_are_those_of_the_maps(maps):
    mean, sd = (nb.load(maps.out / f"group_vox_{name}.nii.gz").get_fdata() for name in ("mean", "sd"))
    stack = np.stack(maps.maps)
    assert mean == pytest.approx(stack.mean(axis=0), abs=1e-6)
    assert sd == pytest.approx(stack.std(axis=0, ddof=1), abs=1e-6)


def test_the_report_shows_it(maps):
    text = (maps.out / "group_vox.html").read_text()
    row = pd.read_csv(maps.out / "group_vox_voxelwise.tsv", sep="\t").iloc[0]
    assert f"voxelwise, group-PD: {row['significant']} of {row['voxels']} voxels" in text.lower().replace(
        "group-pd", "group-PD"
    )
    assert "Effect of group-PD" in text
    assert (maps.out / "figures" / "group_vox_voxelwise-mean-map.png").is_file()
    assert validate(maps.out) == []


def test_permutation_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(1)
    smallest = []
    for seed in range(40):
        found, limit = permutation_test(
            rng.normal(size=(16, 30)), np.repeat([0.0, 1.0], 8), rng.normal(size=(16, 1)), permutations=100, seed=seed
        )  # fmt: skip
        smallest.append(10 ** -found["logp"].max())
        assert (np.abs(found["t"]).max() > limit) == (smallest[-1] < 0.05)
    assert np.mean(np.array(smallest) < 0.5) == pytest.approx(0.5, abs=0.2)
    assert np.mean(np.array(smallest) < 0.05) <= 0.15


def test_t_values_are_those_of_a_linear_model():
    import statsmodels.api as sm

    rng = np.random.default_rng(2)
    maps, tested, other = rng.normal(size=(20, 3)), np.repeat([0.0, 1.0], 10), rng.normal(size=(20, 1))
    found, _ = permutation_test(maps, tested, other, permutations=10, seed=0)
    design = np.column_stack([np.ones(20), tested, other])
    assert found["t"] == pytest.approx([sm.OLS(maps[:, v], design).fit().tvalues[1] for v in range(3)])


def test_smoothing_keeps_to_the_mask():
    known = np.zeros((20, 20, 20), bool)
    known[4:16, 4:16, 4:16] = True
    point = np.zeros(known.shape)
    point[10, 10, 10] = 1
    soft = smooth(point, known, fwhm=4.0, voxel_size=(1, 1, 2))
    assert soft[~known].max() == 0
    assert soft[12, 10, 10] / soft[10, 10, 10] == pytest.approx(0.5, rel=0.02)  # 2 mm off: half of the peak
    assert soft[10, 10, 11] / soft[10, 10, 10] == pytest.approx(0.5, rel=0.02)


def test_moments_know_where_a_map_has_no_value():
    moments, known = Moments(), np.array([True, False])
    moments.add(np.array([1.0, 9.0]), known)
    moments.add(np.array([3.0, 5.0]), ~known | known)
    assert moments.mean.tolist() == [2.0, 5.0]
    assert moments.count.tolist() == [2, 1]
