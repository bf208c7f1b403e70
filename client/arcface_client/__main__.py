"""The entry of ``arcface-client``."""

from __future__ import annotations

import os
import sys

from .cli.entry_point import start


def main() -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    # What goes wrong with TLS is in the error; gRPC writes twenty lines of its own about it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return start("arcface_client.cli.app", extra="cli")


if __name__ == "__main__":
    sys.exit(main())
