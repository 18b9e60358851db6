"""`dropjax.pair` takes whatever holds real finite numbers of the right shapes, and says of anything else what is wrong."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dropjax

L, H, D = 5, 9, 4
RNG = np.random.default_rng(0)
W_IN = RNG.normal(size=(L, H, D)).astype(np.float32)
ORDER = RNG.permutation(L)
W_OUT = -np.swapaxes(W_IN, 1, 2)[ORDER] + 0.05 * RNG.normal(size=(L, D, H)).astype(np.float32)
PARTNER = np.argsort(ORDER)

pytestmark = pytest.mark.usefixtures("unchecked")  # what is tested is what the function itself says


def broken(array: np.ndarray, value: float, place=(2, 3, 1)) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize("signal", ["ddr", "auto"])
@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        jnp.asarray,
        torch.tensor,
        list,
        tuple,
        np.ndarray.tolist,
        np.ma.array,
        lambda a: [np.ma.array(one) for one in a],
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.float16),
        lambda a: jnp.asarray(a, jnp.bfloat16),
        lambda a: np.rint(100 * a).astype(np.int32),
        np.asfortranarray,
    ],
)
def test_halves_come_in_any_form(form, signal):
    np.testing.assert_array_equal(dropjax.pair(form(W_IN), form(W_OUT), signal=signal).partner, PARTNER)


MASKED = np.ma.array(W_IN, mask=np.arange(W_IN.size).reshape(W_IN.shape) < 3)
FINITE = "expected finite float32 numbers, got"
CASES = {
    "nan": (broken(W_IN, np.nan), W_OUT, f"w_in: {FINITE} nan at [2, 3, 1]"),
    "inf": (W_IN, broken(W_OUT, -np.inf), f"w_out: {FINITE} -inf at [2, 3, 1]"),
    "beyond float32": (broken(W_IN.astype(float), 1e300), W_OUT, f"w_in: {FINITE} 1e+300 at [2, 3, 1]"),
    "nan in JAX": (jnp.asarray(broken(W_IN, np.nan)), W_OUT, f"w_in: {FINITE} nan at [2, 3, 1]"),
    "unequal counts": (W_IN, W_OUT[:-1], "w_out: expected 5 output halves, as many as input halves, got 4"),
    "not transposed": (W_IN, W_IN, "w_out: expected [L, d, h] = [5, 4, 9] to go with w_in [5, 9, 4], got [5, 9, 4]"),
    "another width": (W_IN, W_OUT[:, 1:], "w_out: expected [L, d, h] = [5, 4, 9] to go with w_in [5, 9, 4], got [5, 3, 9]"),
    "another h": (W_IN[:, 1:], W_OUT, "w_out: expected [L, d, h] = [5, 4, 8] to go with w_in [5, 8, 4], got [5, 4, 9]"),
    "one matrix": (W_IN[0], W_OUT, "w_in: expected three dimensions [L, h, d], got [9, 4]"),
    "four dimensions": (W_IN, W_OUT[None], "w_out: expected three dimensions [L, d, h], got [1, 5, 4, 9]"),
    "no halves": (W_IN[:0], W_OUT[:0], "w_in: expected at least one of each in [L, h, d], got [0, 9, 4]"),
    "no units": (W_IN[:, :0], W_OUT[..., :0], "w_in: expected at least one of each in [L, h, d], got [5, 0, 4]"),
    "nothing": ([], [], "w_in: expected three dimensions [L, h, d], got [0]"),
    "None": (None, W_OUT, "w_in: expected three dimensions [L, h, d], got []"),
    "ragged": ([W_IN[0], W_IN[1][1:]], W_OUT, "w_in: expected one array [L, h, d] of numbers, got matrices of"),
    "complex": (W_IN, W_OUT + 0j, "w_out: expected real numbers, got complex64"),
    "text": (W_IN.astype(str), W_OUT, "w_in: expected real numbers, got <U32"),
    "objects": (W_IN, np.full(W_OUT.shape, None), "w_out: expected real numbers, got object"),
    "truth values": (W_IN > 0, W_OUT, "w_in: expected real numbers, got bool"),
    "masked": (MASKED, W_OUT, "w_in: expected no masked entries, got 3"),
    "masked in a list": (list(MASKED), W_OUT, "w_in: expected no masked entries, got 3"),
    "with gradients": (W_IN, torch.tensor(W_OUT).requires_grad_(), "w_out: expected one array [L, d, h] of numbers, got C"),
}  # fmt: skip


@pytest.mark.parametrize("signal", ["ddr", "auto"])
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_paired_is_refused_in_one_line(case, signal):
    w_in, w_out, words = CASES[case]
    with pytest.raises(ValueError) as caught:  # the message is compared whole below
        dropjax.pair(w_in, w_out, signal=signal)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
