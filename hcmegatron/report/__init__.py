"""What a run did, as one HTML page that explains it: inputs -> sections of charts, tables and words -> page and files.

Imports neither torch nor Megatron.
"""
