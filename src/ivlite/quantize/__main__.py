"""`python -m ivlite.quantize SRC -o OUT` is `ivlite quantize SRC -o OUT`."""

import sys

from ivlite.cli import main

sys.exit(main(["quantize", *sys.argv[1:]]))
