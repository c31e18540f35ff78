#!/usr/bin/env bash
# Train on a TPU VM, one host or a whole pod slice, through gcloud's queued resources.
#
#   launch/tpu_vm.sh all --name clara --zone us-west4-a --type v5litepod-16 --spot \
#       --bucket my-bucket -- python -m clara_jax.train \
#       --config=configs/mistral_7b_scp.py --config.workdir=/mnt/clara/runs/scp
#
# Commands, in the order in which `all` goes through them:
#   create    ask for the machines             wait     until they are there
#   copy      the last commit, or --repo       install  the package, and the mount
#   run       start the command on all workers, in the background
#   logs      follow worker 0's log            status   of the run on every worker
#   stop      SIGTERM to the run: it saves     delete   the machines
# `all` also starts anew whatever is preempted: it deletes what is left, asks again, and
# runs the same command, which goes on from its checkpoints. Stopped with Ctrl-C and
# started again it goes on watching; it ends with the exit status of the run.
#
# Options:
#   --name NAME --zone ZONE      of the queued resource and of its node (needed)
#   --project PROJECT            gcloud's own by default
#   --type TYPE                  v5litepod-16 by default
#   --runtime-version VERSION    by default the one that goes with the type
#   --spot | --reserved          which tier
#   --create-flag=FLAG           another flag for `queued-resources create`; repeatable
#   --repo URL [--ref REF]       clone this instead of copying the last commit
#   --bucket NAME                mount this bucket on all workers, with gcsfuse
#   --nfs HOST:/SHARE            or this network file system, such as Filestore
#   --mount-at DIR               where: /mnt/clara by default
#   --poll SECONDS               between looks: 30 by default
#   --restarts N                 how often `all` starts anew: 100 by default
#   --keep                       `all`: leave the machines there after success
#   --dry-run                    print the commands
#
# gcloud reaches several workers only with its key in ssh-agent:
#   ssh-add ~/.ssh/google_compute_engine
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

name='' zone='' project='' type=v5litepod-16 version='' tier='' repo='' ref=HEAD
bucket='' nfs='' at=/mnt/clara poll=30 restarts=100 keep='' dry='' extra_flags=()

PREEMPTED=75

# What the images are called that go with a type.
version_of() {
  case "$1" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-* | v5e-*) echo v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) die "no image is known for --type $1; name it with --runtime-version" ;;
  esac
}

queued() {
  local verb=$1
  shift
  set -- gcloud compute tpus queued-resources "$verb" "$name" "$@" "--zone=$zone"
  run "$@" ${project:+"--project=$project"}
}

node() {
  local verb=$1 what=$2
  shift 2
  if [ "$verb" = scp ]; then what="$what $name:clara_jax.tar.gz"; fi
  # shellcheck disable=SC2086 # scp takes two words, neither with a space
  set -- gcloud compute tpus tpu-vm "$verb" $what "$@" "--zone=$zone"
  run "$@" ${project:+"--project=$project"}
}

# on WORKERS COMMAND...: over ssh; a connection that died is noticed within a minute.
on() {
  local workers=$1
  shift
  node ssh "$name" "--worker=$workers" "--command=$*" \
    --ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4
}

worker() {
  local workers=$1
  shift
  on "$workers" "bash clara_jax/launch/tpu_worker.sh $(quoted "$@")"
}

create() {
  queued create "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$version" ${tier:+"$tier"} \
    ${extra_flags[@]+"${extra_flags[@]}"}
}

delete() { queued delete --force --quiet; }

# state: of the request; absent when there is none, unknown when nobody answers.
state() { ask queued describe '--format=value(state.state)'; }

# machines: state of the node itself, which falls before the request's does.
machines() { ask node describe "$name" '--format=value(state)'; }

ask() {
  local answer
  if answer=$("$@" 2>"$scratch/error"); then
    printf '%s\n' "$answer"
  elif grep -q NOT_FOUND "$scratch/error"; then
    echo absent
  else
    say "gcloud: $(tail -n 1 "$scratch/error")"
    echo unknown
  fi
}

# wait_active: 0 when the machines are there, 1 when they will not come.
wait_active() {
  local now before=''
  if [ -n "$dry" ]; then
    queued describe '--format=value(state.state)'
    return 0
  fi
  while :; do
    now=$(state)
    [ "$now" = "$before" ] || say "$name: $now"
    before=$now
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | absent) return 1 ;;
    esac
    sleep "$poll"
  done
}

copy() {
  if [ -n "$repo" ]; then
    on all "test -d clara_jax || git clone --quiet $(quoted "$repo") clara_jax" \
      "&& git -C clara_jax fetch --quiet origin $(quoted "$ref")" \
      "&& git -C clara_jax checkout --quiet FETCH_HEAD"
    return
  fi
  local packed=$scratch/clara_jax.tar.gz
  pack "$packed" &&
    node scp "$packed" --worker=all &&
    on all 'mkdir -p clara_jax && tar -xzf clara_jax.tar.gz -C clara_jax'
}

# pack FILE: the last commit; of a folder that is no clone, what a launch needs.
pack() {
  if [ -e "$root/.git" ]; then
    if [ -z "$dry" ] && [ -n "$(git -C "$root" status --porcelain)" ]; then
      say 'the last commit is copied; changes that are not committed stay here'
    fi
    run git -C "$root" archive --format=tar.gz "--output=$1" HEAD
  else
    run tar -czf "$1" -C "$root" --exclude=__pycache__ setup.py pyproject.toml README.md \
      clara_jax configs launch
  fi
}

install() {
  set -- all install
  if [ -n "$bucket" ]; then set -- "$@" --bucket "$bucket" --mount-at "$at"; fi
  if [ -n "$nfs" ]; then set -- "$@" --nfs "$nfs" --mount-at "$at"; fi
  worker "$@"
}

start() { worker all start -- ${command[@]+"${command[@]}"}; }

# verdict: of the run on all workers: running, done, preempted, lost, or its status.
verdict() {
  local lines codes
  lines=$(worker all status 2>/dev/null) || {
    echo unknown
    return
  }
  codes=$(printf '%s\n' "$lines" | sed -n 's/^exited //p')
  if printf '%s\n' "$lines" | grep -qx running; then
    echo running
  elif printf '%s\n' "$lines" | grep -qxE 'died|absent'; then
    echo lost
  elif [ -z "$codes" ]; then
    echo unknown
  elif printf '%s\n' "$codes" | grep -qxE "$PREEMPTED|134"; then
    # The others may have failed only because this one left; JAX aborts them, with 134.
    echo preempted
  else
    codes=$(printf '%s\n' "$codes" | grep -vx 0 | head -n 1) || true
    echo "${codes:-done}"
  fi
}

# gone: whether the machines have been taken away.
gone() {
  case "$(state)" in
    FAILED | SUSPENDING | SUSPENDED | DELETING | absent) return 0 ;;
    ACTIVE)
      case "$(machines)" in
        PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | absent) return 0 ;;
      esac
      ;;
  esac
  return 1
}

# watch: until the run has ended or its machines are gone; sets `outcome`.
watch() {
  local failures=0 lines=100
  while :; do
    if [ "$failures" -eq 0 ]; then
      worker 0 follow --lines "$lines" || true
      lines=5 # the connection broke: most of it has been shown
    fi
    outcome=$(verdict)
    case "$outcome" in
      done | preempted | lost) return ;;
      running) ;;
      unknown) say "$name: no word from the workers; another look in $poll s" ;;
      *)
        # A neighbour's death looks like a failure until the machines are known to go.
        [ "$(machines)" != READY ] || failures=$((failures + 1))
        if [ "$failures" -ge 3 ]; then return; fi
        ;;
    esac
    if gone; then
      outcome=lost
      return
    fi
    sleep "$poll"
  done
}

# prepared: the machines are there, with the code and the run on them.
prepared() {
  local now
  now=$(state)
  if [ "$now" = absent ]; then
    create || return
  elif [ "$now" != ACTIVE ]; then
    say "$name: $now"
  fi
  wait_active || return
  failed_requests=0
  [ "$(verdict)" = running ] || { copy && install && start; }
}

all() {
  local starts=0 tries=0
  if [ -n "$dry" ]; then
    create && wait_active && copy && install && start
    worker 0 follow --lines 100
    worker all status
    [ -n "$keep" ] || delete
    return
  fi
  failed_requests=0
  while :; do
    outcome=lost
    if prepared; then
      tries=0
      watch
    elif ! gone; then
      tries=$((tries + 1))
      [ "$tries" -lt 3 ] || die "$name could not be prepared, as told above, and" \
        "costs money: launch/tpu_vm.sh delete --name $name --zone $zone"
    fi
    case "$outcome" in
      done)
        say "$name: done"
        [ -n "$keep" ] || delete
        return 0
        ;;
      preempted | lost) ;;
      *)
        say "$name: the run ended with status $outcome; its machines are still there:" \
          "launch/tpu_vm.sh delete --name $name --zone $zone"
        return "$outcome"
        ;;
    esac
    if [ "$starts" -ge "$restarts" ]; then
      say "$name: preempted after $starts restarts; start the same command again"
      return "$PREEMPTED"
    fi
    starts=$((starts + 1))
    sleep "$poll" # a machine that is being taken away may look well for a moment
    if gone; then renew; fi
    say "$name: start $((starts + 1))"
  done
}

# renew: take away what is left of a request, to make room for another.
renew() {
  local now
  now=$(state)
  if [ "$now" = FAILED ]; then
    failed_requests=$((failed_requests + 1))
    if [ "$failed_requests" -ge 3 ]; then
      queued describe '--format=value(state.failedData.error.message)' >&2 || true
      die "three requests failed in a row, the last as told above"
    fi
  fi
  while [ "$now" = SUSPENDING ] || [ "$now" = DELETING ]; do
    sleep "$poll"
    now=$(state)
  done
  if [ "$now" != absent ]; then delete || true; fi
}

action=${1-}
case "$action" in
  all | create | wait | copy | install | run | logs | status | stop | delete) shift ;;
  -h | --help | '')
    usage "${BASH_SOURCE[0]}"
    exit 0
    ;;
  *) die "no command '$action'; launch/tpu_vm.sh --help lists them" ;;
esac

command=()
while [ $# -gt 0 ]; do
  taken=2
  case "$1" in
    --name) name=$(value_of "$@") ;;
    --zone) zone=$(value_of "$@") ;;
    --project) project=$(value_of "$@") ;;
    --type) type=$(value_of "$@") ;;
    --runtime-version) version=$(value_of "$@") ;;
    --repo) repo=$(value_of "$@") ;;
    --ref) ref=$(value_of "$@") ;;
    --bucket) bucket=$(value_of "$@") ;;
    --nfs) nfs=$(value_of "$@") ;;
    --mount-at) at=$(value_of "$@") ;;
    --poll) poll=$(number_of "$@") ;;
    --restarts) restarts=$(number_of "$@") ;;
    --spot | --reserved)
      [ -z "$tier" ] || [ "$tier" = "$1" ] || die 'give --spot or --reserved, not both'
      tier=$1 taken=1
      ;;
    --create-flag=*) extra_flags+=("${1#*=}") taken=1 ;;
    --keep) keep=yes taken=1 ;;
    --dry-run) dry=yes taken=1 ;;
    --)
      shift
      command=("$@")
      break
      ;;
    --*=*)
      # --name=value is --name value.
      option=${1%%=*} value=${1#*=}
      shift
      set -- "$option" "$value" "$@"
      taken=0
      ;;
    *) die "no option '$1'; launch/tpu_vm.sh --help lists them" ;;
  esac
  shift "$taken"
done

[ -n "$name" ] || die '--name is needed'
[ -n "$zone" ] || die '--zone is needed'
[ -z "$bucket" ] || [ -z "$nfs" ] || die 'give --bucket or --nfs, not both'
[ -n "$version" ] || version=$(version_of "$type")
case "$action" in
  all | run) [ ${#command[@]} -gt 0 ] || die "$action needs -- COMMAND" ;;
esac
scratch=/tmp/clara
if [ -z "$dry" ]; then
  command -v gcloud >/dev/null || die 'gcloud is not installed'
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
fi

case "$action" in
  all) all ;;
  wait) wait_active ;;
  run) start ;;
  logs) worker 0 follow --lines 100 ;;
  status) worker all status ;;
  stop) worker all stop ;;
  *) "$action" ;;
esac
