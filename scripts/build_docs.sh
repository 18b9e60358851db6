#!/usr/bin/env bash
# build_docs.sh [PYTHON]: the documentation site, into docs/_build/html. A warning is an error, and the tutorial is executed.
#
# PYTHON (default: .venv/bin/python) needs the extra: pip install -c constraints.txt -e '.[docs]'. Nothing is fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${1:-.venv/bin/python}" -m sphinx --fail-on-warning --keep-going --builder html docs docs/_build/html
