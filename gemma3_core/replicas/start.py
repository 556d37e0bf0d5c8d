"""Starts replicas, or finds those that run, and gives the registry that a page is built from."""

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gemma3_core.engine.registry import ModelEntry, ModelRegistry
from gemma3_core.errors import CheckpointError, ReplicaLostError, UnsupportedOptionError
from gemma3_core.replicas.options import APPLICATION, DEPLOYMENT, DRAIN_S, RAY_ENVIRONMENT, ReplicaOptions
from gemma3_core.replicas.replica import OTHER_VERSION
from gemma3_core.replicas.wire import Description, program_version

if TYPE_CHECKING:
    from gemma3_core.replicas.fleet import Fleet

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 200_000_000
"""For a Ray that we start. Questions and answers do not pass through its store; the rest is Ray's own small objects."""
NO_RAY = "Replicas need Ray, which is not installed. Install it with `pip install -r requirements/ray.txt`."


class RemoteRegistry(ModelRegistry):
    """The models of a fleet, by name, for the page in front."""

    fleet: "Fleet"

    def drain(self, seconds: float = DRAIN_S) -> bool:
        """Takes no further question and waits for the running ones; False if some are left."""
        return self.fleet.drain(seconds)

    def evict(self) -> None:
        self.fleet.tell_all("evict")


@contextmanager
def replicas(options: ReplicaOptions) -> Iterator[RemoteRegistry]:
    """The registry of replicas that run while the block does, or that were there before and stay.

    Without `address` they run on this machine, in a Ray of our own, which ends with the block. On a cluster an
    application that is deployed is used as it is; otherwise it is deployed now, and stays. Raises
    UnsupportedOptionError where Ray is missing, of another version, or can't be reached, or where the deployed replicas
    hold other models, and what loading a model raises.
    """
    require_ray()
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    handler = signal.getsignal(signal.SIGTERM)
    _join(options)
    try:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        registry = _registry(options.settled(has_gpus, os.cpu_count() if options.address is None else None))
        try:
            yield registry
        finally:
            registry.fleet.close()
    finally:
        if options.address is None:
            serve.shutdown()
        ray.shutdown()


def require_ray() -> None:
    """Raises UnsupportedOptionError where Ray is not installed."""
    if find_spec("ray") is None or find_spec("ray.serve") is None:
        raise UnsupportedOptionError(NO_RAY)


def _join(options: ReplicaOptions) -> None:
    os.environ.update({name: os.environ.get(name, value) for name, value in RAY_ENVIRONMENT.items()})
    import ray

    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    if options.address is None:
        num_cpus = math.ceil(
            options.cpus * options.processes * (options.most + 1)
        )  # one more while replicas are replaced
        ray.init("local", num_cpus=num_cpus, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        return
    try:
        ray.init(options.address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UnsupportedOptionError(
            f"There is no Ray cluster at {options.address} ({str(error).splitlines()[0][:200]}). Start one, or check "
            "the address."
        ) from None
    except RuntimeError as error:
        if "ersion" not in str(error):
            raise
        first = " ".join(str(error).split())[:300]
        raise UnsupportedOptionError(f"The cluster runs another Ray or Python ({first}). Install the same.") from None


def _registry(options: ReplicaOptions) -> RemoteRegistry:
    from ray import serve

    from gemma3_core.replicas.fleet import Fleet

    serve.start(proxy_location="Disabled")
    is_ours = APPLICATION not in serve.status().applications
    handle = _deployed(options) if is_ours else serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    told: Description = handle.describe.remote().result(timeout_s=600)
    if told.version != program_version():
        raise UnsupportedOptionError(OTHER_VERSION)
    if told.models != dict(options.models):
        raise UnsupportedOptionError(
            f"The replicas that are deployed there hold {told.infos[0].name} with other options than this page's. "
            "Start the page with the same ones, or deploy replicas with these."
        )
    fleet = Fleet(handle, options.at_once, replica_count)
    return _registry_of(fleet, told)


def _registry_of(fleet: "Fleet", told: Description) -> RemoteRegistry:
    from gemma3_core.replicas.remote import RemoteEngine

    first, *beside = [RemoteEngine(fleet, info) for info in told.infos]

    def load(entry: ModelEntry) -> RemoteEngine:
        for info in fleet.values("prepared", entry.name):
            return RemoteEngine(fleet, info)
        raise ReplicaLostError("A replica could not say what it loaded. Ask again.")

    registry = RemoteRegistry(first, told.entries, load, max(1, len(told.entries)), beside)
    registry.fleet = fleet
    return registry


def _deployed(options: ReplicaOptions) -> Any:
    """Deploys the application and waits until a replica runs. Raises CheckpointError with the reason it can't."""
    from ray import serve

    from gemma3_core.replicas.deployment import built

    _check_models(options)
    _check_room(options)
    try:
        serve.run(built(options), name=APPLICATION, route_prefix=None)
    except RuntimeError:
        told = serve.status().applications.get(APPLICATION)
        deployment = None if told is None else told.deployments.get(DEPLOYMENT)
        reason = "" if deployment is None else deployment.message
        raise CheckpointError(f"The replicas could not be started: {_last_line(reason)}") from None
    return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)


def _check_models(options: ReplicaOptions) -> None:
    """Raises what a wrong source would raise in each replica, where it is looked up on this machine anyway."""
    from gemma3_core.engine.registry import entries_of

    if options.address is None:
        entries_of(options.models.get("also", ()), options.models.get("model"))


def _check_room(options: ReplicaOptions) -> None:
    """Raises UnsupportedOptionError if this machine can't hold the replicas, which Ray would wait for without end. A
    cluster may still grow, so there the log says so."""
    import ray

    there = ray.cluster_resources()
    for what, each in (("GPU", options.gpus), ("CPU", options.cpus)):
        wanted, have = options.first * options.processes * (each or 0.0), there.get(what, 0.0)
        if wanted > have + 1e-6:
            said = f"{options.first} replicas take {wanted:g} {what}s, and there are {have:g}."
            if options.address is None:
                raise UnsupportedOptionError(f"{said} Ask for fewer replicas, or for another --device.")
            logger.warning("%s They start once the cluster has more.", said)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "Ray does not say why. Look into its logs."


def replica_count() -> tuple[int, int]:
    """How many replicas are wanted, and how many run. Raises what Ray raises where its controller does not answer."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    deployment = None if application is None else application.deployments.get(DEPLOYMENT)
    if deployment is None:  # deleted, or its head node is new
        return 0, 0
    states = {str(getattr(state, "value", state)): count for state, count in deployment.replica_states.items()}
    running = states.get("RUNNING", 0)
    wanted = sum(count for state, count in states.items() if state not in ("STOPPING",))
    return max(wanted, running), running
