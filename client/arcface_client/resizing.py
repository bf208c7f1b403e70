"""The flag that scales crops of another size, and the advice to use it."""

from __future__ import annotations

import argparse

from .errors import CropSizeError, ImageFileError


def add_resize_flag(parser: argparse._ActionsContainer) -> None:
    """Add ``--resize``."""
    parser.add_argument(
        "--resize", action="store_true", help="scale crops of another size instead of refusing them"
    )


def advised(error: ImageFileError) -> str:
    """What is wrong with an image, and the flag that helps where it does."""
    return f"{error} Or use --resize." if isinstance(error, CropSizeError) else str(error)
