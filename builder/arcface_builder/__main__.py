"""The entry of ``arcface-builder``: says what a small installation lacks before anything needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    try:
        from .cli import main as run
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"arcface-builder needs the package {error.name}: pip install 'arcface-triton[builder]'\n"
        )
        return 1
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
