"""Sums, means and results over rows in chunks: as if there were none."""

import jax.numpy as jnp
import numpy as np
import pytest

from dropjax.runtime.rows import (
    chunk_size,
    in_chunks,
    map_over_rows,
    mean_over_rows,
    row_chunks,
    sum_over_chunks,
    sum_over_rows,
)

ROWS, ROW = 11, 100
MEMORIES = (1, 3 * ROW, 4 * ROW, ROWS * ROW, 1 << 30)
"""One row at a time, chunks that divide the rows and that do not, all at once."""


def table():
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, 3)).astype(np.float32), rng.normal(size=(ROWS, 2)).astype(np.float32)


@pytest.mark.parametrize("memory", MEMORIES)
def test_rows_that_fill_a_chunk_count_for_nothing(memory):
    x, pred = table()

    def of_chunk(x, pred, weight):
        error = x.sum(axis=1, keepdims=True) + 5 - pred  # of a row of zeros: not 0
        return jnp.sum(weight[:, None] * error**2), jnp.sum(weight)

    mean, weights = mean_over_rows(of_chunk, x, pred, ROW, memory)
    assert float(mean) == pytest.approx(np.mean((x.sum(axis=1, keepdims=True) + 5 - pred) ** 2), rel=1e-5)
    assert float(weights) == pytest.approx(ROWS / pred.size)
    _, counted = sum_over_rows(of_chunk, (x, pred, np.ones(ROWS, np.float32)), ROW, memory)
    assert float(counted) == ROWS


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_row_has_its_result_and_no_other(memory):
    x, pred = table()
    doubled, both = map_over_rows(lambda x, pred: (2 * x + 1, x[:, :2] * pred), (x, pred), ROW, memory)
    np.testing.assert_array_equal(doubled, 2 * x + 1)
    np.testing.assert_allclose(both, x[:, :2] * pred, rtol=1e-6)


@pytest.mark.parametrize("memory", MEMORIES)
def test_chunks_are_equal_and_within_memory(memory):
    x, pred = table()
    size = chunk_size(ROWS, ROW, memory)
    assert size == 1 or size * ROW <= memory
    chunks, others = row_chunks((x, pred), ROW, memory)
    assert chunks.shape == (-(-ROWS // size), size, 3) and others.shape[:2] == chunks.shape[:2]
    flat = np.asarray(chunks).reshape(-1, 3)
    np.testing.assert_array_equal(flat[:ROWS], x)
    np.testing.assert_array_equal(flat[ROWS:], 0)
    assert float(sum_over_chunks(jnp.sum, (chunks,))) == pytest.approx(float(x.sum()), rel=1e-4)


def test_no_chunk_is_all_filling():
    for size in range(1, ROWS + 3):
        chunks = np.asarray(in_chunks(jnp.ones(ROWS), size))
        assert chunks.sum() == ROWS
        assert chunks.any(axis=1).all()
