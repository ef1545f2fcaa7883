"""``python -m schedules <name> ...``: the verb ``schedule`` on its own."""

import argparse
import sys

from schedules.cli import add_arguments, main

parser = argparse.ArgumentParser(prog="schedules", description=sys.modules["schedules.cli"].__doc__)
add_arguments(parser)
sys.exit(main(parser.parse_args()))
