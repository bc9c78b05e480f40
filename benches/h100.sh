#!/usr/bin/env bash
# PyTorch and ours side by side, on one machine, within nine minutes:
#
#     benches/h100.sh target/release/dualspeed [COMPARE_ARGUMENT ...]
#
# Needs a binary with the feature `cuda`, python3, torch, transformers and peft. Reports and logs go to $OUT (bench-out); a
# part that is out of time leaves the rows it has. WARMUP and STEPS are those of the steps; TIMES the seconds of the parts.
set -uo pipefail
if [ $# -lt 1 ] || [ ! -x "$1" ]; then
  echo "usage: benches/h100.sh BINARY [COMPARE_ARGUMENT ...]; build it with: cargo build --release -p dualspeed --no-default-features --features cuda" >&2
  exit 2
fi
binary=$(realpath "$1")
shift
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-bench-out}
mkdir -p "$out"
warmup=${WARMUP:-2} steps=${STEPS:-4}
read -r ops torch_ops whole torch_steps <<<"${TIMES:-80 70 240 145}"
export CUDA_PATH=${CUDA_PATH:-/usr/local/cuda}
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-$CUDA_PATH/lib64}

part() { # NAME SECONDS COMMAND ..
  local name=$1 limit=$2 begin=$SECONDS code
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  echo "$name: exit $code after $((SECONDS - begin)) s of $limit"
  [ "$code" = 0 ] || tail -n 5 "$out/$name.log"
}

rm -f "$out"/{ours,torch}-{ops,steps}.json
part ours-ops "$ops" "$binary" --backend cuda bench --suite ops --size 7b --json "$out/ours-ops.json"
part torch-ops "$torch_ops" python3 "$here/torch_ops.py" --json "$out/torch-ops.json"
part ours-steps "$whole" "$binary" --backend cuda bench --suite steps --size 7b --warmup "$warmup" --steps "$steps" \
  --json "$out/ours-steps.json"
part torch-steps "$torch_steps" python3 "$here/torch_reference.py" --warmup "$warmup" --steps "$steps" \
  --json "$out/torch-steps.json"

shopt -s nullglob
ours=("$out"/ours-*.json) theirs=("$out"/torch-*.json)
if [ ${#ours[@]} = 0 ]; then
  echo "nothing was measured; see $out/ours-ops.log" >&2
  exit 1
fi
python3 "$here/compare.py" --ours "${ours[@]}" --torch "${theirs[@]}" --out "$out/h100.json" \
  --command "OUT=DIR benches/h100.sh target/release/dualspeed" "$@"
