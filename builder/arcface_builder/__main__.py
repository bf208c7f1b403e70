"""Entry point of ``arcface-builder``."""

from __future__ import annotations

import sys

from arcface_client.cli.entry_point import start


def main() -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    return start("arcface_builder.cli.app", extra="builder,cli")


if __name__ == "__main__":
    sys.exit(main())
