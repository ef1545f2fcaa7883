"""Parameters and FLOPs from configuration alone; imports no torch."""
