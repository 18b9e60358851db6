import jax.numpy as jnp
import numpy as np
import pytest
import reference
from peelable import ROWS, D, columns_of, evidence_of, planted, refit, target_of

from dropjax.ordering.insertions import insertions, rises
from dropjax.ordering.regressions import Outlook, evidence, likeliest, look, slopes, with_none
from dropjax.runtime import mesh

RIDGE = np.float32(1e-3)


def outlook_of(stack, left, pred, q=3, seed=0):
    """An outlook on some blocks along random directions."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0][:, :q]
    through = np.stack([np.asarray(stack.w_out[j]).T @ basis for j in left[:, 1]]).astype(np.float32)
    return Outlook(left[:, 0], through, pred, RIDGE)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("rows", [ROWS, 15], ids=["more rows", "more columns"])
def test_a_rise_is_that_of_the_regression_without_the_block_and_with_its_change(outputs, rows):
    stack, truth, x, pred = planted(0, outputs, rows)
    left = truth[[4, 0, 3, 1]]
    outlook = outlook_of(stack, left, pred)
    seen = look(stack, outlook, x)
    of = likeliest(seen, rows * np.array([RIDGE]))
    rng = np.random.default_rng(1)
    changes = rng.normal(size=(4, 2, rows, outputs)) * float(jnp.std(seen.target)) / 3
    changes[0, 0] = 0  # what is left then is the partial gain: what the block's columns explain that no others do
    found = np.asarray(rises(seen, of, changes.astype(np.float32), 3))
    columns, _ = columns_of(stack, left[:, 0], x, outlook.through)
    target, ridge = target_of(stack, x, pred), rows * float(RIDGE)
    before = evidence_of(columns, target, ridge)
    for k in range(4):
        others = np.delete(columns, np.arange(D + 3 * k, D + 3 * (k + 1)), axis=1)
        for place in range(2):
            change = changes[k, place] - changes[k, place].mean(axis=0)
            after = evidence_of(others, target - change, ridge)
            assert found[k, place] == pytest.approx(after - before, rel=0.02, abs=0.3)
    lost = refit(np.delete(columns, np.arange(D, D + 3), axis=1), target, ridge)[1] / refit(columns, target, ridge)[1]
    assert lost > 1, "a block's columns explain something"


def test_slopes_are_the_regressions_gradient():
    stack, truth, x, pred = planted(0, outputs=2, activation="tanh")
    left = truth[2:]
    outlook = outlook_of(stack, left, pred)
    seen = look(stack, outlook, x)
    of = likeliest(seen, len(x) * np.array([RIDGE]))
    by_state, by_feature = map(float, seen.scales)
    coefficients = np.asarray(of.coefficients, np.float64)

    def outputs(x):
        hidden = [np.tanh(x @ stack.w_in[i].T + stack.b_in[i]) for i in left[:, 0]]
        parts = [by_state * x] + [by_feature * h @ np.asarray(v) for h, v in zip(hidden, outlook.through, strict=True)]
        return x @ stack.w_last.T + np.concatenate(parts, axis=1) @ coefficients

    found, step = np.asarray(slopes(stack, outlook, seen, of, x)), 1e-4
    for k in range(D):
        moved = np.eye(D)[k] * step
        expected = (outputs(x.astype(np.float64) + moved) - outputs(x.astype(np.float64) - moved)) / (2 * step)
        np.testing.assert_allclose(found[..., k], expected, atol=1e-3 * np.abs(found).max())


def test_what_promises_more_keeps_more():
    stack, truth, x, pred = planted(3, size=0.1, depth=8)
    left, last = np.concatenate([truth[3:], [[8, 8]]]).astype(np.int32), truth[:3]
    longer, outlook = with_none(stack), outlook_of(stack, truth[np.append(np.arange(3, 8), 7)], pred, q=D)
    outlook = outlook._replace(left=left[:, 0])
    found = insertions(longer, last, left, x, outlook, np.array([RIDGE]))
    kept = np.empty((5, 4))
    for row in range(5):
        behind = outlook._replace(left=np.where(np.arange(6) == row, 8, left[:, 0]))
        for place in range(4):
            end = reference.states(stack, np.insert(last, place, left[row], axis=0), x)[-1].astype(np.float32)
            kept[row, place] = float(evidence(longer, behind, end)) - float(found.evidence)
    promised = np.asarray(found.rise)[:5]
    assert np.corrcoef(promised.ravel(), kept.ravel())[0, 1] > 0.9
    np.testing.assert_allclose(found.rise[5], 0, atol=1e-2, err_msg="no block changes nothing")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_block_passed_over_promises_most_about_where_it_belongs(seed):
    stack, truth, x, pred = planted(seed, depth=8)
    missing = 3
    last = np.delete(truth[:6], missing, axis=0)
    left = np.concatenate([truth[[missing]], truth[6:]]).astype(np.int32)
    found = insertions(stack, last, left, x, outlook_of(stack, left, pred, q=D), np.array([1e-6, 1e-5, 1e-4], np.float32))
    assert abs(int(mesh.fetch(found.rise)[0].argmax()) - missing) <= 1
