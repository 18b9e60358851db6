import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import measuring
import pytest

from dropjax import console


def test_tasks_are_done_in_turn_or_by_an_executor():
    tasks = [partial(pow, 2, k) for k in range(5)]
    assert list(measuring.done(tasks, None)) == [1, 2, 4, 8, 16]
    with ThreadPoolExecutor(2) as pool:
        assert sorted(measuring.done(tasks, pool)) == [1, 2, 4, 8, 16]
        with pytest.raises(ZeroDivisionError):
            list(measuring.done([partial(pow, 0, -1)], pool))


def test_an_executor_has_a_name():
    parser = console.Parser()
    with measuring.executor(parser, None) as none, measuring.executor(parser, "measuring:processes") as pool:
        assert none is None
        assert pool is not None and list(measuring.done([os.getpid], pool)) != [os.getpid()]


@pytest.mark.parametrize("named", ["measuring", "measuring:nothing", "no_such_module:processes", ":"])
def test_another_name_is_refused_in_one_line(named, capsys):
    with pytest.raises(SystemExit) as ended:
        measuring.executor(console.Parser(), named)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --executor: expected MODULE:NAME of a function, got {named!r}")
    assert said.count("\n") == 1
