from __future__ import annotations

from pathlib import Path

import pytest

from arcface_client.errors import ConfigError
from arcface_client.models.files import cache_folder


def test_the_cache_is_where_the_user_wants_it(tmp_path: Path) -> None:
    usual = Path.home() / ".cache/arcface-triton"
    assert cache_folder({}) == usual
    assert cache_folder({"ARCFACE_CACHE_DIR": "", "XDG_CACHE_HOME": ""}) == usual
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "arcface-triton"
    assert cache_folder({"ARCFACE_CACHE_DIR": "/somewhere", "XDG_CACHE_HOME": "/x"}) == Path("/somewhere")
    assert cache_folder({"ARCFACE_CACHE_DIR": "~/plans"}) == Path.home() / "plans"


def test_a_user_without_a_home_is_told_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"There is no home directory for ~nobody-at-all/x; set HOME"):
        cache_folder({"ARCFACE_CACHE_DIR": "~nobody-at-all/x"})
