"""What fresh interpreters print."""

import subprocess
import sys


def python(code: str, *args: str) -> str:
    """What a fresh interpreter prints; what it raises fails the test."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


#: runs the command line, then prints the exit code, the CPU seconds and what was loaded
DRIVER = """
import json, sys, time
from clipspm.cli import main
sys.argv = ["clipspm", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    heavy = {"torch", "open_clip", "zarr", "h5py", "av"} & set(sys.modules)
    print(json.dumps([stop.code, time.process_time(), sorted(heavy)]))
"""
