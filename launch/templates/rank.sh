#!/bin/bash
# One rank, whichever: its launcher tells it. Written by `hcmegatron launch {{launcher}}`; run by {{caller}}.

{{modules}}
{{setup}}
{{gpus}}
cd {{work}} || exit 2
exec {{program}}
