#!/usr/bin/env bash
# How far do sessions, launches and rounds of llama3-8b differ on this GPU, and what does 2 % look like?
#
#   bash benchmarks/gate/gpu.sh OUT
#
# A/A and an injected slow-down of 2 % at full size with random weights, from the source tree: nothing
# is installed or fetched. Writes OUT/llama3-8b.json (commit it as benchmarks/gate/data/<machine>.json)
# and OUT/evaluation.md. Give it a GPU that holds the model twice (2 x 17 GB) and about 25 minutes;
# interrupted, it goes on where it was.
set -euo pipefail
out=${1:?usage: gpu.sh OUT}
cd "$(dirname "$0")/../.."
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}
python3 benchmarks/gate/record.py --case llama3-8b --dummy-weights --engine inductor \
  --levels 0.0,0.02 --pairs 16 --rounds 5 --sample 8 --min-round-s 1 --calibrations 1 \
  --resume --out "$out/llama3-8b.json" 2>&1 | tee -a "$out/log"
python3 benchmarks/gate/evaluate.py "$out/llama3-8b.json" | tee "$out/evaluation.md"
