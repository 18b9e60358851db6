import numpy as np
import pytest
import reference
from peelable import D, L, columns_of, planted

from dropjax.ordering.regressions import (
    Outlook,
    design,
    features,
    gram_of,
    hidden_features,
    look,
    with_none,
)


@pytest.mark.parametrize("shape", [(30, 7), (7, 30), (5, 3)])
def test_products_are_those_of_columns_or_of_rows_where_there_are_fewer(shape):
    columns = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = columns @ columns.T if shape[0] < shape[1] else columns.T @ columns
    np.testing.assert_allclose(gram_of(columns), expected, atol=1e-4)


def test_a_design_sees_states_and_what_the_outlook_sees_through():
    stack, truth, x, pred = planted(0, outputs=2)
    through = np.random.default_rng(0).normal(size=(3, stack.w_in.shape[1], 2)).astype(np.float32)
    halves = truth[:3, 0]
    seen = look(stack, Outlook(halves, through, pred, np.float32(1)), x)
    columns, scales = columns_of(stack, halves, x, through)
    np.testing.assert_allclose(seen.columns, columns, atol=1e-4)
    np.testing.assert_allclose(seen.scales, scales, rtol=1e-4)
    whole = design(stack, x, pred, hidden_features(stack, halves, x))
    np.testing.assert_allclose(whole.columns, columns_of(stack, halves, x)[0], atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_no_block_adds_nothing_and_scales_nothing(activation):
    stack, truth, x, pred = planted(0)
    longer = with_none(stack.__class__(**{**vars(stack), "activation": activation}))
    assert longer.depth == L + 1
    through = np.ones((4, stack.w_in.shape[1], 2), np.float32)
    left = np.append(truth[:3, 0], L)
    seen = look(longer, Outlook(left, through, pred, np.float32(1)), x)
    fewer = look(longer, Outlook(left[:3], through[:3], pred, np.float32(1)), x)
    np.testing.assert_allclose(seen.columns[:, : D + 6], fewer.columns, atol=1e-5)
    assert (np.asarray(seen.columns[:, D + 6 :]) == 0).all()
    if activation == "relu":
        end = reference.states(longer, np.array([[L, L], truth[0]]), x)
        np.testing.assert_array_equal(end[1], end[0])
    assert features(longer, Outlook(left, through, pred, np.float32(1)), x).shape == (len(x), 4, 2)
