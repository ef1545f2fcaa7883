"""``python -m schedules <name> ...``: the verb ``schedule`` on its own."""

import argparse
import os
import sys

from schedules.cli import add_arguments, main

parser = argparse.ArgumentParser(prog="schedules", description=sys.modules["schedules.cli"].__doc__)
add_arguments(parser)
try:
    status: int | str = main(parser.parse_args())
    print(end="", flush=True)
except BrokenPipeError:  # a reader that has seen enough, like head
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    status = 0
except OSError as error:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    status = f"schedules: {error.filename or 'standard output'}: {error.strerror}"
sys.exit(status)
