"""However a command ends, it ends with an exit status and at most one line; lost output does not end it."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from dropjax import console
from dropjax.core.errors import InputError, NotWritten
from dropjax.core.protocols import Status
from dropjax.core.solution import Stage
from dropjax.runtime.writing import Results


def ended(main, capsys: pytest.CaptureFixture) -> tuple[object, str]:
    with pytest.raises(SystemExit) as end:
        console.run_command(main)
    return end.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("file: expected this,\ngot that"), 2, "error: file: expected this, got that\n"),
        (NotWritten("file: expected a place"), 3, "error: file: expected a place\n"),
        (KeyboardInterrupt(), 130, "error: interrupted before there was anything to write\n"),
        (KeyError("x\ny"), 70, "error: an unforeseen error: KeyError: 'x\\ny' (DROPJAX_DEBUG=1 shows where)\n"),
        (MemoryError(), 70, "error: an unforeseen error: MemoryError: (DROPJAX_DEBUG=1 shows where)\n"),
        (BrokenPipeError(32, "Broken pipe"), 70, None),
        (SystemExit(2), 2, ""),
    ],
)
def test_an_error_is_a_status_and_a_line(error: BaseException, status: int, line: str | None, capsys: pytest.CaptureFixture):
    code, err = ended(raising(error), capsys)
    assert code == status
    assert err.count("\n") <= 1
    assert line is None or err == line


def test_a_long_error_is_cut(capsys: pytest.CaptureFixture):
    code, err = ended(raising(RuntimeError("x\n" * 10_000)), capsys)
    assert code == console.FAULT
    assert len(err) < 500 and err.count("\n") == 1


def test_debugging_shows_where(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DROPJAX_DEBUG", "1")
    code, err = ended(raising(RuntimeError("here")), capsys)
    assert code == console.FAULT
    assert "Traceback" in err and "in main" in err


@pytest.mark.parametrize(("status", "with_loss"), [(0, 3), (1, 3), (2, 2), (70, 70)])
def test_results_that_are_lost_are_a_status(status: int, with_loss: int, tmp_path: Path, capsys: pytest.CaptureFixture):
    results = Results()
    assert console.with_results(status, results) == status
    assert capsys.readouterr().err == ""
    (tmp_path / "file").write_text("")
    for name in ("a", "b", "c"):
        results.write(tmp_path / "file" / name, "text")
    assert console.with_results(status, results) == with_loss
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{tmp_path}/file/a: " in err and "(and 2 more that could not be written)" in err


def test_every_status_is_in_the_help(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        console.Parser(done="0 well; 1 not so well").parse_args(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for words in ("0 well", "1 not so well", "2 bad input", "3 a result", "70 an unforeseen error", "130 interrupted"):
        assert words in out


TALKING = """
import sys
from pathlib import Path
from dropjax import console
def main():
    for k in range(2000):
        print("line", k, "x" * 100, flush=k % 100 == 0)
    Path(sys.argv[1]).write_text("written")
    return int(sys.argv[2])
console.run_command(main)
"""


@pytest.mark.parametrize(
    ("redirection", "line"),
    [
        (">&-", "error: standard output: expected a place that can be written, got Bad file descriptor\n"),
        ("> /dev/full", "error: standard output: expected a place that can be written, got No space left on device\n"),
        ("> >(head -1 > /dev/null)", ""),  # a reader that has seen enough
        ("2>&- >&-", ""),
        ("> /dev/full 2> /dev/full", ""),
    ],
)
@pytest.mark.parametrize(("status", "expected"), [(1, 3), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_a_command_goes_on_without_standard_output(redirection: str, line: str, status: int, expected: int, tmp_path: Path):
    command = f'"$0" -c "$1" {tmp_path}/result {status} {redirection}'
    run = subprocess.run(["bash", "-c", command, sys.executable, TALKING], capture_output=True, text=True)
    assert (tmp_path / "result").read_text() == "written"
    assert run.returncode == expected
    assert run.stderr == (line if status == 1 else "")


def test_what_is_printed_arrives_whole(tmp_path: Path):
    run = subprocess.run([sys.executable, "-c", TALKING, tmp_path / "result", "0"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [f"line {k} {'x' * 100}" for k in range(2000)]


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGINT,),
        (signal.SIGTERM,),
        (signal.SIGHUP,),
        (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM, signal.SIGINT),
    ],
)
def test_an_interruption_is_a_question(numbers: tuple[int, ...]):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with console.interruptions() as interrupted:
        assert not interrupted()
        send(*numbers)
        assert interrupted()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_second_sigint_ends_it():
    with console.interruptions() as interrupted:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert interrupted()


def test_a_third_sigint_ends_the_process():
    code = (
        "import os, signal; from dropjax import console\n"
        "with console.interruptions():\n"
        "  for _ in range(3):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: pass\n"
        "print('still there')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (130, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_at_once_is_at_once_and_once(number: int):
    with console.interruptions(at_once=True) as interrupted:
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert interrupted()
        send(signal.SIGTERM)


def test_a_hangup_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with console.interruptions() as interrupted:
            send(signal.SIGHUP)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


# Progress


DONE = Stage("pairing", seconds=0.5)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a log print as often as possible, so that a test need not wait."""
    monkeypatch.setattr(console, "TICK", 0.005)
    monkeypatch.setattr(console.Lines, "every", 0.01)


def until(holds: Callable[[], bool]) -> None:
    """Waits until the condition holds; if it never does, the test's own assertion fails."""
    for _ in range(400):
        if holds():
            return
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("status", "bar", "line"),
    [
        (Status(), True, "places             12.0 s"),
        (Status(done=1, of=4), True, "places             12.0 s  [##--------] 1 of 4"),
        (Status(done=4, of=4), True, "places             12.0 s  [##########] 4 of 4"),
        (Status(done=1000, of=4000), False, "places             12.0 s  1,000 of 4,000"),
        (
            Status(share=0.01234, words="attempt 1"),
            True,
            "places             12.0 s  best MSE 0.012 of pred's variance  attempt 1",
        ),
    ],
)
def test_a_stage_under_way_is_a_line(status: Status, bar: bool, line: str):
    assert console.status_line("places", 12.0, status, bar) == line


def test_what_is_left_of_a_time_limit_is_told_and_never_below_zero():
    now = time.perf_counter()
    line = console.status_line("x", 1.0, Status(deadline=now + 400), True)
    assert re.search(r"  (399|400) s left$", line)
    assert console.status_line("x", 1.0, Status(deadline=now - 5), True).endswith("  0 s left")


def test_a_log_has_lines_of_a_long_stage_and_one_of_each_that_ended(hasty: None):
    with redirect_stdout(io.StringIO()) as printed, console.progress() as progress:
        progress.begins("pairing")
        progress.goes_on(Status(share=0.5, done=2, of=8))
        until(lambda: printed.getvalue().count("\n") >= 3)
        progress.ends(DONE)
        ended = printed.getvalue()
        time.sleep(0.03)
        assert printed.getvalue() == ended  # nothing is under way
    *under_way, last = ended.splitlines()
    assert last == console.stage_line(DONE)
    assert len(under_way) >= 3
    assert all(re.fullmatch(r"pairing +0\.\d s  2 of 8  best MSE 0\.5 of pred's variance", line) for line in under_way)


def test_a_log_of_quick_stages_has_a_line_for_each_and_no_other():
    with redirect_stdout(io.StringIO()) as printed, console.progress() as progress:
        for _ in range(3):
            progress.begins("pairing")
            progress.goes_on(Status(share=0.5))
            progress.ends(DONE)
    assert printed.getvalue() == 3 * f"{console.stage_line(DONE)}\n"


def test_a_line_of_the_commands_own_is_followed_by_none_for_a_while():
    with redirect_stdout(io.StringIO()) as printed, console.progress() as progress:
        progress.begins("training")
        progress.says("epoch 1/20")
    assert printed.getvalue() == "epoch 1/20\n"


def test_nothing_is_shown_where_it_is_to_be_quiet(hasty: None):
    with redirect_stdout(io.StringIO()) as printed, console.progress(quiet=True) as progress:
        progress.begins("pairing")
        progress.goes_on(Status(share=0.5))
        progress.says("a line")
        time.sleep(0.03)
        progress.ends(DONE)
    assert printed.getvalue() == ""


def test_what_follows_a_search_that_failed_is_printed_alone(hasty: None):
    with redirect_stdout(io.StringIO()) as printed:
        with pytest.raises(RuntimeError), console.progress() as progress:
            progress.begins("pairing")
            raise RuntimeError
        before = printed.getvalue()
        time.sleep(0.03)
        assert printed.getvalue() == before


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    """The lines that a terminal shows after that text."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+", text):
        if part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif part == "\r":
            column = 0
        elif part == "\n":
            lines.append("")
            row, column = row + 1, 0
        else:
            lines[row] = lines[row][:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return lines


@pytest.mark.parametrize(("columns", "bar"), [(60, ""), (120, "[#####-----] ")])
def test_on_a_terminal_the_running_stage_is_one_line_that_fits(
    columns: int, bar: str, hasty: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with redirect_stdout(Tty()) as out, console.progress() as progress:
        progress.begins("pairing")
        assert screen(out.getvalue()) == ["pairing             0.0 s"]
        progress.goes_on(Status(share=0.5, words="attempt 1, rung 1 of 6", done=3, of=6))
        until(lambda: "3 of 6" in out.getvalue())
        (shown,) = screen(out.getvalue())
        best = "  best MSE 0.5 of pred's variance  attempt 1, rung 1 of 6" if columns > 60 else ""
        assert shown == f"pairing             {shown[20:23]} s  {bar}3 of 6{best}"
        progress.ends(DONE)
        assert screen(out.getvalue()) == [console.stage_line(DONE), ""]
        progress.begins("verify")
    assert screen(out.getvalue()) == [console.stage_line(DONE), ""]


def test_a_terminal_that_cannot_write_over_a_line_has_a_logs_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    with redirect_stdout(Tty()) as out, console.progress() as progress:
        progress.begins("pairing")
        progress.ends(DONE)
    assert out.getvalue() == f"{console.stage_line(DONE)}\n"
