"""The one script that asks a machine for its facts. What it prints is taken apart by `sections`.

POSIX sh and what every Linux has: no Python is needed there. Few processes are started (files of /proc are read by the
shell itself), and whatever may hang - a driver, a dead network disk - has its own limit and is left behind, not waited
for: a process in state D cannot be ended. It changes nothing there but for one folder of temporary files and one probe
file in orch's home (or where that would be made), both removed.
"""

from __future__ import annotations

GPU_QUERY = (
    "index,uuid,name,memory.total,memory.used,driver_version,ecc.mode.current,"
    "ecc.errors.uncorrected.volatile.total,ecc.errors.uncorrected.aggregate.total,mig.mode.current,"
    "temperature.gpu,pcie.link.gen.current,pcie.link.width.current"
)
GPU_QUERY_SHORT = "index,uuid,name,memory.total,memory.used"
APPS_QUERY = "gpu_uuid,pid,used_memory,process_name"

SCRIPT = rf"""
# its words: nonce, seconds for nvidia-smi, orch's home, interpreters to look at
exec 2>/dev/null </dev/null
LC_ALL=C; export LC_ALL
N=$1; G=$2; R=$3; shift 3
NL='
'
sec() {{ printf '\n%s %s\n' "$N" "$1"; }}
sec begin; date +%s.%N
T=
for d in "${{TMPDIR:-/tmp}}" /dev/shm /var/tmp "$HOME"; do
  mkdir -m 700 "$d/.orch-facts.$N" && T=$d/.orch-facts.$N && break
done
trap '[ -z "$T" ] || rm -rf "$T"' EXIT
trap 'exit 1' HUP INT TERM PIPE
late=; trap 'late=1' USR1
ulimit -S -f 2048

# lim SECONDS SECTION COMMAND...: a section with the command's output, and its status or `late`
lim() {{
  limit=$1; sec "$2"; shift 2; late=; r=0
  if [ -n "$T" ]; then "$@" >"$T/o" 2>"$T/e" & else "$@" & fi
  c=$!
  (
    trap '[ $! = $c ] || kill $!; exit 0' ALRM
    sleep "$limit" &
    wait $!
    read -r _ _ _ p _ </proc/self/stat && [ "$p" = $$ ] && kill -USR1 $$
  ) >/dev/null & w=$!
  wait $c; r=$?
  if [ -n "$late" ] && [ "$r" -gt 128 ]; then
    k=; read -r k </proc/$c/task/$c/children
    kill -9 $c $k; r=late
  else
    kill -ALRM $w  # not one that this shell traps: between fork and trap it would be lost
  fi
  if [ -n "$T" ]; then
    [ -s "$T/o" ] && head -c 65536 "$T/o"
    [ "$r" = 0 ] || {{ [ -s "$T/e" ] && head -c 4096 "$T/e"; }}
  fi
  printf '\n%s = %s\n' "$N" "$r"
}}

# where NAME: its path in W, as the shell would find it
where() {{
  W=
  case $1 in
    */*) [ -f "$1" ] && [ -x "$1" ] && W=$1; return ;;
  esac
  set -f; IFS=:
  for d in $PATH $2; do
    [ -f "$d/$1" ] && [ -x "$d/$1" ] && W=$d/$1 && break
  done
  set +f; unset IFS
}}
kv() {{ printf '%s %s\n' "$1" "$2"; }}
rd() {{ v=; [ -r "$2" ] && IFS= read -r v <"$2"; kv "$1" "$v"; }}

case $R in
  "") H=$HOME/.orch ;;
  "~"|"~/"*) H=$HOME${{R#"~"}} ;;
  /*) H=$R ;;
  *) H=$HOME/$R ;;
esac

I=$(id)
sec id; printf '%s\n' "$I"
sec uname; uname -s; uname -nrm
sec about
kv home "$HOME"; kv orch_home "$H"
rd boot_id /proc/sys/kernel/random/boot_id
rd uptime /proc/uptime
rd pid1 /proc/1/comm
rd ptrace /proc/sys/kernel/yama/ptrace_scope
while IFS= read -r l; do
  case $l in PRETTY_NAME=*) kv os "${{l#PRETTY_NAME=}}"; break ;; esac
done </etc/os-release
while IFS= read -r l; do
  case $l in Cpus_allowed_list:*) kv cpus "${{l#*:}}"; break ;; esac
done </proc/self/status
n=0
while [ $n -lt 12 ] && IFS= read -r l; do
  n=$((n + 1))
  case $l in "model name"*:*) kv cpu_model "${{l#*: }}"; break ;; esac
done </proc/cpuinfo
[ -e /.dockerenv ] && kv mark docker
[ -e /run/.containerenv ] && kv mark podman
[ -n "$KUBERNETES_SERVICE_HOST" ] || [ -d /run/secrets/kubernetes.io ] && kv mark kubernetes
sec libc
getconf GNU_LIBC_VERSION ||
  for f in /lib/ld-musl-*.so.1; do [ -x "$f" ] && "$f" 2>&1; done
sec limits
while IFS= read -r l; do
  case $l in "Max open files"*|"Max processes"*|"Max locked memory"*) printf '%s\n' "$l" ;; esac
done </proc/self/limits
sec memory
while IFS= read -r l; do
  case $l in
    MemTotal:*|MemFree:*) printf '%s\n' "$l" ;;
    MemAvailable:*) printf '%s\n' "$l"; break ;;
  esac
done </proc/meminfo

sec cgroup
while IFS= read -r l; do kv of "$l"; done </proc/self/cgroup
while IFS=: read -r _ ctl p; do
  case ,$ctl, in
    ,,) base=/sys/fs/cgroup; [ -d $base/unified ] && base=$base/unified ;;
    *,cpu,*) base=/sys/fs/cgroup/cpu ;;
    *,memory,*) base=/sys/fs/cgroup/memory ;;
    *) continue ;;
  esac
  n=0
  while [ $n -lt 32 ]; do
    n=$((n + 1)); p=${{p%/}}; g=$base$p; m=
    for f in cpu.max cpu.cfs_quota_us cpu.cfs_period_us memory.max memory.limit_in_bytes; do
      v=; [ -r "$g/$f" ] && read -r v <"$g/$f" && kv "$g $f" "$v"
      case $f=$v in memory.max=[0-9]*) m=1 ;; memory.limit_in_bytes=9223*) ;; memory.limit*=[0-9]*) m=1 ;; esac
    done
    if [ -n "$m" ]; then
      for f in memory.current memory.usage_in_bytes; do
        [ -r "$g/$f" ] && read -r v <"$g/$f" && kv "$g $f" "$v"
      done
      while read -r f v; do
        case $f in inactive_file|total_inactive_file) kv "$g $f" "$v" ;; esac
      done <"$g/memory.stat"
    fi
    case $p in "") break ;; esac
    p=${{p%/*}}
  done
done </proc/self/cgroup

sec tools
for t in tar rsync sudo tmux git gcc cc clang curl; do command -v $t; done
for t in uv "$H/bin/uv" "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv"; do
  where "$t"; [ -n "$W" ] && printf '%s\n' "$W" && break
done

pythons() {{
  seen=$NL
  for f in "$@" "$H"/python/*/bin/python3 python3.12 python3.11 python3 /usr/local/bin/python3 \
           /opt/conda/bin/python3 "$HOME"/miniconda3/bin/python3 /usr/bin/python3; do
    [ -n "$f" ] || continue
    case $f in "~/"*) f=$HOME${{f#"~"}} ;; esac
    where "$f"
    [ -n "$W" ] || continue
    case $seen in *"$NL$W$NL"*) continue ;; esac
    seen=$seen$W$NL
    printf '%s ' "$W"; "$W" -V 2>&1; echo
  done
}}
lim 4 pythons pythons "$@"

disks() {{
  set --
  p=$H; while ! [ -d "$p" ]; do p=${{p%/*}}; [ -n "$p" ] || p=/; done
  for x in "root $p" "home $HOME" "tmp /tmp" "shm /dev/shm" "workspace /workspace" "volume /runpod-volume"; do
    l=${{x%% *}}; p=${{x#* }}
    cd -P "$p" || continue
    kv "at $l" "$PWD"; set -- "$@" "$PWD"
    [ "$l" = root ] || continue
    f=.orch-probe.$N
    if (set -C; printf '%4096s' x >"$f") && [ -s "$f" ]; then kv writable yes; else kv writable no; fi
    rm -f "$f"
  done
  stat -f -c 'fs %S %b %a %c %d %n' "$@" || df -Pk "$@"
}}
lim 4 disks disks

sec nvidia
for f in /dev/nvidia[0-9]*; do [ -e "$f" ] && kv dev "$f"; done
for f in /proc/driver/nvidia/gpus/*; do [ -e "$f" ] && kv proc "$f"; done
rd module /proc/driver/nvidia/version
where nvidia-smi /usr/bin:/usr/local/nvidia/bin:/usr/lib/wsl/lib:/opt/bin
S=$W; kv smi "$S"
if [ -n "$S" ]; then
  lim "$G" gpus "$S" --query-gpu={GPU_QUERY} --format=csv,noheader,nounits
  if [ "$r" != 0 ] && [ "$r" != late ]; then
    lim "$G" gpus5 "$S" --query-gpu={GPU_QUERY_SHORT} --format=csv,noheader,nounits
  fi
  if [ "$r" = 0 ]; then
    mig=; [ -n "$T" ] || mig=1
    [ -n "$T" ] && while IFS=, read -r _ _ _ _ _ _ _ _ _ m _; do
      case $m in *Enabled*) mig=1 ;; esac
    done <"$T/o"
    [ -n "$mig" ] && lim 3 migs "$S" -L
    [ "$r" != late ] && lim 3 smiq "$S" -q -d COMPUTE
    [ "$r" != late ] && lim 3 apps "$S" --query-compute-apps={APPS_QUERY} --format=csv,noheader,nounits
    if [ -n "$T" ] && [ "$r" = 0 ]; then
      sec owners; n=0
      while [ $n -lt 64 ] && IFS=', ' read -r _ p _ name; do
        n=$((n + 1)); u=
        case $p:$name in *[!0-9]*:*|:*|*Not\ Found*) continue ;; esac
        while read -r l v _; do
          case $l in Uid:) u=$v; break ;; esac
        done </proc/$p/status
        [ -n "$u" ] || continue
        a=; while IFS=: read -r a _ v _; do [ "$v" = "$u" ] && break; a=; done </etc/passwd
        kv "$p" "${{a:-$u}}"
      done <"$T/o"
    fi
  fi
fi

xids() {{
  if dmesg >/dev/null; then
    {{ dmesg && kv "$N-read" dmesg; }} | grep -a -e 'NVRM: Xid' -e "$N-read" -e gVisor | tail -n 60
    return
  fi
  case $I in
    *"(adm)"*|*"(systemd-journal)"*|"uid=0("*)
      {{ journalctl -k -b -q --no-pager -n 50000 && kv "$N-read" journal; }} |
        grep -a -e 'NVRM: Xid' -e "$N-read" | tail -n 60 ;;
  esac
}}
if [ -n "$S" ] || [ -e /dev/nvidia0 ] || [ -d /proc/driver/nvidia ]; then lim 3 xids xids; fi

sec mounts
cat /proc/self/mounts
sec end; date +%s.%N
sec whole
"""
