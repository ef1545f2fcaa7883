"""The phases of gpu_phases.py, as the check of a GPU describes its own."""

from tools.gpu_check.phases import Phase

TELLS = Phase("machine", "", "", 20, "tests.tools.gpu_phases:tell")


def phase(name, seconds=20, shared=False):
    return Phase(
        name, f"Does it {name}?", "nothing", seconds, f"tests.tools.gpu_phases:{name}", shared, packages=()
    )
