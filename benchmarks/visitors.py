"""A visitor without a browser: sends what the page's scripts send, and reads the server's replies."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

API = "/gradio_api"
LONGEST_S = 120.0  # the longest that a call waits for its end


@dataclass(frozen=True)
class Event:
    """One of the page's events, as /config describes it: number, name, the inputs' components, and its senders."""

    number: int
    name: str
    targets: tuple[tuple[int | None, str], ...]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[int, ...]
    queued: bool

    @property
    def types(self) -> tuple[str, ...]:
        """The kinds of the inputs' components, such as "textbox"."""
        return tuple(component["type"] for component in self.inputs)

    @property
    def handler(self) -> str:
        """The name without the number that distinguishes several uses of one handler."""
        stem, _, number = self.name.rpartition("_")
        return stem if stem and number.isdecimal() else self.name

    def values(self) -> list[Any]:
        """What an unchanged page sends; a state's value stays on the server."""
        return [None if part["type"] == "state" else part["props"].get("value") for part in self.inputs]


class PageEvents:
    """All events of a page that call the server."""

    def __init__(self, config: dict[str, Any]):
        parts = {part["id"]: part for part in config["components"]}
        self.all = tuple(
            Event(
                number=entry["id"],
                name=str(entry["api_name"]),
                targets=tuple((target, kind) for target, kind in entry["targets"]),
                inputs=tuple(parts[number] for number in entry["inputs"]),
                outputs=tuple(entry["outputs"]),
                queued=entry["queue"] is not False,
            )
            for entry in config["dependencies"]
            if entry["backend_fn"]
        )

    def named(self, name: str, takes: str = "") -> Event:
        """The event of this name, or the first one whose handler has it and that takes a component of this kind."""
        if not takes:
            return next(event for event in self.all if event.name == name)
        return next(event for event in self.all if event.handler == name and takes in event.types)


NO_EVENTS = PageEvents({"components": [], "dependencies": []})
"""For visitors who only call the page's interface for programs."""


def read_events(client: httpx.Client) -> PageEvents:
    return PageEvents(client.get("/config").raise_for_status().json())


def client_of(url: str, kept_alive: int = 8) -> httpx.Client:
    """One visitor's client: has its own cookies, reaches only this machine, keeps up to `kept_alive` idle
    connections."""
    host = httpx.URL(url).host
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"These visitors reach only this machine, got {host}. Use 127.0.0.1.")
    limits = httpx.Limits(max_keepalive_connections=kept_alive)
    # Skips reading certificates, which takes 20 ms: this is plain HTTP on one machine.
    return httpx.Client(base_url=url, timeout=httpx.Timeout(30.0), limits=limits, trust_env=False, verify=False)


class Visitor:
    """One open page: a session with its heartbeat, uploads and events."""

    def __init__(self, url: str, events: PageEvents | None = None, kept_alive: int = 8):
        self.client = client_of(url, kept_alive)
        self.events = read_events(self.client) if events is None else events
        self.session = uuid.uuid4().hex[:12]

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def upload(self, name: str, data: bytes, kind: str = "image/png") -> dict[str, Any]:
        """Uploads a file; returns its description as the composer holds it. Raises httpx.HTTPError."""
        answer = self.client.post(f"{API}/upload", params={"upload_id": new_id()}, files={"files": (name, data, kind)})
        return description(answer.raise_for_status().json()[0], name, len(data), kind)

    def ask(self, text: str, files: list[dict[str, Any]] | None = None, longest: int = 16) -> list[dict[str, Any]]:
        """Sends a question from the composer; returns the server's messages about it."""
        return list(self.asking(text, files, longest))

    def asking(
        self, text: str, files: list[dict[str, Any]] | None = None, longest: int = 16
    ) -> Iterator[dict[str, Any]]:
        event = self.events.named("send")
        data = changed(event, {"multimodaltextbox": {"text": text, "files": files or []}, "Longest answer": longest})
        return self.call(event, data)

    def ask_by_name(self, question: str, files: list[dict[str, Any]], longest: int = 16) -> tuple[str, Any]:
        """Asks `/ask` as programs do; returns "complete" with answer and figures, or "error" with its message.

        Raises httpx.HTTPError if the server refuses the call.
        """
        for kind, said in self.asking_by_name(question, files, longest):
            if kind in ("complete", "error"):
                return kind, said.get("error") if isinstance(said, dict) else said
        return "nothing", None

    def asking_by_name(
        self, question: str, files: list[dict[str, Any]], longest: int = 16
    ) -> Iterator[tuple[str, Any]]:
        """Asks `/ask`; yields the kind and the data of each message. Raises httpx.HTTPError."""
        data = [files, question, "", False, None, longest, 0.0, 0]
        joined = self.client.post(f"{API}/call/ask", json={"data": data}).raise_for_status()
        kind, end = "", time.monotonic() + LONGEST_S
        with self.client.stream("GET", f"{API}/call/ask/{joined.json()['event_id']}") as stream:
            for line in stream.iter_lines():
                name, _, value = line.partition(": ")
                kind = value if name == "event" else kind
                if name == "data":
                    yield kind, json.loads(value)
                if time.monotonic() > end:
                    break

    def call(self, event: Event, data: list[Any] | None = None, event_data: Any = None) -> Iterator[dict[str, Any]]:
        """Yields the server's messages about one event, to its end. Raises httpx.HTTPError if the server refuses the
        call."""
        body = {
            "data": event.values() if data is None else data,
            "fn_index": event.number,
            "trigger_id": next((target for target, _ in event.targets if target is not None), None),
            "session_hash": self.session,
            "event_data": event_data,
        }
        if not event.queued:
            yield self.client.post(f"{API}/run/predict", json=body).raise_for_status().json()
            return
        self.client.post(f"{API}/queue/join", json=body).raise_for_status()
        yield from self.messages()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yields the session's event stream until the server closes it or LONGEST_S is over."""
        end = time.monotonic() + LONGEST_S
        with self.client.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            for message in messages_in(stream.iter_lines()):
                yield message
                if message["msg"] == "close_stream" or time.monotonic() > end:
                    return

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Keeps the session open as an open page does; leaving the block leaves the page."""
        with self.client.stream("GET", f"{API}/heartbeat/{self.session}", timeout=LONGEST_S) as stream:
            beats = stream.iter_raw()  # held until the end, since dropping it closes the connection
            next(beats)
            yield
            del beats


def messages_in(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The messages of an event stream."""
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def succeeded(messages: list[dict[str, Any]]) -> bool:
    """Whether the handler completed the event. (The chat may still have refused a question.)"""
    return any(message["msg"] == "process_completed" and message["success"] for message in messages)


def answered(messages: list[dict[str, Any]]) -> bool:
    """Whether a question got an answer: the page shows figures below each complete one."""
    shown = [message["output"] for message in messages if message["msg"] == "process_generating"]
    return succeeded(messages) and any('class=\\"figures\\"' in json.dumps(update) for update in shown)


def changed(event: Event, values: dict[str, Any]) -> list[Any]:
    """The event's values, with new ones for components of these kinds or labels. Raises KeyError if there is none."""
    data = event.values()
    for key, value in values.items():
        places = [place for place, part in enumerate(event.inputs) if key in (part["type"], part["props"].get("label"))]
        if not places:
            raise KeyError(f"{event.name} has no input {key}")
        data[places[0]] = value
    return data


def description(path: str, name: str, size: int, kind: str = "image/png") -> dict[str, Any]:
    """An uploaded file as the page sends it with a question."""
    return {
        "path": path,
        "url": None,
        "orig_name": name,
        "size": size,
        "mime_type": kind,
        "meta": {"_type": "gradio.FileData"},
    }


def new_id() -> str:
    return uuid.uuid4().hex[:12]
