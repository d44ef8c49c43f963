# What the job scripts share: the job's environment, and how its ranks are started. Sourced by them.
# shellcheck shell=bash

fail() {
    echo "$*" >&2
    exit 2
}

ranks=${SLURM_NTASKS:?"submit with --ntasks"}
threads=${SLURM_CPUS_PER_TASK:-1}
# What the setting `threads` is if nobody writes it.
export OMP_NUM_THREADS=$threads

# srun's tasks get the environment of this script, however it was submitted: with `--export=NONE`
# or a list, srun would leave out all the rest.
export SLURM_EXPORT_ENV=ALL

# sbatch passes the submitting shell's environment on. If that shell runs in a job step itself (an
# interactive `srun`), it holds the place of another rank, and MPI and fedmpi would take it for
# theirs. What users set for MPI itself stays. (`fedmpi.runs.launch.plain` does the same.)
for name in $(compgen -e); do
    case $name in
        OMPI_MCA_* | PMIX_MCA_* | PRTE_MCA_* | OMPI_ALLOW_* | OMPI_PREFIX* | PMI_NO_*) ;;
        HYDRA_BOOTSTRAP* | HYDRA_LAUNCHER* | HYDRA_RMK* | HYDRA_HOST* | HYDRA_IFACE*) ;;
        OMPI_* | PMIX_* | PRTE_* | PMI_* | HYDI_* | HYDRA_* | MV2_COMM_WORLD_*) unset "$name" ;;
        JSM_NAMESPACE_* | PALS_* | FLUX_JOB_* | FLUX_TASK_* | MPI_LOCAL*) unset "$name" ;;
        SLURM_STEP* | SLURM_PROCID* | SLURM_LOCALID* | SLURM_TASK_PID*) unset "$name" ;;
    esac
done

# Open MPI's mpirun would tie each rank to one core, whatever the number of its threads. Which cores
# the job has is SLURM's business; the rest is left to the kernel. (Open MPI 5, then 4.)
export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}

# Open MPI's mpirun refuses root, who may be the only user of a container.
((EUID)) || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# Relative to where sbatch was called: this script runs from a copy in SLURM's spool folder.
venv=${FEDMPI_VENV:-.venv}
[[ $venv == /* ]] || venv=$SLURM_SUBMIT_DIR/$venv
if [[ -r $venv/bin/activate ]]; then
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
elif [[ -n ${FEDMPI_VENV:-} ]]; then
    fail "FEDMPI_VENV: no virtual environment at $venv"
fi
command -v fedmpi >/dev/null ||
    fail "no fedmpi in $venv, nor on \$PATH: 'make install' first, or set FEDMPI_VENV"

# Whether the processes that `launcher` starts find each other. If it speaks another PMI than their
# MPI, each one believes to be alone: they would all do the whole run, into the same file.
launcher_works() {
    local size=$((ranks < 2 ? ranks : 2)) said
    # One rank speaks, in one piece: launchers mix what ranks say, even within a line.
    local trial='import os; from mpi4py import MPI; w = MPI.COMM_WORLD; s = w.gather(w.size)'
    trial+='; s and os.write(1, f"sizes {s}\n".encode())'
    said=$(timeout --kill-after=5 60 "${launcher[@]}" -n "$size" python3 -c "$trial" \
        </dev/null 2>/dev/null) || return 1
    grep -qxE "sizes \[($size(, )?){$size}\]" <<<"$said"
}

# Sets `launcher`: srun if it can start the MPI behind mpi4py, because SLURM then sees and binds
# each rank; else mpirun. FEDMPI_START=srun or mpirun decides it untried; srun's PMI is then the
# site's default, or $SLURM_MPI_TYPE.
choose_launcher() {
    # A rank that dies must not leave the others waiting for ever. They are not ended at once: each
    # rank refuses a bad setting by itself, and the job's exit code is to be theirs. Since SLURM
    # 22.05 a step does not inherit the job's --cpus-per-task.
    local srun=(srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="$threads") kind
    local mpirun=("${FEDMPI_MPIEXEC:-mpirun}")
    case ${FEDMPI_START:-} in
        srun) launcher=("${srun[@]}") && return ;;
        mpirun) launcher=("${mpirun[@]}") && return ;;
        ?*) fail "FEDMPI_START=$FEDMPI_START: wanted srun or mpirun" ;;
    esac
    # The site's own choice first; then Open MPI's, then MPICH's and Intel's.
    for kind in "${SLURM_MPI_TYPE:-}" pmix pmi2; do
        launcher=("${srun[@]}" ${kind:+"--mpi=$kind"})
        launcher_works && return
    done
    launcher=("${mpirun[@]}")
    launcher_works && return
    fail "neither srun nor ${mpirun[*]} starts the MPI behind mpi4py: load its module," \
        "then 'fedmpi doctor' says more; FEDMPI_START=srun or mpirun skips this trial"
}

# start WORDS...: turns this script into `fedmpi WORDS...` on all ranks.
start() {
    choose_launcher
    set -- "${launcher[@]}" -n "$ranks" fedmpi "$@"
    echo "$*" >&2
    exec "$@"
}
