"""What a step computed, communicated and hid: the runtime's own record of all ranks, as a trace and as figures.

`recording.py`, `clock.py` and `kineto.py` measure; what follows from what they found is torch-free: `timeline.py` joins
the ranks, `summary.py` accounts for them (schedules/accounting.py), `what_if.py` asks the simulator, `trace.py` draws.
"""
