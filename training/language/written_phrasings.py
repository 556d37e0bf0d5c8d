"""The questions that people wrote: phrasings.json for training, heldout_phrasings.json for evaluation.

Both map kinds of question to forms to sentences, as does a file for `training.evaluate --phrasings`. Most kinds have
one form, "one". Training never sees a held-out sentence: about 15 % of each kind's, or three.
"""

import json
from collections.abc import Iterable
from pathlib import Path

Forms = dict[str, tuple[str, ...]]

_SAME = {"on_second": "on_first", "second_line": "first_line"}  # kinds with the sentences of another


def read(file: Path) -> dict[str, Forms]:
    """The sentences of a file, by kind and form. Raises OSError, and ValueError for what is not JSON."""
    told = json.loads(file.read_text(encoding="utf-8"))
    return {kind: {form: tuple(texts) for form, texts in forms.items()} for kind, forms in told.items()}


TRAINED = read(Path(__file__).with_name("phrasings.json"))
HELDOUT = read(Path(__file__).with_name("heldout_phrasings.json"))


def in_one_form(written: dict[str, Forms], kinds: Iterable[str]) -> Forms:
    """The sentences of these kinds, each of which has one form."""
    return {kind: written[_SAME.get(kind, kind)]["one"] for kind in kinds}


def about_one_of_two(written: dict[str, Forms]) -> Forms:
    """Questions about one picture of two, by the kind of question about a single picture."""
    forms = written["in_one"]
    return {**forms, "count_color": forms["count_shape"], "count_all": forms["count_shape"]}


def all_heldout() -> tuple[str, ...]:
    """Every held-out sentence about what the model knows; composed phrasings must not contain any of them."""
    by_kind = (forms for kind, forms in HELDOUT.items() if kind != "strange_question")
    return tuple(dict.fromkeys(text for forms in by_kind for texts in forms.values() for text in texts))
