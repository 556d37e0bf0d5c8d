"""How each kind of question can be put.

By kind, then by form: "one" is the usual; "many" speaks of several objects, "only" of the picture's
only shape, "color" of anything in a color. Slots in braces are filled by questions.py. Training uses TRAINED:
PHRASINGS, and what is composed of parts.
"""

from training.language.wordings import colored, counted, indirect, located, named, straight, widened_kinds

Phrasings = dict[str, dict[str, tuple[str, ...]]]

PHRASINGS: Phrasings = {
    "count_shape": {"one": (
        "How many {shapes} are there?", "How many {shapes} are there in the picture?",
        "How many {shapes} are in the picture?", "How many {shapes} are in this picture?",
        "How many {shapes} do you see?", "How many {shapes} can you see?", "How many {shapes} does the picture show?",
        "How many {shapes} does the picture have?", "How many {shapes} are shown?", "How many {shapes}?",
        "Count the {shapes}.", "Count the {shapes} in the picture.", "Please count the {shapes}.",
        "Can you count the {shapes}?", "Can you tell me how many {shapes} there are?",
        "Tell me how many {shapes} there are.", "Tell me the number of {shapes}.", "What is the number of {shapes}?",
        "What is the number of {shapes} in the picture?", "Number of {shapes}?",
        "Please tell me how many {shapes} you see.", "Could you tell me how many {shapes} there are?",
        "Say how many {shapes} there are.",
    )},
    "count_color": {"one": (
        "How many {color} shapes are there?", "How many {color} shapes are there in the picture?",
        "How many {color} shapes are in the picture?", "How many {color} shapes do you see?",
        "How many {color} shapes can you see?", "How many {color} shapes are shown?", "How many {color} shapes?",
        "How many {color} objects are there?", "How many {color} objects are in the picture?",
        "How many {color} objects do you see?", "How many {color} things are there?",
        "How many {color} things are in the picture?", "How many {color} things can you see?",
        "How many {color} figures are there?", "How many shapes are {color}?", "How many of the shapes are {color}?",
        "How many objects are {color}?", "How many things are {color}?", "Count the {color} shapes.",
        "Count the {color} objects.", "Count the {color} things in the picture.", "Please count the {color} shapes.",
        "Can you count the {color} shapes?", "Can you tell me how many {color} shapes there are?",
        "Tell me how many {color} shapes there are.", "Tell me the number of {color} shapes.",
        "What is the number of {color} shapes?", "What is the number of {color} objects?", "Number of {color} things?",
        "Number of {color} shapes?", "Could you tell me how many {color} shapes there are?",
        "Say how many {color} shapes there are.", "How many {color} things would you say there are?",
    )},
    "count_all": {"one": (
        "How many shapes are there?", "How many shapes are there in the picture?",
        "How many shapes are in the picture?", "How many shapes are in this picture?", "How many shapes do you see?",
        "How many shapes can you see?", "How many shapes does the picture show?", "How many shapes are shown?",
        "How many shapes in all?", "How many shapes are there in all?", "How many shapes are there in total?",
        "How many shapes are there altogether?", "How many shapes?", "How many objects are there?",
        "How many objects are there in total?", "How many objects are in the picture?", "How many objects do you see?",
        "How many things are there?", "How many things are in the picture?", "How many figures are there?",
        "Count the shapes.", "Count all shapes.", "Count all the shapes in the picture.", "Count the objects.",
        "Please count the shapes.", "Can you count the shapes?", "Can you tell me how many shapes there are?",
        "Tell me how many shapes there are.", "Tell me the number of shapes.", "What is the number of shapes?",
        "What is the total number of shapes?", "What is the total number of objects?", "Number of shapes?",
        "Could you tell me how many shapes there are?", "Say how many shapes you see.",
        "How many shapes can be found in the picture?",
    )},
    "color": {
        "one": (
            "What color is the {shape}?", "What color is the {shape} in the picture?",
            "What color is the {shape} in this picture?", "What color does the {shape} have?",
            "What is the color of the {shape}?", "What's the color of the {shape}?", "Which color is the {shape}?",
            "Which color does the {shape} have?", "In what color is the {shape}?", "The {shape} is what color?",
            "Tell me the color of the {shape}.", "Tell me what color the {shape} is.",
            "Please tell me the color of the {shape}.", "Can you tell me the color of the {shape}?",
            "Can you tell me what color the {shape} is?", "Can you see what color the {shape} is?",
            "Name the color of the {shape}.", "Color of the {shape}?", "What color do you see on the {shape}?",
            "What color is this {shape}?", "Could you tell me the color of the {shape}?",
            "Say what color the {shape} is.", "Would you name the color of the {shape} for me?",
        ),
        "many": (
            "What color are the {shapes}?", "What color are the {shapes} in the picture?",
            "What color do the {shapes} have?", "What is the color of the {shapes}?", "Which color are the {shapes}?",
            "Tell me the color of the {shapes}.", "Tell me what color the {shapes} are.",
            "Can you tell me the color of the {shapes}?", "Name the color of the {shapes}.", "Color of the {shapes}?",
        ),
    },
    "shape": {
        "one": (
            "What shape is the {color} object?", "What shape is the {color} thing?", "What shape is the {color} one?",
            "What shape is {color}?", "What shape is the {color} object in the picture?",
            "What shape does the {color} object have?", "What shape does the {color} thing have?",
            "What is the shape of the {color} object?", "What is the shape of the {color} thing?",
            "What is the {color} shape?", "What is the {color} object?", "What is the {color} thing?",
            "What kind of shape is the {color} object?", "What kind of shape is the {color} one?",
            "Which shape is {color}?", "Which shape is the {color} one?", "Which shape does the {color} object have?",
            "Tell me the shape of the {color} object.", "Tell me what shape the {color} thing is.",
            "Please tell me the shape of the {color} object.", "Can you tell me the shape of the {color} object?",
            "Can you tell me what shape the {color} object is?", "Name the shape of the {color} object.",
            "Shape of the {color} object?", "Could you tell me what shape the {color} object is?",
            "Say what shape the {color} thing is.", "What shape would you say the {color} object is?",
        ),
        "only": (
            "What shape is this?", "What shape is it?", "What shape is in the picture?", "What shape is shown?",
            "What shape do you see?", "What shape can you see?", "Which shape is this?", "What is the shape?",
            "What kind of shape is this?", "Tell me what shape this is.", "Name the shape.",
            "Could you tell me what shape this is?", "Say what shape this is.",
        ),
    },
    "is_there": {
        "one": (
            "Is there {a_noun}?", "Is there {a_noun} in the picture?", "Is there {a_noun} in this picture?",
            "Is {a_noun} in the picture?", "Is there any {noun}?", "Is there any {noun} in the picture?",
            "Are there any {nouns}?", "Are there any {nouns} in the picture?", "Are there {nouns}?",
            "Do you see {a_noun}?", "Do you see any {nouns}?", "Can you see {a_noun}?",
            "Can you see {a_noun} in the picture?", "Can you see any {nouns}?", "Can you find {a_noun}?",
            "Can you tell me if there is {a_noun}?", "Tell me if there is {a_noun}.",
            "Please tell me if there is {a_noun}.", "Does the picture show {a_noun}?",
            "Does the picture have {a_noun}?", "Does this picture contain {a_noun}?",
            "Does the picture contain any {nouns}?", "Could you tell me if there is {a_noun}?",
            "Is there some {noun} here?", "Would you say there is {a_noun}?",
        ),
        "color": (
            "Is there {a_noun}?", "Is there {a_noun} in the picture?", "Is there any {noun}?", "Are there any {nouns}?",
            "Are there any {nouns} in the picture?", "Do you see {a_noun}?", "Can you see {a_noun}?",
            "Is there anything {color}?", "Is there anything {color} in the picture?", "Is there something {color}?",
            "Is anything {color}?", "Is any shape {color}?", "Do you see anything {color}?",
            "Can you see anything {color}?", "Are there any {color} objects?", "Are there any {color} things?",
            "Is there any {color} object in the picture?", "Tell me if there is anything {color}.",
            "Does the picture show {a_noun}?", "Does the picture have anything {color}?",
        ),
    },
    "where": {"one": (
        "Where is the {noun}?", "Where is the {noun} in the picture?", "Where is the {noun} in this picture?",
        "Where in the picture is the {noun}?", "Where's the {noun}?", "Where do you see the {noun}?",
        "Where can you see the {noun}?", "Where can I find the {noun}?", "Where does the {noun} lie?",
        "Where is the {noun} located?", "In which part of the picture is the {noun}?",
        "In what part of the picture is the {noun}?", "Which part of the picture is the {noun} in?",
        "What is the position of the {noun}?", "What is the place of the {noun}?", "Tell me where the {noun} is.",
        "Please tell me where the {noun} is.", "Can you tell me where the {noun} is?", "Find the {noun}.",
        "Position of the {noun}?", "Could you tell me where the {noun} is?", "Where can the {noun} be seen?",
        "Could you find the {noun} for me?", "Say in which part of the picture the {noun} is.",
    )},
}  # fmt: skip


_THERE = "(|in the picture|in this picture|here)"
_IS_SEEN = "(there|here|shown|visible|in it|in the picture|in this picture)"
_ASKS = "(if|whether)"

_COMPOSED: Phrasings = {
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

TRAINED: Phrasings = {kind: widened_kinds(forms, _COMPOSED[kind]) for kind, forms in PHRASINGS.items()}
"""What training asks with."""
