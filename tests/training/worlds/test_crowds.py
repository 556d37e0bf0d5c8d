"""Pictures full of words or shapes: what they hold, that nothing held out is among it, and their labels."""

import random
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from training.drawing.colors import UNNAMED
from training.drawing.dense_labels import CHARACTERS_PER_TOKEN, NO_LABEL, PATCHES_PER_SIDE
from training.drawing.fonts import CHARACTERS
from training.train import dense_mix_of, mix_of, parse
from training.worlds import crowds
from training.worlds.crowds import Words, labels, random_crowd
from training.worlds.registry import WORLDS, world_named
from training.worlds.scenes.scenes import Scene, is_heldout_pair
from training.worlds.signs import drawing as sign_drawing
from training.worlds.signs.signs import LEAST_TRAINED, is_heldout_text

SIDE = 224


def several(kind: type, number: int = 40) -> list:
    rng = random.Random(5)
    crowd = (random_crowd(rng, unnamed=0.5) for _ in range(20 * number))
    return [next(one for one in crowd if isinstance(one, kind)) for _ in range(number)]


def test_words_are_many_inside_and_none_is_held_out() -> None:
    pictures = several(Words)
    assert np.mean([sum(len(sign.text) for sign in words.texts) for words in pictures]) > 30
    for words in pictures:
        side = min(words.width, words.height)
        for sign in words.texts:
            assert not is_heldout_text(sign.text)
            assert sign.plate is None
            assert sign.cap_height >= 0.999 * LEAST_TRAINED * side
            left, top, right, bottom = sign.line
            corners = sign.turned(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))
            assert corners.min() > -0.03 * side
            assert (corners < np.array([words.width, words.height]) + 0.03 * side).all()


def test_middles_of_words_keep_their_distance() -> None:
    for words in several(Words):
        for one, other in combinations(words.texts, 2):
            beside = abs(one.x - other.x) > (one.line[2] + other.line[2])
            below = abs(one.y - other.y) >= 0.75 * (one.cap_height + other.cap_height) * 0.999
            assert beside or below


def test_shapes_are_many_apart_and_no_pair_is_held_out() -> None:
    pictures = several(Scene)
    assert np.mean([len(scene.objects) for scene in pictures]) > 12
    for scene in pictures:
        for item in scene.objects:
            assert item.color == UNNAMED or not is_heldout_pair(item.shape, item.color)
        for one, other in combinations(scene.objects, 2):
            assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius


def test_letters_lie_where_the_labels_say() -> None:
    met, missed, full, unlabelled = 0, 0, 0, 0
    for number, words in enumerate(several(Words, 20)):
        squares = [
            np.asarray(crowds.training_picture(one, random.Random(number), SIDE), np.int16)
            for one in (words, replace(words, texts=()))
        ]
        differs = np.abs(squares[0] - squares[1]).max(axis=2).reshape(PATCHES_PER_SIDE, 14, PATCHES_PER_SIDE, 14)
        ink = (differs > 40).mean(axis=(1, 3)).ravel()
        lettered = (labels(words).patch_character.reshape(-1, 2) > 0).any(axis=1)
        met += ((ink > 0) & lettered).sum()
        missed += ((ink == 0) & lettered).sum()
        full += (ink > 0.3).sum()
        unlabelled += ((ink > 0.3) & ~lettered).sum()
    assert missed < 0.05 * met
    assert unlabelled < 0.1 * full  # else only the rims of letters


def test_labels_are_those_of_the_signs() -> None:
    words = several(Words, 1)[0]
    whole = labels(words)
    assert set(whole.token_shape) == set(whole.token_color) == {NO_LABEL}
    assert not whole.patch_shape.any()
    said = {CHARACTERS[number - 1] for number in whole.patch_character if number}
    assert said <= set("".join(sign.text for sign in words.texts))
    alone = labels(replace(words, texts=words.texts[:1]))
    there = alone.patch_character > 0
    assert (whole.patch_character[there] == alone.patch_character[there]).mean() > 0.9
    shapes = labels(several(Scene, 1)[0])
    assert len(set(shapes.patch_shape) - {0}) > 3
    assert set(shapes.token_shape) == {NO_LABEL}


def test_only_training_sees_crowds_and_nobody_asks_about_them() -> None:
    world = world_named("crowds")
    assert "crowds" not in WORLDS
    with pytest.raises(ValueError, match="for training"):
        world.imagine(random.Random(0), "heldout")
    crowd = world.imagine(random.Random(0), "train")
    assert world.ask(crowd, random.Random(0), "train", 3) == []
    assert world.draw(crowd, random.Random(0)).size == (max(world.size(crowd)),) * 2
    with pytest.raises(ValueError, match="kind is 'read'"):
        world.is_right("read", "a", "a")


def test_crowds_join_the_dense_stage_and_no_other() -> None:
    arguments = parse(["--out", "x", "--signs", "0.5", "--crowds", "0.6"])
    assert {share.world for share in mix_of(arguments).worlds} == {"scenes", "signs"}
    dense = dense_mix_of(arguments)
    assert {share.world: round(share.weight, 6) for share in dense.worlds} == {
        "scenes": 0.2, "signs": 0.2, "crowds": 0.6,
    }  # fmt: skip
    assert dense.questions == 0
    assert [share.world for share in dense_mix_of(parse(["--out", "x"])).worlds] == ["scenes"]
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--crowds", "2"])


def test_a_soft_token_tells_its_characters_unless_two_texts_share_it() -> None:
    told = shared = 0
    for words in several(Words, 10):
        whole = labels(words).token_characters.reshape(-1, CHARACTERS_PER_TOKEN)
        alone = [sign_drawing.labels(sign).token_characters.reshape(-1, CHARACTERS_PER_TOKEN) for sign in words.texts]
        for token, said in enumerate(whole):
            texts = [one[token] for one in alone if one[token].any()]
            if len(texts) > 1:
                assert (said == NO_LABEL).all()
                shared += 1
            else:
                assert said.tolist() == (texts[0] if texts else np.zeros(CHARACTERS_PER_TOKEN)).tolist()
                told += len(texts)
    assert told > shared > 0
