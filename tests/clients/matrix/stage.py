"""A nats-server, the sidecar and the client libraries as processes of this program; all of them end with it."""

from __future__ import annotations

import asyncio
import http.server
import json
import pathlib
import signal
import socket
import tempfile
import threading
import urllib.request

import nats

from libraries import Library

START_SECONDS = 20
# Sources of a route.
STREAM, CORE = '{ stream: T, subjects: ["t.all"] }', '{ subjects: ["t.all"] }'


async def ignore(_: Exception):
    """A server that is away is part of a scenario."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def eventually(is_so, seconds: float) -> bool:
    """Whether `is_so()` becomes true in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not is_so():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def path(library: Library) -> str:
    """The route of a library: its own, for its metrics."""
    return f"/events/{library.key}"


class Program:
    """A process whose standard output is read by line."""

    def __init__(self, command: list[str], log: pathlib.Path, on_line=None):
        self.command, self.log, self.on_line, self.process = command, log, on_line, None

    async def start(self):
        stdout = asyncio.subprocess.PIPE if self.on_line else asyncio.subprocess.DEVNULL
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, stdout=stdout, stderr=log, stdin=asyncio.subprocess.DEVNULL, limit=64 << 20
            )
        if self.on_line:
            self.reading = asyncio.create_task(self.read())

    async def read(self):
        async for line in self.process.stdout:
            self.on_line(line.decode(errors="replace"))

    @property
    def is_over(self) -> bool:
        return self.process is None or self.process.returncode is not None

    async def signal(self, number: signal.Signals, seconds: float = 10):
        """Sends a signal and waits for the end; a process that does not end is killed."""
        if self.is_over:
            return
        self.process.send_signal(number)
        try:
            await asyncio.wait_for(self.process.wait(), seconds)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


class Client:
    """A library at work, and what it has passed to its user."""

    def __init__(self, library: Library, url: str, sidestream: str, folder: pathlib.Path):
        self.library, self.lines, self.page = library, [], None
        command = library.command(url, sidestream)
        if library.kind == "chromium":
            self.page = Page(url, self.lines)
            command = [
                "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-background-networking", f"--user-data-dir={folder}/chromium",
                f"http://127.0.0.1:{self.page.port}/",
            ]
        self.program = Program(command, folder / f"{library.key}.log", None if self.page else self.take)

    def take(self, line: str):
        try:
            report = json.loads(line)
        except ValueError:
            return
        if "kind" not in report:  # a line of `sidestream tail --json`
            report = {"kind": "event", "name": report.get("event"), "data": report.get("data"), "id": report.get("id")}
        self.lines.append(report)

    def events(self) -> list[dict]:
        return [line for line in list(self.lines) if line["kind"] == "event"]

    def data(self) -> list[str]:
        """The data of all events without a name."""
        return [event["data"] for event in self.events() if event["name"] == "message"]

    @property
    def has_given_up(self) -> str | None:
        """Why it has stopped for good before the last event."""
        over = [line["message"] for line in list(self.lines) if line["kind"] == "over"]
        if "END" in self.data() or not (over or self.program.is_over):
            return None
        return over[0] if over else "the process ended"

    @property
    def is_done(self) -> bool:
        return "END" in self.data() or self.has_given_up is not None

    async def stop(self):
        await self.program.signal(signal.SIGKILL)
        if self.page:
            self.page.server.shutdown()


class Page:
    """A page with an EventSource that posts what it sees."""

    TEXT = """<!doctype html><script>
const lines = [];
const source = new EventSource(%s);
for (const name of ["message", "sidestream.gap", "sidestream.close", "sidestream.end"])
  source.addEventListener(name, ({ data, lastEventId }) => lines.push({ kind: "event", name, data, id: lastEventId }));
source.onerror = () => lines.push({ kind: source.readyState === 2 ? "over" : "error", message: "error" });
setInterval(() => lines.length > 0 && fetch("/", { method: "POST", body: JSON.stringify(lines.splice(0)) }), 100);
</script>"""

    def __init__(self, url: str, lines: list[dict]):
        text = (self.TEXT % json.dumps(url)).encode()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_POST(self):
                lines.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Gate:
    """What a Service is in Kubernetes: the address that clients know. It refuses connections while the pod is not ready."""

    def __init__(self, port: int, pod: int):
        self.port, self.pod, self.server, self.pumps = port, pod, None, set()

    async def open(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, reuse_address=True)

    def close(self):
        """Accepts no further connection; those that are open stay."""
        if self.server:
            self.server.close()
            self.server = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        try:
            pod_reader, pod_writer = await asyncio.open_connection("127.0.0.1", self.pod)
        except OSError:
            writer.transport.abort()
            return
        for source, target in ((reader, pod_writer), (pod_reader, writer)):
            pump = asyncio.create_task(self.pump(source, target))
            self.pumps.add(pump)
            pump.add_done_callback(self.pumps.discard)

    @staticmethod
    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter):
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
            target.close()
        except OSError:
            target.transport.abort()


class Stage:
    """A nats-server with the stream T, and a sidecar with a route for each library to all of it, reached through a gate."""

    def __init__(self, nats_server: str, sidestream: str, libraries: list[Library], route: str, source: str = STREAM):
        self.kept = tempfile.TemporaryDirectory(prefix="client-matrix-", ignore_cleanup_errors=True)
        self.folder = pathlib.Path(self.kept.name)
        self.nats_port, self.port, self.pod, self.admin = (free_port() for _ in range(4))
        self.gate = Gate(self.port, self.pod)
        (self.folder / "nats.conf").write_text(
            f'host: 127.0.0.1\nport: {self.nats_port}\njetstream {{ store_dir: "{self.folder}/store" }}\n'
        )
        (self.folder / "sidecar.yaml").write_text(
            f"""
listen: [{{ address: "127.0.0.1:{self.pod}" }}]
admin: {{ address: "127.0.0.1:{self.admin}", control: {self.folder}/control.sock }}
nats: {{ servers: ["nats://127.0.0.1:{self.nats_port}"] }}
drain: {{ accept_for: 0s, spread: 200ms, timeout: 3s, retry: {{ min: 100ms, max: 500ms }} }}
routes:
"""
            + "".join(
                f'  - {{ path: {path(library)}, sources: [{source}], cors: {{ origins: ["*"] }}, {route} }}\n'
                for library in libraries
            )
        )
        self.sidestream_path, self.libraries = sidestream, libraries
        self.nats_server = Program([nats_server, "-c", str(self.folder / "nats.conf")], self.folder / "nats.log")
        run = [sidestream, "run", "--config", str(self.folder / "sidecar.yaml")]
        self.sidestream = Program(run, self.folder / "sidestream.log")
        self.clients: list[Client] = []

    async def __aenter__(self) -> "Stage":
        await self.start_nats()
        self.connection = await nats.connect(f"nats://127.0.0.1:{self.nats_port}", max_reconnect_attempts=-1, error_cb=ignore)
        self.jetstream = self.connection.jetstream()
        await self.jetstream.add_stream(name="T", subjects=["t.>"])
        await self.start_sidestream()
        return self

    async def __aexit__(self, *_):
        for client in self.clients:
            await client.stop()
        self.gate.close()
        await self.connection.close()
        await self.sidestream.signal(signal.SIGKILL)
        await self.nats_server.signal(signal.SIGKILL)
        self.kept.cleanup()

    async def start_nats(self):
        await self.nats_server.start()
        if not await eventually(lambda: accepts(self.nats_port), START_SECONDS):
            raise SystemExit((self.folder / "nats.log").read_text())

    async def start_sidestream(self, ready: bool = True):
        await self.sidestream.start()
        if not await eventually(self.is_ready if ready else lambda: accepts(self.pod), START_SECONDS):
            raise SystemExit((self.folder / "sidestream.log").read_text())
        await self.gate.open()

    async def stop_sidestream(self, number: signal.Signals):
        self.gate.close()
        await self.sidestream.signal(number)

    def is_ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/health/ready", timeout=2).status == 200
        except OSError:
            return False

    def metric(self, name: str, label: str = "") -> float:
        """The sum over a metric's series that have this label; 0 while the sidecar is away."""
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5).read().decode()
        except OSError:
            return 0
        series = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith((name + " ", name + "{")) and label in line]
        return sum(float(value) for _, value in series)

    async def publish(self, data: str, subject: str = "t.all", headers: dict[str, str] | None = None) -> bool:
        try:
            await self.jetstream.publish(subject, data.encode(), timeout=2, headers=headers)
            return True
        except (nats.errors.Error, OSError):
            return False

    async def connect(self):
        """Starts a client of each library; returns when the sidecar has their event streams."""
        for library in self.libraries:
            url = f"http://127.0.0.1:{self.port}{path(library)}"
            client = Client(library, url, self.sidestream_path, self.folder)
            self.clients.append(client)
            await client.program.start()
        opened = lambda: self.metric("sidestream_streams_opened_total") >= len(self.libraries)  # noqa: E731
        await eventually(opened, 40)

    async def finish(self, seconds: float):
        """Publishes the last event and waits until each client has it or has given up."""
        await self.publish("END")
        await eventually(lambda: all(client.is_done for client in self.clients), seconds)
