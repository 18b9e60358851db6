import numpy as np
import reference
from hypothesis import given, settings

from dropjax import regression


@settings(max_examples=6, deadline=None)
@given(reference.shapes, reference.seeds)
def test_contributions_sum_to_what_linearisation_says(shape, seed):
    depth, d, _, _ = shape
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, *shape)
    arrangement = reference.random_arrangement(rng, depth)
    x = rng.normal(size=(5, d)).astype(np.float32)
    pred = reference.outputs(stack, arrangement, x).astype(np.float32) + 1
    phi, error = regression.contributions_and_errors(stack, arrangement, np.arange(depth, dtype=np.int32), x, pred)
    np.testing.assert_allclose(error, -1, rtol=1e-3)
    states = reference.states(stack, arrangement, x)
    step = 1e-3
    for i in range(depth):
        for j in range(depth):
            added = step * reference.residual(stack, (arrangement[i, 0], arrangement[j, 1]), states[i])
            moved = states[i + 1] + added
            for halves in arrangement[i + 1 :]:
                moved = moved + reference.residual(stack, halves, moved)
            out = moved @ np.asarray(stack.w_last, np.float64).T + np.asarray(stack.b_last, np.float64)
            np.testing.assert_allclose(phi[i, j], (out - reference.outputs(stack, arrangement, x)) / step, atol=0.02)


def test_the_soft_pairing_of_a_linear_truth_is_the_truth():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 4, 200))
    truth = np.eye(4)[[1, 0, 2, 3]]
    pred = np.einsum("ij,ijk->k", truth, features)
    error = np.einsum("iik->k", features) - pred
    for soft in regression.soft_pairing(features, error, ridges=(1e-9, 1e-6)):
        np.testing.assert_allclose(soft, truth, atol=1e-3)


def test_wrong_pairs_are_proposed_right_first():
    rng = np.random.default_rng(3)
    depth = 6
    stack = reference.random_stack(rng, depth, 5, 8, 1, size=0.2)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    truth = reference.random_arrangement(rng, depth)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    wrong = truth.copy()
    wrong[[1, 4], 1] = wrong[[4, 1], 1]
    doubtful = wrong[[1, 4, 2, 0], 0]
    found = regression.proposals(stack, wrong, doubtful, np.zeros((depth, depth)), x, pred, sizes=(2, 4))
    np.testing.assert_array_equal(found[0], truth)


def test_right_pairs_are_left_alone():
    rng = np.random.default_rng(4)
    stack = reference.random_stack(rng, 6, 5, 8, 1, size=0.2)
    x = rng.normal(size=(600, 5)).astype(np.float32)
    truth = reference.random_arrangement(rng, 6)
    pred = reference.outputs(stack, truth, x).astype(np.float32)
    assert regression.proposals(stack, truth, truth[:4, 0], np.zeros((6, 6)), x, pred, sizes=(2, 4)) == []
