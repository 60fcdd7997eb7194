"""The command line: the same commands as the program ``flashlm``."""

import signal
import sys

from ._flashlm import run


def main() -> int:
    """Runs the command of ``sys.argv`` and returns its exit code."""
    # Python would only take note of Ctrl-C; the command listens itself, or is to end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return run(["flashlm", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
