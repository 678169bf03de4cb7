#!/bin/sh
# The default tests, as two processes: those that compute run at low priority beside those that wait for sshds, Ray and
# clocks, so that two cores are enough for both within the time that a person waits.
#
#   sh tests/default.sh PYTEST...      the command that is pytest, for example .venv/bin/python -m pytest -q
#
# Exit code: 0 when both passed. What the first ones said is printed behind what the others say.
set -u
[ $# -ge 1 ] || { echo "usage: $0 PYTEST..." >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
which="not long and not gpu"
compute=""
ignore=""
for folder in bench decode kernels models parity train; do
  [ -d "tests/$folder" ] || continue
  compute="$compute tests/$folder"
  ignore="$ignore --ignore=tests/$folder"
done

log=$(mktemp) || exit 2
# shellcheck disable=SC2086
nice -n 10 "$@" -m "$which" -p no:cacheprovider $compute >"$log" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null; wait "$beside"; rm -f "$log"; exit 130' INT TERM HUP
# shellcheck disable=SC2086
"$@" -m "$which" $ignore tests
first=$?
wait "$beside"
second=$?
echo "--- beside them:$compute"
cat "$log"
rm -f "$log"
[ "$first" -eq 0 ] && [ "$second" -eq 0 ]
