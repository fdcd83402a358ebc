#!/usr/bin/env bash
# Builds, tests and times on a machine with a GPU, in at most ten minutes: benchmarks/gpu.sh [FOLDER [losses|training|large]]
# FOLDER (default $OUT) gets the results, each as soon as it is measured, and a log of each phase. losses (default): the
# bandwidth of each kernel, one training run (MFU), the losses beside what others would write; training: a decoder under
# them, packed and padded, compiled and not; large: 4B whole, 8B with adapters. A phase that fails or runs out of time is
# told at the end; those after it run all the same, but for a build that failed. PYTHON names the interpreter, which has
# the dependencies: nothing is downloaded.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:?give a folder}}
what=${2:-losses}
python=${PYTHON:-python3}
mkdir -p "$out"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
failed=()

phase() { # NAME LIMIT-IN-SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "== $name"
  local status=0
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  echo "   status $status after $((SECONDS - start)) s"
  [ $status -eq 0 ] && return
  failed+=("$name")
  tail -n 25 "$out/$name.log"
  return $status
}

phase build 80 "$python" -m pip install --quiet --no-build-isolation --no-deps -e . || exit 1
# The kernels themselves, not their interpreter.
parallel=$("$python" -c 'import xdist; print("-n 8")' 2>/dev/null)  # many small compilations
tested=$([ "$what" = losses ] || echo 'pack or train')
IRM_FAST_GPU_TESTS=1 phase tests 120 "$python" -m pytest -q --maxfail=20 $parallel tests/kernels/test_gpu.py -k "$tested"
# Every case is saved as it is measured: what a time limit cuts off are the last cases, which matter least.
measure() { phase benchmarks "$1" "$python" -m pytest "${@:2}" --benchmark-only -q --save-results "$out/results"; }
scale() { # what it prints is in training.jsonl, a line for each phase that ends
  phase "$1" "$2" "$python" -m benchmarks.at_scale --out "$out" "${@:3}" || return
  grep examples/s "$out/$1.log" | tail -n 1 && rm "$out/$1.log"
}
gpu() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }
if [ "$what" != losses ] && ! gpu; then
  scale packed 60 --shape tiny --rows 64 --budget 2048 --longest 512 --precision float32 # a rehearsal
elif [ "$what" = training ]; then
  scale plain 40 --shape 0.6B --rows 256 --no-compile --no-liger
  scale compiled 70 --shape 0.6B --rows 512 --compile
  "$python" -c 'import liger_kernel' 2>/dev/null && scale liger 40 --shape 0.6B --rows 256 --no-compile --liger
  scale padded 50 --shape 0.6B --rows 128 --no-compile --no-liger --attn sdpa
  scale larger 70 --shape 1.7B --rows 256 --compile --budget 8192
  measure 130 benchmarks/bench_training.py
elif [ "$what" = large ]; then
  scale whole 150 --shape 4B --rows 128 --compile --checkpointing full --budget 8192
  scale adapters 150 --shape 8B --rows 128 --compile --checkpointing full --budget 8192 --lora-rank 16
else
  if gpu; then
    phase bandwidth 80 "$python" -m benchmarks.bandwidth "$out" && cat "$out/bandwidth.log"
    scale plain 50 --shape 0.6B --rows 256 --no-compile --no-liger
  fi
  measure 210 benchmarks/bench_loss.py benchmarks/bench_pointwise.py benchmarks/bench_linear.py
  phase figures 20 "$python" -m benchmarks.draw "$out"/results/*.json
fi
[ ! -d "$out/results" ] || "$python" -m benchmarks.report "$out"/results/*.json
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
