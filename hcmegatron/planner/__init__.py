"""What a run takes before it starts: parameters, FLOPs, memory, time, cost and the best layout. Imports no torch."""
