"""From items to crops: what runs in the processes that read, here and on Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..contract import CROP_SHAPE, Crops
from ..errors import ImageFileError
from ..evaluation.images import read_crop
from .remote import filesystem_of, is_of_one_file, is_url, unavailable
from .source import Item


@dataclass(frozen=True, eq=False)
class Decoded:
    """Crops that were read, and why others were not.

    Attributes:
        ids: Of all items, N.
        crops: uint8 [M, 112, 112, 3], BGR, of those that could be read, in their order.
        errors: Of all items, N: why it could not be read; None for the M that were.
    """

    ids: list[str]
    crops: Crops
    errors: list[str | None]


def decode(items: Sequence[Item], *, resize: bool = False, into: Crops | None = None) -> Decoded:
    """Read items and decode their images.

    Args:
        items: Any number.
        resize: Scale images of another size instead of refusing them.
        into: Where to put the crops, uint8 [N or more, 112, 112, 3]; None makes an array.

    Raises:
        SourceUnavailableError: Not one file but the disk or the server of the source cannot be read.
        MissingExtraError: Pillow is not installed, or what a URL needs.
    """
    crops = np.empty((len(items), *CROP_SHAPE), np.uint8) if into is None else into
    errors = list[str | None]()
    good = 0
    for item, data in zip(items, _contents(items), strict=True):
        if isinstance(data, str):
            errors.append(data)
            continue
        try:
            crops[good] = read_crop(data, name=item.id, resize=resize)
        except ImageFileError as error:
            errors.append(str(error))
        else:
            good += 1
            errors.append(None)
    return Decoded([item.id for item in items], crops[:good], errors)


def _contents(items: Sequence[Item]) -> list[bytes | str]:
    """The bytes of each item's file, or why it cannot be read."""
    urls = [item.data for item in items if isinstance(item.data, str) and is_url(item.data)]
    fetched = _fetch(urls) if urls else {}
    return [item.error or _content(item, fetched) for item in items]


def _content(item: Item, fetched: dict[str, bytes | str]) -> bytes | str:
    if isinstance(item.data, bytes):
        return item.data
    if is_url(item.data):
        content = fetched[item.data]
        return content if isinstance(content, bytes) else f"{item.id} {content}"
    try:
        with open(item.data, "rb", buffering=0) as file:  # noqa: PTH123, ten thousand a second
            return file.readall()
    except OSError as error:
        if not is_of_one_file(error):
            raise unavailable(item.data, error) from error
        return f"{item.id} cannot be read as an image: {error.strerror}."
    except ValueError:  # a list in UTF-16, for example
        return f"{item.id!r} cannot be read as an image: its name has a zero byte; write lists in UTF-8."


def _fetch(urls: Sequence[str]) -> dict[str, bytes | str]:
    """The bytes at each URL, or why there are none; as many at a time as the file system allows."""
    fetched: dict[str, bytes | str] = {}
    for protocol in {url.partition("://")[0] for url in urls}:
        own = [url for url in urls if url.startswith(f"{protocol}://")]
        filesystem, _ = filesystem_of(own[0])
        names = {filesystem._strip_protocol(url): url for url in own}
        for name, content in filesystem.cat(list(names), on_error="return").items():
            url = names[name]
            if isinstance(content, bytes):
                fetched[url] = content
            elif is_of_one_file(content):
                fetched[url] = f"cannot be read as an image: {content}."
            else:
                raise unavailable(url, content) from content
    return fetched
