"""The replicas as a Serve application; `serve deploy` imports this by name."""

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from gemma3_core.replicas.options import DEPLOYMENT, ReplicaOptions
from gemma3_core.replicas.replica import Replica


def application(args: Mapping[str, Any]) -> Application:
    """Builds the application of a file for `serve deploy`; its own options replace the deployment's."""
    return built(ReplicaOptions(models=args.get("models", {}), threads=args.get("threads")))


def built(options: ReplicaOptions) -> Application:
    """The application with all of the options."""
    deployment = serve.deployment(name=DEPLOYMENT, **options.deployment)(Replica)
    return deployment.bind(**options.arguments)  # type: ignore[no-any-return]
