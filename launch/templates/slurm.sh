#!/bin/bash
{{directives}}
#
# {{title}}
# Written by `hcmegatron launch slurm`; submitted by: {{submit}}
# It starts the ranks, passes the warning before the time limit on to them, and decides when they have ended: finished,
# again on the machines that still answer, or once more through the queue. docs/launch.md tells the whole.

run={{run}}
work={{work}}
folder=$run/launch
nodes={{nodes}}          # that compute; the job has {{spare}} to spare
ranks_per_node={{ranks_per_node}}
restarts={{restarts}}       # after a rank or a machine has died
chain={{chain}}          # jobs one after another, where they may not be requeued; 0: requeue
program=({{program}})
doctor=({{doctor}})
step_options=({{step_options}})

{{modules}}
{{setup}}
set -u

say() { printf 'launch: %s\n' "$*"; }

# A line of attempts.jsonl: event, status, words. Nothing but numbers, names of machines and our own words is in it.
note() {
    printf '{"time": "%s", "event": "%s", "job": "%s", "nodes": "%s", "status": %d, "why": "%s"}\n' \
        "$(date -Iseconds)" "$1" "$SLURM_JOB_ID" "${chosen-}" "$2" "$3" >>"$folder/attempts.jsonl"
}

# The job is over, and nothing of it starts again: status, words.
end() {
    say "$2"
    note ended "$1" "$2"
    printf '%d %s\n' "$1" "$2" >"$folder/ended"
    exit "$1"
}

# Through the queue once more, without the machines that did not answer: words.
again_later() {
    trap '' TERM USR1  # requeueing ends this script
    if [ "$chain" -gt 0 ]; then
        say "$1: the next job of the chain goes on"
        note "chain" 0 "$1"
        exit 0
    fi
    if [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" != RUNNING ]; then  # cancelled by somebody, or requeued already
        note stopped 0 "$1"
        exit 0
    fi
    note requeued 0 "$1"
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        end 75 "$1, and the job cannot be requeued: submit it again, or set chain"
    fi
    say "$1: requeued"
    if [ -s "$folder/exclude" ]; then
        scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$(excluded)" || say "exclude $(excluded): refused"
    fi
    exit 0
}

excluded() { sort -u "$folder/exclude" | paste -sd,; }

# Write down machines of this job that do not answer.
probe() {
    local node probes=()
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        { timeout -k 5 30 srun --overlap --quiet -N1 -n1 --nodelist="$node" --input=none true >/dev/null 2>&1 ||
            echo "$node" >>"$folder/exclude"; } &
        probes+=("$!")
    done
    wait "${probes[@]}"
}

# The first of this job's machines that are not excluded, as many as compute; fails where there are fewer.
choose() {
    chosen=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vxFf "$folder/exclude" | head -n "$nodes" | paste -sd,)
    [ "$(tr ',' '\n' <<<"$chosen" | grep -c .)" -eq "$nodes" ]
}

# One step over the chosen machines; its status. A file says that it runs, for whoever finds this script gone.
step() {
    echo "$chosen" >"$folder/running"
    srun --nodes="$nodes" --ntasks=$((nodes * ranks_per_node)) --ntasks-per-node="$ranks_per_node" \
        --nodelist="$chosen" --distribution=block:block --input=none "${step_options[@]}" "$@" 2>"$folder/srun.log" &
    srun=$!
    wait "$srun"
    status=$?
    while [ "$status" -gt 128 ] && kill -0 "$srun" 2>/dev/null; do  # a signal has interrupted the wait
        wait "$srun"
        status=$?
    done
    srun=
    cat "$folder/srun.log"
    rm -f "$folder/running"
}

asked=
srun=
ask() {
    asked=$1
    say "$1: ranks are told to save"
    if [ -n "$srun" ]; then scancel --signal=USR1 "$SLURM_JOB_ID"; fi
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM

cd "$work" || end 2 "the working directory cannot be entered on $(hostname)"
mkdir -p "$folder/logs"
touch "$folder/exclude" "$folder/restarts"
used=$(wc -l <"$folder/restarts")  # of the restarts; a line each
if [ -e "$folder/ended" ]; then
    say "nothing to do: $(cat "$folder/ended")"
    exit 0
fi
if [ -e "$folder/running" ]; then  # its batch machine died with it, and SLURM has requeued the job
    say "cut off on $(cat "$folder/running")"
    echo "$SLURM_JOB_ID machine" >>"$folder/restarts"
    used=$((used + 1))
    if [ "$used" -gt "$restarts" ]; then end 1 "a machine died, and $restarts restarts were used"; fi
fi
say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"

if [ {{spare}} -gt 0 ]; then probe; fi
if [ "${#doctor[@]}" -gt 0 ] && choose; then
    step --output="${folder//%/%%}/doctor.log" "${doctor[@]}"
    if [ -s "$folder/doctor.exclude" ]; then
        scontrol show hostnames "$(cat "$folder/doctor.exclude")" >>"$folder/exclude"
    fi
fi

while [ -z "$asked" ]; do
    choose || again_later "fewer than $nodes machines answer"
    if [ -z "{{master}}" ]; then
        MASTER_ADDR=$(scontrol show node "${chosen%%,*}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
        export MASTER_ADDR
    fi
    note started 0 ""
    logs=${folder//%/%%}/logs
    step --output="$logs/rank-%t.log" --error="$logs/rank-%t.log" --open-mode=append "${program[@]}"
    if [ -e "$folder/cancel" ]; then end "$status" "cancelled"; fi
    if [ -n "$asked" ]; then break; fi
    if [ "$status" -eq 0 ]; then end 0 "finished"; fi
    # srun's own status may be that of a rank which it has ended because of another.
    own=$(sed -n 's/.*[Ee]xited with exit code \([0-9]*\)$/\1/p' "$folder/srun.log" | grep -xE '2|3|4' | head -n 1)
    if [ -n "$own" ]; then end "$own" "ended by the run itself: see hcmegatron logs --errors"; fi
    if [ "$used" -ge "$restarts" ]; then end "$status" "a rank died, and $restarts restarts were used"; fi
    used=$((used + 1))
    echo "$SLURM_JOB_ID $status" >>"$folder/restarts"
    note died "$status" "restart $used of $restarts"
    say "a rank or a machine died (status $status): restart $used of $restarts"
    probe
done
if [ -e "$folder/cancel" ]; then end 0 "cancelled"; fi
again_later "stopped by $asked"
