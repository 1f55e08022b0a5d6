#!/usr/bin/env bash
# Run the registry's contract suite with other releases of MLflow, by default the lowest that setup.cfg allows:
#   tests/mlflow_bounds.sh [VERSION...]
# Client and server are of that release; then the installed client speaks to that server.
# The environments stay in .venv/mlflow-VERSION and are used again.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
app=tests/contract/test_mlflow_app.py
suite=(tests/contract/test_registry.py tests/contract/test_mlflow_registry.py)

lowest() { sed -n 's/^ *mlflow>=\([0-9.]*\),.*/\1/p' setup.cfg; }

for version in "${@:-$(lowest)}"; do
    [[ $version == *.*.* ]] || version=$version.0
    place=.venv/mlflow-$version
    if [[ ! -e $place/complete ]]; then
        $bin/uv venv --quiet --clear --python "$bin/python" "$place"
        $bin/uv pip install --quiet --python "$place/bin/python" "mlflow==$version" httpx pytest pytest-timeout
        $bin/uv pip install --quiet --python "$place/bin/python" --no-deps --editable .
        touch "$place/complete"
    fi
    echo "mlflow $version, client and server"
    PYTHONPATH=. "$place/bin/python" -m pytest -q --noconftest -p tests.fixtures.registry "${suite[@]}" "$app"
    echo "mlflow $version as the server of the installed client"
    PROMOTE_MLFLOW_PYTHON=$PWD/$place/bin/python $bin/python -m pytest -q "${suite[@]}" -k mlflow
done
