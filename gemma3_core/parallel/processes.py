"""The processes that share a model: how they are started, meet, load their shares, and end.

The first is whoever loads the model. It starts the others and listens for them at an address, by a key that only they
get; they end when it does.
"""

import logging
import os
import pickle
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import distributed

from gemma3_core.errors import CheckpointError, Gemma3Error, UnsupportedOptionError
from gemma3_core.files.hub import resolve_folder
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.models.weights import build_on_meta
from gemma3_core.parallel.layers import check_shares, tensor_parallel
from gemma3_core.parallel.passes import Exchange, Follower, Lead

logger = logging.getLogger(__name__)

JOIN_S = 180
"""A process that was started has so long to come."""
STUCK_S = {"nccl": 60, "gloo": 300}
"""A sum that takes longer is given up, and NCCL ends the process. On a CPU, a layer of a long prompt may take long."""
_TICK_S = 0.1
_HERE = "127.0.0.1"
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Seat:
    """What a process needs to hold share number `rank` of `size`: where the first one listens, by which `key`, where
    torch's processes find each other, and what it loads."""

    rank: int
    size: int
    address: tuple[str, int]
    key: bytes
    store: str | tuple[str, int]
    source: tuple[str, str | None]
    dtype: str
    device: str
    threads: int
    kind: Any
    """The model's class."""

    def join(self, store: "distributed.Store | None" = None) -> None:
        """Joins torch's group of processes, once all have come."""
        if store is None:
            if isinstance(self.store, str):
                store = distributed.FileStore(self.store, self.size)
            else:
                store = distributed.TCPStore(*self.store, self.size, is_master=False)
        backend = "nccl" if self.device == "cuda" else "gloo"
        longest = timedelta(seconds=STUCK_S[backend])
        distributed.init_process_group(backend, timeout=longest, world_size=self.size, rank=self.rank, store=store)

    def load(self, exchange: Exchange) -> Any:
        """The model with this process's share of its layers, on the device; all else is still on the CPU."""
        torch.set_num_threads(self.threads)
        folder = resolve_folder(self.source[0], mmproj=self.source[1])
        model = self.kind.from_pretrained(folder, dtype=self.dtype, device_map="cpu")
        tensor_parallel(model, self.rank, self.size, exchange.add_up, self.device)
        exchange.layers = len(model.decoder.layers)
        return model


class Started(Protocol):
    """A process that was started."""

    def poll(self) -> object:
        """None while it runs."""
        ...


class Starter(Protocol):
    """Starts the other processes, which call `follow`. `host` is the address at which they reach this one."""

    host: str

    def check(self, size: int, device: str) -> None:
        """Raises UnsupportedOptionError if there is no room for so many."""
        ...

    def __call__(self, seat: Seat) -> Started: ...


class LocalProcesses:
    """Processes on this machine, each with its own GPU, or its share of the cores."""

    host = _HERE

    def check(self, size: int, device: str) -> None:
        if device == "cuda" and (count := torch.cuda.device_count()) < size:
            raise UnsupportedOptionError(
                f"A model shared by {size} devices takes {size} GPUs, and there are {count}. Use a smaller number, or "
                "another --device."
            )

    def __call__(self, seat: Seat) -> Started:
        environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY)}
        if seat.device == "cuda":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(seat.size)))
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[seat.rank]
        program = f"from {__name__} import main; main()"
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, env=environment)
        assert process.stdin is not None
        with process.stdin as given:
            given.write(pickle.dumps(seat))
        return process


def load_shared(
    kind: Any,
    config: Any,
    dtype: str,
    device: torch.device,
    *,
    source: tuple[str, str | None],
    size: int,
    start: Starter,
) -> tuple[Any, Lead]:
    """A checkpoint's model that `size` processes share, and what leads the others; its class is `kind`. `source` is
    what each of them loads, and the file with its vision tower.

    Raises UnsupportedOptionError if it can't be shared out or there are too few devices, CheckpointError if a process
    doesn't come, and what loading raises.
    """
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedOptionError(f"Models are shared by GPUs of CUDA, or on a CPU; not on {device.type}.")
    if not distributed.is_available():
        raise UnsupportedOptionError("This build of torch has no torch.distributed. Install one that has it.")
    if distributed.is_initialized():
        raise UnsupportedOptionError("This process shares a model already. Close that one first.")
    check_shares(build_on_meta(lambda: kind(config)), size)
    start.check(size, device.type)
    threads = max(1, torch.get_num_threads() // size)
    key, exchange = secrets.token_bytes(32), Exchange()
    connections: list[Connection] = []
    place = tempfile.TemporaryDirectory()  # torch may look there later, too
    with Listener((start.host, 0), backlog=size, authkey=key) as listener:
        store, meeting = _store(start.host, size, Path(place.name))
        load = (source, dtype, device.type, threads, kind)
        seat = Seat(0, size, listener.address, key, meeting, *load)  # type: ignore[arg-type]
        started = [start(replace(seat, rank=rank)) for rank in range(1, size)]
        try:
            connections = _come(listener, started)
            seat.join(store)
            model = seat.load(exchange).to(device)
            for connection in connections:
                _raise_if_failed(connection)
            _meet(device.type)
        except BaseException:
            for connection in connections:
                connection.close()
            leave()
            raise
    lead = Lead(model.decoder, exchange, connections)
    lead.kept = (place, started)
    return model, lead


def leave() -> None:
    """Leaves torch's group of processes, so that another one may be joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _store(host: str, size: int, place: Path) -> "tuple[distributed.Store, str | tuple[str, int]]":
    """Where torch's processes find each other: in a file, or on other machines at a port of this one."""
    if host == _HERE:
        if sys.platform == "linux":  # or they listen where strangers may come
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(name, "lo")
        return distributed.FileStore(str(place / "store"), size), str(place / "store")
    store = distributed.TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
    return store, (host, store.port)


def _come(listener: Listener, started: Sequence[Started]) -> list[Connection]:
    """The other processes, in the order in which they come. Raises CheckpointError if one does not."""
    arrived: list[Connection] = []

    def accept() -> None:
        while len(arrived) < len(started):
            try:
                arrived.append(listener.accept())  # type: ignore[arg-type]
            except AuthenticationError:  # somebody else
                continue
            except OSError:  # closed: nobody waits any more
                return

    joining = threading.Thread(target=accept, name="joining", daemon=True)
    joining.start()
    end = time.monotonic() + JOIN_S
    while joining.is_alive() and time.monotonic() < end and not any(one.poll() is not None for one in started):
        joining.join(_TICK_S)
    if len(arrived) < len(started):
        for connection in arrived:
            connection.close()
        raise CheckpointError(
            f"{len(arrived)} of {len(started)} further processes that share the model have come. Look into the log "
            "for what they said, and start again."
        )
    return arrived


def _raise_if_failed(connection: Connection) -> None:
    """Waits until a follower has loaded its share."""
    try:
        error = pickle.loads(connection.recv_bytes())
    except EOFError:
        raise CheckpointError(
            "A process that shares the model ended while it loaded. Look into the log above."
        ) from None
    if error is not None:
        raise error


def _meet(device: str) -> None:
    """A first sum, for which NCCL connects the processes."""
    distributed.all_reduce(torch.zeros(1, device=device))


def follow(seat: Seat) -> None:
    """Holds a share and follows the first process's passes, until that one ends."""
    with Client(seat.address, authkey=seat.key) as connection:
        seat.join()
        try:
            exchange = Exchange()
            model = seat.load(exchange)
        except Gemma3Error as error:
            connection.send_bytes(pickle.dumps(error))
            return
        decoder = model.decoder
        del model, decoder.embed_tokens  # the first one's alone
        decoder.to(seat.device)
        if seat.device == "cpu":
            cpu_kernels.library()  # building them takes seconds, for which the first pass would wait
        connection.send_bytes(pickle.dumps(None))
        _meet(seat.device)
        try:
            Follower(decoder, exchange, connection, torch.device(seat.device)).follow()
        except EOFError:
            leave()


def main() -> None:
    """A process of LocalProcesses, whose seat comes by its input."""
    logging.basicConfig(format="%(message)s")
    for asked in (signal.SIGINT, signal.SIGTERM):  # the first process may still be answering; it ends this one
        signal.signal(asked, signal.SIG_IGN)
    follow(pickle.loads(sys.stdin.buffer.read()))
