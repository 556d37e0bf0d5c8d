"""Who asks: the address as far as the server can tell, and whether it is this machine's own."""

import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from starlette.types import Scope

PROXY_HEADERS = frozenset(("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"))
"""What a proxy or a tunnel adds to the requests of others; from some the server takes the caller's address."""
_NETWORK = 64  # bits of an IPv6 address; a visitor has all addresses behind them
_MARK = "x-asked-by"

Door = Literal["page", "ask", "mcp", "v1"]


@dataclass(frozen=True)
class Caller:
    """Who asks a question, and at which door: the page, `/ask`, the MCP tool, or OpenAI's interface.

    `address` is empty where a proxy that nobody named stands between. `window` is the browser window or a program's
    session, which its caller chose. `key` is the number of the API key.
    """

    door: Door
    address: str = ""
    window: str = ""
    key: int | None = None

    @property
    def visitor(self) -> str:
        """Whose questions count together: an API key's, an address's, or else a window's."""
        if self.key is not None:
            return f"key {self.key}"
        if self.address:
            return f"address {_network(self.address)}"
        return f"window {self.window}" if self.window else f"{self.door} behind a proxy"


class Callers:
    """Finds out who asks.

    Unless it `knows_addresses`, a request with a proxy's headers has no address: whoever sent it may have written them.
    """

    def __init__(self, knows_addresses: bool = False):
        self._knows_addresses = knows_addresses
        self._secret = secrets.token_hex(16)

    def address(self, headers: Mapping[str, str], client: str) -> str:
        """The caller's address; empty if it isn't known. `client` is the address that the server tells."""
        return client if self._knows_addresses or not PROXY_HEADERS.intersection(headers) else ""

    def of(self, request: Any) -> Caller:
        """Who asks `/ask`, by a gr.Request that has passed the gate; the MCP tool comes there too."""
        window, mark = request.session_hash or "", dict(request.headers).get(_MARK)
        if mark is not None:
            return Caller("mcp", mark.partition(" ")[2])
        return Caller("ask", self._address_of(request), window)

    def of_page(self, request: Any) -> Caller:
        """Who asks on the page, by a gr.Request."""
        return Caller("page", self._address_of(request), request.session_hash or "")

    def _address_of(self, request: Any) -> str:
        client = getattr(request, "client", None)  # a call that came by no connection has none
        return "" if client is None else self.address(dict(request.headers), client.host or "")

    def marked(self, scope: Scope) -> Scope:
        """The request with a header that says who sent it.

        Gradio's MCP server sends a program's call to this server again, with its headers but from its own address.
        """
        address = self.address(headers_of(scope), (scope.get("client") or ("",))[0])
        return {**scope, "headers": [*scope["headers"], (_MARK.encode(), f"{self._secret} {address}".encode())]}

    def checked(self, scope: Scope) -> Scope:
        """The request without such a header, unless it is `marked`'s own."""
        kept = [(name, value) for name, value in scope["headers"] if name != _MARK.encode() or self._is_own(value)]
        return scope if len(kept) == len(scope["headers"]) else {**scope, "headers": kept}

    def _is_own(self, mark: bytes) -> bool:
        return hmac.compare_digest(mark.partition(b" ")[0], self._secret.encode())


def headers_of(scope: Scope) -> dict[str, str]:
    """The request's headers by their names in small letters."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def is_from_here(scope: Scope) -> bool:
    """Whether a program of this machine asks, by this machine's own address and with no one between.

    The check of the Host header stops DNS rebinding, where another site's name leads here. nginx adds no headers unless
    it is told to, but speaks HTTP 1.0.
    """
    headers, address = headers_of(scope), (scope.get("client") or ("",))[0]
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    has_proxy = scope.get("http_version") == "1.0" or PROXY_HEADERS.intersection(headers)
    return not has_proxy and is_loopback(name) and is_loopback(address)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _network(address: str) -> str:
    """An address, or the network of an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # such as a socket's
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.ip_network((ip, _NETWORK), strict=False))
    return str(ip)
