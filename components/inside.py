"""Inside: what the model saw, of the turn that is selected. A column on wide pages, a sheet on phones."""

from dataclasses import dataclass

import gradio as gr

from gemma3_core.engine import ModelInfo

MEAN_HEADS = -1
_MEAN_LAYERS, _ROLLOUT = "global", "rollout"

HIDING = '<p class="note">Where a model looks is not yet why it answers. Hiding a region shows whether it mattered.</p>'
CHOOSE_WORD = '<p class="note">Choose a word of the answer to see where the model looked when it wrote it.</p>'


@dataclass(frozen=True)
class Inside:
    """The components of the panel that others need."""

    panel: gr.Column
    title: gr.HTML
    inputs: gr.HTML
    words: gr.HTML
    layer: gr.Dropdown
    head: gr.Dropdown
    maps: gr.HTML
    hide: gr.Button
    effect: gr.HTML
    mask_tab: gr.Tab
    mask: gr.HTML
    compare_pan_and_scan: gr.Button
    compare_int4: gr.Button
    comparison: gr.HTML


def build_inside(info: ModelInfo) -> Inside:
    """Closed until "Look inside" under an answer is clicked."""
    with gr.Column(elem_id="inside", visible=False) as panel:
        with gr.Row(elem_id="inside-head"):
            title = gr.HTML()
            gr.HTML('<button type="button" data-act="inside-close" aria-label="Close Inside">Close</button>')
        with gr.Tabs():
            with gr.Tab("Inputs"):
                inputs = gr.HTML()
            with gr.Tab("Attention"):
                words, layer, head, maps, hide, effect = _build_attention(info)
            with gr.Tab("Mask") as mask_tab:
                mask = gr.HTML()
            with gr.Tab("Compare"):
                pan_and_scan, int4, comparison = _build_compare(info)
    return Inside(
        panel, title, inputs, words, layer, head, maps, hide, effect, mask_tab, mask, pan_and_scan, int4, comparison
    )


def _build_attention(
    info: ModelInfo,
) -> tuple[gr.HTML, gr.Dropdown, gr.Dropdown, gr.HTML, gr.Button, gr.HTML]:
    words = gr.HTML()
    maps = gr.HTML(CHOOSE_WORD)
    with gr.Accordion("Details", open=False):
        layers = [("Mean of the global layers", _MEAN_LAYERS), ("Rollout through all layers", _ROLLOUT)]
        layers += [(f"Layer {number + 1} ({kind})", str(number)) for number, kind in enumerate(info.layers)]
        layer = gr.Dropdown(layers, value=_MEAN_LAYERS, label="Layer", filterable=False)
        heads = [("Mean of all heads", MEAN_HEADS), *((f"Head {n + 1}", n) for n in range(info.heads))]
        head = gr.Dropdown(heads, value=MEAN_HEADS, label="Head", filterable=False)
    hide = gr.Button("Hide the hottest region and ask again", elem_id="hide", size="sm", visible=info.multimodal)
    effect = gr.HTML(HIDING, visible=info.multimodal)
    return words, layer, head, maps, hide, effect


def _build_compare(info: ModelInfo) -> tuple[gr.Button, gr.Button, gr.HTML]:
    gr.HTML('<p class="note">Answers this question twice with the same seed, and marks where the answers part.</p>')
    with gr.Row():
        pan_and_scan = gr.Button("Pan & scan off and on", size="sm", visible=info.multimodal)
        both = info.int4 is not None and not info.int4.obstacle
        int4 = gr.Button("Full precision and int4", size="sm", visible=both)
    return pan_and_scan, int4, gr.HTML()
