"""Every option that makes no sense is refused by its name, and every other one is accepted."""

from dataclasses import fields

import builders
import numpy as np
import pytest

import dropjax
from dropjax.core import options
from dropjax.core.options import OptionChanges, Options
from dropjax.ordering import bradley_terry, seeding
from dropjax.pairing import signals

BAD = {
    "method": ["fast", None, 1],
    "pairing": ["foo", 1],
    "seed_order": ["foo"],
    "direction": ["up"],
    "rank": ["foo", None],
    "bt_solver": ["x"],
    "temperature": [0.0, -1.0, float("nan"), float("inf"), "hot", None],
    "initial_order": ["0,1,2", 5, [0.5, 1, 2], [True, 1]],
    "activation": ["leaky", "leaky_relu(x)", "leaky_relu()", None],
    "search_rows": [0, -3, 2.5, True],
    "pred_decimals": [-1, 16, 1.5],
    "pred_noise": [float("nan"), -1.0, 0.0, float("inf")],
    "time_limit": [-1.0, 0.0, float("nan"), "1"],
    "random_seed": [-1, 1.5, None],
    "screen_precision": ["low"],
    "verify": ["ful"],
    "memory": [0, -1, 1.5],
}
GOOD = {
    "method": ["paper"],
    "pairing": [None, *signals.CHOICES],
    "seed_order": [None, *seeding.SEED_ORDERS],
    "direction": [None, *seeding.DIRECTIONS],
    "rank": ["none"],
    "bt_solver": list(bradley_terry.LIMITS),
    "temperature": [np.float32(0.5), 1],
    "initial_order": [None, [2, 1, 0], (0, 1, 2), np.arange(3)],
    "activation": ["auto", "elu", "leaky_relu(0.2)", "leaky_relu(1e-3)"],
    "search_rows": [np.int64(5)],
    "pred_decimals": [None, 0, 3],
    "pred_noise": [None, np.float64(0.1)],
    "time_limit": [None, 1, 1e-6],
    "random_seed": [np.int32(3)],
    "screen_precision": ["high", "default"],
    "verify": ["full"],
    "memory": [1 << 20],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_what_makes_no_sense_is_refused_by_its_name(field: str, value: object):
    with pytest.raises(ValueError, match=f"^{field}: expected .*, got ") as caught:
        Options(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in GOOD.items() for value in values])
def test_what_makes_sense_is_taken(field: str, value: object):
    assert getattr(Options(**{field: value}), field) is value


def test_every_field_is_tried():
    assert set(BAD) == set(GOOD) == {field.name for field in fields(Options)}


def test_the_names_in_core_are_those_of_the_packages_that_own_them():
    assert options.PAIRINGS == signals.CHOICES
    assert options.SEED_ORDERS == seeding.SEED_ORDERS


def test_solving_refuses_them_too():
    puzzle, _ = builders.random_puzzle(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^verify: expected one of fast, full, got 'ful'"):
        dropjax.solve(puzzle, verify="ful")
    with pytest.raises(ValueError, match=r"^search_rows: "):
        next(dropjax.solve_many([puzzle], search_rows=0))


def test_solve_takes_every_option_by_name():
    assert OptionChanges.__annotations__ == Options.__annotations__
