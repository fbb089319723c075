"""WebSockets through a sidecar, with the library websockets.

`websocket.py serve PORT` is an application that sends fragments and pings. `websocket.py check URL` connects to it.
`websocket.py echo URL` connects to the application of uvicorn. The last line of the output is `complete`.
"""

import socket
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

FRAGMENTS = ["one", "", "two", "three" * 30_000]


def echo(url):
    with connect(url, subprotocols=["chat"], max_size=None) as connection:
        assert connection.subprotocol == "chat", connection.subprotocol
        assert connection.protocol.extensions, "permessage-deflate passes"
        for message in ["text", "", "ä" * 70_000, b"", b"\0\xff", bytes(range(256)) * 8192]:
            connection.send(message)
            assert connection.recv(timeout=10) == message
        connection.send(FRAGMENTS)
        assert connection.recv(timeout=10) == "".join(FRAGMENTS)
        connection.send([b"a", b"b"])
        assert connection.recv(timeout=10) == b"ab"
        assert connection.ping(b"payload").wait(10), "pong"
        for number in range(1000):
            connection.send(str(number))
        assert [int(connection.recv(timeout=10)) for _ in range(1000)] == list(range(1000))
        connection.close(4002, "client is done")
        assert connection.close_code == 4002, connection.close_code
    with connect(url, compression=None) as connection:
        assert not connection.protocol.extensions
        connection.send("close 4001 application is done")
        try:
            connection.recv(timeout=10)
            raise AssertionError("the application has closed")
        except ConnectionClosed as closed:
            assert closed.rcvd.code == 4001, closed
            assert closed.rcvd.reason == "application is done", closed
    try:
        with connect(url + "/rejected"):
            raise AssertionError("the application rejects it")
    except InvalidStatus as rejected:
        assert rejected.response.status_code == 403, rejected
    # The client leaves without a close frame.
    with connect(url) as connection:
        connection.send("last")
        assert connection.recv(timeout=10) == "last"
        connection.socket.shutdown(socket.SHUT_RDWR)


def fragments(connection):
    connection.send(FRAGMENTS)
    assert list(connection.recv_streaming()) == FRAGMENTS + [""]
    assert connection.ping().wait(10), "pong"
    connection.close(1013, "later")


def check(url):
    with connect(url, compression=None) as connection:
        assert list(connection.recv_streaming()) == FRAGMENTS + [""]
        connection.send(FRAGMENTS)
        try:
            connection.recv(timeout=10)
            raise AssertionError("the application has closed")
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (1013, "later"), closed


if __name__ == "__main__":
    mode, argument = sys.argv[1:]
    if mode == "serve":
        with serve(fragments, "127.0.0.1", int(argument), compression=None) as server:
            print("listening", flush=True)
            server.serve_forever()
    elif mode == "check":
        check(argument)
        print("complete")
    else:
        echo(argument)
        print("complete")
