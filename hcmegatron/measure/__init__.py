"""Operations of a run measured on the machine at hand, for the planner: `hcmegatron plan FILE --measure`.

Never a step: stages run alone, messages cross idle links, and what follows the pipeline runs for itself, on as many
ranks at once as a step would have. The planner puts a step together from them (planner/measured.py).
"""
