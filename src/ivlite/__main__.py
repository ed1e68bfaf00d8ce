"""The command `ivlite`, and `python -m ivlite`."""

import sys


def main():
    """Runs the command line of this process; returns the exit code."""
    try:
        from ivlite.interrupt import Interrupts

        signals = Interrupts()  # before the slow imports
    except KeyboardInterrupt:
        return 130
    from ivlite.cli import command, drop_unwritten

    code = command(sys.argv[1:], signals)
    signals.ignore()
    drop_unwritten()
    return code


if __name__ == "__main__":
    sys.exit(main())
