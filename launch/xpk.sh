#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster through XPK (pip install xpk), which makes the
# JobSet itself; launch/gke.py is for clusters without it.
#
#   launch/xpk.sh --cluster ours --name clara --image IMAGE --type v5litepod-16 -- \
#       python -m clara_jax.train --config=configs/mistral_7b_scp.py
#
# Options:
#   --cluster C --name NAME --image IMAGE   needed; the image: launch/docker/tpu.Dockerfile
#   --type TYPE                v5litepod-16 by default
#   --slices N                 1 by default
#   --zone ZONE --project P    gcloud's own by default
#   --storage NAME             shared volume, attached before with `xpk storage attach`
#   --restarts N               after preemption and lost machines: 100 by default
#   --dry-run                  print the command
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

cluster='' name='' image='' type=v5litepod-16 slices=1 zone='' project='' storage=''
restarts=100 dry='' command=()
while [ $# -gt 0 ]; do
  taken=2
  case "$1" in
    --cluster) cluster=$(value_of "$@") ;;
    --name) name=$(value_of "$@") ;;
    --image) image=$(value_of "$@") ;;
    --type) type=$(value_of "$@") ;;
    --slices) slices=$(number_of "$@") ;;
    --zone) zone=$(value_of "$@") ;;
    --project) project=$(value_of "$@") ;;
    --storage) storage=$(value_of "$@") ;;
    --restarts) restarts=$(number_of "$@") ;;
    --dry-run) dry=yes taken=1 ;;
    -h | --help)
      usage "${BASH_SOURCE[0]}"
      exit 0
      ;;
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
    *) die "no option '$1'; launch/xpk.sh --help lists them" ;;
  esac
  shift "$taken"
done
[ -n "$cluster" ] || die '--cluster is needed'
[ -n "$name" ] || die '--name is needed'
[ -n "$image" ] || die '--image is needed'
[ ${#command[@]} -gt 0 ] || die 'no command; give it after --'
[ -n "$dry" ] || command -v xpk >/dev/null || die 'xpk is not installed: pip install xpk'

run xpk workload create "--cluster=$cluster" "--workload=$name" "--tpu-type=$type" \
  "--num-slices=$slices" "--docker-image=$image" "--max-restarts=$restarts" \
  --restart-on-exit-codes=75 --termination-grace-period-seconds=300 \
  ${zone:+"--zone=$zone"} ${project:+"--project=$project"} \
  ${storage:+"--storage=$storage"} "--command=$(quoted "${command[@]}")"
