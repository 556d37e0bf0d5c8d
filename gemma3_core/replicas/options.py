"""How many replicas there are, what each holds, and the same as files for `serve deploy` and for KubeRay."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from gemma3_core.errors import UnsupportedOptionError

APPLICATION, DEPLOYMENT = "gemma3", "Engine"
"""The names under which Serve knows the replicas."""
IMPORT_PATH = "gemma3_core.replicas.deployment:application"
DRAIN_S = 60
"""How long a front page that is told to end waits for its running answers."""
LONGEST_ANSWER_S = 600
"""How long a replica that is replaced finishes its answers."""
RAY_VERSION = "2.60.0"
GCS_PORT, AGENT_PORT = 6379, 52365
"""Where a head node, and every node, can be seen to live: Ray's own defaults."""
TOKEN_SECRET = "gemma3-ray"
"""The Kubernetes Secret whose `auth_token` lets programs into the cluster: whoever has it may run code there."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 3.0
"""How often Serve asks a replica whether it works, and how long it waits. After three silent checks in a row, 11 s at
most, another one is started in its place. One that is only busy answers: its check runs between other threads' work,
and none of ours holds the interpreter for so long (tests/replicas/test_replica.py). Reading a tokenizer of 262,144
tokens comes near it, and on a busy machine may cost a check (tests/real/test_published.py)."""
_BESIDE_ANSWERS = 64
"""Calls that a replica accepts beside its answers: its own queue orders what waits there."""
_BUSY = 0.75
"""The share of a replica's answers at once that autoscaling aims at, so that there is room until another one starts."""


@dataclass(frozen=True)
class ReplicaOptions:
    """What is started. `models` are the arguments of `ModelRegistry.load` in each replica, in JSON's types.

    With `min_replicas` or `max_replicas` their number follows the running answers; `replicas` is where it starts. A
    replica has one process, or as many as share its model ("tensor_parallel"). Each process has `cpus` and `gpus` of
    Ray's counts to itself (no `gpus` named: one where Ray finds some and the models may use them, which `printed` can't
    look for); the replica has `threads` for its passes (None: its share of this machine's, or torch's choice).
    `address` is a cluster's, or None for a Ray of our own on this machine. Raises UnsupportedOptionError for numbers
    that exclude one another.
    """

    models: Mapping[str, Any] = field(default_factory=dict)
    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
    threads: int | None = None
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.first <= self.most:
            raise UnsupportedOptionError(
                f"--min-replicas ({self.fewest}), --replicas ({self.first}) and --max-replicas ({self.most}) must not "
                "become smaller from one to the next, and must be 1 or more. Change one of them."
            )
        if self.processes > 1 and any(self.models.get(name) for name in ("also", "adapters", "int4")):
            raise UnsupportedOptionError(
                "With --tensor-parallel several devices share one model in full precision. Leave out --also, --adapter "
                "and --int4, or that."
            )

    @property
    def fewest(self) -> int:
        return self.min_replicas or min(self.replicas or 1, self.max_replicas or self.replicas or 1)

    @property
    def first(self) -> int:
        return self.replicas or self.fewest

    @property
    def most(self) -> int:
        return self.max_replicas or max(self.first, self.fewest)

    @property
    def scales(self) -> bool:
        return self.fewest != self.most

    @property
    def processes(self) -> int:
        """Those of one replica, which share its model."""
        return int(self.models.get("tensor_parallel", 1))

    @property
    def at_once(self) -> int:
        """Questions that one replica answers at once."""
        return int(self.models.get("at_once", 8))

    def settled(self, has_gpus: bool, cores: int | None) -> "ReplicaOptions":
        """With what the options leave open; `cores` are this machine's, or None on a cluster."""
        device = self.models.get("device", "auto")
        gpus = float(device == "cuda" or (has_gpus and device == "auto")) if self.gpus is None else self.gpus
        threads = self.threads or (None if cores is None else max(1, cores // self.most))
        return replace(self, gpus=gpus, threads=threads)

    @property
    def arguments(self) -> dict[str, Any]:
        """What each replica is built from."""
        return {"models": dict(self.models), "threads": self.threads}

    @property
    def number(self) -> dict[str, Any]:
        """The deployment's options that say how many replicas there are."""
        if not self.scales:
            return {"num_replicas": self.first}
        scaling = {
            "min_replicas": self.fewest,
            "initial_replicas": self.first,
            "max_replicas": self.most,
            "target_ongoing_requests": max(1.0, _BUSY * self.at_once),
            "upscale_delay_s": self.upscale_delay_s,
            "downscale_delay_s": self.downscale_delay_s,
            "metrics_interval_s": min(2.0, self.upscale_delay_s),
            "look_back_period_s": min(10.0, max(2.0, self.upscale_delay_s)),
        }
        return {"num_replicas": "auto", "autoscaling_config": scaling}

    @property
    def deployment(self) -> dict[str, Any]:
        """The deployment's options, as `serve.deployment` and the file for `serve deploy` take them.

        A replica that doesn't answer three health checks is replaced.
        """
        resources = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        bundle = {name: count for name, count in (("CPU", self.cpus), ("GPU", self.gpus)) if count}
        # All on one machine where there is room: their sums go over its links.
        several = {"placement_group_bundles": [bundle] * self.processes, "placement_group_strategy": "PACK"}
        return {
            **self.number,
            **(several if self.processes > 1 else {}),
            "max_ongoing_requests": self.at_once + _BESIDE_ANSWERS,
            "ray_actor_options": {name: count for name, count in resources.items() if count},
            "graceful_shutdown_timeout_s": LONGEST_ANSWER_S,
            "graceful_shutdown_wait_loop_s": 1.0,
            "health_check_period_s": HEALTH_PERIOD_S,
            "health_check_timeout_s": HEALTH_TIMEOUT_S,
            "request_router_config": {
                "request_router_class": "gemma3_core.replicas.router.VisitorRouter",
                "request_router_kwargs": {"at_once": self.at_once},
                "request_routing_stats_period_s": 2.0,
                "request_routing_stats_timeout_s": 30.0,
            },
        }


RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A replica that hangs can't finish anything: it is ended at once, and not after its longest answer.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # Ray's own is 15, as for work in the background: replicas, and Serve's controller, which looks after them, would
    # wait for whatever else the machine does.
    "RAY_worker_niceness": "0",
}
"""What Ray's own processes must find in their environment; see docs/serving.md."""


def serve_config(options: ReplicaOptions) -> dict[str, Any]:
    """The file for `serve deploy`. Raises UnsupportedOptionError if the replicas' options are not JSON's types."""
    _check_portable(options)
    return {
        "proxy_location": "Disabled",  # visitors come through the page in front
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": None,
                "import_path": IMPORT_PATH,
                "args": options.arguments,
                "deployments": [{"name": DEPLOYMENT, **options.deployment}],
            }
        ],
    }


def printed(options: ReplicaOptions, kind: str) -> str:
    """YAML for `serve deploy` ("serve") or `kubectl apply` ("kuberay"). Raises what `serve_config` raises."""
    options = options.settled(has_gpus=False, cores=None)
    documents = [serve_config(options)] if kind == "serve" else kuberay_manifest(options)
    return _yaml(*documents)


def kuberay_manifest(options: ReplicaOptions, image: str = "gemma3:latest") -> list[dict[str, Any]]:
    """A RayService with the replicas, one worker each, and a Deployment and a Service of the pages in front.

    `image` holds this repository and its requirements at /app. The pages run two at a time, and a Service that keeps a
    visitor at one of them by address stands before them. Options of the page itself (a login, limits, keys) are not in
    it.
    """
    environment = [{"name": name, "value": value} for name, value in RAY_ENVIRONMENT.items()]
    limits: dict[str, Any] = {"cpu": str(max(1, round(options.cpus * options.processes))), "memory": "16Gi"}
    if options.gpus:
        limits["nvidia.com/gpu"] = str(max(1, round(options.gpus * options.processes)))
    container = {"image": image, "env": environment, "workingDir": "/app"}

    def pod(name: str, resources: dict[str, Any], port: int) -> dict[str, Any]:
        # Without probes of its own, KubeRay asks with wget, which the image lacks, and asks workers for Serve's proxy.
        probe = {"tcpSocket": {"port": port}, "periodSeconds": 5, "failureThreshold": 24}
        probes = {"readinessProbe": probe, "livenessProbe": probe}
        resourced = {**container, "resources": {"limits": resources, "requests": resources}, **probes}
        spec = {
            "terminationGracePeriodSeconds": LONGEST_ANSWER_S,
            "containers": [{"name": name, **resourced}],
        }
        return {"spec": spec}

    cluster: dict[str, Any] = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token", "secretName": TOKEN_SECRET},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": pod("ray-head", {"cpu": "2", "memory": "8Gi"}, GCS_PORT),
        },
        "workerGroupSpecs": [
            {
                "groupName": "engines",
                "replicas": options.first,
                "minReplicas": options.fewest,
                "maxReplicas": options.most,
                "rayStartParams": {},
                "template": pod("ray-worker", limits, AGENT_PORT),
            }
        ],
    }
    if options.scales:
        cluster["enableInTreeAutoscaling"] = True
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": APPLICATION},
        "spec": {"serveConfigV2": _yaml(serve_config(options)), "rayClusterConfig": cluster},
    }
    return [service, *_pages(options, container)]


def _pages(options: ReplicaOptions, container: dict[str, Any]) -> list[dict[str, Any]]:
    """The pages in front: each joins the cluster as a node without resources, and ends after its answers have."""
    labels = {"app": f"{APPLICATION}-page"}
    head = f"{APPLICATION}-head-svc:{GCS_PORT}"
    command = (
        f"ray start --address={head} --num-cpus=0 --num-gpus=0 && "
        f"exec python app.py --ray auto --host 0.0.0.0 --port 7860 --drain-seconds {DRAIN_S:.0f} {_flags(options)}"
    )
    key = {"secretKeyRef": {"name": TOKEN_SECRET, "key": "auth_token"}}
    token = [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": key}]
    page = {
        "name": "page",
        **container,
        "env": [*container["env"], *token],
        "command": ["bash", "-c", command.rstrip()],
        "ports": [{"containerPort": 7860}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 7860}, "periodSeconds": 5},
    }
    spec = {"terminationGracePeriodSeconds": DRAIN_S + 30, "containers": [page]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": labels["app"]},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
    sticky = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}
    front = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": labels["app"]},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 7860}], **sticky},
    }
    return [deployment, front]


def _flags(options: ReplicaOptions) -> str:
    """The models' options as the page in front must be given them too."""
    flags = []
    for name, value in options.models.items():
        flag = f"--{ {'adapters': 'adapter'}.get(name, name).replace('_', '-') }"
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is True:
                flags.append(flag)
            elif one is not None and one is not False:
                flags.append(f"{flag} {shlex.quote(str(one))}")
    return " ".join(flags)


class _Written(yaml.SafeDumper):
    """Writes what occurs twice twice, and text of several lines as lines."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Written.add_representer(str, _text)


def _yaml(*documents: Any) -> str:
    return yaml.dump_all(documents, Dumper=_Written, sort_keys=False, width=120)


def _check_portable(options: ReplicaOptions) -> None:
    try:
        json.dumps(options.arguments)
    except TypeError as error:
        raise UnsupportedOptionError(f"A replica's options must be text and numbers: {error}. Change them.") from None
