"""Computing again in backward instead of keeping: the block plan, its execution, and what is really kept."""
