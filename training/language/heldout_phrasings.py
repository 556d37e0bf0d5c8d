"""The phrasings that training never hears: about 15 % of each kind's, or three.

They are in one place because every composed phrasing is checked against all of them: none of any kind contains a
sentence that stands here. Those of scenes go by form too, as in phrasings.py.
"""

SCENES: dict[str, dict[str, tuple[str, ...]]] = {
    "count_shape": {"one": (
        "How many {shapes} can be seen in the picture?", "Could you count the {shapes} for me?",
        "Say how many {shapes} you can find.", "What number of {shapes} is in the picture?",
    )},
    "count_color": {"one": (
        "How many {color} shapes can be seen in the picture?", "How many of the objects are {color}?",
        "Could you count the {color} objects for me?", "Say how many {color} things you can find.",
        "What number of {color} shapes is in the picture?",
    )},
    "count_all": {"one": (
        "How many shapes can be seen in the picture?", "How many objects are there altogether?",
        "Could you count all the objects for me?", "Say how many things you can find.",
        "What number of shapes is in the picture?",
    )},
    "color": {
        "one": (
            "What color would you say the {shape} is?", "Could you name the color of the {shape}?",
            "Which color is the {shape} in the picture?", "Say what color the {shape} has.",
        ),
        "many": ("Which color do the {shapes} have?", "Could you tell me what color the {shapes} are?"),
    },
    "shape": {
        "one": (
            "Which shape does the {color} thing have?", "Could you name the shape of the {color} thing?",
            "Say what shape the {color} object has.", "What kind of shape does the {color} object have?",
        ),
        "only": ("Which shape do you see?", "Could you name this shape?"),
    },
    "is_there": {
        "one": (
            "Is there {a_noun} to be seen?", "Could you tell me if you see {a_noun}?",
            "Do you see {a_noun} in this picture?", "Does the picture show any {nouns}?",
        ),
        "color": (
            "Is there {a_noun} here in this picture?", "Is there some {color} thing to be seen?",
            "Do you see any {color} objects?", "Does the picture show anything {color}?",
        ),
    },
    "where": {"one": (
        "Where in this picture can I see the {noun}?", "Could you tell me where the {noun} is located?",
        "In which part of the image does the {noun} lie?", "Say where the {noun} is.",
    )},
}  # fmt: skip

FURTHER: dict[str, tuple[str, ...]] = {
    "count_both": (
        "Could you say how many {many} you see?", "What number of {many} is in the picture?",
        "How many {many} can be seen?",
    ),
    "side": (
        "Could you say if the {one} lies {side} the {other}?", "Is the {one} to be seen {side} the {other}?",
        "Do you find the {one} {side} the {other}?",
    ),
    "largest": (
        "Could you name the largest shape?", "Say which object is the biggest.", "Which of the shapes is the largest?",
    ),
    "smallest": (
        "Could you name the smallest shape?", "Say which object is the smallest.",
        "Which of the shapes is the smallest?",
    ),
    "describe": (
        "Could you tell me what the picture shows?", "Which objects are in the picture?", "Say what you can see.",
    ),
    "absent": (
        "Could you name the color of the {noun}?", "Say where the {noun} is.",
        "Which place does the {noun} have in the picture?",
    ),
}  # fmt: skip

CHARTS: dict[str, tuple[str, ...]] = {
    "chart_tallest": (
        "Which of the bars is the tallest?", "Could you tell me which bar is the highest?",
        "What is the name of the tallest bar?",
    ),
    "chart_shortest": (
        "Which of the bars is the shortest?", "Could you tell me which bar is the lowest?",
        "What is the name of the shortest bar?",
    ),
    "chart_taller": (
        'Is the bar of "{one}" higher than that of "{other}"?',
        'Could you tell me if "{one}" is taller than "{other}"?', 'Would you say "{one}" is taller than "{other}"?',
    ),
    "chart_which_taller": (
        'Which of the two is taller, "{one}" or "{other}"?', 'Could you tell me which is taller, "{one}" or "{other}"?',
        'Which would you say is taller, "{one}" or "{other}"?',
    ),
    "chart_order": (
        "Could you list the bars from the tallest to the shortest?",
        "Please name all the bars from tallest to shortest.", "Tell me all bars, the tallest first.",
    ),
    "chart_count": (
        "How many bars are there in this chart?", "Could you tell me how many bars you see?",
        "Please tell me the number of bars in the picture.",
    ),
    "chart_bar_color": (
        'Which color is the bar of "{one}"?', 'Could you tell me what color the bar "{one}" is?',
        'What color would you say "{one}" is?',
    ),
}  # fmt: skip

_SHOWS_HELDOUT = (
    "Which objects are on the {which} picture?", "Could you tell me what the {which} picture shows?",
    "Say what you see on the {which} picture.",
)  # fmt: skip

PAIRS: dict[str, tuple[str, ...]] = {
    "which_more": (
        "Which of both pictures shows more {many}?", "Could you tell me which picture has more {many}?",
        "In which of the two pictures are there more {many}?",
    ),
    "same": (
        "Do these two pictures show the same shapes?", "Could you tell me if both show the same?",
        "Does the first picture show the same as the second?",
    ),
    "only_in": (
        "Which shapes do you see only in the {which} picture?",
        "Could you tell me what is only in the {which} picture?",
        "What is there in the {which} picture that is not in the other?",
    ),
    "on_first": _SHOWS_HELDOUT,
    "on_second": _SHOWS_HELDOUT,
}  # fmt: skip

_OF_A_LINE_HELDOUT = (
    "Could you read the {line} line for me?", "Please tell me what the {line} line of the sign says.",
    "Which text is in the {line} line?",
)  # fmt: skip

TWO_LINES: dict[str, tuple[str, ...]] = {
    "read_lines": (
        "What is it that the sign says?", "What is written in this picture?", "Could you read both lines for me?",
        "Please tell me what the text says.",
    ),
    "first_line": _OF_A_LINE_HELDOUT,
    "second_line": _OF_A_LINE_HELDOUT,
}  # fmt: skip

SIGNS: dict[str, tuple[str, ...]] = {
    "read": (
        "What is it that the sign says?", "What is written in this picture?", "Which text is on the sign?",
        "Could you read the sign for me?", "Please tell me what the text says.", "Can you read what it says here?",
        "What word can you see?",
    ),
    "text_color": (
        "What color would you say the text is?", "Which color is the word written in?",
        "Could you name the color of the letters?", "Tell me which color the writing is.",
        "What is the color of the writing on the sign?",
    ),
    "letters_count": (
        "How many {letters} can be seen on the sign?", "Could you tell me how many {letters} the {word} has?",
        "Could you count the {letters} for me?",
    ),
    "word_or_number": (
        "Is the sign's text a word or a number?", "Could you tell me if it is a number or a word?",
        "Which is it, a word or a number?",
    ),
}  # fmt: skip

BOARDS: dict[str, tuple[str, ...]] = {
    "board_price": (
        "How much would I pay for {item}?", "What is the cost of {item}?", "Can you read the price of {item}?",
        "Which price is written beside {item}?",
    ),
    "board_first": (
        "What is the first thing written here?", "Which word comes first on the board?",
        "Can you tell me what is written first?",
    ),
    "board_last": (
        "What is the last thing written here?", "Which word comes last on the board?",
        "Can you tell me what is written last?",
    ),
    "board_has": (
        "Is there an entry {item} on the board?", "Do you find {item} on the board?",
        "Can you tell me whether {item} is written there?",
    ),
}  # fmt: skip

FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "ones": ("Then what about {ones}?", "And how many are the {ones}?", "How many {ones} do you see then?"),
    "one": ("And how about the {one}?", "Then what about the {one}?"),
    "a_one": ("And how about {a_one}?", "Or is there {a_one}?"),
    "total": ("And how many shapes are there altogether?", "And what about all shapes?"),
    "color": ("And which color is it?", "Could you tell me its color?"),
    "shape": ("And which shape is it?", "Could you tell me its shape?"),
    "where": ("And where do you see it?", "Could you tell me where it is?"),
    "many": ("And how many do you see?", "How many of these are there?"),
    "picture": ("And how about the {which} picture?", "And what about the other picture?", "Then the {which} one?"),
}

IN_ONE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("count_shape", "count_color", "count_all"),
        ("How many {many} can be seen in the {which} picture?", "Could you count the {many} in the {which} picture?"),
    ),
    "color": ("Could you tell me the color of the {shape} in the {which} picture?",),
    "shape": ("Could you tell me the shape of the {color} thing in the {which} picture?",),
    "where": ("Could you tell me where the {noun} is in the {which} picture?",),
    "is_there": ("Can you see {a_noun} in the {which} picture?",),
}


def every() -> tuple[str, ...]:
    """All of them."""
    by_kind = [SCENES[kind][form] for kind in SCENES for form in SCENES[kind]]
    for kinds in (FURTHER, CHARTS, PAIRS, TWO_LINES, SIGNS, BOARDS, FOLLOW_UPS, IN_ONE):
        by_kind += kinds.values()
    return tuple(dict.fromkeys(text for texts in by_kind for text in texts))
