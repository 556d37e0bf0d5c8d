"""Inside: what the model saw for the selected answer. A column on wide pages, a sheet on phones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from gemma3_core.engine import ModelInfo

MEAN_HEADS = -1
MEAN_LAYERS, _ROLLOUT = "global", "rollout"
LOOKED, RESTS = "looked", "rests"
OPENED = (
    "title", "inputs", "words", "view", "layer", "head", "maps", "hide", "effect", "rest", "mask",
    "compare_pan_and_scan", "compare_int4", "other", "comparison", "code",
)  # fmt: skip
"""The fields of Inside that change when it opens for an answer."""

HIDING = '<p class="note">Hide a region to find out whether it mattered.</p>'
CHOOSE_WORD = '<p class="note">Choose a word of the answer to see what it rests on.</p>'
_COMPARE_PAN_AND_SCAN, _COMPARE_CROPS = "Pan & scan off and on", "Without and with the crops"
_VIEWS = [("What the answer rests on", RESTS), ("Where it looked", LOOKED)]
_EXPLAINED = (
    '<p class="note looked">The model\'s attention when it wrote the word. It does not prove that a place mattered.</p>'
    '<p class="note rests">Bright is what makes the word less likely when it is hidden, and what one head looks at, '
    "drawn along areas of similar color.</p>"
)


@dataclass(frozen=True)
class Inside:
    """The panel's components that other parts of the page use."""

    title: gr.HTML
    """The heading. The panel is open while it has one (see style.css)."""
    inputs: gr.HTML
    words: gr.HTML
    view: gr.Radio
    layer: gr.Dropdown
    head: gr.Dropdown
    maps: gr.HTML
    hide: gr.Button
    effect: gr.HTML
    rest: gr.HTML
    mask_tab: gr.Tab
    mask: gr.HTML
    compare_pan_and_scan: gr.Button
    compare_int4: gr.Button
    other: gr.Dropdown
    compare_models: gr.Button
    replay: gr.Button
    comparison: gr.HTML
    code: gr.HTML


def build_inside(info: ModelInfo, models: Sequence[str] = ()) -> Inside:
    """Builds the panel, closed until a visitor clicks "Look inside"; `models` are all that can be compared."""
    with gr.Column(elem_id="inside"):
        with gr.Row(elem_id="inside-head"):
            title = gr.HTML()
            gr.HTML('<button type="button" data-act="inside-close" aria-label="Close Inside">Close</button>')
        with gr.Tabs(selected="attention"):
            with gr.Tab("Inputs", id="inputs"):
                inputs = gr.HTML(elem_id="inside-inputs")
            with gr.Tab("Attention", id="attention"):
                attention = _build_attention(info)
            with gr.Tab("Mask", id="mask") as mask_tab:
                mask = gr.HTML()
            with gr.Tab("Compare", id="compare"):
                compare = _build_compare(info, models)
            with gr.Tab("Code", id="code"):
                code = gr.HTML(elem_id="code")
    return Inside(title, inputs, *attention, mask_tab, mask, *compare, code)


def model_updates(
    info: ModelInfo | None,
    models: Sequence[str],
    view: str,
    word_chosen: bool,
    own_pictures: bool,
    own_crops: bool = False,
) -> dict[str, Any]:
    """Updates of fields of Inside as it opens in this `view` for an answer of this model, or of one no longer offered
    (None).

    `models` are all that can be compared. Without a chosen word nothing can be hidden. Earlier pictures keep their pan
    & scan, so without `own_pictures` of the question there is nothing to compare; `own_crops` take pan & scan's place.
    """
    hide = gr.update(interactive=word_chosen)
    if info is None:
        return {"view": view, "layer": MEAN_LAYERS, "head": MEAN_HEADS, "hide": hide, "effect": HIDING}
    others = [name for name in models if name != info.name]
    return {
        "view": view,
        "layer": gr.update(choices=_layers(info), value=MEAN_LAYERS),
        "head": gr.update(choices=_heads(info), value=MEAN_HEADS),
        "hide": hide | gr.update(visible=info.multimodal),
        "effect": gr.update(value=HIDING, visible=info.multimodal),
        "compare_pan_and_scan": gr.update(
            visible=info.multimodal and not info.outside and own_pictures,
            value=_COMPARE_CROPS if own_crops else _COMPARE_PAN_AND_SCAN,
        ),
        "compare_int4": gr.update(visible=_has_both_precisions(info)),
        "other": gr.update(choices=others, value=others[0] if others else None),
    }


def _layers(info: ModelInfo) -> list[tuple[str, str]]:
    layers = [("Mean of the global layers", MEAN_LAYERS), ("Rollout through all layers", _ROLLOUT)]
    return layers + [(f"Layer {number + 1} ({kind})", str(number)) for number, kind in enumerate(info.layers)]


def _heads(info: ModelInfo) -> list[tuple[str, int]]:
    return [("Mean of all heads", MEAN_HEADS), *((f"Head {n + 1}", n) for n in range(info.heads))]


def _has_both_precisions(info: ModelInfo) -> bool:
    return info.int4 is not None and not info.int4.obstacle


def _build_attention(
    info: ModelInfo,
) -> tuple[gr.HTML, gr.Radio, gr.Dropdown, gr.Dropdown, gr.HTML, gr.Button, gr.HTML, gr.HTML]:
    """The words; which map; the pictures, and beside them what hiding a region changes; the rest of the figures."""
    words = gr.HTML()
    view = gr.Radio(_VIEWS, value=RESTS, label="Map", show_label=False, container=False, elem_id="view")
    gr.HTML(_EXPLAINED, elem_id="view-explained")
    with gr.Row(elem_id="looked"):
        maps = gr.HTML(CHOOSE_WORD, elem_id="maps")
        with gr.Column(elem_id="hiding", min_width=120):
            hide = gr.Button(
                "Hide the hottest region", elem_id="hide", size="sm", visible=info.multimodal, interactive=False
            )
            effect = gr.HTML(HIDING, visible=info.multimodal)
    with gr.Accordion("Details", open=False, elem_id="layer-and-head"):
        layer = gr.Dropdown(_layers(info), value=MEAN_LAYERS, label="Layer", filterable=False)
        head = gr.Dropdown(_heads(info), value=MEAN_HEADS, label="Head", filterable=False)
    return words, view, layer, head, maps, hide, effect, gr.HTML()


def _build_compare(
    info: ModelInfo, models: Sequence[str]
) -> tuple[gr.Button, gr.Button, gr.Dropdown, gr.Button, gr.Button, gr.HTML]:
    gr.HTML('<p class="note">Answers this question twice with the same seed, and marks where the answers differ.</p>')
    with gr.Row():
        pan_and_scan = gr.Button(_COMPARE_PAN_AND_SCAN, size="sm", visible=info.multimodal)
        int4 = gr.Button("Full precision and int4", size="sm", visible=_has_both_precisions(info))
    others = list(models[1:])
    with gr.Column(visible=bool(others), elem_id="two-models"):
        other = gr.Dropdown(others, label="Another model", filterable=False, elem_id="other-model")
        two = gr.Button("Compare both models", size="sm", elem_id="compare-models")
    replay = gr.Button("Replay: ask again and compare with this answer", size="sm", elem_id="replay")
    return pan_and_scan, int4, other, two, replay, gr.HTML()
