#!/usr/bin/env bash
# installation.sh [PYTHON]: what an installation of dropjax takes, and what PyTorch adds to it
#
# Installs this commit with the versions of constraints.txt into a new virtual environment, which is deleted afterwards: first
# dropjax alone, then the extra for PyTorch as well. Megabytes are of the disk; seconds depend on where packages come from, and
# on whether pip has fetched them before. Where an index serves PyTorch for GPUs, its libraries are counted too.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
unset PYTHONPATH # or pip would take a checkout on it for an installation
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/source"
git -C "$here" archive HEAD | tar -x -C "$work/source"
cd "$work" # where no folder is named dropjax
"${1:-python3}" -m venv "$work/venv"
packages=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
empty=$(du -sm "$packages" | cut -f 1)
for what in dropjax 'dropjax[convert]'; do
  start=$SECONDS
  "$work/venv/bin/python" -m pip install -qq -c "$work/source/constraints.txt" "${what/dropjax/$work/source}"
  echo "$what: $(($(du -sm "$packages" | cut -f 1) - empty)) MB, $((SECONDS - start)) s"
  "$work/venv/bin/python" -c "
import sys, dropjax
print('  solves the example:', dropjax.solve(dropjax.load(sys.argv[1])).outcome.value)" "$work/source/dropjax/example.safetensors"
done
