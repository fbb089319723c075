"""grpcio: client.py ADDRESS PATH [OPTIONS]; one JSON line per thing that it reports. OPTIONS is a JSON object:
`id`, `metadata`, `timeout`, and `reconnect`, which resumes after UNAVAILABLE as `close` says."""

import base64
import hashlib
import json
import pathlib
import sys
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "proto"))
messages, services = grpc.protos_and_services("sidestream/v1/events.proto")

address, path = sys.argv[1:3]
options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}


def say(**line):
    print(json.dumps(line), flush=True)


def fields(message):
    """The fields of a message, a large payload as its length and hash."""
    result = {}
    for field, value in message.ListFields():
        if isinstance(value, bytes) and len(value) > 4096:
            value = [len(value), hashlib.sha256(value).hexdigest()]
        elif isinstance(value, bytes):
            value = base64.b64encode(value).decode()
        result[field.name] = value
    return result


position, retry = options.get("id", ""), 0.3
with grpc.insecure_channel(address) as channel:
    events = services.EventsStub(channel)
    while True:
        request = messages.SubscribeRequest(path=path, last_event_id=position)
        call = events.Subscribe(request, metadata=list(options.get("metadata", {}).items()), timeout=options.get("timeout"))
        try:
            for message in call:
                content = message.WhichOneof("content")
                inner = fields(getattr(message, content)) if content else {}
                if content == "close":
                    retry = message.close.retry / 1000
                if content == "snapshot":
                    position = ""
                position = message.id or position
                say(kind="message", content=content, id=message.id, **inner)
        except grpc.RpcError:
            pass
        trailers = {name: value for name, value in call.trailing_metadata() or []}
        say(kind="status", code=call.code().name, message=call.details(), trailers=trailers)
        if not options.get("reconnect") or call.code() != grpc.StatusCode.UNAVAILABLE:
            break
        time.sleep(retry)
