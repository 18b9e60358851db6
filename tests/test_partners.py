import numpy as np
import pytest
import reference
from peelable import ROWS, D, H, L, columns_of, planted

from dropjax.ordering.partners import fit, matched, support
from dropjax.ordering.regressions import with_none


@pytest.mark.parametrize("rows", [ROWS, 40], ids=["more rows", "more columns"])
def test_support_is_the_posterior_density_of_the_shared_slope_over_its_prior_density(rows):
    stack, _, x, pred = planted(2, 2, rows)
    halves = np.array([5, 2, 0], np.int32)
    found = fit(stack, halves, x, pred)
    columns, (by_state, by_hidden) = columns_of(stack, halves, x)
    ridge, noise = float(found.ridge), float(found.noise)
    covariance = noise * np.linalg.inv(columns.T @ columns + ridge * np.eye(columns.shape[1]))
    coefficients = np.asarray(found.coefficients, np.float64)
    table = np.asarray(support(stack, found))
    w_last = np.asarray(stack.w_last, np.float64)

    def log_density(missed, covariance):
        quadratic = np.sum(missed * np.linalg.solve(covariance, missed))
        return -(quadratic + missed.shape[1] * np.linalg.slogdet(covariance)[1]) / 2

    for k in range(3):
        for j in range(L):
            through = np.asarray(stack.w_out[j], np.float64).T
            equation = np.zeros((H, columns.shape[1]))
            equation[:, :D], equation[:, D + k * H : D + (k + 1) * H] = -by_state * through, by_hidden * np.eye(H)
            at = -through @ w_last.T
            posterior = log_density(equation @ coefficients + at, equation @ covariance @ equation.T)
            prior = log_density(at, noise / ridge * equation @ equation.T)
            assert table[k, j] == pytest.approx(posterior - prior, rel=0.02, abs=0.3)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_behind_half_the_blocks_the_rest_finds_its_partners(seed):
    stack, truth, x, pred = planted(seed)
    for k, state in enumerate(reference.states(stack, truth, x)[: L - 1]):
        if k >= L // 2:
            rest = np.stack([truth[k:, 0], np.roll(truth[k:, 1], 1)], axis=1)
            here = state.astype(np.float32)
            np.testing.assert_array_equal(matched(stack, rest, np.full(L, -1), here, pred), truth[k:])
            # The regression may be larger than what remains.
            padded = matched(with_none(stack), rest, np.full(L, -1), here, pred, size=len(rest) + 2)
            np.testing.assert_array_equal(padded, truth[k:])


def test_belief_decides_where_the_table_says_nothing():
    stack, truth, x, _ = planted(0)
    belief = np.zeros((L, L))
    belief[truth[:, 0], truth[:, 1]] = 1e4
    noise = np.random.default_rng(0).normal(size=(ROWS, 1)).astype(np.float32)
    rest = np.stack([truth[:, 0], np.roll(truth[:, 1], 1)], axis=1)
    np.testing.assert_array_equal(matched(stack, rest, np.full(L, -1), x, noise, belief), truth)


def test_certain_partners_are_kept():
    stack, truth, x, _ = planted(0)
    certain = np.roll(truth[np.argsort(truth[:, 0]), 1], 2)
    np.testing.assert_array_equal(matched(stack, truth, certain, x, x[:, :1])[:, 1], certain[truth[:, 0]])
