"""Importing this makes sure that `schedules` is this project's, and no other package of the name (aliases.py)."""

from hcmegatron.aliases import require_own

require_own("schedules")
