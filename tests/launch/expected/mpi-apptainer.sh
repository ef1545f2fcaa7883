#!/bin/bash
# 32 ranks on 4 machines, 8 on each
# Written by `hcmegatron launch mpi`. Run it on one of the machines, with a file that lists them where no queue does:
#     bash THIS [HOSTFILE]
# mpirun is that of the PATH after the lines of modules and setup: Open MPI, MPICH or Intel MPI.

folder=/shared/runs/mine/launch
nodes=4
ranks_per_node=8
cpus=0            # cores of a rank; 0: not bound
restarts=0        # after a rank or a machine has died
excluded=()

set -u

say() { printf 'launch: %s\n' "$*"; }

# Nothing of it starts again: status, words.
end() {
    say "$2"
    printf '%d %s\n' "$1" "$2" >"$folder/ended"
    exit "$1"
}

# The machines' names, each once; a queue may list one for each of its slots.
machines() {
    local skip
    skip=$(printf '%s\n' "${excluded[@]}")
    sed 's/[#].*//; s/[[:space:]].*//; s/:[0-9]*$//' "$1" | awk 'NF && !seen[$1]++ { print $1 }' | grep -vxF -- "$skip" |
        head -n "$nodes"
}

asked=
child=
ask() {
    asked=1
    say "$1: ranks are told to save"
    if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null; fi
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM

mkdir -p "$folder" && rm -f "$folder/ended" || exit 2
version=$(mpirun --version 2>&1) || end 2 "mpirun does not start; load its module, or name it in setup"
list=${1:-${PBS_NODEFILE:-${LSB_DJOB_HOSTFILE:-}}}
hosts=()
launcher=mpirun
case $version in
*"Open MPI"*)
    options=(-np $((nodes * ranks_per_node)) --map-by "ppr:$ranks_per_node:node" --bind-to none)
    if [ "$cpus" -gt 0 ]; then
        options=(-np $((nodes * ranks_per_node)) --map-by "ppr:$ranks_per_node:node:PE=$cpus" --bind-to core)
    fi
    if [ "$(id -u)" -eq 0 ]; then options+=(--allow-run-as-root); fi
    hosts_option=--hostfile slots=" slots=$ranks_per_node"
    ;;
*"Intel(R) MPI"*)
    launcher=mpiexec.hydra # its mpirun is a script around that, and keeps signals to itself
    options=(-n $((nodes * ranks_per_node)) -ppn "$ranks_per_node")
    if [ "$cpus" -gt 0 ]; then options+=(-genv I_MPI_PIN_DOMAIN "$cpus:compact"); else options+=(-genv I_MPI_PIN 0); fi
    hosts_option=-f slots=":$ranks_per_node"
    ;;
*HYDRA* | *MPICH*)
    options=(-n $((nodes * ranks_per_node)) -ppn "$ranks_per_node" -bind-to none)
    if [ "$cpus" -gt 0 ]; then
        options=(-n $((nodes * ranks_per_node)) -ppn "$ranks_per_node" -bind-to "core:$cpus")
    fi
    hosts_option=-f slots=":$ranks_per_node"
    ;;
*) end 2 "mpirun is of an MPI that is not known: ${version%%$'\n'*}; use Open MPI, MPICH or Intel MPI" ;;
esac
if [ -n "$list" ]; then
    if [ ! -r "$list" ]; then end 2 "$list cannot be read; name a file that lists machines"; fi
    machines "$list" | sed "s/\$/$slots/" >"$folder/hosts"
    found=$(wc -l <"$folder/hosts")
    if [ "$found" -lt "$nodes" ]; then end 2 "$list has $found machines that may be used, and the job wants $nodes"; fi
    hosts=("$hosts_option" "$folder/hosts")
elif [ "$nodes" -gt 1 ] && [ -z "${SLURM_JOB_ID:-}" ]; then
    end 2 "$nodes machines, and no queue says which: bash $0 HOSTFILE"
fi

used=0
while :; do
    if [ -n "$asked" ]; then end 0 "stopped"; fi
    "$launcher" "${hosts[@]}" "${options[@]}" bash "$folder/rank.sh" </dev/null &
    child=$!
    wait "$child"
    status=$?
    while [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; do # a signal has interrupted the wait
        wait "$child"
        status=$?
    done
    child=
    case $status in
    0) end 0 "finished, or stopped with a checkpoint" ;;
    2 | 3 | 4) end "$status" "ended by the run itself: its output says why" ;;
    esac
    if [ -n "$asked" ]; then end "$status" "stopped"; fi
    if [ "$used" -ge "$restarts" ]; then end "$status" "a rank died (status $status), and $restarts restarts were used"; fi
    used=$((used + 1))
    say "a rank or a machine died (status $status): restart $used of $restarts"
done
