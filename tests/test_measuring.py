import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import measuring
import pandas as pd
import pytest

from dropjax import console


def test_tasks_are_done_in_turn_or_by_an_executor():
    tasks = [partial(pow, 2, k) for k in range(5)]
    assert list(measuring.done(tasks, None)) == [1, 2, 4, 8, 16]
    with ThreadPoolExecutor(2) as pool:
        assert sorted(measuring.done(tasks, pool)) == [1, 2, 4, 8, 16]
        with pytest.raises(ZeroDivisionError):
            list(measuring.done([partial(pow, 0, -1)], pool))


def test_rows_of_a_table_can_be_printed_one_by_one():
    rows = pd.DataFrame([{"kind": "a b", "N": 5000, "share": None}, {"kind": "c", "N": 7, "share": 0.5}])
    columns = {"kind": "<8", "N": ">7,", "share": ">6.0%"}
    whole = measuring.table(rows, columns)
    assert [line.split() for line in whole.splitlines()] == [
        ["kind", "N", "share"],
        ["a", "b", "5,000", "—"],
        ["c", "7", "50%"],
    ]
    ones = [measuring.table(rows[:1], columns), measuring.table(rows[1:], columns, head=False)]
    assert "\n".join(ones) == whole


def test_a_frame_is_written_as_records_with_null_for_what_is_missing(tmp_path):
    path = tmp_path / "report.json"
    measuring.write_report(path, pd.DataFrame([{"a": 1, "b": 1 / 3}, {"a": 2, "b": None}]), more="x")
    written = json.loads(path.read_text())
    assert written["rows"] == [{"a": 1, "b": pytest.approx(1 / 3, rel=1e-14)}, {"a": 2, "b": None}]
    assert written["more"] == "x"


def test_an_executor_has_a_name():
    parser = console.Parser()
    with measuring.executor(parser, None) as none, measuring.executor(parser, "dropjax:process_pool") as pool:
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
