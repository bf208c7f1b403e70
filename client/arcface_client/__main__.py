"""The entry of ``arcface-client``."""

from __future__ import annotations

import sys

from .starting import end_at_once_on_ctrl_c
from .telemetry import switch_off_telemetry


def main() -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    end_at_once_on_ctrl_c()
    switch_off_telemetry()
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
