#!/bin/bash
{{directives}}
#
# {{title}}
# Written by `hcmegatron launch slurm`; submitted by: {{submit}}
# It starts the ranks, passes the warning before the time limit on to them, and decides when they have ended: finished,
# again on the machines that still answer, or once more through the queue. docs/launch.md tells the whole.

# Words stand as they were given, in quotes where a shell would change them.
# shellcheck disable=SC2016,SC2054
run={{run}}
work={{work}}
folder=$run/launch
nodes={{nodes}}           # machines that compute
spare={{spare}}           # that the job has beside them
ranks_per_node={{ranks_per_node}}
restarts={{restarts}}        # after a rank or a machine has died
chain={{chain}}           # jobs one after another, where they may not be requeued; 0: requeue
exclude={{exclude}}          # machines that the header leaves out
master={{master}}           # whether MASTER_ADDR was given
program=({{program}})
doctor=({{doctor}})
step_options=(
{{step_options}}
)

{{modules}}
{{setup}}
set -u

# A row's own number: $SLURM_JOB_ID of an array's last row is that of the array, which means all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

say() { printf 'launch: %s\n' "$*"; }

# A line of attempts.jsonl: event, status, words. Nothing but numbers, names of machines and our own words is in it.
note() {
    printf '{"time": "%s", "event": "%s", "job": "%s", "nodes": "%s", "status": %d, "why": "%s"}\n' \
        "$(date -Iseconds)" "$1" "$job" "${chosen-}" "$2" "$3" >>"$folder/attempts.jsonl"
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
    # At its time limit they are counted anew. TERM alone says nothing: it comes with a machine's death as well.
    if [ "$asked" = USR1 ] || timed_out; then : >"$folder/restarts"; fi
    if [ "$chain" -gt 0 ]; then
        local waiting
        waiting=$(sed -n '/"ids": \[/,/\]/s/[^0-9]*\([0-9]\{1,\}\).*/\1/p' "$folder/submitted.json" 2>/dev/null)
        if [ -n "$waiting" ]; then waiting=$(squeue -h -t PENDING -j "$(paste -sd, <<<"$waiting")" -o %i); fi
        if [ -z "$waiting" ]; then end 75 "$1, in the last job of the chain: hcmegatron launch slurm ... --submit goes on"; fi
        leave_out "$waiting"
        say "$1: the next job of the chain goes on"
        note "chain" 0 "$1"
        exit 0
    fi
    if taken; then
        note stopped 0 "$1"
        exit 0
    fi
    note requeued 0 "$1"
    if ! scontrol requeue "$job"; then
        end 75 "$1, and the job cannot be requeued: hcmegatron launch slurm ... --submit goes on, or set chain"
    fi
    say "$1: requeued"
    leave_out "$job"
    exit 0
}

# Jobs that wait do without the machines that are left out by now, and those of the header, which this would replace.
leave_out() {
    local each
    if [ ! -s "$folder/exclude" ]; then return; fi
    for each in $1; do
        scontrol update "JobId=$each" "ExcNodeList=$(excluded)" || say "exclude $(excluded): refused for job $each"
    done
}
excluded() { { echo "$exclude"; sort -u "$folder/exclude"; } | grep . | paste -sd,; }

# Whether the job is no longer ours: cancelled by somebody, or requeued already. At its time limit it still is.
taken() {
    local state
    state=$(queue_says %T)
    [ -n "$state" ] && [ "$state" != RUNNING ] && ! timed_out
}
timed_out() { [ "$(queue_says %r)" = TimeLimit ]; }

# A column of the job's line in the queue. SLURM's TERM goes to all that this script has started, and the answer is
# needed just then.
queue_says() (
    trap '' TERM
    squeue -h -j "$job" -o "$1"
)

# One more of the restarts, or the end: words, status.
restart() {
    local used
    used=$(wc -l <"$folder/restarts")
    if [ "$used" -ge "$restarts" ]; then end "$2" "$1, and $restarts restarts were used"; fi
    echo "$job" >>"$folder/restarts"
    note died "$2" "$1"
    say "$1 (status $2): restart $((used + 1)) of $restarts"
}

# Write down machines of this job that do not answer. Where none does, it is no machine's fault.
probe() {
    local node probes=() all
    all=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    : >"$folder/silent"
    for node in $all; do
        { timeout -k 5 30 srun --overlap --quiet -N1 -n1 --nodelist="$node" --input=none true >/dev/null 2>&1 ||
            echo "$node" >>"$folder/silent"; } &
        probes+=("$!")
    done
    wait "${probes[@]}"
    if [ "$(wc -l <"$folder/silent")" -lt "$(wc -l <<<"$all")" ] && ! taken; then
        cat "$folder/silent" >>"$folder/exclude"
    fi
}

# The first of this job's machines that are not excluded, so many at most.
usable() { scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vxFf "$folder/exclude" | head -n "$1" | paste -sd,; }
count() { tr ',' '\n' <<<"$chosen" | grep -c .; }

# As many as compute; fails where there are fewer.
choose() {
    chosen=$(usable "$nodes")
    [ "$(count)" -eq "$nodes" ]
}

# One step over the chosen machines; its status. A file says that it runs, for whoever finds this script gone, and stays
# where SLURM has taken the job: the next start asks whether a machine has died.
# --overlap: what a dead machine held counts as taken until SLURM gives the step before up.
step() {
    if [ -z "$master" ]; then  # the address at which SLURM itself finds the first machine
        MASTER_ADDR=$(scontrol show node "${chosen%%,*}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
        export MASTER_ADDR
    fi
    echo "$chosen" >"$folder/running"
    srun --nodes="$(count)" --ntasks=$(($(count) * ranks_per_node)) --ntasks-per-node="$ranks_per_node" \
        --nodelist="$chosen" --distribution=block:block --overlap --input=none \
        "${step_options[@]}" "$@" 2>"$folder/srun.log" &
    srun=$!
    wait "$srun"
    status=$?
    while [ "$status" -gt 128 ] && kill -0 "$srun" 2>/dev/null; do  # a signal has interrupted the wait
        wait "$srun"
        status=$?
    done
    srun=
    cat "$folder/srun.log"
    taken || rm -f "$folder/running"
}

# A rank's own status, of those that may be asked for: 2|3. srun's may be that of one which it has ended because of it.
own() { sed -n 's/.*[Ee]xited with exit code \([0-9]*\)$/\1/p' "$folder/srun.log" | grep -xE "$1" | head -n 1; }

# doctor over all machines of the job. Bad ones are left out; what that does not mend ends the job; fails where it has
# not come to its end. Whether there are bad ones its file says: srun ends other ranks where rank 0 ends with 6.
examine() {
    chosen=$(usable $((nodes + spare)))
    rm -f "$folder/doctor.exclude"
    step --output="$folder/doctor.log" "${doctor[@]}"
    if [ -n "$asked" ]; then
        status=0  # whatever it said when it was told
        return
    fi
    if taken; then
        # ranks may have died of the machine before SLURM had heard of it: the next start asks, as where it cut them off
        if [ "$status" -ne 0 ]; then echo "$chosen" >"$folder/running"; fi
        note stopped "$status" "taken from us"
        exit 0
    fi
    say "doctor: status $status, see doctor.log"
    if [ -s "$folder/doctor.exclude" ]; then
        scontrol show hostnames "$(cat "$folder/doctor.exclude")" >>"$folder/exclude"
        choose || restart "doctor leaves fewer than $nodes machines" 6
        return
    fi
    case $(own '2|5') in
    2) end 2 "doctor found a mistake of the user's, see launch/doctor.log" ;;
    5) end 5 "doctor found faults that leaving machines out does not mend, see launch/doctor.log" ;;
    esac
    if [ "$status" -ne 0 ]; then
        restart "doctor did not come to its end" "$status"
        probe
        return 1
    fi
}

# Before the time limit (--signal) or for `hcmegatron cancel`: USR1. At a preemption or a machine's death: TERM.
asked=
srun=
# shellcheck disable=SC2317  # traps call it
ask() {
    asked=${asked:-$1}
    if timed_out; then  # ranks did not heed the warning, and SLURM kills all of this within seconds
        rm -f "$folder/running"
        again_later "ended at the time limit"
    fi
    say "$1: ranks are told to save"
    if [ -n "$srun" ]; then scancel --signal=USR1 "$job" || kill -USR1 "$srun"; fi
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM

cd "$work" || end 2 "the working directory cannot be entered on $(hostname)"
mkdir -p "$folder/logs"
touch "$folder/attempts.jsonl" "$folder/exclude" "$folder/restarts"
export HCMEGATRON_STATUS_FILE=$folder/status  # rank 0's, of a run that was stopped: ranks end with 0 then too
if [ -e "$folder/ended" ] && ! grep -q '^75 ' "$folder/ended"; then
    say "nothing to do: $(cat "$folder/ended"); it runs again without the file launch/ended"
    exit 0
fi
rm -f "$folder/ended"
say "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"
if [ -e "$folder/running" ]; then  # SLURM has ended the step before, and requeued the job; its srun may have said why
    cut=$(cat "$folder/running")
    rm -f "$folder/running"
    say "cut off on $cut"
    if grep -q 'Node failure on' "$folder/srun.log" || sinfo -h -N -n "$cut" -o %T | grep -qE 'down|fail|\*$'; then
        restart "a machine died, one of $cut" 1
    fi
fi
if [ "$spare" -gt 0 ]; then probe; fi
if [ "${#doctor[@]}" -gt 0 ]; then
    until [ -n "$asked" ] || ! choose || examine; do :; done
fi

while [ -z "$asked" ]; do
    choose || again_later "fewer than $nodes machines are left of $SLURM_JOB_NODELIST"
    HCMEGATRON_RESTART=$(grep -c '"event": "started"' "$folder/attempts.jsonl")  # for restarts.jsonl
    export HCMEGATRON_RESTART
    : >"$HCMEGATRON_STATUS_FILE"
    note started 0 ""
    logs=$folder/logs/rank-%t.log
    step --output="$logs" --error="$logs" --open-mode=append "${program[@]}"
    if [ -e "$folder/cancel" ]; then break; fi
    if taken; then
        note stopped "$status" "taken from us"
        exit 0
    fi
    if [ -n "$asked" ] && [ "$status" -ne 0 ]; then break; fi  # it came before ranks could save
    if [ "$status" -eq 0 ] || [ "$status" -eq 75 ]; then
        if [ "$status" -eq 75 ] || [ "$(cat "$HCMEGATRON_STATUS_FILE")" = 75 ]; then again_later "stopped"; fi
        end 0 "finished"
    fi
    why=$(own '2|3|4')
    if [ -n "$why" ]; then end "$why" "ended by the run itself, see hcmegatron logs --errors"; fi
    restart "a rank or a machine died" "$status"
    probe
done
if [ -e "$folder/cancel" ]; then end "${status-0}" "cancelled"; fi
again_later "told to stop by $asked"
