"""The attention masks of a prompt, as data for masks.js to draw."""

import json
from html import escape

from gemma3_core.engine import LayerMask, MaskView, PromptView

_RULES = {
    "local": "Each token sees the last {window:,} tokens, and all of its own picture.",
    "global": "Each token sees all earlier tokens, and all of its own picture.",
}
_SAME = (
    "Each token sees all earlier tokens, and all of its own picture. Both kinds of layers see the same here: the "
    "prompt is no longer than the local layers' window."
)
_BUTTONS = (
    ("in", "+", "Zoom in"),
    ("out", "-", "Zoom out"),
    ("whole", "All", "Show the whole mask"),
    ("png", "PNG", "Save as PNG"),
    ("svg", "SVG", "Save as SVG"),
)


def mask_html(mask: MaskView, prompt: PromptView) -> str:
    """HTML of the local and the global mask side by side; masks.js handles mouse and keyboard."""
    view = {
        "tokens": [
            [
                token.text.replace("\n", "⏎"),
                -1 if token.kind == "padding" else token.column,
                -1 if token.tile is None else token.tile,
            ]
            for token in mask.tokens
        ],
        "blocks": [tile.label for tile in prompt.tiles],
        "window": next((one.window for one in mask.masks if one.window is not None), None),
        # First and last key of each run, one after the other.
        "rows": {one.kind: [[n for a, b in runs for n in (a, b - 1)] for runs in one.runs] for one in mask.masks},
    }
    data = escape(json.dumps(view, separators=(",", ":")))
    shown = mask.masks
    if len({one.runs for one in shown}) == 1 and len(shown) > 1:  # once, and said to be the same
        shown = shown[-1:]
    figures = "".join(_figure(one, both=len(shown) < len(mask.masks)) for one in shown)
    return (
        f'<div class="mask-view" data-view="{data}">'
        '<p class="note">Each row is a token, each column a token it may attend to: '
        '<span class="key causal"></span>earlier <span class="key picture"></span>later, in the same picture</p>'
        f'<div class="mask-pair">{figures}</div>'
        '<p class="mask-says" role="status">Point at a cell or use the arrow keys. + and - zoom, 0 shows it all.'
        "</p></div>"
    )


def _figure(mask: LayerMask, both: bool) -> str:
    name = "local and global layers" if both else f"{mask.kind} layers"
    buttons = "".join(
        f'<button type="button" data-mask-act="{act}" data-kind="{mask.kind}" aria-label="{says}, {name}">{text}'
        "</button>"
        for act, text, says in _BUTTONS
    )
    rule = _SAME if both else _RULES[mask.kind].format(window=mask.window or 0)
    return (
        f'<figure><canvas class="mask" tabindex="0" role="img" data-kind="{mask.kind}" aria-label="Mask of the {name}">'
        f"</canvas><figcaption><b>{name.capitalize()}.</b> {rule}"
        f'<span class="acts">{buttons}</span></figcaption></figure>'
    )
