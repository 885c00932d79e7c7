"""The listening socket: closed without a reset for those who have connected already."""

import socket
import sys

import pytest

from service.http.listening import has_input, is_listening, listen, turn_away

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told to make no new connections")


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_has_connected_is_accepted_and_nobody_connects_any_more(host: str):
    """Also in another process that has the socket: the kernel knows one socket, however many hold it."""
    try:
        listener = listen(host, 0)
    except Exception:
        pytest.skip(f"no {host} on this machine")
    with listener:
        listener.listen()
        address = listener.getsockname()[:2]
        with listener.dup() as same, socket.create_connection(address) as early:
            early.sendall(b"request")
            assert turn_away(same)

            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
            assert has_input(listener.fileno())
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(100) == b"request"
                accepted.sendall(b"answer")
                assert early.recv(100) == b"answer"
            assert not has_input(listener.fileno())


def test_a_bound_socket_does_not_listen_yet():
    """Until the first worker accepts, connections are refused rather than left waiting."""
    with listen("127.0.0.1", 0) as listener:
        assert not is_listening(listener)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname()[:2])
        listener.listen()
        assert is_listening(listener)
