"""No network in tests: connections to other machines are refused, and remembered."""

import socket
from typing import Any

import pytest

ASKED_FOR: list[str] = []
"""The hosts that the present test has asked for, in vain."""

_HERE = (None, "", "127.0.0.1", "::1", "localhost", b"localhost")


def block_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections, and names to be looked up for them, but to this machine."""
    ASKED_FOR.clear()
    connects = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex")}
    for name, connect in connects.items():

        def local_connect(self: socket.socket, address: Any, connect: Any = connect) -> Any:
            if self.family != socket.AF_UNIX:
                _check(address[0])
            return connect(self, address)

        monkeypatch.setattr(socket.socket, name, local_connect)
    look_up = socket.getaddrinfo

    def local_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        _check(host)
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", local_look_up)


def _check(host: object) -> None:
    if host not in _HERE:
        ASKED_FOR.append(str(host))
        raise OSError(f"tests reach no network, but {host} was asked for")
