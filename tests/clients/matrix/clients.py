"""One Python client library, used as its README says: clients.py LIBRARY URL. Prints what clients.mjs prints.

A library that does not reconnect runs in the shortest loop that a user writes: keep the last id, wait 0.3 s, connect again.
"""

import json
import sys
import time

LIBRARY, URL = sys.argv[1:3]
PAUSE_SECONDS = 0.3
BROWSER = {"User-Agent": "Mozilla/5.0 (service)"}


def show(**line):
    print(json.dumps(line), flush=True)


def event(name, data, id):
    show(kind="event", name=name or "message", data=data, id=id)
    if data == "END":
        sys.exit(0)


def text(error):
    return f"{type(error).__name__}: {error}"[:160]


def loop(read):
    """Calls `read(headers)`, which yields (name, data, id), for ever."""
    last = ""
    while True:
        headers = {"Accept": "text/event-stream"}
        if last:
            headers["Last-Event-ID"] = last
        try:
            for name, data, id in read(headers):
                last = id or last
                event(name, data, id)
            show(kind="error", message="the event stream ended")
        except Exception as error:
            show(kind="error", message=text(error))
        time.sleep(PAUSE_SECONDS)


def once(read):
    """Passes on what a library yields that reconnects by itself, until it stops."""
    try:
        for name, data, id in read():
            event(name, data, id)
        show(kind="over", message="the iterator ended")
    except Exception as error:
        show(kind="over", message=text(error))


def sseclient_py(headers):
    import requests
    import sseclient

    response = requests.get(URL, stream=True, headers=headers, timeout=(5, 60))
    response.raise_for_status()
    for given in sseclient.SSEClient(response).events():
        yield given.event, given.data, given.id


def httpx_sse(headers, http2=False):
    import httpx
    from httpx_sse import connect_sse

    with httpx.Client(http2=http2, http1=not http2, timeout=60) as client:
        with connect_sse(client, "GET", URL, headers=headers) as source:
            source.response.raise_for_status()
            for given in source.iter_sse():
                yield given.event, given.data, given.id


def requests_sse(**options):
    from requests_sse import EventSource

    with EventSource(URL, timeout=60, **options) as source:
        for given in source:
            yield given.type, given.data, given.last_event_id


def sseclient():
    from sseclient import SSEClient

    for given in SSEClient(URL, retry=500):
        yield given.event, given.data, given.id


def aiohttp_sse_client():
    import asyncio
    from aiohttp_sse_client.client import EventSource

    async def follow():
        async with EventSource(URL) as source:
            async for given in source:
                event(given.type, given.data, given.last_event_id)

    asyncio.run(follow())
    return iter(())


LIBRARIES = {
    "sseclient-py": lambda: loop(sseclient_py),
    "httpx-sse": lambda: loop(httpx_sse),
    "httpx-sse-http2": lambda: loop(lambda headers: httpx_sse(headers, http2=True)),
    "requests-sse": lambda: once(requests_sse),
    "requests-sse-browser": lambda: once(lambda: requests_sse(headers=BROWSER)),
    "sseclient": lambda: once(sseclient),
    "aiohttp-sse-client": lambda: once(aiohttp_sse_client),
}
LIBRARIES[LIBRARY]()
