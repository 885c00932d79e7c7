"""The one listening socket: bound by the supervisor, accepted from by every worker, closed without a loss.

Closing a listening socket resets the connections that the kernel has made for it and nobody has accepted yet:
their clients have connected, have perhaps sent a request, and are told that the peer reset the connection. So
before the last process closes it, new connections are turned away and those that are there are accepted.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

from service.errors import ConfigError

SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>; the socket module does not have it
_SYN = 0x02


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening: connections are refused until the first worker accepts them."""
    with _refused_in_words(host, port):
        family, address = _address(host, port)
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.set_inheritable(True)
        return listener


def reserve(host: str, port: int) -> socket.socket:
    """A socket that holds a port for others of this program to listen on (SO_REUSEPORT), and never does so itself."""
    with _refused_in_words(host, port):
        family, address = _address(host, port)
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.bind(address)  # refused where anybody has it: SO_REUSEPORT alone would share it with another service
        address = holder.getsockname()
        holder.close()
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
        return holder


def _address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The first that the name stands for, to listen on."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return family, address


@contextlib.contextmanager
def _refused_in_words(host: str, port: int) -> Iterator[None]:
    """`ConfigError` where the system says no."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


def is_listening(listener: socket.socket) -> bool:
    """Whether connections are accepted on a bound socket."""
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # the event loop closes it when it cannot listen
        return False


def turn_away(listener: socket.socket) -> bool:
    """From now on the kernel makes no new connection for this socket, in whatever process; false where it cannot
    be told so (elsewhere than on Linux).

    It drops the packets that ask for one (SYN). A client asks again after a second and is refused then, since nobody
    listens any more. Connections that are there, or on their way, stay and are to be accepted.
    """
    if sys.platform != "linux":
        return False
    program = (
        (0x30, 0, 0, 13),  # A = byte 13 of the TCP header, the flags
        (0x45, 0, 1, _SYN),  # if A & SYN:
        (0x06, 0, 0, 0),  # drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # else keep it whole
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    with contextlib.suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code))
        )
        return True
    return False


def has_input(descriptor: int) -> bool:
    """Whether there is something to accept, or to read, right now."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
