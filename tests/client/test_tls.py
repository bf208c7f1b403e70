from __future__ import annotations

from pathlib import Path

import pytest

from arcface_client.errors import ConfigError
from arcface_client.triton.tls import Tls


def test_a_certificate_that_is_none_is_refused_before_grpc_sees_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"root_certificates is .*missing\.pem, which is no file"):
        Tls(root_certificates=tmp_path / "missing.pem")
    (tmp_path / "readme.md").write_text("# no certificate")
    with pytest.raises(ConfigError, match=r"root_certificates is .*readme\.md, which is no PEM file"):
        Tls(root_certificates=tmp_path / "readme.md")
