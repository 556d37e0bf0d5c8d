"""Questions about signs: what is written, and in what color; when an answer is right."""

import random
import re

from training.colors import UNNAMED
from training.questions import Question, loosely, said_colors
from training.signs import Sign

KINDS = ("read", "text_color")
_MOST_ALIKE = {"read": 3, "text_color": 2}  # of one kind about one sign, in other words each

PHRASINGS = {
    "read": (
        "What does it say?",
        "What does the sign say?",
        "What does this sign say?",
        "What does the picture say?",
        "What does the text say?",
        "What is written here?",
        "What is written on the sign?",
        "What is written in the picture?",
        "What is written there?",
        "What word is this?",
        "What word is it?",
        "What is the word?",
        "What is the text?",
        "What is the text in the picture?",
        "What text do you see?",
        "What text is in the picture?",
        "What can you read?",
        "What do you read?",
        "What does the writing say?",
        "Which word is written here?",
        "Which word do you see?",
        "What is on the sign?",
        "Read the sign.",
        "Read the text.",
        "Read it.",
        "Read this.",
        "Read the word.",
        "Please read the sign.",
        "Please read the text in the picture.",
        "Can you read this?",
        "Can you read the text?",
        "Can you read the sign?",
        "Can you tell me what it says?",
        "Could you tell me what the sign says?",
        "Tell me what it says.",
        "Tell me what is written here.",
        "Say what is written on the sign.",
        "What letters do you see?",
        "What are the letters?",
        "What number or word is it?",
        "What is the number or word?",
    ),
    "text_color": (
        "What color is the text?",
        "What color are the letters?",
        "What color is the word?",
        "What color is the writing?",
        "What color is the text in the picture?",
        "What color is the text on the sign?",
        "What color does the text have?",
        "What color do the letters have?",
        "What color is it written in?",
        "What color is the sign written in?",
        "What is the color of the text?",
        "What is the color of the letters?",
        "What is the color of the word?",
        "Which color is the text?",
        "Which color are the letters?",
        "Which color does the writing have?",
        "In what color is it written?",
        "In which color is the text written?",
        "Tell me the color of the text.",
        "Tell me what color the letters are.",
        "Please tell me what color the text is.",
        "Can you tell me what color the text is?",
        "Could you tell me the color of the writing?",
        "Name the color of the text.",
        "Color of the text?",
        "Say what color the word is.",
    ),
}

HELDOUT_PHRASINGS = {
    "read": (
        "What is it that the sign says?",
        "What is written in this picture?",
        "Which text is on the sign?",
        "Could you read the sign for me?",
        "Please tell me what the text says.",
        "Can you read what it says here?",
        "What word can you see?",
    ),
    "text_color": (
        "What color would you say the text is?",
        "Which color is the word written in?",
        "Could you name the color of the letters?",
        "Tell me which color the writing is.",
        "What is the color of the writing on the sign?",
    ),
}


def ask(
    sign: Sign,
    rng: random.Random,
    split: str = "train",
    num: int = 1,
    kinds: tuple[str, ...] | None = None,
    apart: bool = False,
) -> list[Question]:
    """Up to `num` questions about the sign, of both kinds or of `kinds`.

    `apart`: each will be asked as if it were the only one, so that a kind may come again in other words.
    Of a text in a color without a name, the color is not asked. `split` as in questions.ask.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f'split is {split!r}; expected "train" or "heldout"')
    answers = {"read": (f'The sign says "{sign.text}".', sign.text)}
    if sign.color != UNNAMED:
        answers["text_color"] = (f"The text is {sign.color}.", sign.color)
    phrasings = PHRASINGS if split == "train" else HELDOUT_PHRASINGS
    asked = [
        Question(kind, loosely(text, rng), *answers[kind])
        for kind in kinds or KINDS
        if kind in answers
        for text in rng.sample(phrasings[kind], _MOST_ALIKE[kind] if apart else 1)
    ]
    rng.shuffle(asked)
    return asked[:num]


def is_right(kind: str, key: str, answer: str) -> bool:
    """Whether `answer` says `key` and nothing else of its sort.

    "read": what stands in quotation marks is the text, in whatever case; without any, the answer's last word.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {KINDS}")
    if kind == "text_color":
        return said_colors(answer) == {key}
    quoted = re.findall(r'["“]([^"“”]*)["”]', answer) or re.findall(r"(\w+)\W*$", answer)
    return len(quoted) == 1 and quoted[0].strip().lower() == key.lower()
