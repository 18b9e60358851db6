"""Whatever ends a command is an exit status and at most one line; what is printed may be lost without ending it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dropjax import console
from dropjax.core.errors import InputError, NotWritten
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
