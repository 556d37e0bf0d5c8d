"""Who may see the machine's models and start downloads: whoever started the program, at this machine's own address."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from gemma3_core.engine import Gemma3Error

_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""What a proxy or a tunnel adds to the requests of others."""
NOT_YOURS = "Only whoever started this program can see and load its machine's models, at the address 127.0.0.1."


@dataclass(frozen=True)
class Machine:
    """Where models are looked for, and for which device and precision they are counted.

    With `offers` the page offers to download Gemma 3 4B.
    """

    folders: Sequence[str | Path] = ()
    everywhere: bool = False
    device: str = "auto"
    dtype: str = "auto"
    offers: bool = False


def require_owner(request: gr.Request) -> None:
    """Raises Gemma3Error unless a browser of this machine asks, by this machine's own address and with no one between.

    The page is built with its models only where the program serves this machine alone; this is the second look.
    """
    headers = {name.lower() for name in request.headers}
    host = _without_port(request.headers.get("host", ""))
    client = request.client.host if request.client is not None else ""
    if headers.intersection(_FORWARDED) or not _is_here(host) or not _is_here(client):
        raise Gemma3Error(NOT_YOURS)


def _without_port(host: str) -> str:
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
