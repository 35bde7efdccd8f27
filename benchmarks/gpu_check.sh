#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than ten minutes:
#   benchmarks/gpu_check.sh [OPTION...] [OUTPUT_DIRECTORY]        (default: benchmarks/results)
#     --list                    print each step as "NAME SECONDS COMMAND..." and end
#     --steps NAME[=SECONDS],…  run only these steps, each under its own limit or under this one
#     --dry-run                 run on small sizes with the CPU in the GPU's place; the tests put stand-ins for the
#                               CUDA tools on PATH for this
# Needs Python with torch and pybind11, nvcc, cmake and ninja, and no network. What else is missing (pytest,
# compute-sanitizer, ncu) is named in the summary, and its steps are skipped.
#
# The most valuable steps come first. Each ends within its limit, and a failure does not prevent the next. The exit
# status is the number of steps that failed (2 with one line on stderr: nothing could run). There are at most five
# output files: gpu_check.txt (the summary), gpu_times.json, gpu_rates.jsonl, gpu_ncu.csv and gpu_logs.tar.gz, which is
# written after every step, so that a killed call loses only its current step. ECHO_EXT_COMMIT names the commit where
# there is no .git.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
build=${ECHO_EXT_GPU_BUILD:-$root/build/gpu}
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
kill_after=2

refuse() { echo "gpu_check: $1" >&2; exit 2; }

mode=run wanted='' device=(--device cuda) threads=(--only threads --seconds 0.2)
while [[ ${1:-} == --* ]]; do
  case $1 in
    --list) mode=list ;;
    --steps) wanted=,${2:?--steps needs the names of steps},; shift ;;
    --dry-run) device=(--device cpu --quick) threads=(--only threads --quick) ;;
    *) refuse "unknown option $1: the head of $0 lists them" ;;
  esac
  shift
done

if [ -n "$wanted" ]; then
  known=$("$0" --list | cut -d ' ' -f 1)
  for name in ${wanted//,/ }; do
    grep -qx "${name%%=*}" <<< "$known" || refuse "--steps must name steps, got ${name%%=*}; there are ${known//$'\n'/, }"
    [[ $name =~ ^[a-z]+(=[1-9][0-9]*)?$ ]] || refuse "a limit in --steps must be a number of seconds, got $name"
  done
fi
if [ "$mode" = list ]; then
  out=OUTPUT work=WORK
else
  if [ "${device[1]}" = cuda ]; then
    command -v nvidia-smi > /dev/null || refuse "no NVIDIA device: there is no nvidia-smi on PATH"
    devices=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>&1) && [ -n "$devices" ] ||
      refuse "no NVIDIA device: nvidia-smi says: $(head -n 1 <<< "$devices")"
    command -v nvcc > /dev/null || refuse "nvcc must be on PATH or in \$CUDA_HOME/bin, but is not"
    says=$(timeout 60 "$python" -c 'import torch; torch.zeros(1, device="cuda")' 2>&1) ||
      refuse "torch cannot use the device: $(grep -m 1 -E '^[A-Za-z_.]+Error' <<< "$says" || tail -n 1 <<< "${says:-no answer}")"
  fi
  out=$(mkdir -p "${1:-$root/benchmarks/results}" && cd "${1:-$root/benchmarks/results}" && pwd) ||
    refuse "OUTPUT_DIRECTORY must be a directory that can be written, got ${1:-$root/benchmarks/results}"
  rm -f "$out"/gpu_{check.txt,times.json,rates.jsonl,ncu.csv,logs.tar.gz}
  work=$(mktemp -d)
  mkdir "$work/logs"
fi
summary=$out/gpu_check.txt logs=$work/logs
failures=0 running=''

archive() {
  tar -C "$work" -czf "$out/gpu_logs.tar.gz.new" logs && mv "$out/gpu_logs.tar.gz.new" "$out/gpu_logs.tar.gz"
}

stopped() {  # by a signal: the results so far are kept
  [ -z "$running" ] || { kill "$running"; wait "$running"; }
  echo "stopped by a signal" >> "$summary"
  exit 143
}

limit_of() {  # NAME SECONDS: its limit in this call; empty where the step is not wanted
  if [ -z "$wanted" ]; then
    echo "$2"
  elif [[ $wanted == *,$1=* ]]; then
    local rest=${wanted#*,"$1"=}
    echo "${rest%%,*}"
  elif [[ $wanted == *,$1,* ]]; then
    echo "$2"
  fi
}

step() {  # NAME SECONDS REASON COMMAND...: skipped where there is a REASON
  local name=$1 limit reason=$3 begin=$SECONDS status=0 verdict=ok
  limit=$(limit_of "$1" "$2")
  shift 3
  [ -n "$limit" ] || return 0
  if [ "$mode" = list ]; then
    echo "$name $limit ${*@Q}"
    return 0
  elif [ -n "$reason" ]; then
    echo "$name: skipped, $reason" | tee -a "$summary"
    return 0
  fi
  # In the background and waited for, so that a signal to this script is handled immediately.
  timeout --kill-after="$kill_after" "$limit" "$@" > "$logs/$name.log" 2>&1 &
  running=$!
  wait "$running" || status=$?
  running=''
  if [ "$status" -ne 0 ]; then
    verdict="FAILED ($status)"
    [ "$status" -ne 124 ] && [ $((SECONDS - begin)) -lt "$limit" ] || verdict="FAILED (longer than $limit s)"
    failures=$((failures + 1))
  fi
  echo "$name: $verdict, $((SECONDS - begin)) s" | tee -a "$summary"
  if [ "$status" -ne 0 ]; then
    grep -m 10 -E '^(FAILED|gpu_[a-z]+:) ' "$logs/$name.log" >> "$summary"
    tail -n 15 "$logs/$name.log"
  fi
  archive
  return "$status"
}

probe() {  # NAME COMMAND...: prints the reason why the tool cannot be used here, if there is one
  local log=$logs/probe_$1.log
  if ! command -v "$2" > /dev/null; then
    echo "there is no $2"
  elif [ ! -x "$work/gpu_rates" ]; then
    echo "the step rates, which builds the program to try $2 on, did not"
  elif ! timeout --kill-after="$kill_after" 10 "${@:2}" > "$log" 2>&1 || grep -q '==ERROR==' "$log"; then
    echo "$2 does not work here: $(grep -m 1 -iE 'error|not supported' "$log" || echo "its probe ended in failure")"
  fi
}

if [ "$mode" = run ]; then
  : > "$summary"
  trap 'archive; rm -rf "$work"' EXIT
  trap stopped TERM INT
  export ECHO_EXT_COMMIT=${ECHO_EXT_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2> /dev/null)}
  {
    date -u +"date: %Y-%m-%dT%H:%M:%SZ"
    nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader | sed 's/^/device: /'
    nvcc --version | grep release
    "$python" -c 'import sys, torch; print("python", sys.version.split()[0], "torch", torch.__version__)'
    echo "commit: ${ECHO_EXT_COMMIT:-unknown}"
    echo "machine: $(nproc) processors, $(uptime)"
  } 2>&1 | tee -a "$summary"
  nvidia-smi -q -d CLOCK > "$logs/clocks.log" 2>&1
fi
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1 | tr -d '. ')
export ECHO_EXT_CUDA_ARCHS=${ECHO_EXT_CUDA_ARCHS:-${capability:-90}-real} PYTHON=$python PYTHONUNBUFFERED=1
# Outside the source tree, so that the package of the build is imported.
export PYTHONPATH=$build/site${PYTHONPATH:+:$PYTHONPATH}
[ "$mode" = list ] || cd "$work" || exit 2
check=("$python" "$root/benchmarks/gpu_check.py")

# ---- The steps: with kill_after and the two probes their limits must stay below 550 s --------------------------------

no_build='' no_tests='' no_sanitizer='' no_counters=''
"$python" -c 'import pytest' 2> /dev/null || no_tests='there is no pytest'
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
step build 90 '' "$root/benchmarks/gpu_build.sh" "$build" || no_build='the build failed'
no_tests=${no_build:-$no_tests}
step echo 80 "$no_tests" "${check[@]}" test echo "${device[@]}"
step information 45 "$no_tests" "${check[@]}" test information "${device[@]}"
step time 60 "$no_build" "${check[@]}" time "${device[@]}" --json "$out/gpu_times.json"
step rates 20 '' bash -c 'nvcc -O3 -std=c++17 -arch="$1" -o "$3/gpu_rates" "$2" && "$3/gpu_rates" > "$4"' \
  gpu_rates "sm_${capability:-90}" "$root/benchmarks/gpu_rates.cu" "$work" "$out/gpu_rates.jsonl"
step nonfinite 15 "$no_tests" "${check[@]}" test nonfinite "${device[@]}"
# Threads of the CPU in the GPU's machine, which has more cores than most.
step threads 60 "$no_build" "$python" "$root/benchmarks/bench_scaling.py" "${threads[@]}"
[ "$mode" = list ] || no_sanitizer=${no_tests:-$(probe sanitizer compute-sanitizer "$work/gpu_rates" probe)}
# Without torch's cache every tensor is an allocation of its own, whose ends are checked.
for tool in memcheck racecheck; do
  step "$tool" 45 "$no_sanitizer" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
    --error-exitcode 9 --kernel-name kernel_substring=echo_ext "${check[@]}" test sanitizers "${device[@]}"
done
[ "$mode" = list ] ||
  no_counters=${no_build:-$(probe ncu ncu --clock-control none --metrics sm__cycles_elapsed.max "$work/gpu_rates" probe)}
step ncu 25 "$no_counters" bash -c '"${@:3}" && ncu --import "$1.ncu-rep" --csv --page details --print-details all > "$2"' \
  gpu_ncu "$logs/gpu_ncu" "$out/gpu_ncu.csv" ncu --clock-control none --target-processes all --set full \
  --kernel-name 'regex:(^|::)(forward|backward|ring_forward|search|pairs)_kernel' --launch-count 5 --export "$logs/gpu_ncu" \
  "${check[@]}" profile "${device[@]}"

[ "$mode" = run ] || exit 0
{
  [ ! -s "$out/gpu_rates.jsonl" ] || sed 's/^/rate: /' "$out/gpu_rates.jsonl"
  (cd "$logs" && grep -H '^tests: ' ./*.log | sed -E 's|^\./(.*)\.log:tests:|tests: \1:|')
  [ ! -f "$logs/time.log" ] || grep -E '^(time|target): ' "$logs/time.log"
  [ ! -f "$logs/threads.log" ] || grep '^|' "$logs/threads.log"
  echo "$failures failed"
} | tee -a "$summary"
exit "$failures"
