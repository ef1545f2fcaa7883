#!/bin/bash
# {{title}}
# Written by `hcmegatron launch local`. The command starts the ranks, and starts them again where that was asked for.

{{modules}}
{{setup}}
cd {{work}} || exit 2
exec {{program}}
