"""The Share menu: links to this page, and to a question on it."""

from collections.abc import Sequence
from html import escape

from components.examples import Example

_SAVE = (
    '<button type="button" data-share="zip">Save the conversation (zip)</button>'
    '<button type="button" data-share="markdown">Copy the conversation as Markdown</button>'
)


def share_menu(examples: Sequence[Example], saves: bool = True) -> str:
    """HTML of the menu; page.js copies the links. Only pictures of `examples` fit into a link, so it names them. A
    conversation is saved out of what the browser keeps; a page whose browser keeps none `saves` none."""
    names = " ".join(sorted({picture.stem for example in examples for picture in example.pictures}))
    return (
        f'<details class="menu" data-examples="{escape(names)}"><summary>Share</summary><div>'
        '<button type="button" data-share="page">Copy link to this page</button>'
        '<button type="button" data-share="question">Copy link with the question</button>'
        '<button type="button" data-share="card">Save the answer as a card (one HTML file)</button>'
        f"{_SAVE if saves else ''}"
        '<p class="note" role="status">The link brings the question, the settings and an example picture. It asks '
        "nothing by itself.</p></div></details>"
    )
