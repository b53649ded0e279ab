#!/usr/bin/env bash
# Do the published architectures run whole on a CPU: one graph, no break, equal answers?
#
#   bash benchmarks/full_size_cpu.sh [OUT] [CASES]
#
# By default into benchmarks/results/full_size_cpu, of llama3-8b and deepseek-7b.
#
# At full size in bf16, random weights, one prompt, eager and compiled, on a quiet machine with 20 GiB
# free: some minutes and 17 GiB for each case, one after the other. Writes OUT/<case>-cpu.json (the
# record), OUT/<case>-cpu.log and OUT/cases/<case>-cpu.yaml, the case as it was run; prints graphs,
# breaks, memory and flips. Fidelity (fp32 takes twice the memory), decode and the fingerprint are left out.
set -euo pipefail
root=$(realpath "$(dirname "$0")/..")
out=$(realpath -m "${1:-$root/benchmarks/results/full_size_cpu}")
cases=${2:-llama3-8b,deepseek-7b}
python=${PYTHON:-python3}
cd "$root"
mkdir -p "$out/cases"
export PYTHONUNBUFFERED=1 PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} CUDA_VISIBLE_DEVICES=
# A source tree has no entry points: name the plugin, unless perfline is installed.
plugin=()
if ! "$python" -c 'import importlib.metadata as m; m.distribution("perfline")' 2>/dev/null; then
  plugin=(-p perfline.plugin.hooks)
fi
failed=0
for case in ${cases//,/ }; do
  "$python" - "$case" "$out/cases/$case-cpu.yaml" <<'PYTHON'
import sys
from pathlib import Path

import yaml

from perfline.cases.case import load_cases

name, target = sys.argv[1:]
(case,) = load_cases([name])
made = yaml.safe_load(Path(case.source).read_text(encoding="utf-8"))
made["case"] = f"{name}-cpu"
made["model"]["precision"] = "bf16"
made["throughput"] |= {"sample": 1, "rounds": 1, "min_round_s": 0.001}
made |= {"fidelity": {"prompts": 0}, "decode": {"tokens": 0}, "fingerprint": False}
Path(target).write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
PYTHON
  status=0
  "$python" -m pytest "${plugin[@]}" -m perf --case-dir "$out/cases" --cases "$case-cpu" \
    --dummy-weights --results "$out/$case-cpu.json" tests/perf 2>&1 | tee "$out/$case-cpu.log" ||
    status=$?
  [ "$status" -eq 0 ] || failed=$status
  [ -e "$out/$case-cpu.json" ] || continue # nothing was measured: the log says why
  "$python" - "$out/$case-cpu.json" "$case-cpu" <<'PYTHON'
import json
import sys

path, name = sys.argv[1:]
found = json.load(open(path, encoding="utf-8"))["cases"][name]
metrics, verdicts = found["metrics"], found["verdicts"]
for metric in ("graphs", "graph_breaks", "recompiles", "mem_val", "mem"):
    print(f"{name} {metric}: {metrics[metric]['value'] if metric in metrics else 'not measured'}")
for verdict in verdicts:
    if verdict["metric"].startswith("flips"):
        print(f"{name} {verdict['metric']}: {verdict['word']}, {verdict['reason']}")
PYTHON
done
exit "$failed"
