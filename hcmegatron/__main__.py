"""python -m hcmegatron"""

import sys

from hcmegatron.cli import main

if __name__ == "__main__":
    sys.exit(main())
