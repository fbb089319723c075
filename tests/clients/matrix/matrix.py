"""Client libraries over payloads, silence, ends, drains and kills: `make clients` writes the table of docs/clients.md.

    matrix.py --sidestream PATH --nats-server PATH [--only LIBRARY,...] [--scenario NAME,...] [--write]

Each library reads events that are numbered, while the sidecar does what the scenario says; at the end each number must
have arrived once, or be reported as missing. What was seen is kept in results.json; the table is written from that, so that libraries that are not
installed here keep their rows, with the day on which they were run. Exits with 1 if a library that keeps positions and
reconnects as the standard says has lost, doubled or changed an event, or does not stop at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import json
import pathlib
import signal
import sys

from libraries import CHECKOUT, FOLDER, LIBRARIES, Library
from stage import CORE, STREAM, Stage, eventually, path

RESULTS = FOLDER / "results.json"
PAGE = CHECKOUT / "docs" / "clients.md"
BEGIN, END = "<!-- make clients: begin -->", "<!-- make clients: end -->"

# As many libraries at one time: a JVM or a browser needs a good part of a core to start.
AT_ONCE = 12
PAYLOADS = [
    "a\nb", "a\r\nb", "a\rb", "a\n\rb", "a\n\nb", "\na", "a\n", "a\r\n", "\n\n", " lead", "  two", ":colon", "data: x",
    "id: 5\nx", "event: y\n\nz", "retry: 1", "", "a\x0bb", "a\x0cb", "a\x1cb", "a\x1db", "a\x1eb", "a\x1fb", "a\x85b",
    "a\u2028b", "a\u2029b", "\ufeffmark", "a\ufeffb", "a\x00b", "a\x1bb", "a\x7fb", "\ttab\t", "trail  ",
    "é\U0001f600\u0301", "x" * 65_000, "y" * 300_000, "line\n" * 3000, "z" * 600_000,
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What happens to the sidecar while events are published."""

    route: str
    seconds: float
    # Moments in seconds, and what to do then: a name of a method of `Acts`.
    acts: tuple[tuple[float, str], ...] = ()
    # Events are published only between these moments, and none came before.
    quiet: tuple[float, float] | None = None
    source: str = STREAM
    # Events are missing in any case, and the pod reports that.
    has_gap: bool = False


DRAIN = ((2, "drain"), (4.5, "start"))
KILL = ((2, "kill"), (4, "start"))
QUIET_DRAIN = ((1, "drain"), (4, "start"))
QUIET_KILL = ((1, "kill"), (4, "start"))
AWAY = (2, 3.5)
PURGE = ((2, "drain"), (3, "purge"), (4, "start"))
SCENARIOS = {
    "age": Scenario("max_age: 2s, retry: 300ms", 9),
    "age-abort": Scenario("max_age: 2s, retry: 300ms, close: abort", 9),
    "drain": Scenario("retry: 300ms", 8, DRAIN),
    "drain-abort": Scenario("retry: 300ms, close: abort", 8, DRAIN),
    "kill": Scenario("retry: 300ms", 8, KILL),
    "quiet-drain": Scenario("retry: 300ms", 7, QUIET_DRAIN, AWAY),
    "quiet-kill": Scenario("retry: 300ms", 7, QUIET_KILL, AWAY),
    # The stream loses events while its readers are away.
    "gap-resume": Scenario("retry: 300ms, close: abort, expired: gap", 7, PURGE, has_gap=True),
    "gap-status": Scenario("retry: 300ms, close: abort", 7, PURGE, has_gap=True),
    # Core subjects: whatever is published while NATS is away is lost, on an open event stream.
    "gap": Scenario("retry: 300ms", 7, ((2, "stop_nats"), (3.5, "start_nats")), source=CORE, has_gap=True),
    "503": Scenario("retry: 300ms", 13, ((2, "drain"), (2.1, "stop_nats"), (4, "start_before_nats"), (7, "start_nats"))),
}


# Cells of libraries without a fault; "0" for the other scenarios.
ACCEPTED = {"gap": ("G",), "gap-resume": ("G",), "gap-status": ("G", "X"), "end": ("0", "1")}


class Acts:
    """What a scenario does to the stage."""

    def __init__(self, stage: Stage):
        self.stage = stage

    async def drain(self):
        await self.stage.stop_sidestream(signal.SIGTERM)

    async def kill(self):
        await self.stage.stop_sidestream(signal.SIGKILL)

    async def start(self):
        await self.stage.start_sidestream()

    async def purge(self):
        """All that is stored is lost, and with it the numbers of the last second."""
        await self.stage.jetstream.purge_stream("T")

    async def stop_nats(self):
        await self.stage.nats_server.signal(signal.SIGTERM)

    async def start_before_nats(self):
        await self.stage.start_sidestream(ready=False)

    async def start_nats(self):
        await self.stage.start_nats()


async def over_time(options, libraries: list[Library], scenario: Scenario) -> dict[str, str]:
    """Runs a scenario; the cell of each library."""
    async with Stage(options.nats_server, options.sidestream, libraries, scenario.route, scenario.source) as stage:
        await stage.connect()
        if scenario.quiet is None:
            for number in range(150):
                await stage.publish(f"before {number}")
                if all(client.data() or client.has_given_up for client in stage.clients):
                    break
                await asyncio.sleep(0.2)
        published = await play(stage, scenario)
        await eventually(stage.is_ready, 20)
        alive = lambda: sum(client.has_given_up is None for client in stage.clients)  # noqa: E731
        await eventually(lambda: stage.metric("sidestream_streams") >= alive(), 12)
        await stage.finish(25)
        for client in stage.clients:
            if client.has_given_up is not None:
                print(f"    {client.library.title} has given up: {client.has_given_up}", flush=True)
        return {client.library.key: cell(client, published, scenario.has_gap) for client in stage.clients}


async def play(stage: Stage, scenario: Scenario) -> list[str]:
    """Publishes numbers while the acts of a scenario run; what NATS has taken."""
    published, count, acts, loop = [], 0, list(scenario.acts), asyncio.get_running_loop()
    began, running = loop.time(), []
    while (now := loop.time() - began) < scenario.seconds or acts:
        if acts and now >= acts[0][0] and all(task.done() for task in running):
            running.append(asyncio.create_task(getattr(Acts(stage), acts.pop(0)[1])()))
        if scenario.quiet is None or scenario.quiet[0] < now < scenario.quiet[1]:
            # One that is not acknowledged may have been stored all the same: its number is not used again.
            number, count = f"number {count}", count + 1
            if await stage.publish(number):
                published.append(number)
        await asyncio.sleep(0.04)
    await asyncio.gather(*running)
    return published


def cell(client, published: list[str], has_gap: bool) -> str:
    """What became of the numbers: `0`, or `L` lost, `G` lost and reported, `D` twice, `X` stopped for good."""
    seen = [data for data in client.data() if data and data.startswith("number ")]
    lost = [number for number in published if number not in seen]
    # Some stop without a word.
    if client.has_given_up is not None or "END" not in client.data():
        return "X"
    if lost or has_gap:
        return "G" if any(event["name"] == "sidestream.gap" for event in client.events()) else "L"
    if len(seen) > len(set(seen)) + 1:
        return "D"
    return "0"


async def payloads(options, libraries: list[Library]) -> dict[str, str]:
    """How many payloads of every kind arrive changed."""
    async with Stage(options.nats_server, options.sidestream, libraries, "retry: 300ms") as stage:
        await stage.connect()
        for number, payload in enumerate(PAYLOADS):
            await stage.publish(f"#{number}")
            await stage.publish(payload)
        await stage.publish(f"#{len(PAYLOADS)}")
        await stage.finish(25)
        cells = {}
        for client in stage.clients:
            arrived, number = {}, None
            for data in client.data():
                if data and data[0] == "#" and data[1:].isdigit():
                    number = int(data[1:])
                else:
                    arrived.setdefault(number, []).append(data)
            wanted = [payload.replace("\r\n", "\n").replace("\r", "\n") for payload in PAYLOADS]
            cells[client.library.key] = str(sum(arrived.get(i) != [text] for i, text in enumerate(wanted)))
        return cells


async def silence(options, libraries: list[Library]) -> dict[str, str]:
    """What a user sees in six seconds in which only the events of others pass: messages without an event."""
    async with Stage(options.nats_server, options.sidestream, libraries, "checkpoint: 1s") as stage:
        await stage.connect()
        for number in range(24):
            await stage.publish(str(number), "t.others")
            await asyncio.sleep(0.25)
        seen = {client.library.key: client.events() for client in stage.clients}
        await stage.finish(10)
        cells = {}
        for key, events in seen.items():
            named = sum(event["name"] == "sidestream.position" for event in events)
            empty = len(events) - named
            cells[key] = f"{empty}" if named == 0 or key == "reconnecting" else f"{empty}, by name"
        return cells


async def end(options, libraries: list[Library]) -> dict[str, str]:
    """What a library does in six seconds after the end of a finite event stream: how often it returns, and receives 204."""
    route = "retry: 300ms, finite: true, begin: first"
    async with Stage(options.nats_server, options.sidestream, libraries, route) as stage:
        await stage.connect()
        numbers = [f"number {number}" for number in range(50)]
        for number in numbers:
            await stage.publish(number)
        await stage.publish("number 50", headers={"Sidestream-End": "true"})
        await asyncio.sleep(6)
        cells = {}
        for client in stage.clients:
            seen = [data for data in client.data() if data.startswith("number ")]
            returns = int(stage.metric("sidestream_finished_total", f'route="{path(client.library)}"'))
            if seen != [*numbers, "number 50"]:
                print(f"    {client.library.title} has seen {len(seen)} events", flush=True)
                cells[client.library.key] = "X"
            else:
                is_shown = any(event["name"] == "sidestream.end" for event in client.events())
                often = "many" if is_shown else "many, end not shown"
                cells[client.library.key] = f"{returns}" if returns < 3 else often
        return cells


async def run(options) -> int:
    chosen = [library for library in LIBRARIES if not options.only or library.key in options.only]
    installed = [library for library in chosen if library.is_installed()]
    for library in chosen:
        if library not in installed:
            print(f"not installed: {library.title}", flush=True)
    kinds = {"payloads": payloads, "silence": silence, "end": end}
    names = [name for name in [*kinds, *SCENARIOS] if not options.scenario or name in options.scenario]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    faults = []
    for name in names:
        for first in range(0, len(installed), AT_ONCE):
            some = installed[first : first + AT_ONCE]
            if name in kinds:
                cells = await kinds[name](options, some)
            else:
                cells = await over_time(options, some, SCENARIOS[name])
            for library in some:
                results.setdefault(library.key, {})[name] = cells[library.key]
                results[library.key]["day"] = datetime.date.today().isoformat()
                print(f"{name:12} {library.title:40} {cells[library.key]}", flush=True)
                if library.strict and cells[library.key] not in ACCEPTED.get(name, ("0",)):
                    faults.append(f"{library.title}: {name}: {cells[library.key]}")
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    if options.write:
        write(results)
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


def write(results: dict):
    """Puts the table into the page, between its two marks."""
    rows = [
        "| library | payloads changed | empty messages | `max_age` | drain | kill | before the first event: drain / kill | 503 | gap | gap at a reconnect | 204 after the end | run | what to set |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for library in LIBRARIES:
        got = results.get(library.key)
        if got is None:
            continue
        at = lambda name, got=got: got.get(name, "")  # noqa: E731
        pair = lambda name: f"{at(name)} / {at(name + '-abort')}"  # noqa: E731
        cells = [
            library.title, at("payloads"), at("silence"), pair("age"), pair("drain"), at("kill"),
            f"{at('quiet-drain')} / {at('quiet-kill')}", at("503"), at("gap"),
            f"{at('gap-resume')} / {at('gap-status')}", at("end"), got["day"], library.advice,
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(rows) + "\n" + END + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--sidestream", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--nats-server", required=True)
    parser.add_argument("--only", type=names, help="keys of libraries.py")
    parser.add_argument("--scenario", type=names, help="payloads, silence, end, " + ", ".join(SCENARIOS))
    parser.add_argument("--write", action="store_true", help="write the table into docs/clients.md")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
