#!/usr/bin/env bash
# Train on GPUs under SLURM: one process per GPU, put back into the queue at the time
# limit or after preemption, until done.
#
#   launch/slurm.sh --nodes 2 --gpus-per-node 8 --time 12:00:00 -- \
#       python -m clara_jax.train --config=configs/mistral_7b_scp.py --config.mesh.fsdp=16
#
# The folder of the run and this clone must lie where all nodes see them; `python` is that
# of the environment it is submitted from. The log is slurm-JOB.log.
#
# Options:
#   --nodes N                 1 by default
#   --gpus-per-node N         8 by default
#   --cpus-per-gpu N          the cluster's own by default
#   --time LIMIT              likewise
#   --partition P --account A
#   --name NAME               of the job: clara by default
#   --restarts N              how often it may go back into the queue: 100 by default
#   --sbatch-flag=FLAG        another flag for sbatch; repeatable
#   --dry-run                 print the commands
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

nodes=1 gpus=8 cpus='' limit='' partition='' account='' name=clara restarts=100 dry=''
flags=() command=()
while [ $# -gt 0 ]; do
  taken=2
  case "$1" in
    --nodes) nodes=$(number_of "$@") ;;
    --gpus-per-node) gpus=$(number_of "$@") ;;
    --cpus-per-gpu) cpus=$(number_of "$@") ;;
    --time) limit=$(value_of "$@") ;;
    --partition) partition=$(value_of "$@") ;;
    --account) account=$(value_of "$@") ;;
    --name) name=$(value_of "$@") ;;
    --restarts) restarts=$(number_of "$@") ;;
    --sbatch-flag=*) flags+=("${1#*=}") taken=1 ;;
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
    *) die "no option '$1'; launch/slurm.sh --help lists them" ;;
  esac
  shift "$taken"
done
[ ${#command[@]} -gt 0 ] || die 'no command; give it after --'
[ -n "$dry" ] || command -v sbatch >/dev/null || die 'sbatch is not installed here'

export CLARA_RESTARTS=$restarts
[ -z "$dry" ] || echo "export CLARA_RESTARTS=$restarts"
run sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus" \
  "--gpus-per-node=$gpus" \
  ${cpus:+"--cpus-per-gpu=$cpus"} \
  ${limit:+"--time=$limit"} \
  ${partition:+"--partition=$partition"} \
  ${account:+"--account=$account"} \
  ${flags[@]+"${flags[@]}"} \
  "$root/launch/slurm.sbatch" "${command[@]}"
if [ -n "$dry" ]; then
  echo '# and in the job:'
  srun=$(grep '^srun' "$root/launch/slurm.sbatch")
  printf '%s %s\n' "${srun%% \"*}" "$(quoted "${command[@]}")"
fi
