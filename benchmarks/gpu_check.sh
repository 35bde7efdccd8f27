#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes:
#   benchmarks/gpu_check.sh [OUTPUT_DIRECTORY]        (default: benchmarks/results)
# Needs torch, nvcc, cmake, ninja and pybind11, and no network; uses pytest and compute-sanitizer where they are.
# Every step has a time limit and a log of its own, and none keeps the next from running; the exit status counts failures.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(mkdir -p "${1:-benchmarks/results}" && cd "${1:-benchmarks/results}" && pwd)
python=${PYTHON:-python3}
failures=0
summary=$out/gpu_check.txt
: > "$summary"

step() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  timeout --kill-after=5 "$limit" "$@" > "$out/gpu_$name.log" 2>&1 || status=$?
  local verdict=ok
  [ "$status" -eq 0 ] || { verdict="FAILED ($status)"; failures=$((failures + 1)); }
  [ "$status" -ne 124 ] || verdict="FAILED (longer than $limit s)"
  echo "$name: $verdict, $((SECONDS - start)) s" | tee -a "$summary"
  [ "$status" -eq 0 ] || tail -n 15 "$out/gpu_$name.log"
}

skip() { echo "$1: skipped, $2" | tee -a "$summary"; }

{
  date -u +"date: %Y-%m-%dT%H:%M:%SZ"
  nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader | sed 's/^/device: /'
  nvcc --version | tail -n 2 | head -n 1
  "$python" -c 'import sys, torch; print("python", sys.version.split()[0], "torch", torch.__version__)'
  git rev-parse --short HEAD 2> /dev/null | sed 's/^/commit: /'
} 2>&1 | tee -a "$summary"

# This device's architecture alone: the others are compiled by CI.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
export ECHO_EXT_CUDA=1 ECHO_EXT_CUDA_ARCHS=${ECHO_EXT_CUDA_ARCHS:-$capability-real}
step install 140 "$python" -m pip install --no-build-isolation --no-deps .

# From elsewhere, so that the installed package is what runs.
check=$PWD/benchmarks/gpu_check.py tests=$PWD/python_tests bench=$PWD/benchmarks/bench_echo.py
cd "$(mktemp -d)" || exit 1
step check 60 "$python" "$check" compare
step time 60 "$python" "$check" time --json "$out/gpu_times.json"
grep '"job"' "$out/gpu_time.log" | tee -a "$summary"  # what has a bar to meet

if command -v compute-sanitizer > /dev/null; then
  # Without torch's cache every tensor is an allocation whose ends are watched.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck synccheck initcheck; do
    step "$tool" 40 compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-name kernel_substring=echo_ext \
      "$python" "$check" touch
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  skip sanitizers "there is no compute-sanitizer"
fi

if "$python" -c 'import pytest' 2> /dev/null; then
  step tests 95 "$python" -m pytest -q -p no:cacheprovider -m cuda "$tests"
else
  skip tests "there is no pytest"
fi
if "$python" -c 'import pytest_benchmark' 2> /dev/null; then
  step benchmarks 80 "$python" -m pytest -q -p no:cacheprovider -k cuda --benchmark-json="$out/echo_cuda.json" "$bench"
else
  skip benchmarks "there is no pytest-benchmark"
fi

echo "$failures failed" | tee -a "$summary"
exit "$failures"
