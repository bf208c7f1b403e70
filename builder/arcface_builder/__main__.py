"""The entry of ``arcface-builder``: says what a small installation lacks before anything needs it."""

from __future__ import annotations

import sys

from arcface_client.cli.starting import run_command


def main() -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    return run_command("arcface_builder.cli.app", extra="builder")


if __name__ == "__main__":
    sys.exit(main())
