#!/usr/bin/env bash
# One stage of the papers' tables on a GPU, in one call of less than nine minutes that continues the last one:
#   benchmarks/gpu_campaign.sh STAGE [OPTION...]        stages and options: benchmarks/gpu_campaign.sh --help
# Data sets are read from ECHO_EXT_DATA. Runs are kept in build/campaign, so that calls on one machine share them. What
# another machine needs is packed into the output folder (--out, by default benchmarks/results/campaign) as an archive
# of at most 60 MB; --archive FOLDER continues its runs.
# Needs Python with torch, pybind11, lightning_fabric, matplotlib, pandas, tqdm and yaml; nvcc, cmake and ninja; and no network.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
build=${ECHO_EXT_GPU_BUILD:-$root/build/gpu}
seconds=${ECHO_EXT_CAMPAIGN_SECONDS:-530}  # of the whole call, the build included

refuse() { echo "gpu_campaign: $1" >&2; exit 2; }

case " $* " in *" --help "* | *" -h "*) help=1 ;; *) help='' ;; esac
if [ -z "$help" ]; then
  log=$(mktemp)
  "$root/benchmarks/gpu_build.sh" "$build" > "$log" 2>&1 || { tail -n 15 "$log" >&2; refuse "the build failed"; }
  rm -f "$log"
fi
export PYTHONPATH=$build/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export ECHO_EXT_OFFLINE=${ECHO_EXT_OFFLINE-1}  # no run waits for a download that cannot succeed
export ECHO_EXT_COMMIT=${ECHO_EXT_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2> /dev/null || true)}
exec "$python" "$root/benchmarks/gpu_campaign.py" --work "${ECHO_EXT_CAMPAIGN_WORK:-$root/build/campaign}" \
  --out "$root/benchmarks/results/campaign" --seconds $((seconds - SECONDS)) "$@"
