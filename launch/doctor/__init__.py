"""`hcmegatron doctor`: whether machines are healthy and fast, alone and together, before a job trusts them."""
