"""Text as batches: which files, their bytes as tokens, and an order that is a function of the seed."""
