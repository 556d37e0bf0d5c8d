"""ZeroGPU, which lends GPUs to Spaces: its `spaces` package as the engine's lender, in plain sentences."""

import logging
import re
from collections.abc import Generator, Mapping
from typing import Any

import gradio as gr

from gemma3_core.engine import Gemma3Error, Lend

logger = logging.getLogger(__name__)

_QUOTA = re.compile(r"\((\d+)s requested vs\. (\d+)s left\)\. Try again in ([^.]+)\.")
_SENTENCES = {
    "gpu limit": "This Space has used up the GPU time that it gives to visitors without an account. Sign in to Hugging "
    "Face and open the Space there: then your own GPU time counts.",
    "runs limit": "You have used up your ZeroGPU runs for now. Try again later.",
    "pending": "Your other answers have all of your GPU time reserved. Wait until they are complete.",
    "credits allocated": "Your other answers have all of your GPU time reserved. Wait until they are complete.",
    "larger than the maximum": "This may take more GPU time than one call is given. Choose a shorter longest "
    "answer in the settings, or send fewer pictures.",
    "no gpu was available": "No GPU was free. Try again in a minute.",
    "proxy token": "This page has been open for too long. Reload it and ask again.",
    "task aborted": "The GPU was taken back before this was complete. Ask for a shorter answer, or try again.",
}
"""By a part of the package's messages, in small letters."""
_UNKNOWN = "ZeroGPU does not answer as it should. Try again in a minute."
_CLOSED = "Connection closed by visitor"


def is_zero_gpu(environment: Mapping[str, str]) -> bool:
    """Whether this process serves a ZeroGPU Space; its `spaces` package looks at the same variable."""
    return environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def lender() -> Lend:
    """The engine's lender. It must be asked for before a model is loaded: the package then pretends to torch that there
    is a GPU. Raises Gemma3Error without the package."""
    try:
        import spaces
    except ImportError:
        raise Gemma3Error(
            "SPACES_ZERO_GPU says that this is a ZeroGPU Space, but its package is missing. "
            "Install it with: pip install spaces"
        ) from None

    def lend(call: Any) -> Any:
        borrowed = spaces.GPU(call, duration=lambda _work, seconds: seconds)

        def plainly(work: bytes, seconds: int) -> Generator[Any]:
            try:
                yield from borrowed(work, seconds)
            except gr.Error as error:
                raise Gemma3Error(told(str(error.message))) from None
            except RuntimeError as error:
                if not str(error).startswith(_CLOSED):
                    raise
                raise Gemma3Error("The visitor left.") from None

        return plainly

    return lend


def told(message: str) -> str:
    """A message of the `spaces` package as a sentence that says what to do."""
    if found := _QUOTA.search(message):
        requested, left, when = found.groups()
        return (
            f"This may take {requested} s of GPU time, and you have {left} s left for today. Try again in "
            f"{_hours(when)}, or choose a shorter longest answer in the settings."
        )
    for part, sentence in _SENTENCES.items():
        if part in message.lower():
            return sentence
    logger.warning("ZeroGPU: %s", message)
    return _UNKNOWN


def _hours(duration: str) -> str:
    """A timedelta's text ("5:03:20", "1 day, 5:03:20") in hours and minutes."""
    found = re.fullmatch(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", duration)
    if found is None:
        return duration
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    total = (24 * days + hours) * 60 + minutes + (seconds > 0)
    hours, minutes = divmod(total, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
