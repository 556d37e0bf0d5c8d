"""`--mcp`: the question as a tool for other programs, asked by the protocol's own client."""

import asyncio
import base64
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from places import REPOSITORY
from running_app import running_app

from components.endpoint import AskEndpoint
from components.serving.gate import MAX_BODY_BYTES
from components.serving.tool import ARGUMENTS, MISSING, prepare_tool
from gemma3_core.engine import Gemma3Error

EXAMPLES = REPOSITORY / "assets" / "examples"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_app("--mcp") as url:
        yield f"{url}/gradio_api/mcp"


def data_url(name: str) -> str:
    return f"data:image/png;base64,{base64.b64encode((EXAMPLES / name).read_bytes()).decode()}"


def called(address: str, *calls: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """The names of all tools, and the results of calling `ask`."""

    async def session() -> tuple[list[str], list[Any]]:
        async with streamable_http_client(f"{address}/") as (read, write, _), ClientSession(read, write) as client:
            await client.initialize()
            names = [tool.name for tool in (await client.list_tools()).tools]
            return names, [await client.call_tool("ask", call) for call in calls]

    return asyncio.run(session())


def test_ask_is_the_only_tool_and_answers_about_pictures(address):
    pictures = [data_url("blue.png"), data_url("night.png")]
    names, (one, two) = called(
        address,
        {"images": pictures[:1], "question": "How many shapes are there?"},
        {"images": pictures, "question": "What color is the star in the second picture?", "max_new_tokens": 20},
    )
    assert names == ["ask"]
    assert not one.isError
    assert "three" in one.content[0].text
    assert "'num_images': 2" in two.content[0].text


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ({"path": str(EXAMPLES / "blue.png"), "meta": {"_type": "gradio.FileData"}}, "is not of type 'string'"),
        (str(EXAMPLES / "blue.png"), "neither base64"),
        ("http://127.0.0.1/picture.png", "could not be fetched"),
    ],
)
def test_no_file_of_the_server_and_no_private_address_is_read(address, image, says):
    _, (refused,) = called(address, {"images": [image], "question": "What is this?"})
    assert refused.isError
    assert says in refused.content[0].text
    assert str(REPOSITORY) not in refused.content[0].text.replace(str(image), "")


def test_nothing_else_of_the_server_is_open(address):
    assert [httpx.request(method, f"{address}/").status_code for method in ("GET", "DELETE")] == [405, 405]
    for path in ("sse", "messages/", "http", "schema/x"):
        assert httpx.post(f"{address}/{path}", json={}).status_code == 404
    assert httpx.post(f"{address}/", content=b"{" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert httpx.post(f"{address}/", content=b"[").status_code == 400
    assert [tool["name"] for tool in httpx.get(f"{address}/schema").json()] == ["ask"]


def test_the_tools_arguments_are_those_of_ask():
    assert list(ARGUMENTS) == list(inspect.signature(AskEndpoint.ask).parameters)[2:]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.delitem(sys.modules, "mcp.server", raising=False)
    monkeypatch.delitem(sys.modules, "gradio.mcp", raising=False)
    with pytest.raises(Gemma3Error, match=r"requirements/mcp\.txt"):
        prepare_tool()
    file = MISSING.rpartition(" ")[2]
    assert (REPOSITORY / file).is_file()
