from __future__ import annotations

import socket

import pytest

from arcface_server.errors import PortError
from arcface_server.ports import reserve_ports


def test_free_ports_differ_and_wanted_ones_stay_in_their_place() -> None:
    (wanted,) = reserve_ports("127.0.0.1", [None])
    ports = reserve_ports("127.0.0.1", [None, wanted, None])
    assert ports[1] == wanted
    assert len(set(ports)) == 3


def test_one_port_for_two_places_is_refused() -> None:
    (port,) = reserve_ports("127.0.0.1", [None])
    with pytest.raises(PortError, match=f"Port {port} on 127.0.0.1 is in use"):
        reserve_ports("127.0.0.1", [port, port])


def test_a_port_that_something_listens_on_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=f"Port {port} on 127.0.0.1 is in use"):
            reserve_ports("127.0.0.1", [port])


def test_a_number_that_is_no_port_is_refused() -> None:
    with pytest.raises(PortError, match=r"Cannot listen on 127\.0\.0\.1:70000"):
        reserve_ports("127.0.0.1", [70000])
