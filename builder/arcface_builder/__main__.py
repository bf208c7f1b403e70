"""The entry of ``arcface-builder``: says what a small installation lacks before anything needs it."""

from __future__ import annotations

import sys

from arcface_client.starting import end_at_once_on_ctrl_c
from arcface_client.telemetry import switch_off_telemetry


def main() -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    end_at_once_on_ctrl_c()
    switch_off_telemetry()
    try:
        from .cli import main as run
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"arcface-builder needs the package {error.name}: pip install 'arcface-triton[builder]'\n"
        )
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
