"""The bytes behind a picture's http(s) address: public hosts only, bounded in size and time."""

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin, urlsplit

from gemma3_core.errors import ImageError
from gemma3_core.images.limits import DEFAULT_LIMITS, ImageLimits, check_bytes


def fetch_image(url: str, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Downloads a picture from a public http(s) address and checks each redirect. Raises ImageError."""
    with ThreadPoolExecutor(1) as pool:  # a thread of its own: the caller may be inside an event loop
        return pool.submit(lambda: asyncio.run(_fetch(url, limits))).result()


async def _fetch(url: str, limits: ImageLimits) -> bytes:
    import httpx

    host = "the address"
    try:
        host = urlsplit(url).hostname or host
        async with asyncio.timeout(limits.timeout):
            return await _follow(url, limits)
    except ImageError:
        raise
    except TimeoutError:
        advice = "Download it yourself and add it as a file."
        raise ImageError(f"{host} did not send the picture within {limits.timeout:g} s. {advice}") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        advice = "Check the address, or add the picture as a file."
        raise ImageError(f"The picture could not be fetched from {host}. {advice}") from error


async def _follow(url: str, limits: ImageLimits) -> bytes:
    for _ in range(limits.max_redirects + 1):
        body, url = await _request(url, limits)
        if body is not None:
            return body
    raise ImageError(f"The address leads through more than {limits.max_redirects} redirects; give the last one.")


async def _request(url: str, limits: ImageLimits) -> tuple[bytes | None, str]:
    """The body and its address; for a redirect None and the next address."""
    import httpx
    from safehttpx import AsyncSecureTransport

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageError("The address is not an http or https address; give one, or add the picture as a file.")
    transport = AsyncSecureTransport(await _public_address(parts.hostname))
    headers = {"Accept": "image/*", "Accept-Encoding": "identity"}  # a compressed body could unpack to any size
    client = httpx.AsyncClient(transport=transport, trust_env=False, timeout=limits.timeout, headers=headers)
    async with client, client.stream("GET", url) as response:
        if response.has_redirect_location:
            return None, urljoin(url, response.headers["location"])
        if response.status_code != 200:
            status = response.status_code
            raise ImageError(f"{parts.hostname} answered {status} instead of a picture. Check the address.")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            check_bytes(len(body), limits)
        return bytes(body), url


async def _public_address(host: str) -> str:
    """A public IP address of the host, which is then the one that is connected to: a visitor must not reach the
    server's own network through a picture's address. Raises ValueError if there is none, and OSError.

    safehttpx's own look-up is not used: it keeps tasks that belong to another fetch's event loop, and asks a resolver
    on the net about names of the server's own network.
    """
    from safehttpx import is_public_ip

    for *_, place in await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM):
        address = str(place[0])
        if is_public_ip(address) and ipaddress.ip_address(address).is_global:
            return address
    raise ValueError(f"{host} is not a public address")
