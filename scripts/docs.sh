#!/usr/bin/env bash
# Builds the pages of docs/ into build/docs, with warnings as errors. Needs Python 3.11 or newer, and
# neither ROS nor make setup: it has a small environment of its own, .venv-docs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv-docs

wanted=$(sha256sum requirements/docs.txt | cut -d' ' -f1)
if [ "$(cat $venv/.setup-stamp 2>/dev/null)" != "$wanted" ]; then
  "${WORLDFORGE_PYTHON:-python3}" -m venv --clear $venv
  $venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
  echo "$wanted" > $venv/.setup-stamp
fi
$venv/bin/python -m sphinx -q -W --keep-going -b html -d build/docs/doctrees docs build/docs/html
echo "build/docs/html/index.html"
