"""The sidebar: what can be changed, with one line on what it does; it counts from the next answer on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from components.examples import Example
from gemma3_core.engine import Gemma3Error, Int4Choice, ModelEntry, ModelInfo, PartialSampling, SamplingSettings

MOST_NEW_TOKENS = 2048

_SAME = 1e-6  # a slider's value comes back from the browser as it was, but for rounding


@dataclass(frozen=True)
class Choices:
    """The settings' values, in the order of `Settings.inputs`; an empty `seed` draws one each time.

    `int4` None is the server's setting, for engines that leave no choice. `model` is the name of the one that shall
    answer, None the server's first; `shown` that of the one whose defaults the settings began with.
    """

    pan_and_scan: bool
    system_prompt: str
    temperature: float
    top_k: float
    top_p: float
    seed: str | None
    max_new_tokens: float
    int4: bool | None = None
    model: str | None = None
    shown: str | None = None

    def own_sampling(self, shown: ModelInfo | None) -> PartialSampling:
        """What the visitor has set themselves; what still stands as `shown` is sampled is left open.

        Raises Gemma3Error for values out of range.
        """
        text = (self.seed or "").strip()
        if text and not text.isdecimal():
            raise Gemma3Error(f"The seed must be a whole number from 0 on, or empty; got {text[:40]}.")
        own: dict[str, Any] = {"temperature": float(self.temperature), "top_p": float(self.top_p)}
        own["top_k"] = int(self.top_k)
        if shown is not None:
            own = {name: value for name, value in own.items() if abs(value - getattr(shown.sampling, name)) >= _SAME}
        return PartialSampling(**own, seed=int(text) if text else None)

    def own_int4(self, shown: ModelInfo | None) -> bool | None:
        """The precision that the visitor has chosen, None where the switch still stands as it began."""
        untouched = shown is not None and (shown.int4 is None or self.int4 == shown.int4.default)
        return None if untouched else self.int4

    def following(self, info: ModelInfo, shown: ModelInfo) -> "Choices":
        """As they are shown for another model than `shown`: what the visitor left as it stood becomes its default."""
        if info.name == shown.name:
            return self
        sampling = self.own_sampling(shown).settings(info.sampling)
        lacks_it = info.int4 is None or bool(info.int4.obstacle)
        return replace(
            self,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            int4=None if lacks_it else self.own_int4(shown),
            shown=info.name,
        )


@dataclass(frozen=True)
class Settings:
    """The components of the sidebar that others need."""

    inputs: tuple[gr.components.Component, ...]
    pan_and_scan: gr.Checkbox
    system_prompt: gr.Textbox
    system_prompt_fold: gr.Accordion
    sampling: tuple[gr.components.Component, ...]
    int4: gr.Checkbox | None
    model: gr.Dropdown | None
    model_note: gr.HTML | None
    shown: gr.State

    @property
    def chosen(self) -> gr.components.Component:
        """What holds the name of the chosen model, None where there is no choice."""
        return self.inputs[-2]

    @property
    def brought(self) -> list[gr.components.Component | gr.Accordion]:
        """What an example card may set."""
        return [self.pan_and_scan, self.system_prompt, self.system_prompt_fold]


@dataclass(frozen=True)
class Own:
    """The visitor's own settings where a card has brought others; None where it has not."""

    pan_and_scan: bool | None = None
    system_prompt: str | None = None


def chosen_example(examples: Sequence[Example], choice: gr.SelectData) -> Example | None:
    """The card of this number, if there is one."""
    number = choice.index
    return examples[number] if isinstance(number, int) and 0 <= number < len(examples) else None


def with_brought(choices: Choices, example: Example) -> Choices:
    """The visitor's choices with those that the card brings."""
    return replace(
        choices,
        pan_and_scan=choices.pan_and_scan or example.pan_and_scan,
        system_prompt=example.system_prompt or choices.system_prompt,
    )


def bring(example: Example | None, pan_and_scan: bool, system_prompt: str | None) -> tuple[Any, Any, Any, Own]:
    """Updates that show what a card brings, for `Settings.brought`, and what was there before."""
    if example is None:
        return gr.skip(), gr.skip(), gr.skip(), Own()
    switched, told = example.pan_and_scan and not pan_and_scan, bool(example.system_prompt)
    own = Own(pan_and_scan if switched else None, (system_prompt or "") if told else None)  # an empty box says None
    return (
        True if switched else gr.skip(),
        example.system_prompt if told else gr.skip(),
        gr.update(open=True) if told else gr.skip(),
        own,
    )


def take_back(own: Own) -> tuple[Any, Any, Any, Own]:
    """Updates that put the visitor's own settings back."""
    return (
        gr.skip() if own.pan_and_scan is None else own.pan_and_scan,
        gr.skip() if own.system_prompt is None else own.system_prompt,
        gr.skip() if own.system_prompt is None else gr.update(open=bool(own.system_prompt)),
        Own(),
    )


def build_settings(info: ModelInfo, offers: Sequence[ModelEntry] = ()) -> Settings:
    """The model (where there is more than the first) and pan & scan in front, the rest folded away."""
    # Closed as it comes, which is right for a phone; page.js opens it where there is room.
    with gr.Sidebar(label="Settings", width=304, open=False, elem_id="settings"):
        gr.HTML("<h2>Settings</h2>")
        model, note = _build_model(info, offers) if offers else (None, None)
        pan_and_scan = gr.Checkbox(
            label="Pan & scan",
            info=pan_and_scan_line(info),
            elem_id="pan-and-scan",
            visible=info.multimodal,
        )
        int4 = None if info.int4 is None else _build_int4(info.int4)
        with gr.Accordion("System prompt", open=False) as fold:
            system_prompt = gr.Textbox(
                elem_id="system-prompt",
                label="System prompt",
                info="Said to the model before the first question.",
                placeholder="Answer in one short sentence.",
                lines=3,
                max_lines=8,
            )
        sampling = _build_sampling(info.sampling)
    chosen, shown = gr.State(None) if int4 is None else int4, gr.State(info.name)
    inputs = (pan_and_scan, system_prompt, *sampling, chosen, gr.State(None) if model is None else model, shown)
    return Settings(inputs, pan_and_scan, system_prompt, fold, sampling, int4, model, note, shown)


def _build_model(info: ModelInfo, offers: Sequence[ModelEntry]) -> tuple[gr.Dropdown, gr.HTML]:
    names = [info.name, *(offer.name for offer in offers)]
    model = gr.Dropdown(
        names,
        value=info.name,
        label="Model",
        info="Answers from your next question on.",
        filterable=False,
        elem_id="model",
    )
    return model, gr.HTML(elem_id="model-note", visible=False)


def model_note(offer: ModelEntry | None, known: ModelInfo | None, in_memory: bool) -> str:
    """HTML of what choosing this model means, as far as it is known; `offer` None is the server's first."""
    if offer is None or in_memory:
        return ""
    lines = ["Loaded when you next ask, which takes a while."]
    if offer.from_hub and known is None:
        size = "" if offer.download_bytes is None else f": {_size(offer.download_bytes)}"
        lines = [
            f"Downloaded from the Hub when you next ask, if it is not on this machine yet{size}. "
            "That needs its licence accepted on the Hub, and HF_TOKEN set where this app was started."
        ]
    if known is None:
        lines.append("Settings below that you leave as they are become its own then.")
    return f'<p class="note">{escape(" ".join(lines))}</p>'


def pan_and_scan_line(info: ModelInfo) -> str:
    """What the switch does, and costs with this model."""
    return (
        "Cuts wide or tall pictures into crops, so that small things stay visible. "
        f"Slower: each crop is another {info.tokens_per_picture} tokens."
    )


def _build_int4(choice: Int4Choice) -> gr.Checkbox:
    return gr.Checkbox(
        value=choice.default,
        label="int4",
        info=int4_line(choice),
        interactive=not choice.obstacle,
        elem_id="int4",
    )


def int4_line(choice: Int4Choice) -> str:
    """What the int4 switch does and saves, or why it can't be moved."""
    if choice.obstacle:
        return choice.obstacle
    line = (
        f"Weights of 4 bits in the decoder: {_size(choice.int4_bytes)} of memory in place of "
        f"{_size(choice.full_bytes)}, a little less exact. Once both were asked for, the server keeps both."
    )
    if choice.left:
        line += f" Of its layers {len(choice.left)} can't be int4 and stay as they are."
    return line


def _size(num_bytes: int) -> str:
    """In decimal units, as memory is sold: "8.6 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _build_sampling(default: SamplingSettings) -> tuple[gr.components.Component, ...]:
    with gr.Accordion("Sampling", open=False):
        temperature = gr.Slider(
            0, 2, value=default.temperature, step=0.05, label="Temperature", info="0 always takes the likeliest token."
        )
        top_k = gr.Slider(
            0, 256, value=default.top_k, step=1, label="Top-k", info="Draws from the k likeliest tokens; 0 from all."
        )
        top_p = gr.Slider(
            0.05, 1, value=default.top_p, step=0.05, label="Top-p", info="Draws from the tokens that hold this share."
        )
        seed = gr.Textbox(
            value="",
            elem_id="seed",
            label="Seed",
            info="The same seed gives the same answer.",
            placeholder="a new one each time",
            max_lines=1,
        )
        longest = gr.Slider(
            1, MOST_NEW_TOKENS, value=256, step=1, label="Longest answer", info="In tokens; a word is one or two."
        )
    return temperature, top_k, top_p, seed, longest
