# Sourced by the scripts for machines with GPUs, after they have set `results` (a folder). Builds the compiled modules for
# $PYTHON (python3), which needs torch, splitrank's dependencies, pytest, pytest-timeout, pybind11 and ninja.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p build "$results"
# Its own ini file: older pytest-timeouts do not read the one of pyproject.toml.
printf '[pytest]\naddopts = --import-mode=importlib -ra\nmarkers = gpu: needs an accelerator\n' >"$results/pytest.ini"

build_modules() { # cuda, hip or auto; false: what the compiler said is in build.log
    { cmake -S csrc -B build/gpu -G Ninja -DSPLITRANK_GPU="$1" -DPython_EXECUTABLE="$(command -v "$python")" \
        -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" && ninja -C build/gpu; } >"$results/build.log" 2>&1 || return 1
    cp build/gpu/_*.so splitrank/
}

gpu_tests() { # limit in seconds, files
    timeout "$1" "$python" -m pytest -c "$results/pytest.ini" --rootdir="$PWD" -q --timeout=600 --durations=5 "${@:2}"
}

num_gpus() { "$python" -c 'import torch; print(torch.cuda.device_count())'; }
