"""Faults that people really make with crops: controls, which a comparison must be able to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from ..contract import Crops

Number = TypeVar("Number", bound=np.generic)

_CONTROL_ROWS: Final = 32

FAULTS: Final[Mapping[str, Callable[[Crops], Crops]]] = {
    "red and blue swapped": lambda crops: np.ascontiguousarray(crops[..., ::-1]),
    "pixels normalised twice": lambda crops: np.asarray(crops / 127.5, np.uint8),
    "another image": lambda crops: np.roll(crops, 1, axis=0),
}
"""What each does to crops: uint8 [N, 112, 112, 3], N at least 2.

128 in place of 127.5 is not among them: it changes a pixel by less than half a step, which no byte can hold.
"""


def control_rows(rows: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The rows that controls are run on, of crops or embeddings [N, ...]: evenly chosen, 32 at most."""
    return rows[:: -(-len(rows) // _CONTROL_ROWS)]
