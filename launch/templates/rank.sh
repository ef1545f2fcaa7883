#!/bin/bash
# One rank, whichever: its launcher tells it. Written by `hcmegatron launch {{launcher}}`; run by job.sh.

{{modules}}
{{setup}}
{{gpus}}
{{restart}}
cd {{work}} || exit 2
exec {{program}}
