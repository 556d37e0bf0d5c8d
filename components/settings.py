"""The sidebar: the settings, with one line on what each does. A change takes effect with the next answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from components.examples import Example
from gemma3_core.engine import (
    UNGATED,
    AdapterFacts,
    Gemma3Error,
    Int4Choice,
    ModelEntry,
    ModelInfo,
    PartialSampling,
    SamplingSettings,
    size_of,
)

MOST_NEW_TOKENS = 2048

_MOST_TARGETS = 24
_ROUNDING = 1e-6  # a slider's value comes back from the browser slightly rounded


@dataclass(frozen=True)
class Choices:
    """The settings' values, in the order of `Settings.inputs`. With an empty `seed` each answer draws a new one.

    `int4` is None where the engine leaves no choice: the server's setting holds. `model` names the model that should
    answer; None is the server's first. `shown` names the model whose defaults the settings started from. With
    `continue_text` the model goes on with the text instead of answering it; None is the model's own way. `fields` are
    what the answer should tell as JSON, as `read_fields` reads them; without any it is text.
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
    continue_text: bool | None = None
    fields: str | None = None

    def own_sampling(self, shown: ModelInfo | None) -> PartialSampling:
        """What the visitor has set; values that still stand at the defaults of `shown` are left open.

        Raises Gemma3Error for values out of range.
        """
        text = (self.seed or "").strip()
        if text and not text.isdecimal():
            raise Gemma3Error(
                f"The seed must be a whole number, 0 or larger; got {text[:40]}. Leave it empty to draw one."
            )
        own: dict[str, Any] = {"temperature": float(self.temperature), "top_p": float(self.top_p)}
        own["top_k"] = int(self.top_k)
        if shown is not None:
            own = {
                name: value for name, value in own.items() if abs(value - getattr(shown.sampling, name)) >= _ROUNDING
            }
        return PartialSampling(**own, seed=int(text) if text else None)

    def continues(self, info: ModelInfo | None) -> bool | None:
        """What the switch says, for a model that has it; None for others, which answer as they were trained."""
        return self.continue_text if info is not None and info.continues_text else None

    def own_int4(self, shown: ModelInfo | None) -> bool | None:
        """The precision that the visitor has chosen; None where the switch still stands at the default of `shown`."""
        untouched = shown is not None and (shown.int4 is None or self.int4 == shown.int4.default)
        return None if untouched else self.int4

    def following(self, info: ModelInfo, shown: ModelInfo) -> "Choices":
        """These choices for the model `info`: values that still stand at the defaults of `shown` become its own."""
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
class MachineModels:
    """The fold with the models on this machine, which only whoever started the program sees."""

    fold: gr.Accordion
    progress: gr.HTML
    stop: gr.Button
    listed: gr.HTML
    again: gr.Button


@dataclass(frozen=True)
class FieldsForm:
    """The fold in which a visitor says which fields the answer has; `text` holds them (see fields.js)."""

    fold: gr.Accordion
    text: gr.Textbox


@dataclass(frozen=True)
class Settings:
    """The sidebar's components that other parts of the page use."""

    inputs: tuple[gr.components.Component, ...]
    pan_and_scan: gr.Checkbox
    system_prompt: gr.Textbox
    system_prompt_fold: gr.Accordion
    sampling: tuple[gr.components.Component, ...]
    int4: gr.Checkbox | None
    model: gr.Dropdown | None
    model_note: gr.HTML | None
    shown: gr.State
    fields: "FieldsForm"
    machine: "MachineModels | None" = None

    @property
    def chosen(self) -> gr.components.Component:
        """The component that holds the chosen model's name, or None where there is no choice."""
        return self.inputs[-4]

    @property
    def set_by_example(self) -> list[gr.components.Component | gr.Accordion]:
        """The components that an example card may set."""
        return [self.pan_and_scan, self.system_prompt, self.system_prompt_fold]


def chosen_example(examples: Sequence[Example], choice: gr.SelectData) -> Example | None:
    """The example card that was clicked, if there is one with this number."""
    number = choice.index
    return examples[number] if isinstance(number, int) and 0 <= number < len(examples) else None


def with_brought(choices: Choices, example: Example) -> Choices:
    """The visitor's choices with the settings of the card."""
    return replace(
        choices,
        pan_and_scan=choices.pan_and_scan or example.pan_and_scan,
        system_prompt=example.system_prompt or choices.system_prompt,
    )


def build_settings(
    info: ModelInfo, names: Sequence[str] = (), beneath: str = "", lists_machine: bool = False
) -> Settings:
    """Model (if there are several `names`), pan & scan and int4 in front; the rest is folded away. `beneath` is HTML
    that stands below them, with the id "conversations". `lists_machine` adds the models on this machine."""
    # Closed at first, which suits a phone; page.js opens it where there is room.
    with gr.Sidebar(label="Settings", width=304, open=False, elem_id="settings"):
        gr.HTML("<h2>Settings</h2>")
        model = _build_model(info, names) if len(names) > 1 or lists_machine else None
        note = gr.HTML(model_note(None, info, in_memory=True), elem_id="model-note") if model or info.adapter else None
        machine = _build_machine_models() if lists_machine else None
        pan_and_scan = gr.Checkbox(
            label="Pan & scan",
            info=pan_and_scan_line(info),
            elem_id="pan-and-scan",
            visible=info.multimodal and not info.outside,
        )
        int4 = None if info.int4 is None else _build_int4(info.int4)
        goes_on = _build_continue_text() if info.continues_text else None
        with gr.Accordion("System prompt", open=False) as fold:
            system_prompt = gr.Textbox(
                elem_id="system-prompt",
                label="System prompt",
                info="The model reads this before your first question.",
                placeholder="Answer in one short sentence.",
                lines=3,
                max_lines=8,
            )
        fields = _build_fields()
        sampling = _build_sampling(info.sampling)
        theme = gr.Radio(["System", "Light", "Dark"], value="System", label="Theme", elem_id="theme")
        if beneath:
            gr.HTML(beneath, elem_id="conversations")
        theme.change(None, theme, js="(theme) => window.ask.useTheme(theme)", api_visibility="private")
    chosen, shown = gr.State(None) if int4 is None else int4, gr.State(info.name)
    chosen_model, continue_text = (gr.State(None) if one is None else one for one in (model, goes_on))
    inputs = (pan_and_scan, system_prompt, *sampling, chosen, chosen_model, shown, continue_text, fields.text)
    return Settings(inputs, pan_and_scan, system_prompt, fold, sampling, int4, model, note, shown, fields, machine)


_FIELDS = """<p class="note">The next answer is JSON with these fields, and tells how sure the model was of each.
Without fields it is text.</p><ul></ul><button type="button" data-field="add">Add a field</button>"""


def _build_fields() -> FieldsForm:
    text = gr.Textbox(visible="hidden", elem_id="fields-text", max_length=20_000)
    with gr.Accordion("Answer as JSON", open=False, elem_id="fields-fold") as fold:
        gr.HTML(_FIELDS, elem_id="fields")
    return FieldsForm(fold, text)


def _build_continue_text() -> gr.Checkbox:
    return gr.Checkbox(
        value=True,
        label="Continue the text",
        info="This model was trained to continue texts. Off, it gets your text as a question in a chat, which it was "
        "not trained on.",
        elem_id="continue-text",
    )


def _build_machine_models() -> MachineModels:
    with gr.Accordion("Models on this machine", open=False, elem_id="machine") as fold:
        progress = gr.HTML(elem_id="machine-progress")
        stop = gr.Button("Stop the download", size="sm", visible=False, elem_id="machine-stop")
        listed = gr.HTML(elem_id="machine-models")
        again = gr.Button("Look again", size="sm", elem_id="machine-again")
    return MachineModels(fold, progress, stop, listed, again)


def _build_model(info: ModelInfo, names: Sequence[str]) -> gr.Dropdown:
    return gr.Dropdown(
        list(names),
        value=info.name,
        label="Model",
        info="This model answers your next question.",
        filterable=False,
        elem_id="model",
    )


_FROM_HUB = (
    "Your next question downloads this model from the Hub, if it is not on this machine yet{}. The download needs "
    "HF_TOKEN in this app's environment, from an account that accepted the model's license."
)
_UNGATED = (
    "Gemma 3 4B as a file of 4 bits. Google made the model, and ggml-org, who make llama.cpp, this file; Gemma's terms "
    "of use apply. Your next question downloads it, if it is not on this machine yet{}."
)


def model_note(entry: ModelEntry | None, known: ModelInfo | None, in_memory: bool) -> str:
    """HTML on what choosing this model means, as far as that is known, and on its adapter. `entry` is None for models
    that are always in memory."""
    if entry is None or in_memory:
        return "" if known is None or known.adapter is None else adapter_note(known.adapter)
    lines = ["Your next question loads this model, which takes a while."]
    if entry.from_hub and known is None:
        size = "" if entry.download_bytes is None else f": {size_of(entry.download_bytes)}"
        lines = [(_UNGATED if entry.source == UNGATED else _FROM_HUB).format(size)]
    if known is None:
        lines.append("Settings that you have not changed will take this model's defaults.")
    return f'<p class="note">{escape(" ".join(lines))}</p>'


def adapter_note(adapter: AdapterFacts) -> str:
    """HTML of an adapter's name, rank, targets and size."""
    ranks = [f"rank {adapter.ranks[0]}"] if adapter.ranks else []
    if len(adapter.ranks) > 1:
        ranks = [f"rank {adapter.ranks[0]} to {adapter.ranks[-1]}"]
    own = dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in adapter.replaced)
    facts = [
        f"Adapter {adapter.name}",
        *ranks,
        *(f"{part}: {number:,} of its layers" for part, number in adapter.layers),
        *(["weights of its own"] if own else []),
        f"{adapter.num_parameters:,} weights",
        size_of(adapter.num_bytes),
        "merged into the model" if adapter.merged else "kept beside the model",
    ]
    names = ", ".join([*adapter.targets, *own][:_MOST_TARGETS])
    # A fact, an element: words.js translates each by itself.
    line = " · ".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return f'<p class="note">{line}</p><p class="note" translate="no">{escape(names)}</p>'


def pan_and_scan_line(info: ModelInfo) -> str:
    """What the pan & scan switch does, and what it costs with this model."""
    return (
        "Cuts wide or tall pictures into crops, so that small details stay visible. "
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
    """What the int4 switch does and saves, or why it is fixed."""
    if choice.obstacle:
        return choice.obstacle
    int4, full = size_of(choice.int4_bytes), size_of(choice.full_bytes)
    line = (
        f"4-bit weights in the decoder: {int4} of memory instead of {full}, "
        "a little less exact. If both precisions are used, the server keeps both in memory."
    )
    if choice.left:
        line += f" {len(choice.left)} of its layers can't be int4 and keep full precision."
    return line


def _build_sampling(default: SamplingSettings) -> tuple[gr.components.Component, ...]:
    with gr.Accordion("Sampling", open=False):
        temperature = gr.Slider(
            0,
            2,
            value=default.temperature,
            step=0.05,
            label="Temperature",
            info="0 always picks the likeliest token. Higher is more varied.",
        )
        top_k = gr.Slider(
            0,
            256,
            value=default.top_k,
            step=1,
            label="Top-k",
            info="Samples from the k likeliest tokens. 0 samples from all.",
        )
        top_p = gr.Slider(
            0.05,
            1,
            value=default.top_p,
            step=0.05,
            label="Top-p",
            info="Samples from the likeliest tokens that together reach this probability.",
        )
        seed = gr.Textbox(
            value="",
            elem_id="seed",
            label="Seed",
            info="The same seed gives the same answer, or nearly the same while others are answered too.",
            placeholder="a new one each time",
            max_lines=1,
        )
        longest = gr.Slider(
            1, MOST_NEW_TOKENS, value=256, step=1, label="Longest answer", info="In tokens; a word is one or two."
        )
    return temperature, top_k, top_p, seed, longest
