"""The kinds of paths that can be paired: two or three matrices whose product maps the residual stream to itself.

Attention and MLP of one layer share no hidden units, but they write to and read from the same features of the stream.
"""

from typing import NamedTuple

EVERY_SCALE = ("cosines", "squared_cosines", "cubed_cosines")
"""Signals that no scale of a hidden unit changes."""
TRACES = ("ddr", "negative_trace", "positive_trace", "symmetry")
"""Signals that depend only on the product M."""
BY_HEAD = ("head_traces", "head_symmetry", "head_gram")
"""Signals that are functions of every head's own product."""


class Kind(NamedTuple):
    """One kind of path."""

    parts: tuple[str, ...]
    """What is paired, from the residual stream and back to it; of attention's two ends both read the stream."""
    product: str
    """The product that maps the residual stream to itself."""
    free: str
    """The changes to the parts of a path that leave what it computes unchanged."""
    blind: tuple[str, ...]
    """The signals that these changes leave unchanged."""
    heads: bool = False
    """Whether hidden units come in heads, which have signals of their own."""


UNITS = "hidden units in another order, or each scaled by c and 1/c where the activation allows it"
HEADS = "a rotation of the units of each head, in both parts alike"
PATHS: dict[str, Kind] = {
    "in-out": Kind(("in", "out"), "W_out·W_in", UNITS, (*TRACES, *EVERY_SCALE)),
    "up-out": Kind(("up", "out"), "W_down·W_up", UNITS, (*TRACES, *EVERY_SCALE)),
    "gate-out": Kind(("gate", "out"), "W_down·W_gate", UNITS.split(",")[0], (*TRACES, *EVERY_SCALE)),
    "gate-up": Kind(("gate", "up"), "W_upᵀ·W_gate", UNITS.split(",")[0], (*TRACES, *EVERY_SCALE)),
    "query-key": Kind(("query", "key"), "W_keyᵀ·W_query", HEADS, (*TRACES, "gram", *BY_HEAD), heads=True),
    "value-output": Kind(("value", "output"), "W_output·W_value", HEADS, (*TRACES, "gram", *BY_HEAD), heads=True),
    "bottleneck": Kind(
        ("first", "middle", "last"),
        "W_last·K·W_first, K the k×k kernel summed, or each tap of it",
        "the order of either set of inner channels",
        ("ratio", "negative_ratio", "positive_ratio", "taps", "channel_norms", "gains", "together"),
    ),
    "depthwise": Kind(("expand", "project"), "W_project·W_expand", UNITS.split(",")[0], (*TRACES, *EVERY_SCALE)),
    "layer": Kind(
        ("attention", "mlp"),
        "⟨W_output·W_outputᵀ, W_inᵀ·W_in⟩, and the same with W_out·W_outᵀ",
        "any rotation of either's units",
        ("reads", "writes"),
    ),
    "state-space": Kind(("in", "out"), "W_out·W_in", UNITS.split(",")[0], (*TRACES, *EVERY_SCALE)),
    "state-space gate": Kind(("gate", "out"), "W_out·W_gate", UNITS.split(",")[0], (*TRACES, *EVERY_SCALE)),
}
"""Every kind by the name that `--path` takes."""
