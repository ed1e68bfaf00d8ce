"""Makes `python -m ivlite` the same as the command `ivlite`."""

import sys

from ivlite.cli import main

sys.exit(main())
