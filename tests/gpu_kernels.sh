#!/bin/sh
# Everything about the kernels that needs an NVIDIA GPU, in one go: the parity matrices and the GPU tests side by side
# (they only check), then, alone on the device, the bench. Needs python3 with torch and triton, and pytest for the tests.
#
#   sh tests/gpu_kernels.sh COMMIT [parity] [tests] [bench]      default: all three
#
# Logs and rows go to $OUT (default build/gpu): parity-*.jsonl, kernels.jsonl, *.log. The last lines printed are a table
# of what ended how. Exit code: 0 when every part did.
# FlashAttention 3 is measured too where KERNELS_FA3_SO names its library (.so or .so.xz), or .fa3/ here holds it.
# PARITY_S, TESTS_S, BENCH_S, BENCH_ARGS, PARITY_ARGS: time limits in seconds, and other arguments.
set -u
[ $# -ge 1 ] || { echo "usage: $0 COMMIT [parity] [tests] [bench]" >&2; exit 2; }
KERNELS_COMMIT=$1; shift
[ $# -ge 1 ] || set -- parity tests bench
for part in "$@"; do
  case $part in parity | tests | bench) ;; *) echo "$0: no part '$part': parity, tests, bench" >&2; exit 2 ;; esac
done
cd "$(dirname "$0")/.." || exit 2
OUT=${OUT:-build/gpu}
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
PYTHON=${PYTHON:-python3}
PYTHONUNBUFFERED=1
export KERNELS_COMMIT OUT PYTHONUNBUFFERED
if [ -z "${KERNELS_FA3_SO:-}" ] && [ -f .fa3/_vllm_fa3_C.abi3.so.xz ]; then
  KERNELS_FA3_SO=$PWD/.fa3/_vllm_fa3_C.abi3.so.xz
  export KERNELS_FA3_SO
fi
PARITY_ARGS=${PARITY_ARGS:---full --jobs 6}
BENCH_ARGS=${BENCH_ARGS:-all}

started=$(date +%s)
table=""
bad=0

wants() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac }

# part NAME SECONDS COMMAND...: runs it, its output to NAME.log, its exit code and seconds to NAME.rc
part() {
  name=$1; limit=$2; shift 2
  begun=$(date +%s)
  timeout -k 10 "$limit" "$@" >"$OUT/$name.log" 2>&1
  echo "$? $(($(date +%s) - begun))" >"$OUT/$name.rc"
}

# report NAME LINES: the end of its log, and its line of the table
report() {
  [ -f "$OUT/$1.rc" ] || echo "127 0" >"$OUT/$1.rc"
  read -r rc seconds <"$OUT/$1.rc"
  rm -f "$OUT/$1.rc"
  [ "$rc" -eq 0 ] || bad=1
  word=ok
  [ "$rc" -eq 0 ] || word="FAILED ($rc)"
  [ "$rc" -ne 124 ] || word="TIME LIMIT"
  table="$table$(printf '%-18s %-14s %5s s   %s' "$1" "$word" "$seconds" "$(tail -n 1 "$OUT/$1.log" | cut -c1-60)")
"
  echo "--- $1"
  tail -n "$2" "$OUT/$1.log" | cut -c1-118
}

parts="$*"
running=""
if wants parity; then
  # shellcheck disable=SC2086
  for family in kv-decode decoupled; do
    part "parity-$family" "${PARITY_S:-240}" "$PYTHON" -m kernels.parity "$family" --device cuda $PARITY_ARGS \
      --jsonl "$OUT/parity-$family.jsonl" &
    running="$running $!"
  done
fi
if wants tests; then
  part tests "${TESTS_S:-240}" "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests/kernels tests/models &
  running="$running $!"
fi
for pid in $running; do wait "$pid"; done
if wants bench; then
  # shellcheck disable=SC2086
  part bench "${BENCH_S:-180}" "$PYTHON" -m kernels.bench $BENCH_ARGS --jsonl "$OUT/kernels.jsonl"
fi
if wants parity; then
  report parity-kv-decode 6
  report parity-decoupled 6
fi
if wants tests; then report tests 12; fi
if wants bench; then report bench 62; fi
echo "--- $(($(date +%s) - started)) s in all, commit $KERNELS_COMMIT, rows and logs in $OUT"
printf '%s' "$table"
exit $bad
