"""The flag that scales crops of another size, and the advice to use it."""

from __future__ import annotations

import argparse

from ..errors import CropSizeError, ImageFileError
from .commandline import printable


def add_resize_flag(parser: argparse._ActionsContainer) -> None:
    """Add ``--resize``."""
    parser.add_argument(
        "--resize", action="store_true", help="scale crops of another size instead of refusing them"
    )


def advised(error: ImageFileError) -> str:
    """What is wrong with an image, and the flag that helps where it does."""
    text = printable(str(error))
    return f"{text} Or use --resize." if isinstance(error, CropSizeError) else text
