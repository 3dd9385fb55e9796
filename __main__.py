"""``clipspm`` and ``python -m clipspm``: what must be settled before anything large is imported."""

import os
import sys

#: exit code of a command that Ctrl-C ended, as shells count it
INTERRUPTED = 130


def main() -> None:
    """Run the command line. Ctrl-C ends it in one line, whatever it was doing."""
    # threads of PyTorch spin while they wait for each other, and starve what else runs here: docs/speed.md
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        from clipspm.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        _end()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _end()
        raise


def _end() -> None:
    """Leave at once: all is closed, and an interrupted import can upset what Python does at its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
