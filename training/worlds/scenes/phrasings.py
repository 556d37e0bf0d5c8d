"""Phrasings of each kind of question about scenes.

By kind, then by form: "one" is the usual, "many" is about several objects, "only" about the picture's only shape,
"color" about anything in a color. questions.py fills the slots in braces. Training uses TRAINED: PHRASINGS and the
composed ones.
"""

from training.language import written_phrasings
from training.language.wordings import colored, counted, indirect, located, named, straight, widened_kinds

_THERE = "(|in the picture|in this picture|here)"
_IS_SEEN = "(there|here|shown|visible|in it|in the picture|in this picture)"
_ASKS = "(if|whether)"

_COMPOSED: dict[str, written_phrasings.Forms] = {
    "count_shape": {"one": counted("{shapes}")},
    "count_color": {"one": (
        *counted("{color} (shapes|objects|things|figures)"),
        *straight(
            "how many (|of the |of these )(shapes|objects|things|figures) (are|are there that are) {color}",
            "how many (shapes|objects|things) in {color} are there",
        ),
        *indirect("how many (|of the )(shapes|objects|things|figures) are {color}"),
    )},
    "count_all": {"one": counted("(shapes|objects|things|figures)") + counted("(shapes|objects|things) in all")},
    "color": {
        "one": colored("(the|this|that) {shape}"),
        "many": (
            *straight(
                f"(what|which) color (are|have) the {{shapes}} {_THERE}",
                "(what|which) color (do|would) (the|these) {shapes} have",
                "(in|of) (what|which) color are the {shapes}",
                "(what|which) color do you (see on|think are) the {shapes}",
            ),
            *indirect("(what|which) color the {shapes} (are|have)"),
            *named("the color of the {shapes}"),
        ),
    },
    "shape": {
        "one": (
            *straight(
                "(what|which|what kind of) shape (is|has) the {color} (object|thing|one|figure)",
                "(what|which|what kind of) shape does the {color} (object|thing|one|figure) have",
                "(what|which) (shape|object|thing|figure) is {color}",
                "(what|which) shape do you think the {color} (object|thing|one) (is|has)",
                "what is (it that is|the one that is) {color}",
            ),
            *indirect(
                "(what|which|what kind of) shape the {color} (object|thing|one) (is|has)",
                "(what|which) (shape|object|thing) is {color}",
            ),
            *named("the shape of the {color} (object|thing|one|figure)"),
        ),
        "only": (
            *straight(
                "(what|which|what kind of) shape (is this|is it|is that|is shown|is there|is here)",
                "(what|which|what kind of) shape (do|can) you see", "what is (it|this|that) (|in the picture)",
            ),
            *indirect("(what|which|what kind of) shape (this is|it is|you see|is shown|is there)"),
            *named("the shape (|in the picture|you see|here)"),
        ),
    },
    "is_there": {
        "one": (
            *straight(
                f"(is there|do you see|can you see|can you find|do you find|can you spot) {{a_noun}} {_THERE}",
                f"(are there|do you see|can you see|can you find|do you find) any {{nouns}} {_THERE}",
                "does (the|this|it) picture (show|have|contain|hold) ({a_noun}|any {nouns}|some {noun})",
                f"is {{a_noun}} {_IS_SEEN}", f"would you say {_ASKS} there is {{a_noun}}",
                "(would you say that|do you think|is it true that) there is {a_noun}",
            ),
            *indirect(
                f"{_ASKS} there is ({{a_noun}}|some {{noun}}|any {{noun}}) {_THERE}",
                f"{_ASKS} (you see|you can see|you find|the picture shows|the picture has) {{a_noun}}",
                f"{_ASKS} {{a_noun}} is {_IS_SEEN}",
            ),
        ),
        "color": (
            *straight(
                f"(is there|do you see|can you see|can you find|do you find) ({{a_noun}}|anything {{color}}) {_THERE}",
                f"(is there|do you see) (something {{color}}|anything that is {{color}}|any {{color}} thing) {_THERE}",
                f"(are there|can you see|can you find) any ({{nouns}}|{{color}} things|{{color}} objects) {_THERE}",
                "does (the|this) picture (show|have|contain|hold) (something {color}|{a_noun}|any {nouns})",
                "is (anything|something|any shape|any of the shapes|one of the shapes) {color}",
            ),
            *indirect(
                f"{_ASKS} there is ({{a_noun}}|anything {{color}}|something {{color}}|any {{noun}}) {_THERE}",
                f"{_ASKS} (you see|the picture shows) (anything {{color}}|something {{color}}|{{a_noun}})",
            ),
        ),
    },
    "where": {"one": located("the {noun}")},
}  # fmt: skip

PHRASINGS = {kind: written_phrasings.TRAINED[kind] for kind in _COMPOSED}
HELDOUT_PHRASINGS = {kind: written_phrasings.HELDOUT[kind] for kind in _COMPOSED}
TRAINED = {kind: widened_kinds(forms, _COMPOSED[kind]) for kind, forms in PHRASINGS.items()}
"""What training asks with."""
