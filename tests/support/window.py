"""A browser window as the page's handlers see it, without a browser; also a model and figures to show."""

import asyncio

from components.chat.conversation import Conversation, Exchange
from gemma3_core.engine import Answered, DoneEvent, ModelInfo, Request, SamplingSettings, Stats, Turn
from gemma3_core.inspection.confidence import Alternative, TokenChoice

STATS = Stats("demo model", "cpu", "bfloat16", "none", 1, 2, 212, 0, 15, 0.0, 0.2123, 63.7, "stop")
DEMO = ModelInfo("demo model", "cpu", "float32", "none", True, True, 4_421_888, 8192, 64, SamplingSettings())


def exchange_of(question: Turn, answer: str, stats: Stats = STATS, pan_and_scan: bool = False) -> Exchange:
    return Exchange(question, pan_and_scan, Answered(Request((question,)), DoneEvent(answer, stats)))


class Window:
    """What Gradio tells a handler about its visitor."""

    def __init__(self, name: str = "one"):
        self.session_hash = name


def run(updates) -> tuple[list, Conversation, str | None]:
    """The final chat, state and notice."""

    async def collected():
        return [update async for update in updates]

    latest: list = [None, None, None, None]
    for update in asyncio.run(collected()):
        latest = [old if isinstance(new, dict) and set(new) == {"__type__"} else new
                  for old, new in zip(latest, update, strict=True)]  # fmt: skip
    return latest[0], latest[2], latest[3]


def typed(text: str, *files: str) -> dict:
    return {"text": text, "files": list(files)}


def choice(token_id, text="a", probability=0.5):
    return TokenChoice(token_id, text, probability, (Alternative(token_id, text, probability),))
