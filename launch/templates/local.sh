#!/bin/bash
# {{title}}
# Written by `hcmegatron launch local`. The command starts the ranks, and starts them again where that was asked for.

{{modules}}
{{setup}}
{{gpus}}
cd {{work}} || exit 2
{{program}}
status=$?
case $status in
    0) words=finished ;;
    75) words="stopped by a signal" ;;
    *) words="failed, see hcmegatron logs --errors" ;;
esac
printf '%d %s\n' "$status" "$words" >{{ended}}
exit "$status"
