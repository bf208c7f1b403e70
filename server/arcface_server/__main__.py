"""The entry of ``arcface-server``."""

from __future__ import annotations

import sys

from arcface_client.cli.starting import run_command


def main() -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    return run_command("arcface_server.cli")


if __name__ == "__main__":
    sys.exit(main())
