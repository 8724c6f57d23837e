"""`python -m minires`: the command line, see commands.py."""

import sys

from minires.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
