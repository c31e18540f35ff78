#!/usr/bin/env bash
# The part of launch/tpu_vm.sh that runs on each worker of a TPU VM.
#
#   tpu_worker.sh install [--extra tpu] [--bucket B | --nfs HOST:/SHARE] [--mount-at DIR]
#   tpu_worker.sh start -- COMMAND ...   in the background; refuses a second one
#   tpu_worker.sh follow [--lines N]     its log, until it ends
#   tpu_worker.sh status                 running | exited N | died | absent
#   tpu_worker.sh stop                   SIGTERM, then wait until it has ended
set -euo pipefail

code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$code/launch/common.sh"

venv=$HOME/clara_venv
state=$HOME/clara_run

install() {
  local extra=tpu bucket='' nfs='' at=/mnt/clara uv
  while [ $# -gt 0 ]; do
    case "$1" in
      --extra) extra=$(value_of "$@") ;;
      --bucket) bucket=$(value_of "$@") ;;
      --nfs) nfs=$(value_of "$@") ;;
      --mount-at) at=$(value_of "$@") ;;
      *) die "install knows no option '$1'" ;;
    esac
    shift 2
  done
  if [ -n "$bucket$nfs" ] && ! mountpoint -q "$at"; then
    mount_at "$at" "$bucket" "$nfs"
  fi
  # The images bring Python 3.10; uv, which is a wheel, brings a newer one.
  if [ ! -x "$venv/bin/python" ]; then
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    uv=$(python3 -m site --user-base)/bin/uv
    "$uv" venv --quiet --seed --python 3.12 "$venv"
  fi
  "$venv/bin/python" -m pip install --quiet --editable "${code}[$extra]"
}

mount_at() {
  local at=$1 bucket=$2 nfs=$3 key list name
  sudo mkdir -p "$at"
  if [ -n "$nfs" ]; then
    sudo apt-get -qq update
    sudo apt-get -qq install -y nfs-common
    sudo mount -t nfs "$nfs" "$at"
    sudo chmod a+rwx "$at"
    return
  fi
  if ! command -v gcsfuse >/dev/null; then
    key=/usr/share/keyrings/cloud.google.asc
    list=https://packages.cloud.google.com/apt
    name=gcsfuse-$(lsb_release -c -s)
    curl -fsS "$list/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $list $name main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -qq update
    sudo apt-get -qq install -y gcsfuse
  fi
  sudo chown "$(id -u):$(id -g)" "$at"
  # A checkpoint appears by the renaming of its folder.
  gcsfuse --implicit-dirs --rename-dir-limit=100000 "$bucket" "$at"
}

# The run holds this lock for as long as it lives, so a number of a process that came
# after it, or after a reboot, is never taken for it. Who looks shares the lock: two
# that look at once do not see each other.
running() { [ -e "$state/lock" ] && ! flock -n -s "$state/lock" true; }

start() {
  [ "${1-}" = -- ] && shift
  [ $# -gt 0 ] || die 'start needs -- COMMAND'
  mkdir -p "$state"
  if running; then
    say 'a run is going on here; stop it first'
    return 1
  fi
  rm -f "$state/status" "$state/pid"
  printf '=== %s %s\n' "$(date -u +%FT%TZ)" "$(quoted "$@")" >>"$state/log"
  cd "$code"
  # shellcheck disable=SC2016 # expanded by the inner shell
  PATH=$venv/bin:$PATH PYTHONUNBUFFERED=1 setsid bash -c '
    exec 9>"$1/lock"
    flock 9
    trap : TERM INT
    echo $$ >"$1/pid.new"
    mv "$1/pid.new" "$1/pid"
    state=$1
    shift
    set +e
    "$@" 9>&-
    code=$?
    echo "$code" >"$state/status.new"
    mv "$state/status.new" "$state/status"
  ' clara "$state" "$@" </dev/null >>"$state/log" 2>&1 &
  # What comes next may ask for its state, or stop it, at once.
  for _ in $(seq 300); do
    if [ -e "$state/pid" ]; then return 0; fi
    sleep 0.1
  done
  say 'the run did not start'
  return 1
}

status() {
  if running; then
    echo running
  elif [ -e "$state/status" ]; then
    echo "exited $(cat "$state/status")"
  elif [ -e "$state/pid" ]; then
    echo died
  else
    echo absent
  fi
}

follow() {
  local lines=20 waiting
  while [ $# -gt 0 ]; do
    case "$1" in
      --lines) lines=$(number_of "$@") ;;
      *) die "follow knows no option '$1'" ;;
    esac
    shift 2
  done
  [ -e "$state/log" ] || {
    say 'no run was started here'
    return 1
  }
  while running; do sleep 1; done &
  waiting=$!
  # shellcheck disable=SC2064 # this process, now
  trap "kill $waiting 2>/dev/null || true" EXIT
  # It looks once more after that process has ended, so no last line is lost.
  tail -n "$lines" --pid="$waiting" -F "$state/log" 2>/dev/null
}

stop() {
  running || return 0
  kill -TERM -- "-$(cat "$state/pid")" 2>/dev/null || true # it may end just now
  while running; do sleep 0.2; done
}

action=${1-}
[ $# -eq 0 ] || shift
case "$action" in
  install | start | follow | status | stop) "$action" "$@" ;;
  -h | --help) usage "${BASH_SOURCE[0]}" ;;
  *) die "no command '$action'; there are install, start, follow, status, stop" ;;
esac
