"""Who may see the machine's models and start downloads: whoever started the program, at this machine's own address."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from components.serving.callers import is_from_here
from gemma3_core.engine import Gemma3Error

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


def is_owner(request: gr.Request) -> bool:
    """Whether a browser of this machine asks.

    The page is built with its models only where the program serves this machine alone; this is the second look.
    """
    return request.request is not None and is_from_here(request.request.scope)


def require_owner(request: gr.Request) -> None:
    """Raises Gemma3Error unless `is_owner`."""
    if not is_owner(request):
        raise Gemma3Error(NOT_YOURS)
