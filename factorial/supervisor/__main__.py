"""`python -m factorial.supervisor`: see `factorial/cli/supervisor.py`."""

import sys

from factorial.cli.supervisor import main

if __name__ == "__main__":
    sys.exit(main())
