"""A set of ids that are known, in 16 bytes each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

_Hashes = npt.NDArray[np.bytes_]
_TYPE = np.dtype("S16")


class IdSet:
    """Which ids were met. It holds hashes of 128 bits: among 10^9 ids, two share one by chance once in 10^20.

    The hashes are in sorted runs, each more than twice as long as the next, so that adding stays cheap and
    a look-up asks a few of them.

    Args:
        batches: Ids to begin with.
    """

    def __init__(self, batches: Iterable[Sequence[str]] = ()) -> None:
        self._runs: list[_Hashes] = []
        for ids in batches:
            self.add(ids)

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Add ids, and return for each whether it is new: bool [N], False from its second time on."""
        hashes = _hashes(ids)
        is_new = np.zeros(len(hashes), bool)
        is_new[np.unique(hashes, return_index=True)[1]] = True
        is_new &= ~self._contain(hashes)
        if is_new.any():
            self._runs.append(np.sort(hashes[is_new]))
            while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
                self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]), kind="stable")]
        return is_new

    def contain(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether each id was added before: bool [N]."""
        return self._contain(_hashes(ids))

    def _contain(self, hashes: _Hashes) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(hashes), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            found |= run[at] == hashes
        return found


def _hashes(ids: Sequence[str]) -> _Hashes:
    # As a gallery holds them, also those of files whose names are not UTF-8.
    digests = b"".join(blake2b(id.encode(errors="backslashreplace"), digest_size=16).digest() for id in ids)
    return np.frombuffer(digests, _TYPE)
