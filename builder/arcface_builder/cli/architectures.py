"""Arguments that name GPU architectures."""

from __future__ import annotations

import argparse

from ..errors import OptionError
from ..store import check_sm, sm_of


def capabilities(text: str) -> list[str]:
    """Read compute capabilities with commas between them, as "8.0, 8.6".

    Raises:
        argparse.ArgumentTypeError: One of them is none.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        for part in parts:
            sm_of(part)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return parts


def architecture(text: str) -> str:
    """Read an SM, which may be written as a compute capability: "86" out of "8.6" or "86".

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    try:
        return sm_of(text) if "." in text else check_sm(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
