"""Pictures drawn by a browser show what Pillow's show, and are asked the same questions."""

import random
import shutil
from itertools import islice

import numpy as np
import pytest

from training.evaluation.browser_drawing import Browser, svg_of, texts_of
from training.evaluation.dialogues import dialogues_of_kind
from training.worlds.registry import WORLDS
from training.worlds.signs.signs import Sign


@pytest.fixture(scope="module")
def drawing_browser():
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with Browser() as opened:
        yield opened


def small(picture):
    """At the encoder's size: one pixel there is a few of the picture's."""
    return np.asarray(picture.resize((224, 224)), np.float32)


@pytest.mark.parametrize("name", ["scenes", "signs", "two_lines", "charts", "boards"])
def test_a_browser_draws_what_pillow_draws(drawing_browser, name):
    world, rng = WORLDS[name], random.Random(3)
    for _ in range(4):
        depiction = world.imagine(rng, "heldout")
        drawn = drawing_browser.draw(depiction, random.Random(1))
        assert drawn.size == world.size(depiction)
        assert drawn.mode == "RGB"
        plain = world.drawing.draw(depiction, random.Random(1), renderer="pillow", effects=0.0)
        apart = np.abs(small(drawn) - small(plain)).max(axis=-1)
        assert (apart > 64).mean() < 0.02, depiction  # letters may lie a little beside


def test_what_differs_is_seen(drawing_browser):
    world, rng = WORLDS["signs"], random.Random(3)
    one, other = (world.imagine(rng, "heldout") for _ in range(2))
    drawn, plain = drawing_browser.draw(one, rng), world.draw(other, rng, "pillow")
    assert (np.abs(small(drawn) - small(plain)).max(axis=-1) > 64).mean() > 0.02


@pytest.mark.parametrize("kind", ["color", "read", "chart_tallest", "board_price", "which_more", "follow_up"])
def test_each_renderer_is_asked_the_same(drawing_browser, kind):
    by_pillow, by_browser = (
        list(islice(dialogues_of_kind(kind, 2, "heldout", 7, renderer), 2)) for renderer in ("pillow", drawing_browser)
    )
    assert [d.questions for d in by_pillow] == [d.questions for d in by_browser]
    assert [[p.size for p in d.pictures] for d in by_pillow] == [[p.size for p in d.pictures] for d in by_browser]
    pictures = zip(by_pillow[0].pictures, by_browser[0].pictures, strict=True)
    assert all(one.tobytes() != other.tobytes() for one, other in pictures)


def test_texts_are_escaped_and_complete():
    rng = random.Random(2)
    chart = WORLDS["charts"].imagine(rng, "heldout")
    assert {bar.name for bar in chart.bars} <= {text.text for text in texts_of(chart)}
    sign = WORLDS["signs"].imagine(rng, "heldout")
    assert isinstance(sign, Sign)
    assert f">{sign.text}</text>" in svg_of(sign, rng)
