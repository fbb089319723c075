"""Application beside a sidecar, with uvicorn: `application.py PORT KEEP_ALIVE_SECONDS h11|httptools`.

Prints each request as a line of JSON. A WebSocket echoes its messages.
"""

import asyncio
import hashlib
import json
import sys

import uvicorn


def report(**line):
    print(json.dumps(line), flush=True)


async def body_of(receive, hash):
    """Number of bytes, or None if the client left."""
    count = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        data = message.get("body", b"")
        hash.update(data)
        count += len(data)
        if not message.get("more_body", False):
            return count


async def answer(send, status, headers=(), body=b""):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def until_disconnect(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def page(scope, receive, send):
    """Returns whether the response is complete."""
    name, argument = (scope["path"].split("/") + ["", ""])[1:3]
    if name == "echo":
        hash = hashlib.sha256()
        count = await body_of(receive, hash)
        if count is None:
            return False
        url = scope["raw_path"].decode() + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        raw = [text.decode("latin-1") for header in scope["headers"] for text in header]
        seen = {"method": scope["method"], "url": url, "rawHeaders": raw, "bytes": count, "hash": hash.hexdigest()}
        await answer(send, 200, [(b"content-type", b"application/json")], json.dumps(seen).encode())
    elif name == "status":
        await answer(send, int(argument))
    elif name == "early":
        await answer(send, int(argument or 413), [(b"content-length", b"9")], b"too large")
    elif name == "silent":
        await until_disconnect(receive)
        return False
    elif name == "later":
        await asyncio.sleep(1)
        await answer(send, 200, body=b"late\n")
    elif name == "endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        left = asyncio.ensure_future(until_disconnect(receive))
        while not left.done():
            await send({"type": "http.response.body", "body": b"piece\n", "more_body": True})
            await asyncio.sleep(0.01)
        return False
    elif name == "large":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        left = int(argument)
        while left > 0:
            piece = b"a" * min(left, 65536)
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    else:
        body = scope["path"].encode() + b"\n"
        await answer(send, 200, [(b"content-length", str(len(body)).encode())], body)
    return True


async def socket(scope, receive, send):
    """Echo of messages. The text `close CODE REASON` closes the WebSocket."""
    await receive()
    if scope["path"] == "/socket/rejected":
        return await send({"type": "websocket.close"})
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            report(kind="upgrade-end", code=message["code"], reason=message.get("reason"))
            return
        text = message.get("text")
        if text is not None and text.startswith("close "):
            _, code, reason = text.split(" ", 2)
            await send({"type": "websocket.close", "code": int(code), "reason": reason})
            return
        await send({"type": "websocket.send", "text": text, "bytes": message.get("bytes")})


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        report(kind="upgrade", url=scope["path"])
        return await socket(scope, receive, send)
    url = scope["path"]
    report(kind="request", method=scope["method"], url=url)
    complete = False
    try:
        complete = await page(scope, receive, send)
    finally:
        report(kind="end", url=url, complete=complete)


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets=sockets)
        report(kind="listening")


if __name__ == "__main__":
    config = uvicorn.Config(
        application,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        timeout_keep_alive=float(sys.argv[2]),
        http=sys.argv[3],
        ws="websockets-sansio",
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    Server(config).run()
