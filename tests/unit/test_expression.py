"""Expressions of masking methods: reading, evaluating, changing, writing."""

import itertools

import numpy as np
import pytest

from qsmflow.config import Recipe
from qsmflow.errors import UsageError
from qsmflow.expression import parse

#: All combinations of truth, and what an expression makes of them.
T, R, Q = (np.array(column, bool) for column in zip(*itertools.product((0, 1), repeat=3), strict=True))
MASKS = {"template": T, "robust": R, "quality": Q}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("template", T),
        ("template & quality", T & Q),
        ("(template | robust) & quality", (T | R) & Q),
        ("template | robust & quality", T | (R & Q)),
        ("template - robust - quality", T & ~R & ~Q),
        ("template - (robust - quality)", T & ~(R & ~Q)),
        ("template & !quality | robust", (T & ~Q) | R),
        ("!(template|quality)", ~(T | Q)),
        ("!!robust", R),
    ],
)
def test_expressions_mean_what_they_say_and_are_written_back(text, expected):
    expression = parse(text)
    np.testing.assert_array_equal(expression.evaluate(MASKS), expected)
    again = parse(str(expression))
    assert again == expression
    assert str(again) == str(expression)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("template & qualty", "no method 'qualty'; did you mean 'quality'"),
        ("", "a method is missing"),
        ("template &", "a method is missing at the end"),
        ("template & | quality", r"a method is missing before '\|'"),
        ("(template | robust & quality", "parenthesis is not closed"),
        ("template) & quality", r"'\)' was not expected"),
        ("template quality", "'quality' was not expected"),
        ("template + quality", r"'\+' was not expected"),
    ],
)
def test_what_cannot_be_read_is_told(text, words):
    with pytest.raises(UsageError, match=words):
        parse(text)
    with pytest.raises(UsageError, match=words):
        Recipe(mask=text)


@pytest.mark.parametrize(
    ("text", "without", "left"),
    [
        ("template & quality", "quality", "template"),
        ("template - quality", "quality", "template"),
        ("quality - template", "quality", "None"),
        ("(template | quality) & robust", "quality", "template & robust"),
        ("template & !quality", "quality", "template"),
        ("quality | quality", "quality", "None"),
        ("template & robust", "quality", "template & robust"),
    ],
)
def test_a_method_can_be_taken_out(text, without, left):
    assert str(parse(text).without(without)) == left


def test_a_method_can_be_replaced():
    assert str(parse("template & quality").renamed("template", "threshold")) == "threshold & quality"
    assert str(parse("(template | threshold) & quality").renamed("template", "threshold")) == "threshold & quality"


def test_a_recipe_knows_its_methods_and_their_parameters():
    recipe = Recipe(mask="(template | robust) & !quality", parameters={"robust": {"factor": 4}})
    assert recipe.mask_methods == ("template", "robust", "quality")
    assert not recipe.mask_expression.is_intersection
    assert Recipe(mask="template & robust & quality").mask_expression.is_intersection
    assert recipe.hash != Recipe(mask="(template & robust) | !quality", parameters={"robust": {"factor": 4}}).hash
    with pytest.raises(UsageError, match="threshold"):
        Recipe(mask="template & quality", parameters={"threshold": {"factor": 1.0}})
    assert Recipe(mask="/a-b/mask.nii.gz").mask_expression is None
