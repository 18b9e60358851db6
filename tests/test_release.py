"""The files that describe a release agree with one another."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import dropjax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bounds() -> dict[str, str]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return dict(text.split(">=") for texts in lists for text in texts if ">=" in text)


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and line[0] != "#")


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]+", version)]


def test_every_file_names_the_same_version():
    version = PROJECT["version"]
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version  # pyright: ignore[reportOptionalSubscript]
    assert metadata("dropjax")["Version"] == version


def test_the_licence_travels_with_the_package():
    assert metadata("dropjax")["License-Expression"] == PROJECT["license"] == "MIT"
    assert metadata("dropjax").get_all("License-File") == ["LICENSE"]
    assert re.search(r"^license: MIT$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_every_dependency_has_a_lower_bound_and_is_pinned_above_it():
    others = {"dropjax[completion,convert,excel,pandas,parquet,report]", "jax[cuda12]", "jax[tpu]"}
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert {text for texts in lists for text in texts if ">=" not in text} == others
    assert {name: pinned()[name] for name, bound in bounds().items() if numbers(pinned()[name]) < numbers(bound)} == {}


def test_the_forge_runs_the_same_checks_and_nothing_else():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"run: (.*)", workflow) == [".ci/run"]
    assert [path.name for path in (ROOT / ".github" / "workflows").iterdir()] == ["ci.yml"]


def test_the_pages_for_contributors_name_files_that_are_there():
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "releases.md"):
        text = page.read_text(encoding="utf-8")
        links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
        names = re.findall(r"((?:dropjax|scripts|benchmarks|tests|docs|\.ci)/[\w/.]*\w)", text.replace("NAME", "solve"))
        assert names
        package = Path(dropjax.__file__).parents[1]  # which may be installed elsewhere
        paths = [(package if name.startswith("dropjax/") else ROOT) / name for name in names]
        assert [str(path) for path in (*links, *paths) if not path.exists()] == []
