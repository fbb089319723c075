"""The libraries of the table: how each is started, and what its user has to set."""

from __future__ import annotations

import dataclasses
import os
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parent
CHECKOUT = FOLDER.parents[2]
# Where scripts/tools.sh puts what is not in this folder.
TOOLS = CHECKOUT / ".tools" / "clients"


@dataclasses.dataclass(frozen=True)
class Library:
    """One row of the table."""

    key: str
    title: str
    kind: str
    advice: str = ""
    # It keeps the position and reconnects as the standard says: a loss is a fault of ours.
    strict: bool = False

    def command(self, url: str, sidestream: str) -> list[str]:
        match self.kind:
            case "node":
                return ["node", str(FOLDER / "clients.mjs"), self.key, url]
            case "python":
                folder = "python-sseclient" if self.key == "sseclient" else "python"
                return [str(TOOLS / folder / "bin" / "python"), str(FOLDER / "clients.py"), self.key, url]
            case "go" | "rust":
                return [str(TOOLS / self.kind / "clients"), self.key, url]
            case "java":
                options = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
                return ["java", *options, "-cp", f"{TOOLS}/java:{TOOLS}/java/*", "Clients", self.key, url]
            case "tail":
                return [sidestream, "tail", "--json", url]
            case _:
                return ["chromium"]

    def is_installed(self) -> bool:
        match self.kind:
            case "node":
                return (FOLDER / "node_modules" / "installed").exists()
            case "java":
                return (TOOLS / "java" / "Clients.class").exists()
            case "chromium":
                return any((pathlib.Path(folder) / "chromium").exists() for folder in os.environ["PATH"].split(":"))
            case "tail":
                return True
            case _:
                return pathlib.Path(self.command("", "")[0]).exists()


SKIP = "skip names that begin with `sidestream.`"
LOOP = "your loop: keep the last id, wait for `retry`, connect again"
BROWSER = "a browser's `User-Agent`, or a proxy that answers for a pod that is away"

LIBRARIES = [
    Library("chromium", "Chromium, EventSource", "chromium", strict=True),
    Library("tail", "`sidestream tail`", "tail", strict=True),
    Library("source", "`@sidestream/client`, SidestreamSource", "node", strict=True),
    Library("follow", "`@sidestream/client`, follow", "node", strict=True),
    Library("eventsource-1", "npm eventsource 1.1.2", "node"),
    Library("eventsource-2", "npm eventsource 2.0.2", "node"),
    Library("eventsource-3", "npm eventsource 3.0.7", "node", f"a `fetch` with {BROWSER}"),
    Library("eventsource-4", "npm eventsource 4.1.1", "node", f"a `fetch` with {BROWSER}"),
    Library("eventsource-4-browser", "the same with that `fetch`", "node", strict=True),
    Library("undici", "undici 6.29.1, EventSource", "node", "a proxy in front: it stops at the first refused connection"),
    Library("polyfill", "event-source-polyfill 1.0.31", "node", BROWSER),
    Library("reconnecting", "reconnecting-eventsource 1.6.5", "node", "a listener for `sidestream.position`: it keeps only what has one"),
    Library("fetch-event-source", "@microsoft/fetch-event-source 2.0.1", "node", "the two lines above, or `close: abort` on the route"),
    Library("fetch-event-source-two-lines", "the same with the two lines", "node"),
    Library("eventsource-client", "npm eventsource-client 1.2.0", "node", SKIP),
    Library("launchdarkly", "launchdarkly-eventsource 2.2.0", "node", "`errorFilter: () => true`"),
    Library("plus", "event-source-plus 0.1.15", "node", f"{SKIP}; payloads of one line. It ignores `retry:` and comes back within 10 ms: `limits.per_client.connects`"),
    Library("extended", "extended-eventsource 2.1.0", "node", "a proxy in front, for statuses"),
    Library("parser", "eventsource-parser 3.1.1", "node", f"{LOOP}; {SKIP}"),
    Library("sseclient-py", "sseclient-py 1.9.0", "python", f"{LOOP}; {SKIP}"),
    Library("httpx-sse", "httpx-sse 0.4.3", "python", f"{LOOP}; {SKIP}"),
    Library("httpx-sse-http2", "the same over HTTP/2 (h2 4.4.1)", "python", "catch the exception at each end"),
    Library("requests-sse", "requests-sse 0.5.3", "python", f"{BROWSER}; {SKIP}"),
    Library("requests-sse-browser", "the same with that header", "python", SKIP),
    Library("aiohttp-sse-client", "aiohttp-sse-client 0.2.1", "python", f"a loop around it; {SKIP}; events of at most 512 KiB"),
    Library("sseclient", "sseclient 0.0.27", "python", f"a loop around it; {SKIP}; payloads in ASCII (JSON with `\\u`)"),
    Library("r3labs", "r3labs/sse v2.10.0", "go", f"`close: abort` on the route; `ClientMaxBufferSize`; {SKIP}"),
    Library("tmaxmax", "tmaxmax/go-sse v0.12.0", "go", f"`Connection.Buffer`; a `ResponseValidator` with a temporary error; {SKIP}"),
    Library("launchdarkly-go", "launchdarkly/eventsource v1.11.0", "go", SKIP),
    Library("eventsource-client-rust", "eventsource-client (Rust) 0.17.5", "rust", SKIP),
    Library("reqwest-eventsource", "reqwest-eventsource 0.6.0", "rust", f"{BROWSER}; {SKIP}"),
    Library("okhttp-eventsource", "okhttp-eventsource 4.1.1", "java", f"`alwaysContinue()`; {SKIP}"),
    Library("okhttp-sse", "okhttp-sse 4.12.0", "java", f"{LOOP}; {SKIP}"),
    Library("jersey", "jersey-media-sse 3.1.9", "java", f"a proxy in front: it stops at the first refused connection; {SKIP}"),
]
