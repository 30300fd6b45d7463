"""`python tests/benchmarks`: every case of the table of speed bars, in one run. `--help` says what can be left out."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a folder, this is no package yet; the clients' processes inherit the path.
    sys.path[0] = str(Path(__file__).parents[1])
    from benchmarks.command import main

    sys.exit(main())
