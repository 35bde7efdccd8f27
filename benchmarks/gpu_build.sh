#!/usr/bin/env bash
# Builds echo_ext with CUDA for this machine's GPU alone, by CMake and Ninja, without pip:
#   benchmarks/gpu_build.sh [DIRECTORY]        (default: build/gpu; a second call there compiles only what changed)
# The package is then in DIRECTORY/site. Put that on PYTHONPATH and start Python outside the repository:
#   cd /tmp && PYTHONPATH=DIRECTORY/site python3 -m echo_ext info
# ECHO_EXT_CUDA_ARCHS replaces the GPU's own architecture, PYTHON the python3 on PATH, CUDA_HOME /usr/local/cuda.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
build=$(mkdir -p "${1:-build/gpu}" && cd "${1:-build/gpu}" && pwd)
# cmake and ninja that came as Python packages lie next to Python, nvcc often outside PATH.
PATH=$PATH:$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):${CUDA_HOME:-/usr/local/cuda}/bin

missing=()
for tool in cmake ninja nvcc; do command -v "$tool" > /dev/null || missing+=("$tool"); done
pybind11=$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())' 2> /dev/null) || missing+=(pybind11)
if [ ${#missing[@]} -gt 0 ]; then
  echo "gpu_build: missing: ${missing[*]}; install them, or put them on PATH" >&2
  exit 2
fi
archs=${ECHO_EXT_CUDA_ARCHS:-}
if [ -z "$archs" ]; then
  archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d '. ')-real
fi

cmake -G Ninja -S . -B "$build/tree" \
  "-DPython_EXECUTABLE=$("$python" -c 'import sys; print(sys.executable)')" "-Dpybind11_DIR=$pybind11" \
  "-DCMAKE_CUDA_COMPILER=$(command -v nvcc)" -DECHO_EXT_CUDA=1 "-DECHO_EXT_CUDA_ARCHS=$archs" \
  "-DECHO_EXT_OUTPUT_DIR=$build/module"
cmake --build "$build/tree"

# The module is kept apart from the copy of the package, so that each build copies the sources afresh.
rm -rf "$build/site"
mkdir "$build/site"
cp -r echo_ext "$build/site"
rm -f "$build"/site/echo_ext/_C*.so
cp "$build"/module/_C*.so "$build/site/echo_ext"
echo "gpu_build: echo_ext for $archs is in $build/site"
