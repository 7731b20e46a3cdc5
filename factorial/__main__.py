"""`python -m factorial`: see `cli/main.py`."""

import sys

from factorial.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
