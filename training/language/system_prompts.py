"""System prompts that ask for one word or for full sentences, and the check that an answer complies."""

import random
import re

from training.language.asking import Question, of_split

KINDS = ("one_word", "full_sentence")
SHORT_KINDS = (
    "count_shape", "count_color", "count_all", "count_both", "color", "shape", "is_there", "where", "side", "read",
    "text_color", "letters_count", "word_or_number",
)  # fmt: skip
"""Kinds of question with answers of one word, or of two that name a place."""

_OPENED = 0.3  # share of the prompts that begin with something else
_FEWEST_WORDS = 3  # of a sentence

PROMPTS: dict[str, tuple[str, ...]] = {
    "one_word": (
        "Answer with one word.", "Answer in one word.", "Answer with one word only.", "Answer with only one word.",
        "Always answer with one word.", "Always answer in one word.", "Answer every question with one word.",
        "Answer each question in a single word.", "Give one-word answers.", "Give only one-word answers.",
        "Give answers of one word.", "One word only.", "One word, please.", "One-word answers.",
        "One-word answers only, please.", "Please answer with one word.", "Please answer in one word only.",
        "Reply with one word.", "Reply in a single word.", "Reply with a single word only.",
        "Use one word for each answer.", "Use only one word.", "Say only one word.", "Your answers are one word long.",
        "Your answer must be one word.", "Be brief: one word for each answer.", "Be as short as you can: one word.",
        "Keep every answer to one word.", "Do not write sentences. Answer with one word.",
        "No sentences, only one word.",
    ),
    "full_sentence": (
        "Answer in full sentences.", "Answer in a full sentence.", "Answer with a full sentence.",
        "Answer with full sentences only.", "Always answer in full sentences.", "Always answer with a whole sentence.",
        "Answer every question with a full sentence.", "Answer each question in a complete sentence.",
        "Give answers in full sentences.", "Give full sentences as answers.", "Full sentences only.",
        "Full sentences, please.", "Complete sentences, please.", "Please answer in full sentences.",
        "Please answer with a complete sentence.", "Reply in full sentences.", "Reply with a whole sentence.",
        "Use full sentences.", "Use a full sentence for each answer.", "Use complete sentences.",
        "Write full sentences.", "Speak in full sentences.", "Your answers are full sentences.",
        "Your answer must be a full sentence.", "Do not answer with one word. Use full sentences.",
        "Never answer with a single word: write a sentence.",
    ),
}  # fmt: skip
HELDOUT_PROMPTS: dict[str, tuple[str, ...]] = {
    "one_word": (
        "Answer with a single word.", "Please give one-word answers only.", "Reply in one word.",
        "Use just one word to answer.", "Every answer is one word.",
    ),
    "full_sentence": (
        "Answer in complete sentences.", "Please give your answers in full sentences.", "Reply with a full sentence.",
        "Use whole sentences to answer.", "Every answer is a full sentence.",
    ),
}  # fmt: skip

# Other things that a prompt may say. In training one may stand alone, without effect on the answer.
OPENINGS = (
    "You are a helpful assistant.", "You are an assistant.", "You look at pictures.", "You help people with pictures.",
    "You answer questions about pictures.", "You are a friendly assistant that sees pictures.", "Be kind.",
    "Look at the picture.", "Look closely.", "Be helpful.",
)  # fmt: skip
HELDOUT_OPENINGS = (
    "You are a friendly helper.", "You tell people what is in a picture.", "Look at the picture closely.",
)  # fmt: skip


def random_prompt(form: str, rng: random.Random, split: str = "train") -> str:
    """A system prompt that asks for this form; in training, one for sentences may leave the form out."""
    if form not in KINDS:
        raise ValueError(f"form is {form!r}; expected one of {KINDS}")
    asks = rng.choice(of_split(split, PROMPTS, HELDOUT_PROMPTS)[form])
    opening = rng.choice(of_split(split, OPENINGS, HELDOUT_OPENINGS)) if rng.random() < _OPENED else ""
    if form == "full_sentence" and split == "train" and opening and rng.random() < 0.5:
        return opening
    text = f"{opening} {asks}".strip()
    if rng.random() < 0.1:
        text = text[0].lower() + text[1:]
    return text.removesuffix(".") if rng.random() < 0.15 else text


def in_form(question: Question, form: str) -> Question:
    """The question with its answer in this form; its key becomes "kind key".

    Raises ValueError if one word cannot answer a question of this kind.
    """
    key = f"{question.kind} {question.key}"
    if form == "full_sentence":
        return Question(form, question.question, question.answer, key, question.unseen)
    if question.kind not in SHORT_KINDS:
        raise ValueError(f"kind is {question.kind!r}, which one word cannot answer; expected one of {SHORT_KINDS}")
    unseen = tuple(_short(question.kind, _word_in(whole, question)) for whole in question.unseen)
    return Question(form, question.question, _short(question.kind, question.key), key, unseen)


def _word_in(other: str, question: Question) -> str:
    """The part of another answer in the place of this question's key."""
    before, after = question.answer.split(question.key, 1)
    return other.removeprefix(before).removesuffix(after)


def _short(kind: str, key: str) -> str:
    if kind == "read":
        return f'"{key}".'
    if kind not in ("is_there", "side") and key == "no":
        return "None."
    return f"{key.capitalize()}."


def has_form(form: str, key: str, answer: str) -> bool:
    """Whether an answer is a sentence, or has as many words as the key without its kind."""
    words = re.findall(r"\w+", answer)
    if form == "one_word":
        return len(words) == len(key.split()) - 1
    return len(words) >= _FEWEST_WORDS and answer[:1].isupper() and answer.rstrip().endswith(".")
