"""The loop of searches in parts: what is asked, in what order, and how often."""

import pytest

from dropjax.core.protocols import Context, StopReason
from dropjax.ordering.parts import in_parts


@pytest.mark.parametrize(("end", "stop_at", "expected"), [(3, 99, 3), (9, 2, 2), (0, 99, 0), (9, 0, 0)])
def test_it_goes_on_until_it_has_ended_or_has_to_stop(end, stop_at, expected):
    asked = []

    def stop():
        asked.append(len(asked))
        return StopReason.INTERRUPTED if asked[-1] >= stop_at else None

    assert in_parts(0, lambda at: at + 1, lambda at: at >= end, Context(agreed_stop=stop)) == expected
    assert len(asked) == min(end, stop_at) + 1, "every process asks before every part, and at the end"


def test_every_part_is_made_by_keep_which_knows_the_state_before():
    seen = []

    def keep(function, like):
        seen.append(like)
        return function() + 10

    assert in_parts(0, lambda at: at + 1, lambda at: at > 20, Context(keep=keep)) == 22
    assert seen == [0, 11]
