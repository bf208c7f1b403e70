"""What is in a gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arcface_client.gallery import open_gallery


def rows_of(gallery: Path) -> dict[str, Any]:
    """All rows by their ids, of which each is there once."""
    rows = [row for table in open_gallery(gallery).tables() for row in table.to_pylist()]
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found
