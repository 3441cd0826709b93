#!/usr/bin/env bash
# Makes a virtual environment with a CPU build of PyTorch and this package. Run it again after a change of dependencies.
#   VENV    the environment's folder (default .venv)
#   PYTHON  the interpreter to make it with (default python3)
#   TORCH   the PyTorch to install (default torch==2.13.0)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
torch=${TORCH:-torch==2.13.0}
done_mark=$venv/.installed

if [ -e "$done_mark" ] && [ "$done_mark" -nt pyproject.toml ]; then
    exit 0
fi
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
python=$venv/bin/python
"$python" -m pip install --quiet 'pip>=23'

if ! "$python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    # On Linux the default build of PyTorch brings gigabytes of CUDA libraries; where pip would take it, uv takes the CPU build.
    plan=$("$python" -m pip install --dry-run --quiet --report - "$torch")
    if [[ $plan == *'"name": "nvidia-'* ]]; then
        "$python" -m pip install --quiet uv
        "$python" -m uv pip install --python "$python" --torch-backend cpu "$torch"
    else
        "$python" -m pip install --quiet "$torch"
    fi
fi
"$python" -m pip install --quiet --editable '.[dev]'
touch "$done_mark"
