"""The command `dropjax` itself, before it calls another one."""

import shlex
import subprocess
import sys

import pytest

import dropjax
from dropjax import __main__, completion


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The exit status of `dropjax` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["dropjax", *arguments])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    return ended.value.code


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_it_names_every_command(arguments, monkeypatch, capsys):
    assert run(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in __main__.COMMANDS)


def test_it_tells_its_version(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"dropjax {dropjax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("sovle",), "expected a command, one of solve, order, pair, trace, train, report, convert, got 'sovle'"),
        (("--completion", "fish"), "--completion: expected one of bash, zsh, tcsh, got 'fish'"),
        (("--completion",), "--completion: expected one of bash, zsh, tcsh, got none"),
    ],
)
def test_what_it_does_not_know_is_one_line(arguments, expected, monkeypatch, capsys):
    assert run(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {expected}")
    assert said.count("\n") == 1


def test_without_shtab_it_says_what_completion_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run(monkeypatch, "--completion", "bash") == 2
    assert "pip install shtab" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "option"), [("solve", "--time-limit"), ("pair", "--json"), ("report", "--help")])
def test_every_shell_is_told_the_commands_and_their_options(name, option):
    for shell in completion.SHELLS:
        script = completion.script(shell, __main__.COMMANDS)
        assert name in script
        assert option.lstrip("-") in script


def test_bash_completes_commands_options_and_choices(tmp_path):
    (tmp_path / "completion").write_text(completion.script("bash", __main__.COMMANDS))
    asked = ["dropjax so", "dropjax solve --pairi", "dropjax solve --method "]
    words = [" ".join(shlex.quote(word) for word in line.split(" ")) for line in asked]
    lines = [
        f"COMP_WORDS=({of_line}); COMP_CWORD={line.count(' ')}; _shtab_dropjax; echo ${{COMPREPLY[@]}}"
        for line, of_line in zip(asked, words, strict=True)
    ]
    script = "\n".join([f"source '{tmp_path / 'completion'}'", *lines])
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.splitlines() == ["solve", "--pairing", "auto paper"]
