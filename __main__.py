"""``clipspm`` and ``python -m clipspm``: what must be settled before anything large is imported."""

import os
import sys

from clipspm.errors import Interrupted
from clipspm.interrupts import leave, never_inside_imports


def main() -> None:
    """Run the command line. Ctrl-C ends it in one line, whatever it was doing."""
    never_inside_imports()
    # threads of PyTorch spin while they wait for each other, and starve what else runs here: docs/speed.md
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
