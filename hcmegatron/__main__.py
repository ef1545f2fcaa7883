"""python -m hcmegatron, and the command hcmegatron."""

import sys

from hcmegatron.installation import InstallationError


def main() -> int:
    """The command line's exit status. What is wrong with the installation is one line, too."""
    try:
        from hcmegatron import cli
        from hcmegatron.platform.imports import process_is_ours

        process_is_ours()
        return cli.main()
    except InstallationError as error:
        print(f"hcmegatron: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
