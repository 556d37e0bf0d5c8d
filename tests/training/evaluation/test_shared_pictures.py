"""All kinds of a world are asked about the same pictures, and a picture is encoded once."""

import random
from collections import Counter

import torch
from PIL import Image

from training.evaluation.dialogues import dialogues_about_the_same
from training.evaluation.trials import Examinee
from training.learning.model import DEMO_MODEL
from training.worlds.registry import world_of

KINDS = ("color", "count_all", "chart_count", "follow_up", "other_picture", "which_more")


def test_as_many_questions_of_each_kind_are_asked_about_few_pictures() -> None:
    told = list(dialogues_about_the_same(KINDS, 3, "heldout", 5, "pillow"))
    asked = Counter(q.kind for kind, one in told for q in one.questions if q.kind == kind)
    assert asked == dict.fromkeys(KINDS, 3)
    assert all(one.questions[-1].kind == kind for kind, one in told)
    of_scenes = {id(picture) for kind, one in told if kind in ("color", "count_all") for picture in one.pictures}
    assert len(of_scenes) < 6
    again = list(dialogues_about_the_same(KINDS, 3, "heldout", 5, "pillow"))
    assert [(kind, one.questions) for kind, one in again] == [(kind, one.questions) for kind, one in told]
    assert [one.pictures for _, one in again] == [one.pictures for _, one in told]
    worlds = [world_of(kind).kinds for kind, _ in told]
    assert len(dict.fromkeys(worlds)) == sum(one != other for one, other in zip(worlds, ["", *worlds], strict=False))


def test_a_tile_is_encoded_once_and_comes_back_as_it_was() -> None:
    examinee, encoded = Examinee(DEMO_MODEL, device="cpu"), []
    numbers = torch.Generator().manual_seed(0)
    first, second, third = torch.rand(3, 3, 224, 224, generator=numbers)
    plain = examinee._model.get_image_features
    examinee._model.get_image_features = lambda tiles: encoded.append(len(tiles)) or plain(tiles)
    examinee._soft_tokens(torch.stack([first, second, first]))
    given = torch.stack([second, third, first])
    torch.testing.assert_close(examinee._soft_tokens(given), plain(given).pooler_output, rtol=1e-4, atol=1e-4)
    assert encoded == [2, 1]


def test_an_answer_is_the_same_beside_others_and_again() -> None:
    examinee, rng = Examinee(DEMO_MODEL, device="cpu"), random.Random(3)
    pictures = []
    for color in ("red", "blue", "green"):
        picture = Image.new("RGB", (400, 300), "white")
        picture.paste(Image.new("RGB", (110, 110), color), (rng.randrange(250), rng.randrange(150)))
        pictures.append(picture)
    question = "What color is the square?"
    together = examinee.answer(pictures, [question] * 3)
    assert [examinee.answer([picture], [question]) for picture in pictures] == [[answer] for answer in together]
    assert all(color in answer for color, answer in zip(("red", "blue", "green"), together, strict=True))
