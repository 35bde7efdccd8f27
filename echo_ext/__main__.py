"""The entry point of ``python -m echo_ext``, which is the same as the command ``echo-ext``."""

import sys

from echo_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
