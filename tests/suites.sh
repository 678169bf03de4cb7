#!/bin/sh
# The default or the long tests, as processes side by side, so that two cores are enough within the time that a person
# waits: most tests wait, for sshds, Ray and clocks, and those that compute run at low priority beside them.
#
#   sh tests/suites.sh default|long PYTEST...      the command that is pytest, for example .venv/bin/python -m pytest -q
#
# Exit code: 0 when all passed. What the ones beside said is printed behind what the first says.
set -u
usage() { echo "usage: $0 default|long PYTEST..." >&2; exit 2; }
[ $# -ge 2 ] || usage
# what runs beside all the others, a process a line: "priority folder folder ..."
case $1 in
  default)
    which="not long and not gpu"
    groups="0 adapters bench dataprep environment export far local verify
0 cli inventory mirror
10 checkpoints faults halts health smoke supervisor train watch
10 decode kernels models parity" ;;
  long)
    which="long and not gpu and not proof"
    groups="0 bench faults halts local parity supervisor
0 environment hostile inventory mirror pod
5 adapters checkpoints health kernels models smoke train verify" ;;
  *) usage ;;
esac
shift
cd "$(dirname "$0")/.." || exit 2

logs=$(mktemp -d) || exit 2
printf '%s\n' "$groups" >"$logs/groups"
pids="" ignore="" number=0
while read -r priority folders; do
  paths="" number=$((number + 1))
  for folder in $folders; do
    [ -d "tests/$folder" ] && paths="$paths tests/$folder" && ignore="$ignore --ignore=tests/$folder"
  done
  [ -n "$paths" ] || continue
  # shellcheck disable=SC2086
  nice -n "$priority" "$@" -m "$which" -p no:cacheprovider $paths </dev/null >"$logs/$number" 2>&1 &
  pids="$pids $!"
  echo "$paths" >"$logs/$number.paths"
done <"$logs/groups"
# shellcheck disable=SC2086
trap 'kill $pids 2>/dev/null; wait; rm -rf "$logs"; exit 130' INT TERM HUP
# shellcheck disable=SC2086
"$@" -m "$which" $ignore tests
worst=$?
for pid in $pids; do
  wait "$pid" || worst=1
done
for log in "$logs"/*.paths; do
  echo "--- beside them:$(cat "$log")"
  cat "${log%.paths}"
done
rm -rf "$logs"
exit "$worst"
