"""Entry point of ``clipspm`` and ``python -m clipspm``: sets up signals and threads before large imports."""

import os
import sys

from clipspm.errors import Interrupted
from clipspm.interrupts import defer_interrupts_in_imports, leave


def main() -> None:
    """Run the command line; Ctrl-C ends it with one line on standard error."""
    defer_interrupts_in_imports()
    # PyTorch's threads spin while they wait for each other and starve other processes: docs/speed.md
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from clipspm.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        leave()
    except SystemExit as end:
        if end.code == Interrupted.exit_code:
            leave()
        raise


if __name__ == "__main__":
    main()
