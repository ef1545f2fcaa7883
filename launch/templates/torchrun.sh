#!/bin/bash
# {{title}}
# Written by `hcmegatron launch torchrun`. Run it on each of {{machines}} machines, with the address of one of them:
#     bash THIS HEAD[:PORT]
# HEAD is the same everywhere, and holds what they meet at: the others can come and go. torchrun's own PET_NNODES=2:4
# lets fewer or more machines compute; otherwise it is always {{nodes}}, and who comes beside them waits until one goes.

folder={{folder}}
nodes=${PET_NNODES:-{{nodes}}}
ranks_per_node={{ranks_per_node}}
restarts={{restarts}}        # after a rank or a machine has died
name={{name}}
torchrun=({{torchrun}})

{{modules}}
{{setup}}
set -u

say() { printf 'launch: %s\n' "$*"; }

# It does not start again on this machine: status, words.
end() {
    say "$2"
    printf '%d %s\n' "$1" "$2" >"$folder/ended"
    exit "$1"
}

# Ranks are told to save: those below a process, wherever its container has put them. torchrun itself gives them 30 s.
tell() {
    local below all=()
    read -ra all 2>/dev/null <"/proc/$1/task/$1/children" # which has no end of line: read fails, and has read
    for below in "${all[@]}"; do
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
    touch "$HCMEGATRON_STATUS_FILE.asked" # for ranks that torchrun starts meanwhile
    if [ -n "$child" ]; then tell "$child"; fi
}

head=${1:-}
if [ -z "$head" ]; then
    if [ "$nodes" != 1 ]; then
        end 2 "$nodes machines, and no address where they meet: bash $0 HEAD, on each of them"
    fi
    meet=(--standalone)
else
    case $head in *:*) ;; *) head=$head:{{port}} ;; esac
    meet=(--rdzv-backend c10d --rdzv-endpoint "$head" --rdzv-id "$name" --rdzv-conf "${PET_RDZV_CONF:-join_timeout=3600}")
fi
# Where rank 0 is, every meeting tells anew: otherwise a torchrun that is new waits for the word of one that is not.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
meet+=(--nnodes "$nodes" --nproc-per-node "$ranks_per_node")

# torchrun ends with 1 after any failure, and starts again after all of them. Ranks leave here what is not to come again,
# and rank.sh which restart it is.
HCMEGATRON_STATUS_FILE=$(mktemp) || exit 1
export HCMEGATRON_STATUS_FILE
trap 'rm -f "$HCMEGATRON_STATUS_FILE" "$HCMEGATRON_STATUS_FILE".*' EXIT
trap 'ask USR1' USR1
trap 'ask TERM' TERM

used=0
while :; do
    if [ -n "$asked" ]; then end 0 "stopped"; fi
    "${torchrun[@]}" "${meet[@]}" --max-restarts $((restarts - used)) --no-python bash "$folder/rank.sh" </dev/null &
    child=$!
    wait "$child"
    status=$?
    while [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; do # a signal has interrupted the wait
        wait "$child"
        status=$?
    done
    child=
    if [ -s "$HCMEGATRON_STATUS_FILE" ]; then
        end "$(cat "$HCMEGATRON_STATUS_FILE")" "ended by the run itself: its output says why"
    fi
    if [ "$status" -eq 0 ]; then end 0 "finished, or stopped with a checkpoint"; fi
    # torchrun has answered its ranks' deaths itself. It dies itself too, or loses HEAD, to which it goes back.
    used=$((used + $(cat "$HCMEGATRON_STATUS_FILE.restart" 2>/dev/null || echo 0)))
    rm -f "$HCMEGATRON_STATUS_FILE.restart"
    if [ "$status" -eq 127 ]; then end 2 "${torchrun[0]} is not here; load its module, or name it in setup"; fi
    if [ -n "$asked" ] || [ "$used" -ge "$restarts" ]; then
        end "$status" "torchrun ended with status $status, and $used of $restarts restarts were used"
    fi
    used=$((used + 1))
    say "torchrun ended with status $status: restart $used of $restarts"
done
