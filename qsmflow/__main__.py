"""``python -m qsmflow``."""

import sys

from qsmflow.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
