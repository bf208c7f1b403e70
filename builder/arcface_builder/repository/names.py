"""The names that a family of models may have."""

from __future__ import annotations

import re
from typing import Final

from arcface_client.models.naming import family, onnx_model, plan_model

from ..errors import OptionError

# What Triton, a file system, an object store and a shell all take as it is.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def check_name(name: str) -> str:
    """Check the name of a family of models and give it back.

    Raises:
        OptionError: It holds characters that a folder or Triton cannot take, or is the name of a model.
    """
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"Model name {name!r} cannot be used; expected up to 100 letters, digits, '_', '-' and '.', "
            "starting with a letter or digit, e.g. arcface_r100."
        )
    if name != family(name):
        raise OptionError(
            f"{name!r} is the name of a model; expected the name that it shares with its siblings, "
            f"{family(name)!r}: what is built from that is {onnx_model(family(name))} and "
            f"{plan_model(family(name))}."
        )
    return name
