"""Whether a request comes from this machine, as far as the server can tell."""

import ipaddress
from collections.abc import Mapping

PROXY_HEADERS = frozenset(("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"))
"""What a proxy or a tunnel adds to the requests of others; from some the server takes the caller's address."""


def is_from_here(headers: Mapping[str, str], address: str) -> bool:
    """Whether a program of this machine asks, by this machine's own address and with no one between.

    The address by which it asks (the Host header) tells another site's page apart whose name leads here. Names of
    `headers` are in small letters.
    """
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return not PROXY_HEADERS.intersection(headers) and is_loopback(name) and is_loopback(address)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
