"""`python -m training ...`: see `training/cli.py`."""

import sys

from training.cli import listen_to_signals, main

if __name__ == "__main__":
    listen_to_signals()
    sys.exit(main(sys.argv[1:]))
