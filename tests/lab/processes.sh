# One lab is a set of namespaces, held by one init process, in which components run. When init dies, the kernel ends everything
# in them and takes their mounts, interfaces and IPC along: nothing can be left over.
# shellcheck shell=bash

SLUICE_LAB=${SLUICE_LAB:-default}
case $SLUICE_LAB in '' | *[!a-z0-9-]*) die "SLUICE_LAB=$SLUICE_LAB: a name has lower-case letters, digits and hyphens" ;; esac
RUN=${SLUICE_RUN:-/var/tmp/sluice-lab-$(id -u)}/$SLUICE_LAB
BEGAN=${EPOCHREALTIME/,/.}

# started_at PID: when it started; fails when there is no such process, or only a zombie.
started_at() {
  local stat
  stat=$(cat "/proc/$1/stat" 2> /dev/null) || return 1
  read -r -a stat <<< "${stat##*) }"
  [ "${stat[0]}" != Z ] && echo "${stat[19]}"
}

# pid_of NAME: the pid of init or of a component; fails when it does not run. The file holds pid and start time, so that a pid
# which the machine has used again is never taken for ours.
pid_of() {
  local pid start
  { read -r pid start < "$RUN/pids/$1"; } 2> /dev/null || return 1
  [ "$(started_at "$pid")" = "$start" ] && echo "$pid"
}

running() { pid_of "$1" > /dev/null; }

# adopt NAME PID: waits for the first child of PID and records it as NAME. (The parent is the tool that entered the namespaces.)
adopt() {
  local child _
  for _ in {1..600}; do
    child=
    { read -r child _ < "/proc/$2/task/$2/children"; } 2> /dev/null || :
    if [ -n "$child" ]; then
      echo "$child $(started_at "$child")" > "$RUN/pids/$1"
      return
    fi
    [ -d "/proc/$2" ] || break
    sleep 0.005
  done
  die "$1 did not start: $(tail -n 3 "$RUN/log/$1.log")"
}

lap() { say "$(awk -v now="${EPOCHREALTIME/,/.}" -v from="$BEGAN" 'BEGIN {printf "%5.1f s", now - from}')  $*"; }

# wait_for SECONDS WHAT COMMAND...: until COMMAND succeeds.
wait_for() {
  local seconds=$1 what=$2 output
  shift 2
  local deadline=$((SECONDS + seconds))
  until output=$("$@" 2>&1); do
    [ "$SECONDS" -lt "$deadline" ] || die "not within $seconds s: $what. Last answer: ${output:-nothing}. Logs: $RUN/log"
    sleep 0.05
  done
  lap "$what"
}

rootless() { [ "$(id -u)" != 0 ]; }

# enter NAMESPACE...: sets the array `entry` to the command that enters these namespaces of the lab.
enter() {
  local init
  init=$(pid_of init) || die "the lab $SLUICE_LAB is not up: tests/lab/lab up LEVEL"
  entry=(nsenter --target "$init")
  ! rootless || entry+=(--user --preserve-credentials)
  entry+=("${@/#/--}" --)
}

make_namespaces() {
  running init && return
  local user=() setup="exec '$BIN/labtool' init"
  if rootless; then
    user=(--user --map-root-user)
  else
    # mounts of pods spread inside, never to the machine; the sockets of containerd's shims go to a /run of its own
    setup="mount --make-rshared / && mount -t tmpfs tmpfs /run && $setup"
  fi
  setsid unshare "${user[@]}" --net --pid --fork --ipc --mount --mount-proc --kill-child sh -c "$setup" \
    > "$RUN/log/init.log" 2>&1 < /dev/null 7>&- &
  echo "$! $(started_at $!)" > "$RUN/pids/holder" # its death is the death of init
  adopt init $!
  wait_for 10 namespaces grep -q up "$RUN/log/init.log"
}

# start NAME COMMAND...: starts a component unless it runs. Without COMMAND: as it was started before.
start() {
  local name=$1 command entry
  shift
  [ $# -eq 0 ] || printf '%q ' "$@" > "$RUN/commands/$name"
  running "$name" && return
  [ -f "$RUN/commands/$name" ] || die "no component $name; there are: $(cd "$RUN/commands" && echo *)"
  enter net pid ipc mount
  eval "command=($(cat "$RUN/commands/$name"))"
  # shellcheck disable=SC2154 # set by eval
  setsid "${entry[@]}" "${command[@]}" >> "$RUN/log/$name.log" 2>&1 < /dev/null 7>&- &
  adopt "$name" $!
}

# stop NAME [SIGNAL]: ends a component and waits; after 10 s with SIGKILL.
stop() {
  local pid _
  pid=$(pid_of "$1") || return 0
  kill -s "${2:-TERM}" "$pid"
  for _ in {1..200}; do
    running "$1" || return 0
    sleep 0.05
  done
  kill -s KILL "$pid"
  while running "$1"; do sleep 0.05; done
}

# cgroups of the lab: one directory in each hierarchy (v1) or in the only one (v2)
cgroups() { find /sys/fs/cgroup -maxdepth 2 -type d -name "sluice-$SLUICE_LAB" 2> /dev/null || :; }

make_cgroups() {
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p "/sys/fs/cgroup/sluice-$SLUICE_LAB"
    return
  fi
  local hierarchy
  for hierarchy in /sys/fs/cgroup/*/; do
    case $hierarchy in */unified/) ;; *) mkdir -p "$hierarchy/sluice-$SLUICE_LAB" ;; esac
  done
  # a cpuset takes no process before it has cpus and memory
  local file
  for file in cpuset.cpus cpuset.mems; do
    cat "/sys/fs/cgroup/cpuset/$file" > "/sys/fs/cgroup/cpuset/sluice-$SLUICE_LAB/$file"
  done
}

# A component that was stopped has stopped the tool that entered the namespaces for it too, and nothing continues that. It would
# never reap the component, and init, which waits for all in its namespace to be reaped, could not end.
continue_entered() {
  local file stat
  for file in "$RUN"/pids/*; do
    stat=$(cat "/proc/$(pid_of "${file##*/}")/stat" 2> /dev/null) || continue
    read -r -a stat <<< "${stat##*) }"
    case $(cat "/proc/${stat[1]}/comm" 2> /dev/null) in nsenter) kill -s CONT "${stat[1]}" ;; esac
  done
}

down() {
  local name pid left _
  continue_entered
  for name in holder init; do
    ! pid=$(pid_of $name) || kill -s KILL "$pid" 2> /dev/null || :
    for _ in {1..1500}; do
      running $name || break
      sleep 0.02
    done
    ! running $name || die "$name of the lab $SLUICE_LAB does not end"
  done
  for _ in {1..100}; do
    left=$(cgroups)
    [ -n "$left" ] || break
    # shellcheck disable=SC2086 # our own names, no blanks
    find $left -depth -type d -exec rmdir {} + 2> /dev/null || sleep 0.05
  done
  [ -z "$left" ] || die "could not remove: $left"
  rm -rf "$RUN"
}
