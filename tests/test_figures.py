"""The figures plot the data that they are given, on a small stack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from dropjax.pairing.ratio import diagonal_dominance
from dropjax.reporting import analysis, figures

L, D, H = 4, 5, 7
RNG = np.random.default_rng(0)
STACK = jax.tree.map(jnp.asarray, reference.random_stack(RNG, L, D, H, 1))
X = RNG.normal(size=(50, D)).astype(np.float32)
SCORE, TRACE = diagonal_dominance(STACK.w_in, STACK.w_out)
RIGHT = np.eye(L, dtype=bool)


@pytest.fixture(scope="module")
def blocks():
    return jax.tree.map(np.asarray, analysis.measure_blocks(STACK, X))


def lines(ax):
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.get_lines()}


def heights(bars):
    return [bar.get_height() for bar in bars]


def along(ax, k=0):
    """The heights of line k of an axis."""
    return np.asarray(ax.get_lines()[k].get_ydata(), float)


def shown(ax):
    (image,) = ax.get_images()
    return np.asarray(image.get_array())


def title(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


def both(draw, *args):
    """Draws the figure wide and narrow, and checks that both have the same title and panels."""
    wide, narrow = draw(*args), draw(*args, narrow=True)
    assert narrow.get_figwidth() < 4.5 < wide.get_figwidth()
    assert title(wide) == title(narrow)
    assert len(wide.axes) == len(narrow.axes)
    return wide


def test_architecture():
    figure = both(figures.architecture, 48, 96, 47, 2, "relu")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert any("block 48" in text and "96×47" in text and "47×96" in text for text in texts)
    assert any(text == "last layer\n2×47" for text in texts)
    assert not any("…" in text.get_text() for text in figures.architecture(1, 3, 2, 1, "relu").axes[0].texts)


def test_table_overview():
    pred = RNG.normal(size=(50, 1))
    figure = both(figures.table_overview, X, pred, pred + 1)
    left, right = figure.axes[:2]
    np.testing.assert_allclose(along(left, 2), np.sort(X[:, 2]), atol=1e-6)
    np.testing.assert_allclose(lines(right)["pred"], np.sort(pred[:, 0]))
    np.testing.assert_allclose(lines(right)["true"], np.sort(pred[:, 0]) + 1)
    assert "true" not in lines(figures.table_overview(X, pred, None).axes[1])


def test_pairing_matrices():
    partner = np.array([2, 0, 3, 1])
    figure = both(figures.pairing_matrices, SCORE, partner)
    np.testing.assert_array_equal(shown(figure.axes[0]), SCORE)
    np.testing.assert_array_equal(shown(figure.axes[1]).diagonal(), SCORE[np.arange(L), partner])
    assert {image.norm.vmax for ax in figure.axes[:2] for image in ax.get_images()} == {SCORE.max()}


def test_pairing_histogram():
    score = np.where(RIGHT, 2.0, 0.5)
    figure = both(figures.pairing_histogram, score, RIGHT)
    wrong, right = (sum(heights(container)) for container in figure.axes[0].containers)
    assert (wrong, right) == (L * L - L, L)
    assert "do not overlap" in title(figure)
    assert "they overlap" in title(figures.pairing_histogram(np.where(RIGHT, 0.4, 0.5), RIGHT))


def test_product_examples():
    right, wrong = RNG.normal(size=(2, 3, D, D))
    figure = both(figures.product_examples, right, wrong)
    for ax, matrix in zip(figure.axes[:6], [*right, *wrong], strict=True):
        np.testing.assert_array_equal(shown(ax), matrix)
    assert len({image.norm.vmax for ax in figure.axes[:6] for image in ax.get_images()}) == 1


def test_all_products():
    products = analysis.products(STACK)
    figure = figures.all_products(products, "by position")
    mosaic = shown(figure.axes[0])
    assert mosaic.shape == (D + 2, L * (D + 1))
    for k in range(L):
        np.testing.assert_array_equal(mosaic[2:, k * (D + 1) : k * (D + 1) + D], products[k])
    traces = [text.get_text() for text in figure.axes[0].texts]
    assert traces == [f"{k + 1}: {np.trace(product):.1f}" for k, product in enumerate(products)]
    assert figures.all_products(products, "by position", narrow=True).get_figwidth() < 4.5


def test_progression():
    places = np.array([1, 0, 3, 2])
    figure = both(figures.progression, [("seed", places, 0.5), ("solved", np.arange(4), 0.0)])
    for ax, expected in zip(figure.axes, (places, np.arange(4)), strict=True):
        assert heights(ax.patches) == list(expected + 1)
    assert "4 out of place" in figure.axes[0].get_title()
    assert "0 out of place" in figure.axes[1].get_title()


def test_activation_fractions(blocks):
    figure = both(figures.activation_fractions, blocks.activation)
    bars = heights(figure.axes[0].patches)
    np.testing.assert_allclose(bars, blocks.activation.mean(axis=1), rtol=1e-6)


def test_block_properties(blocks):
    spectra, rank, delta, active = both(figures.block_properties, blocks).axes[:4]
    np.testing.assert_array_equal([line.get_ydata() for line in spectra.get_lines()], blocks.singular_values)
    np.testing.assert_array_equal(along(rank), analysis.effective_rank(blocks.singular_values))
    np.testing.assert_array_equal(along(delta), blocks.delta_norm)
    np.testing.assert_array_equal(lines(delta)["at the states that reach it"], blocks.residual_norm)
    np.testing.assert_array_equal(along(active), blocks.activation.mean(axis=1))


def test_proposition_1(blocks):
    sides, step, isometry = both(figures.proposition_1, blocks).axes
    np.testing.assert_array_equal(lines(sides)["tr(W_out·W_in)"], blocks.trace)
    np.testing.assert_array_equal(lines(sides)["2·E[tr J_r] (Eq. 14)"], 2 * blocks.jacobian_trace)
    np.testing.assert_array_equal(lines(sides)["−E‖J_r‖² (Eq. 15)"], -blocks.jacobian_squared)
    expected = 2 * blocks.jacobian_trace + blocks.jacobian_squared
    np.testing.assert_array_equal(along(step), expected)
    np.testing.assert_allclose(lines(isometry)["of the mean"], blocks.isometry / D**0.5)


def test_pairing_theory():
    right = analysis.right_pairs(analysis.products(STACK))
    wrong = analysis.wrong_pairs(np.asarray(STACK.w_in), np.asarray(STACK.w_out), RIGHT, SCORE, TRACE)
    bound, traces, _ = both(figures.pairing_theory, right, wrong, D, SCORE[~RIGHT]).axes
    np.testing.assert_array_equal(lines(bound)["right pairs"], right.predicted)
    inside = np.histogram(wrong.standardised, 50, (-4, 4), density=True)[0]
    np.testing.assert_allclose(heights(traces.patches), inside)


def test_commutator_sizes():
    sizes = jax.tree.map(np.asarray, analysis.commutators(STACK, X))
    distance, relative, scatter = both(figures.commutator_sizes, sizes).axes[:3]
    np.testing.assert_allclose(lines(distance)["median"], analysis.by_distance(sizes.size)[:, 1])
    np.testing.assert_allclose(lines(relative)["median"], analysis.by_distance(sizes.size / sizes.change)[:, 1], rtol=1e-5)
    upper = np.triu_indices(L, 1)
    dots = np.asarray(scatter.collections[0].get_offsets())
    np.testing.assert_allclose(dots, np.stack([sizes.product[upper], sizes.size[upper]], axis=1), rtol=1e-6)


def test_without_wrong_pairs():
    """With a single block, the figures show the right pair and do not mention wrong ones."""
    one = jax.tree.map(lambda a: a[:1], (STACK.w_in, STACK.w_out))
    product = np.asarray(one[1] @ one[0])
    score, trace = diagonal_dominance(*one)
    right = analysis.right_pairs(product)
    wrong = analysis.wrong_pairs(np.asarray(one[0]), np.asarray(one[1]), RIGHT[:1, :1], score, trace)
    (bound,) = both(figures.pairing_theory, right, wrong, D, np.zeros(0)).axes
    np.testing.assert_array_equal(lines(bound)["right pairs"], right.predicted)
    matrices = both(figures.product_examples, product, product[:0]).axes[:-1]
    (matrix,) = map(shown, matrices)
    np.testing.assert_array_equal(matrix, product[0])
    assert "no wrong pair" in title(both(figures.pairing_histogram, score, RIGHT[:1, :1]))


def test_one_pair_of_blocks():
    """A single commutator and a single preference are drawn visibly."""
    sizes = analysis.Commutators(*(np.full((2, 2), value) for value in (1.0, 1.0, 2.0, 4.0)))
    (median,) = both(figures.commutator_sizes, sizes).axes[0].get_lines()
    assert (median.get_marker(), list(median.get_ydata())) == ("o", [1.0])
    gaps = np.array([[0, 0.5], [-0.5, 0]])
    _, bars = both(figures.preference_cycles, np.zeros((0, 3), int), np.arange(2), np.zeros(0), gaps).axes
    assert sum(heights(bars.containers[0])) == 1


def test_preference_cycles():
    places = np.array([3, 0, 1, 2])
    members, margins = np.array([[0, 1, 3]]), np.array([0.25])
    gaps = np.triu(np.full((4, 4), 2.0), 1)
    gaps[0, 1] = 1.0
    drawn, sizes = both(figures.preference_cycles, members, places, margins, gaps - gaps.T).axes
    np.testing.assert_array_equal(np.asarray(drawn.collections[0].get_offsets())[:, 0], [4, 1, 3])
    arrows = [patch for patch in drawn.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 3
    counts = [sum(heights(container)) for container in sizes.containers]
    assert counts == [6, 1]
    assert title(figures.preference_cycles(members[:0], places, margins[:0], gaps)) == "No three-cycles"


def test_seed_league():
    rows = [{"seed": "a", "spearman": 0.5, "mse": 0.1}, {"seed": "b", "spearman": 0.9, "mse": 0.01}]
    ranks, errors = both(figures.seed_league, rows).axes
    np.testing.assert_array_equal(along(ranks), [0, 1])
    np.testing.assert_array_equal(ranks.get_lines()[0].get_xdata(), [0.5, 0.9])
    np.testing.assert_array_equal(errors.get_lines()[0].get_xdata(), [0.1, 0.01])


def test_repairs():
    tables = {"a": [(0, 0, 0.5, 0), (1, 2, 0.1, 2)], "b": [(0, 0, 0.2, 0)]}
    places = {"a": np.array([2, 0, 1]), "b": np.arange(3)}
    kept = {"a": [analysis.Exchange(1, 0, 2, 0), analysis.Exchange(1, 1, 1, 2)], "b": []}
    curves, counts, bars = both(figures.repairs, tables, places, kept).axes
    np.testing.assert_array_equal(lines(curves)["a"], [0.5, 0.1])
    np.testing.assert_array_equal(lines(counts)["a"], [1, 1, 0])
    assert heights(bars.patches) == [1, 1, 0, 0]


def test_table_character():
    table = analysis.describe_table(X, X[:, :1])
    matrix, spectrum, shape = both(figures.table_character, table).axes[:3]
    np.testing.assert_array_equal(shown(matrix), table.correlation)
    np.testing.assert_allclose(along(spectrum), np.cumsum(table.spectrum))
    dots = np.asarray(shape.collections[0].get_offsets())
    np.testing.assert_allclose(dots, np.stack([table.skewness, table.kurtosis], axis=1))


def test_training_curves():
    names = ("loss", "negative_traces", "paired", "w_out_norm", "delta_norm")
    rows = [{"epoch": k, **{name: k / 10 + n for n, name in enumerate(names)}} for k in (1, 2)]
    loss, pairs, depth = both(figures.training_curves, rows).axes
    np.testing.assert_allclose(along(loss), [0.1, 0.2])
    np.testing.assert_allclose(lines(pairs)["pairs found by d"], [2.1, 2.2])
    np.testing.assert_allclose(lines(depth)["delta-norm"], [4.1, 4.2])
