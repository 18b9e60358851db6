import logging

import builders
import jax
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from scipy.optimize import linear_sum_assignment
from scipy.stats import pearsonr, spearmanr

import dropjax
from dropjax.pairing.certainty import Judged, doubtful, regrets, without_effects, wrong_spread
from dropjax.pairing.evidence import SKETCH, Arrays, observe, template_scores
from dropjax.pairing.portfolio import pair, portfolio
from dropjax.pairing.ratio import diagonal_dominance, match, traces_and_norms
from dropjax.pairing.signals import LEARNED, RIDGE, SIGNALS, TEMPLATE, discriminant


@settings(max_examples=10, deadline=None)
@given(reference.shapes, reference.seeds)
def test_ratio_agrees_with_the_products_themselves(shape, seed):
    stack = reference.random_stack(np.random.default_rng(seed), *shape)
    ratio, trace = diagonal_dominance(stack.w_in, stack.w_out)
    for i, w_in in enumerate(np.asarray(stack.w_in, np.float64)):
        for j, w_out in enumerate(np.asarray(stack.w_out, np.float64)):
            product = w_out @ w_in
            np.testing.assert_allclose(trace[i, j], np.trace(product), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(ratio[i, j], abs(np.trace(product)) / np.linalg.norm(product), rtol=1e-3, atol=1e-5)


def test_little_memory_changes_nothing():
    stack = reference.random_stack(np.random.default_rng(0), 7, 4, 9, 1)
    whole = traces_and_norms(stack.w_in, stack.w_out)
    chunked = traces_and_norms(stack.w_in, stack.w_out, 8 * 9 * 9 * 2)
    np.testing.assert_allclose(whole[1], chunked[1], rtol=1e-5)


def test_a_zero_half_scores_zero():
    stack = reference.random_stack(np.random.default_rng(0), 5, 6, 4, 2)
    w_out = np.array(stack.w_out)
    w_out[2] = 0
    ratio, _ = diagonal_dominance(stack.w_in, w_out)
    assert (ratio[:, 2] == 0).all()
    assert np.isfinite(ratio).all()


def test_finds_planted_pairs_and_says_how_clear_they_are():
    puzzle, permutation = builders.random_puzzle(np.random.default_rng(5), L=8, d=12, h=20)
    found = dropjax.pair(puzzle.w_in, puzzle.w_out)
    numbers = dict(zip(permutation[0:-1:2], permutation[1:-1:2], strict=True))
    assert [numbers[n] for n in puzzle.in_numbers] == puzzle.out_numbers[found.partner].tolist()
    assert found.greedy_equals_hungarian
    rows, columns = linear_sum_assignment(-found.score)
    np.testing.assert_array_equal(found.partner, columns[np.argsort(rows)])
    assert (found.gap > 0).all()
    np.testing.assert_allclose(found.gap, found.own - found.runner_up)


def test_unrelated_halves_have_no_clear_partner():
    stack = reference.random_stack(np.random.default_rng(6), 8, 12, 20, 1)
    found = dropjax.pair(stack.w_in, stack.w_out)
    assert found.gap.min() < 0.1


def test_match_prefers_the_largest_total_to_the_largest_entry():
    score = np.array([[10.0, 9.0], [9.0, 1.0]])
    found = match("made up", score)
    assert found.partner.tolist() == [1, 0]
    assert not found.greedy_equals_hungarian
    assert found.gap.tolist() == [-1.0, 8.0]


def test_one_block_has_no_runner_up():
    found = match("made up", np.array([[1.0]]))
    assert found.runner_up[0] == -np.inf


def test_the_ratio_of_huge_halves_does_not_overflow():
    rng = np.random.default_rng(0)
    w_in, w_out = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 6, 4), (3, 4, 6)))
    expected, _ = diagonal_dominance(w_in, w_out)
    w_in[1] *= 1e19
    w_out[2] *= 1e15
    found, _ = diagonal_dominance(w_in, w_out)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# The portfolio

TRACE_BASED = ("ddr", "negative_trace", "positive_trace", "symmetry", TEMPLATE)
COSINE_BASED = ("cosines", "squared_cosines", "cubed_cosines")
NORM_BASED = ("norms", "norm_ranks", "peaks", "gram")


def planted(rng, L=8, d=12, h=30, coupling=1.0, balance=1.0):
    """Halves whose pairs show in every signal: W_out leans on −W_inᵀ, and hidden units have a norm of their own."""
    norm = np.exp(rng.normal(size=(L, h, 1)) * balance / 2)
    w_in = norm * rng.normal(size=(L, h, d))
    w_out = norm * rng.normal(size=(L, h, d)) - coupling * w_in
    return w_in.astype(np.float32), np.swapaxes(w_out, 1, 2).astype(np.float32)


def judged(w_in, w_out, signal="auto") -> Judged:
    found = pair(w_in, w_out, signal=signal)
    assert isinstance(found, Judged)
    return found


def test_cubes_see_pairs_that_agree_in_few_large_weights():
    rng = np.random.default_rng(3)
    L, d, h = 16, 24, 48
    w_in, w_out_t = rng.uniform(-1, 1, size=(2, L, h, d))
    large = rng.random((L, h, d)) < 0.01
    w_in[large] *= 3
    w_out_t[large] = -w_in[large]
    shuffled = rng.permutation(L)
    w_out = np.swapaxes(w_out_t, 1, 2)[shuffled].astype(np.float32)
    found = judged(w_in.astype(np.float32), w_out, "cubed_cosines")
    np.testing.assert_array_equal(shuffled[found.partner], np.arange(L))
    ratio = pair(w_in.astype(np.float32), w_out)
    assert (shuffled[ratio.partner] != np.arange(L)).any()


def evidence(w_in, w_out, memory=1 << 30):
    return next(observe(Arrays(w_in, w_out), shuffles=0, memory=memory))


@settings(max_examples=10, deadline=None)
@given(reference.shapes, reference.seeds)
def test_every_signal_is_what_its_definition_says(shape, seed):
    stack = reference.random_stack(np.random.default_rng(seed), *shape)
    w_in, w_out = np.asarray(stack.w_in), np.asarray(stack.w_out)
    seen = evidence(w_in, w_out)
    score = {name: np.asarray(signal(seen)) for name, signal in SIGNALS.items()}
    for i, a in enumerate(w_in.astype(np.float64)):
        for j, b in enumerate(w_out.astype(np.float64)):
            m, norm = b @ a, np.linalg.norm(b @ a)
            cosine = (a * b.T).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=0)
            in_norms, out_norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0)
            cubes = (a / in_norms[:, None]) ** 3, (b.T / out_norms[:, None]) ** 3
            ours, theirs = (g / np.linalg.norm(g) for g in (a @ a.T, b.T @ b))
            wanted = {
                "ddr": abs(np.trace(m)) / norm,
                "negative_trace": -np.trace(m) / norm,
                "positive_trace": np.trace(m) / norm,
                "cosines": -cosine.mean(),
                "squared_cosines": (cosine**2).mean(),
                "cubed_cosines": -(cubes[0] * cubes[1]).sum() / np.linalg.norm(cubes[0]) / np.linalg.norm(cubes[1]),
                "norms": pearsonr(in_norms, out_norms)[0],
                "norm_ranks": spearmanr(in_norms, out_norms)[0],
                "peaks": pearsonr(np.abs(a).max(axis=1), np.abs(b).max(axis=0))[0],
                "gram": 1 - np.linalg.norm(ours - theirs) ** 2 / 2,
                "symmetry": 1 - np.linalg.norm(m - m.T) ** 2 / norm**2 / 2,
            }
            assert {*wanted, "movement"} == SIGNALS.keys()
            for name, value in wanted.items():
                np.testing.assert_allclose(score[name][i, j], value, rtol=2e-3, atol=1e-4, err_msg=name)


def test_template_leaves_the_pair_itself_out():
    w_in, w_out = planted(np.random.default_rng(0), L=5)
    seen = evidence(w_in, w_out)
    partner, weight = np.array([1, 0, 2, 3, 4]), np.array([1, 0, 1, 1, 1], np.float32)
    found = np.asarray(template_scores(*seen.halves, partner, weight))
    products = np.einsum("jdh,ihe->ijde", w_out, w_in)
    products /= np.linalg.norm(products, axis=(2, 3), keepdims=True)
    for i in range(5):
        for j in range(5):
            others = [k for k in range(5) if weight[k] and k != i and partner[k] != j]
            mean = np.mean([products[k, partner[k]] for k in others], axis=0)
            np.testing.assert_allclose(found[i, j], (products[i, j] * mean).sum(), atol=1e-5)


@pytest.mark.parametrize("signal", [*TRACE_BASED, *COSINE_BASED, *NORM_BASED])
def test_every_signal_pairs_what_shows_it(signal):
    w_in, w_out = planted(np.random.default_rng(1), L=12, d=16, h=60)
    order = np.random.default_rng(2).permutation(12)
    sign = -1 if signal == "positive_trace" else 1
    found = portfolio(Arrays(w_in, sign * w_out[order]), (signal,))
    assert order[found.partner].tolist() == list(range(12))
    assert found.verdict != "no signal"


@pytest.mark.parametrize("signal", [*TRACE_BASED, *COSINE_BASED, *NORM_BASED])
def test_order_of_hidden_units_and_scale_of_halves_change_no_pairs_score(signal):
    rng = np.random.default_rng(3)
    w_in, w_out = planted(rng)
    sign = -1 if signal == "positive_trace" else 1
    order = [rng.permutation(30) for _ in range(8)]
    size = np.exp(rng.normal(size=(2, 8, 1, 1))).astype(np.float32)
    changed_in = size[0] * np.stack([half[o] for half, o in zip(w_in, order, strict=True)])
    changed_out = size[1] * np.stack([half[:, o] for half, o in zip(w_out, order, strict=True)])
    before, after = (pair(a, sign * b, signal=signal) for a, b in ((w_in, w_out), (changed_in, changed_out)))
    assert before.partner.tolist() == after.partner.tolist() == list(range(8))
    if signal not in LEARNED:  # its scores depend on which pairs it learns from
        np.testing.assert_allclose(before.own, after.own, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("signal", [*TRACE_BASED, *COSINE_BASED])
def test_scale_of_a_hidden_unit_changes_no_pair_where_the_signal_is_blind_to_it(signal):
    rng = np.random.default_rng(4)
    w_in, w_out = planted(rng)
    sign = -1 if signal == "positive_trace" else 1
    c = np.exp(rng.normal(size=(8, 30, 1)) / 2).astype(np.float32)
    before, after = (pair(a, sign * b, signal=signal) for a, b in ((w_in, w_out), (w_in * c, w_out / np.swapaxes(c, 1, 2))))
    assert before.partner.tolist() == after.partner.tolist() == list(range(8))
    if signal not in LEARNED:
        np.testing.assert_allclose(before.own, after.own, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("signal", NORM_BASED)
def test_scale_of_hidden_units_takes_norm_based_signals_away(signal):
    rng = np.random.default_rng(5)
    w_in, w_out = planted(rng, coupling=0.0)
    assert pair(w_in, w_out, signal=signal).partner.tolist() == list(range(8))
    even_in = w_in / np.linalg.norm(w_in, axis=2, keepdims=True)
    c = np.exp(2 * rng.normal(size=(8, 30, 1))).astype(np.float32)
    norm = np.linalg.norm(w_in, axis=2, keepdims=True)
    found = judged(even_in * c, w_out * np.swapaxes(norm / c, 1, 2), signal)
    assert found.partner.tolist() != list(range(8))
    assert found.verdict != "paired"


def test_portfolio_trusts_the_signal_that_is_there():
    for coupling, balance, right in ((1.0, 0.0, TRACE_BASED + COSINE_BASED), (0.0, 2.0, NORM_BASED)):
        w_in, w_out = planted(np.random.default_rng(6), L=10, d=16, h=60, coupling=coupling, balance=balance)
        order = np.random.default_rng(7).permutation(10)
        found = judged(w_in, w_out[order])
        assert found.signal in right
        assert order[found.partner].tolist() == list(range(10))
        assert found.verdict == "paired"
        assert doubtful(found).size == 0
        assert found.separations[found.signal] >= 0.9 * max(found.separations.values()) > 2
        assert found.votes.max() <= len(found.voters)
        assert found.signal in found.voters


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(6, 24, 8), (16, 32, 12)])
def test_unrelated_halves_have_no_signal(shape, seed):
    rng = np.random.default_rng(seed)
    L, h, d = shape
    w_in, w_out = rng.uniform(-1, 1, (L, h, d)), rng.standard_t(3, (L, d, h)) * np.exp(rng.normal(size=(L, 1, h)))
    found = judged(w_in.astype(np.float32), w_out.astype(np.float32))
    assert found.verdict == "no signal"
    assert found.voters == ()


def test_few_pairs_that_show_nothing_in_the_weights_are_named_as_doubtful():
    w_in, w_out = planted(np.random.default_rng(8), L=12, d=16, h=60, balance=0.0)
    fresh = np.random.default_rng(9).normal(size=(2, 16, 60)).astype(np.float32)
    w_out[[3, 7]] = fresh
    found = judged(w_in, w_out)
    assert found.verdict == "doubtful"
    assert set(doubtful(found).tolist()) == {3, 7}


def test_discriminant_finds_what_no_signal_alone_does():
    rng = np.random.default_rng(14)
    partner = rng.permutation(40)
    scores = rng.normal(size=(4, 40, 40))
    scores[:3, np.arange(40), partner] += 2.5
    alone = [int((match("one", score).partner == partner).sum()) for score in scores]
    assert max(alone) < 36
    learned_from = match("one", scores[0]).partner
    combined = discriminant(scores, learned_from)
    assert (match("all", combined).partner == partner).sum() >= 38
    shifted = scores + rng.normal(size=(4, 40, 1)) + rng.normal(size=(4, 1, 40))
    np.testing.assert_allclose(discriminant(shifted, learned_from), combined, atol=1e-8)


def test_discriminant_is_fishers():
    rng = np.random.default_rng(15)
    scores = rng.normal(size=(2, 30, 30))
    scores[1] += 0.8 * scores[0]
    scores[:, np.arange(30), np.arange(30)] += np.array([[8.0], [6.0]])
    combined = discriminant(scores, np.arange(30))
    tables = np.stack([without_effects(score, np.arange(30))[0] for score in scores])
    off = ~np.eye(30, dtype=bool)
    units = tables / np.array([table[off].std() for table in tables])[:, None, None]
    own, covariance = np.diagonal(units, axis1=1, axis2=2).mean(1), np.cov(units[:, off]) + RIDGE * np.eye(2)
    np.testing.assert_allclose(combined, np.tensordot(np.linalg.inv(covariance) @ own, units, 1), rtol=1e-9)


def test_regret_and_spread_ignore_what_is_added_to_rows_and_columns():
    rng = np.random.default_rng(12)
    score, partner = rng.normal(size=(6, 6)), rng.permutation(6)
    other = score + rng.normal(size=(6, 1)) + rng.normal(size=6)
    np.testing.assert_allclose(regrets(score, partner), regrets(other, partner))
    np.testing.assert_allclose(wrong_spread(score, partner), wrong_spread(other, partner))
    chosen = np.eye(6, dtype=bool)[partner]
    design = np.concatenate([np.kron(np.eye(6), np.ones((6, 1))), np.tile(np.eye(6), (6, 1))], axis=1)[~chosen.ravel()]
    residual = score[~chosen] - design @ np.linalg.lstsq(design, score[~chosen])[0]
    spread, freedom = wrong_spread(score, partner)
    assert freedom == 30 - 11
    np.testing.assert_allclose(spread, np.sqrt((residual**2).sum() / freedom))


def test_regret_is_the_least_loss_over_all_exchanges():
    rng = np.random.default_rng(13)
    score = rng.normal(size=(5, 5))
    found = match("made up", score)
    for i, regret in enumerate(regrets(score, found.partner)):
        losses = []
        for k in set(range(5)) - {i}:
            other = found.partner.copy()
            other[[i, k]] = other[[k, i]]
            losses.append(score[range(5), found.partner].sum() - score[range(5), other].sum())
        np.testing.assert_allclose(regret, min(losses))
        assert regret >= 0


@pytest.mark.parametrize("L", [1, 2, 3])
def test_very_few_halves(L):
    w_in, w_out = planted(np.random.default_rng(14), L=L)
    found = judged(w_in, w_out)
    assert sorted(found.partner.tolist()) == list(range(L))
    assert found.verdict in ("no signal", "doubtful", "paired")
    assert found.votes.shape == (L,)


def test_all_zero_halves_have_no_signal():
    found = judged(np.zeros((4, 6, 5), np.float32), np.zeros((4, 5, 6), np.float32))
    assert found.verdict == "no signal"
    assert np.isfinite(found.score).all()


def test_unknown_signals_are_refused():
    w_in, w_out = planted(np.random.default_rng(15), L=2)
    with pytest.raises(ValueError, match="expected one of ddr"):
        pair(w_in, w_out, signal="astrology")
    with pytest.raises(ValueError, match="at least 3"):
        portfolio(Arrays(w_in, w_out), shuffles=1)


def test_pieces_of_the_hidden_layer_add_up():
    w_in, w_out = planted(np.random.default_rng(16))
    whole, pieces = evidence(w_in, w_out), evidence(w_in, w_out, memory=16 * 8 * 20 * 7)
    for name in ("trace", "cosines", "squared_cosines", "norm", "square", "in_norms", "out_norms"):
        np.testing.assert_allclose(getattr(whole, name), getattr(pieces, name), rtol=1e-4, atol=1e-4, err_msg=name)


def test_sketched_norms_are_within_the_stated_error(monkeypatch):
    rng = np.random.default_rng(17)
    w_in, w_out = planted(rng, L=4, d=200, h=300)
    exact = evidence(w_in, w_out)
    monkeypatch.setattr("dropjax.pairing.evidence.EXACT_WIDTH", 100)
    sketched = evidence(w_in, w_out)
    assert sketched.square is None
    assert SIGNALS["symmetry"](sketched) is None
    assert sketched.halves[0].shape == (4, 300, SKETCH)
    np.testing.assert_allclose(sketched.norm, exact.norm, rtol=5 * 0.03)
    np.testing.assert_allclose(sketched.trace, exact.trace, rtol=1e-4, atol=1e-2)
    rank_one = np.ones((1, 300, 1), np.float32) * rng.normal(size=(4, 1, 200)).astype(np.float32)
    narrow = evidence(rank_one, np.swapaxes(rank_one, 1, 2))
    lengths = np.linalg.norm(rank_one[:, 0], axis=1)
    np.testing.assert_allclose(narrow.norm, 300 * np.outer(lengths, lengths), rtol=4 * SKETCH**-0.5)


def test_default_signal_compiles_one_program(caplog):
    w_in, w_out = planted(np.random.default_rng(18), L=3, d=5, h=11)
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, "jax"):
        for _ in range(2):
            dropjax.pair(w_in, w_out)
    assert caplog.text.count("Finished XLA compilation of jit(traces_and_norms)") == 1


@pytest.mark.usefixtures("real_folder")
def test_portfolio_pairs_the_real_puzzle_as_the_ratio_does(real_puzzle):
    ratio = dropjax.pair(real_puzzle.w_in, real_puzzle.w_out)
    found = judged(real_puzzle.w_in, real_puzzle.w_out)
    assert doubtful(ratio).size == 0
    assert found.verdict == "paired"
    np.testing.assert_array_equal(found.partner, ratio.partner)


@pytest.mark.usefixtures("real_folder")
def test_real_puzzle_separates_as_the_paper_says(real_puzzle):
    found = dropjax.pair(real_puzzle.w_in, real_puzzle.w_out)
    right = np.zeros_like(found.score, bool)
    right[np.arange(48), found.partner] = True
    assert found.greedy_equals_hungarian
    assert round(float(found.score[right].min()), 2) == 1.76
    assert round(float(found.score[~right].max()), 2) == 0.58
