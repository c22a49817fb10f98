"""Masks grown and shrunk by millimetres, against distance transforms."""

import numpy as np
import pytest
from scipy import ndimage

from qsmflow.algorithms import morphology


@pytest.mark.parametrize("voxel_size", [(1.0, 1.0, 1.0), (0.7, 0.7, 1.3), (2.0, 0.9375, 0.8)])
@pytest.mark.parametrize("radius", [0.0, 0.7, 2.1, 4.0, 30.0])
def test_distances_are_those_of_the_transform(rng, voxel_size, radius):
    for share in (0.02, 0.5, 0.98):
        mask = rng.random((14, 17, 11)) < share
        outwards, inwards = (ndimage.distance_transform_edt(m, sampling=voxel_size) for m in (~mask, mask))
        np.testing.assert_array_equal(morphology.dilate(mask, radius, voxel_size), outwards <= radius)
        np.testing.assert_array_equal(morphology.erode(mask, radius, voxel_size), inwards > radius)


@pytest.mark.parametrize("mask", [np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)])
def test_nothing_and_everything_stay(mask):
    np.testing.assert_array_equal(morphology.dilate(mask, 2.0, (1, 1, 1)), mask)
    np.testing.assert_array_equal(morphology.erode(mask, 2.0, (1, 1, 1)), mask)
