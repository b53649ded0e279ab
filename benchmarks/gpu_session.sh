#!/usr/bin/env bash
# Which throughput, decode speed, memory, MFU and MBU does this GPU reach on the two published
# architectures?
#
#   bash benchmarks/gpu_session.sh OUT [CASES]
#   RANKS=1 bash benchmarks/gpu_session.sh OUT2     the same under torchrun, without decode;
#                                                   RANKS=gpu: on all GPUs
#   bash benchmarks/gpu_session.sh OUT tiny         tries every line of it, on a CPU, too
#
# One session (one process) of the perf suite at full size with random weights, from the source tree:
# nothing is installed or fetched. Writes OUT/run.json (accept it with
# `perfline baselines update llama3-8b deepseek-7b --run OUT/run.json --reason ...`, later ones with
# --add), OUT/benchmark.json and OUT/log. Takes about 5 minutes on an H100 without decode, which no
# GPU has run yet.
set -euo pipefail
out=${1:?usage: gpu_session.sh OUT [CASES]}
cases=${2:-llama3-8b,deepseek-7b}
cd "$(dirname "$0")/.."
mkdir -p "$out"
# A source tree has no entry points: name the plugin, unless perfline is installed.
plugin=()
if ! python3 -c 'import importlib.metadata as m; m.distribution("perfline")' 2>/dev/null; then
  plugin=(-p perfline.plugin.hooks)
fi
launcher=(-m pytest)
if [ -n "${RANKS:-}" ]; then
  launcher=(-m torch.distributed.run --standalone "--nproc-per-node=$RANKS" -m pytest)
fi
set +e
PYTHONUNBUFFERED=1 PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} python3 "${launcher[@]}" \
  "${plugin[@]}" -m perf --cases "$cases" --dummy-weights \
  --results="$out/run.json" --benchmark-json="$out/benchmark.json" tests/perf 2>&1 | tee "$out/log"
exit "${PIPESTATUS[0]}"
