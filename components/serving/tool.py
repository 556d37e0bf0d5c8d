"""`/ask` as a tool for programs that speak the Model Context Protocol (`--mcp`), served by Gradio."""

from typing import Any

from gemma3_core.engine import Gemma3Error

MISSING = "--mcp needs a package that is not installed. Install it with: pip install -r requirements/mcp.txt"

ARGUMENTS: dict[str, dict[str, Any]] = {
    "images": {
        "type": "array",
        "items": {"type": "string"},
        "description": "The pictures: each an address (https://…) or a data URL (data:image/png;base64,…).",
    },
    "question": {"type": "string", "description": "What to answer about the pictures."},
    "system_prompt": {"type": "string", "description": "How to answer, for example in which language."},
    "pan_and_scan": {"type": "boolean", "description": "Reads crops of wide and tall pictures too, for small writing."},
    "int4": {"type": "boolean", "description": "Answers with 4-bit weights; otherwise as the server was started."},
    "max_new_tokens": {"type": "integer", "description": "The longest answer, in tokens.", "default": 256},
    "temperature": {"type": "number", "description": "0 always gives the likeliest answer.", "default": 0},
    "seed": {"type": "integer", "description": "Makes a sampled answer repeatable.", "default": 0},
    "crops": {
        "description": "Looks closer: “auto” cuts each picture evenly; or, for each picture, a list of boxes "
        "[left, top, right, bottom] in its pixels."
    },
    "json_schema": {"type": "string", "description": "A JSON schema as text, which the answer fits."},
}
"""JSON schemas of the tool's arguments, by name; `arguments.read_arguments` reads them."""


def prepare_tool() -> None:
    """Makes Gradio's MCP server describe the tool by ARGUMENTS; call it before the page is launched.

    Gradio's own schema of several files has a reference that leads nowhere, so that each call fails. It would also
    write data URLs to a folder that nothing bounds, and upload any file of this machine that an argument names as an
    object. Here a picture is text for the MCP package, which checks that, and goes on as it is. Raises Gemma3Error if
    the package is missing.
    """
    try:
        import gradio.mcp
        import mcp.server  # noqa: F401
    except ImportError:
        raise Gemma3Error(MISSING) from None
    gradio.mcp.GradioMCPServer.get_input_schema = input_schema  # type: ignore[method-assign]


def input_schema(
    self: Any,  # noqa: ARG001  a method of Gradio's server
    tool_name: str,  # noqa: ARG001
    parameters: dict[str, str] | None = None,  # noqa: ARG001
) -> tuple[dict[str, Any], list[list[str | int]]]:
    """As Gradio's method: the arguments' schema, and the places in it that hold files, which are none."""
    return {"type": "object", "properties": ARGUMENTS, "required": ["question"]}, []
