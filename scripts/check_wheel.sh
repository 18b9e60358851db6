#!/usr/bin/env bash
# check_wheel.sh [pinned|lowest|newest] [pytest arguments]
#
# Builds the sdist, and the wheel from it, installs the wheel in a new virtual environment and runs the example and the tests
# against it, in a folder that holds no dropjax/. The dependencies are those of constraints.txt, pyproject.toml's lower bounds,
# or the newest there are: but for PyTorch, whose newest would be several gigabytes for GPUs.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
versions=${1:-pinned}
shift || true
unset PYTHONPATH # or pip would take a checkout on it for the wheel
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet build
"$python" -m build --outdir "$work/dist" "$here"

case $versions in
  pinned) cp "$here/constraints.txt" "$work/versions.txt" ;;
  lowest)
    "$python" - "$here/pyproject.toml" > "$work/versions.txt" <<'P'
import pathlib, sys, tomllib
project = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())["project"]
bounds = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
print(*(bound.replace(">=", "==") for bound in bounds if ">=" in bound), sep="\n")
P
    ;;
  newest) grep '^torch==' "$here/constraints.txt" > "$work/versions.txt" ;;
  *) echo "expected pinned, lowest or newest, got $versions" >&2; exit 2 ;;
esac
"$python" -m pip install --quiet -c "$work/versions.txt" "$(echo "$work"/dist/*.whl)[test]"
"$python" -m pip list

mkdir "$work/run"
cp -r "$here"/{.ci,.github,tests,benchmarks,scripts,docs,examples,pyproject.toml,constraints.txt,{README,CHANGELOG,CONTRIBUTING}.md,CITATION.cff} "$work/run"
cd "$work/run"
export DROPJAX_CACHE_DIR="$work/cache" DROPJAX_PUZZLE="${DROPJAX_PUZZLE:-$here/../shared/puzzle}"
"$python" -c 'import dropjax; assert "site-packages" in dropjax.__file__, dropjax.__file__'
"$python" -m dropjax.solve
"$python" -m pytest "$@"
