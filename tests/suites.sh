#!/bin/sh
# The default or the long tests, as processes side by side, so that two cores are enough within the time that a person
# waits: most tests wait, for sshds, Ray and clocks, and those that compute run at low priority beside them.
#
#   sh tests/suites.sh default|long PYTEST...      the command that is pytest, for example .venv/bin/python -m pytest -q
#
# A few that fail beside the others are run once more alone: what fails then has failed. What passes only alone is
# named at the end; it is a test that leans on an idle machine, to be repaired.
# Exit code: 0 when all passed. What the ones beside said is printed behind what the first says.
set -u
usage() { echo "usage: $0 default|long PYTEST..." >&2; exit 2; }
[ $# -ge 2 ] || usage
# what runs beside all the others, a process a line: "priority folder folder ..."
case $1 in
  default)
    which="not long and not gpu"
    groups="0 adapters bench far local verify
0 cli dataprep environment export health inventory mirror smoke watch
10 checkpoints faults halts supervisor train
10 decode kernels models parity" ;;
  long)
    which="long and not gpu and not proof"
    groups="0 bench faults halts local parity supervisor
0 environment hostile inventory mirror pod
5 adapters checkpoints health kernels models smoke train verify" ;;
  *) usage ;;
esac
shift
again=6 # this many failures of a process may be bad luck
cd "$(dirname "$0")/.." || exit 2

logs=$(mktemp -d) || exit 2
printf '%s\n' "$groups" >"$logs/groups"
pids="" ignore="" number=0
while read -r priority folders; do
  paths=""
  for folder in $folders; do
    [ -d "tests/$folder" ] && paths="$paths tests/$folder" && ignore="$ignore --ignore=tests/$folder"
  done
  [ -n "$paths" ] || continue
  number=$((number + 1))
  echo "$paths" >"$logs/$number.paths"
  # shellcheck disable=SC2086
  nice -n "$priority" "$@" -m "$which" -o cache_dir="$logs/$number.cache" $paths </dev/null >"$logs/$number" 2>&1 &
  pids="$pids $!"
done <"$logs/groups"
# shellcheck disable=SC2086
echo "$ignore tests" >"$logs/0.paths"
# shellcheck disable=SC2086
"$@" -m "$which" -o cache_dir="$logs/0.cache" $ignore tests </dev/null &
pids="$! $pids"
# interrupted, pytest ends what its tests began
# shellcheck disable=SC2086
trap 'kill -INT $pids 2>/dev/null; wait; rm -rf "$logs"; exit 130' INT TERM HUP
codes=""
for pid in $pids; do
  wait "$pid"
  codes="$codes $?"
done
number=0
for code in $codes; do
  [ "$number" = 0 ] || { echo "--- beside them:$(cat "$logs/$number.paths")"; cat "$logs/$number"; }
  number=$((number + 1))
done

worst=0 number=0
for code in $codes; do
  failed="$logs/$number.cache/v/cache/lastfailed"
  if [ "$code" = 1 ] && [ "$(grep -c :: "$failed" 2>/dev/null)" -le "$again" ]; then
    echo "--- once more, alone:"
    cp "$failed" "$logs/failed"
    # shellcheck disable=SC2046
    "$@" -m "$which" -o cache_dir="$logs/$number.cache" --last-failed --last-failed-no-failures none $(cat "$logs/$number.paths")
    code=$?
    [ "$code" != 0 ] || { echo "PASSED ONLY ALONE, to be repaired:"; grep :: "$logs/failed"; }
  fi
  [ "$code" = 0 ] || worst=1
  number=$((number + 1))
done
rm -rf "$logs"
exit "$worst"
