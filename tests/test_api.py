"""The API reference is built from the docstrings without a warning, and every public name has one."""

import subprocess
import sys
from pathlib import Path

import pytest

import dropjax

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "build_api.py"


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_reference_is_built_without_warnings(tmp_path: Path):
    built = build(tmp_path)
    assert (built.returncode, built.stderr) == (0, "")
    page = (tmp_path / "dropjax.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in dropjax.__all__)
    assert all((tmp_path / "dropjax" / name).exists() for name in ("ordering/bradley_terry.html", "pairing/ratio.html"))
    assert {path.name for path in tmp_path.glob("*.html")} == {"index.html", "dropjax.html"}


@pytest.mark.slow
def test_a_warning_fails_the_build(tmp_path: Path):
    code = f"""
import runpy, sys, dropjax
dropjax.load.__annotations__["path"] = "no type"
sys.argv = ["build_api.py", {str(tmp_path)!r}]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    built = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert built.returncode == 1
    assert "Error parsing type annotation" in built.stderr
