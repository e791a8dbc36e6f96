#!/usr/bin/env bash
# On a machine with a GPU, nvcc and torch: builds the kernels, tests them there and on the CPU, and
# measures a step, into benchmarks/results/optimizer_step_on_DEVICE.json and a log beside it.
#
#     PYTHON=python3 benchmarks/on_gpu.sh
#
# Nothing is downloaded: that Python needs torch, scikit-build-core, pybind11 and pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
export PATH=$PATH:/usr/local/cuda/bin
"$python" -c 'import pybind11, pytest, scikit_build_core, torch'
pip=("$python" -m pip install --no-build-isolation --no-deps)
name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_"))')
results=benchmarks/results/optimizer_step_on_$name
mkdir -p benchmarks/results

{
    date --iso-8601=seconds
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "${pip[@]}" -C cmake.define.DIFFOPT_CUDA=ON packages/diffopt-kernels
    "$python" -c 'import torch, diffopt_kernels as dk; print(torch.__version__, dk.build_info())'
    # Another torch may warn of other things.
    "$python" -m pytest -q -W default --confcutdir=packages/diffopt-kernels \
        packages/diffopt-kernels/tests
    "$python" benchmarks/bench_optimizer_step.py --device cuda --json "$results.json"
} 2>&1 | tee "$results.log"
