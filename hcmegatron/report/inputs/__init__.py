"""What a run directory holds, read as far as it is there and whole."""
