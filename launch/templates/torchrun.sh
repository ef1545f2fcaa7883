#!/bin/bash
# {{title}}
# Written by `hcmegatron launch torchrun`. Run it on each of {{machines}} machines, with the address of one of them:
#     bash THIS HEAD[:PORT]
# HEAD is the same everywhere, and holds what they meet at: the others can come and go. NNODES=2:4 lets fewer or more
# machines compute; otherwise it is always {{nodes}}, and who comes beside them waits until one of them goes.

folder={{folder}}
nodes=${NNODES:-{{nodes}}}
ranks_per_node={{ranks_per_node}}
restarts={{restarts}}        # after a rank or a machine has died
name={{name}}
wrap=({{container}})

{{modules}}
{{setup}}
set -u

say() { printf 'launch: %s\n' "$*"; }

# Ranks are told to save: those below a process, wherever its container has put them. torchrun itself gives them 30 s.
tell() {
    local below
    for below in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        if tr '\0' '\n' <"/proc/$below/environ" 2>/dev/null | grep -q ^TORCHELASTIC_RUN_ID=; then
            kill -USR1 "$below"
        else
            tell "$below"
        fi
    done
}

asked=
child=
ask() {
    asked=1
    say "$1: ranks are told to save"
    if [ -n "$child" ]; then tell "$child"; fi
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM

head=${1:-}
if [ -z "$head" ]; then
    if [ "$nodes" != 1 ]; then
        say "$nodes machines, and no address where they meet: bash $0 HEAD, on each of them"
        exit 2
    fi
    meet=(--standalone)
else
    case $head in *:*) ;; *) head=$head:{{port}} ;; esac
    meet=(--rdzv-backend c10d --rdzv-endpoint "$head" --rdzv-id "$name")
fi
meet+=(--nnodes "$nodes" --nproc-per-node "$ranks_per_node" --max-restarts "$restarts")

# torchrun ends with 1 after any failure, and starts again after all of them; ranks leave here what is not to come again.
HCMEGATRON_STATUS_FILE=$(mktemp) || exit 1
export HCMEGATRON_STATUS_FILE
trap 'rm -f "$HCMEGATRON_STATUS_FILE"' EXIT

used=0
while :; do
    "${wrap[@]}" torchrun "${meet[@]}" --no-python bash "$folder/rank.sh" </dev/null &
    child=$!
    wait "$child"
    status=$?
    while [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; do # a signal has interrupted the wait
        wait "$child"
        status=$?
    done
    child=
    if [ -s "$HCMEGATRON_STATUS_FILE" ]; then
        status=$(cat "$HCMEGATRON_STATUS_FILE")
        say "ended by the run itself (status $status): its output says why"
        exit "$status"
    fi
    # After a rank's death torchrun has started again itself, and 1 is its last word. It died of something itself?
    if [ "$status" -le 128 ] || [ -n "$asked" ] || [ "$used" -ge "$restarts" ]; then exit "$status"; fi
    used=$((used + 1))
    say "torchrun died (status $status): restart $used of $restarts"
done
