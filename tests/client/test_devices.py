from __future__ import annotations

import pytest

from arcface_client.config.devices import Device, read_device
from arcface_client.errors import InputError


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", Device("cpu")),
        ("cuda", Device("cuda", 0)),
        ("cuda:1", Device("cuda", 1)),
        ("auto", Device("auto")),
    ],
)
def test_devices_are_named_as_pytorch_names_them(text: str, device: Device) -> None:
    assert read_device(text) == device


@pytest.mark.parametrize("text", ["", "gpu", "mps", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", 0, None])
def test_any_other_device_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match=rf"device is {text!r}; expected 'cpu', 'cuda', 'cuda:N'"):
        read_device(text)
