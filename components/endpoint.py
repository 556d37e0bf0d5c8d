"""`/ask`: the page's question and answer for programs, through gradio_client."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr

from components.arguments import crops_of
from components.chat.conversation import question_of
from components.chat.running import Pace
from components.serving.desk import FrontDesk
from components.settings import MOST_NEW_TOKENS
from gemma3_core.engine import (
    DoneEvent,
    Gemma3Error,
    Request,
    SamplingSettings,
    TokenChoice,
    TokenEvent,
    fields_told,
)

_DESCRIPTION = (
    "Answers a question about pictures. Greedy at temperature 0; int4=None is the server's setting. "
    "Streams partial answers; the stats come with the last one."
)


_LONGEST = 256


class AskEndpoint:
    """The endpoint's handler, also of the MCP tool; it always asks the server's first model."""

    def __init__(self, desk: FrontDesk):
        self._desk = desk

    async def ask(
        self,
        request: gr.Request,
        images: list[str] | None = None,
        question: str | None = None,
        system_prompt: str | None = None,
        pan_and_scan: bool | None = None,
        int4: bool | None = None,
        max_new_tokens: float | None = None,
        temperature: float | None = None,
        seed: float | None = None,
        crops: Any = None,
        json_schema: str | None = None,
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yields partial answers with empty figures, then the answer with its figures. None means the argument's
        default; `crops_of` says what crops may be. With `json_schema` the answer is JSON that fits it, and the figures
        have `fields`, the value and the probability of each member.

        Raises gr.Error.
        """
        caller = self._desk.callers.of(request)
        # All programs of the MCP server share one session of Gradio's.
        visitor = caller.visitor if caller.door == "mcp" else caller.window
        try:
            if (max_new_tokens or 0) > MOST_NEW_TOKENS:
                raise Gemma3Error(
                    f"An answer can have at most {MOST_NEW_TOKENS:,} tokens, got {max_new_tokens:,.12g}. Ask for fewer."
                )
            turn = question_of(question or "", images or ())
            asked = Request(
                turns=(replace(turn, crops=crops_of(crops, len(turn.pictures))),),
                system_prompt=system_prompt or "",
                pan_and_scan=bool(pan_and_scan),
                int4=int4,
                max_new_tokens=_LONGEST if max_new_tokens is None else int(max_new_tokens),
                sampling=SamplingSettings(temperature=temperature or 0.0, seed=int(seed or 0)),
                visitor=visitor,
                reuse=False,  # no further question can follow
                confidence=bool(json_schema),
                json_schema=json_schema or None,
            )
            text, pace, choices = "", Pace(), list[TokenChoice]()
            async with aclosing(self._desk.astream(caller, None, asked)) as answer:
                async for event in answer:
                    if isinstance(event, DoneEvent):
                        fields = fields_told(event.text, choices) if choices else {}
                        yield event.text, event.stats.to_dict() | ({"fields": fields} if fields else {})
                        return
                    choices += [event.choice] if isinstance(event, TokenEvent) and event.choice else []
                    text += event.text if isinstance(event, TokenEvent) else ""
                    if pace.due():
                        yield text, {}
        except Gemma3Error as error:
            raise gr.Error(str(error), print_exception=False) from error


def build_ask_endpoint(desk: FrontDesk) -> None:
    """Hidden components that check and document the endpoint's inputs and outputs; `read_arguments` comes before."""
    with gr.Column(visible=False):
        int4 = gr.Checkbox(label="int4; None is the server's setting")
        int4.value = None  # a checkbox starts as False, which would override the server's setting
        inputs = [
            gr.File(label="Pictures", file_count="multiple"),
            gr.Textbox(label="Question"),
            gr.Textbox("", label="System prompt"),
            gr.Checkbox(False, label="Pan & scan"),
            int4,
            gr.Number(_LONGEST, label="Longest answer, in tokens", precision=0),
            gr.Number(0.0, label="Temperature; 0 is greedy"),
            gr.Number(0, label="Seed", precision=0),
            gr.JSON(label="Crops in place of pan & scan's: “auto”, or boxes for each picture"),
            gr.Textbox(label="JSON schema of the answer; none is text"),
        ]
        outputs = [gr.Textbox(label="Answer"), gr.JSON(label="Stats")]
        gr.Button("Ask").click(
            AskEndpoint(desk).ask,
            inputs,
            outputs,
            api_name="ask",
            api_description=_DESCRIPTION,
            api_visibility="public",
            concurrency_limit=None,  # the engine's queue decides the order
            show_progress="hidden",
        )
