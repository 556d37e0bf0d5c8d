"""Chosen crops through the engine: what the next question reuses of them, their masks, and maps that lie on them."""

import pytest
from engine_inputs import inputs_of
from places import EXAMPLES
from running_app import require_demo_model

from gemma3_core.engine import Answered, Box, Crops, DoneEvent, Engine, Request, TokenEvent, Turn

NIGHT, SIZE = EXAMPLES / "night.png", (640, 400)
STAR, HEART = Box(360, 90, 515, 245), Box(140, 245, 265, 360)
EVEN = tuple(Box(x, y, right, y + 200) for y in (0, 200) for x, right in ((0, 213), (213, 426), (426, 640)))
"""What "auto" is for a picture of this size."""


@pytest.fixture(scope="module")
def loaded() -> Engine:
    require_demo_model()
    return Engine.load(device="cpu")


@pytest.fixture
def engine(loaded) -> Engine:
    """The demo model with nothing kept."""
    loaded._writer.kept.clear()
    return loaded


@pytest.fixture(scope="module")
def small_engine(chat_folder) -> Engine:
    return Engine.load(chat_folder, device="cpu")


def about(crops: Crops, text: str = "What color is the star?") -> Turn:
    return Turn("user", text, (NIGHT,), crops=(crops,))


def ask(engine: Engine, *turns: Turn, reuse: bool = True) -> DoneEvent:
    *_, done = engine.stream(Request(turns, max_new_tokens=24, visitor="one", reuse=reuse))
    assert isinstance(done, DoneEvent)
    return done


def asked_on(engine: Engine, *turns: Turn) -> DoneEvent:
    """The answer with what is kept, which is the same as without."""
    done, fresh = ask(engine, *turns), ask(engine, *turns, reuse=False)
    assert fresh.stats.reused_tokens == 0
    assert done.stats.prompt_tokens == fresh.stats.prompt_tokens
    assert (done.text, done.token_ids) == (fresh.text, fresh.token_ids)
    return done


@pytest.mark.parametrize("crops", [(STAR,), (STAR, HEART), "auto"], ids=["a box", "two boxes", "auto"])
def test_a_further_question_reuses_the_same_crops(engine, crops, monkeypatch):
    encoded, features = [], type(engine._model).get_image_features
    monkeypatch.setattr(
        type(engine._model),
        "get_image_features",
        lambda self, pixels: encoded.append(len(pixels)) or features(self, pixels),
    )
    first = ask(engine, about(crops))
    tiles = 1 + (len(EVEN) if crops == "auto" else len(crops))
    assert (sum(encoded), first.stats.num_crops) == (tiles, tiles - 1)
    turns = (about(crops), Turn("assistant", first.text), Turn("user", "What color is the heart?"))
    again = ask(engine, *turns)
    assert sum(encoded) == tiles, "nothing is encoded again"
    assert again.stats.reused_tokens == first.stats.prompt_tokens + len(first.token_ids)
    fresh = ask(engine, *turns, reuse=False)
    assert (again.text, again.token_ids) == (fresh.text, fresh.token_ids)


@pytest.mark.parametrize(
    ("kept", "then"),
    [
        ((STAR,), (HEART,)),
        ((STAR,), (STAR._replace(left=STAR.left + 1),)),
        ((STAR, HEART), (HEART, STAR)),
        ("auto", (*EVEN[:-1], STAR)),
        ((STAR,), ()),
        ((STAR,), None),
    ],
    ids=["elsewhere", "one pixel less", "in another order", "another last one", "no crops", "pan & scan's"],
)
def test_other_crops_of_the_same_picture_reuse_nothing(engine, kept, then):
    """Mostly the prompt has the same ids: only the tiles behind the soft tokens are others."""
    first = ask(engine, about(kept))
    done = asked_on(engine, about(then), Turn("assistant", first.text), Turn("user", "What color is the heart?"))
    assert done.stats.reused_tokens == 0


def test_an_even_tiling_is_reused_by_its_own_boxes(engine):
    first = ask(engine, about("auto"))
    done = asked_on(engine, about(EVEN), Turn("assistant", first.text), Turn("user", "What color is the heart?"))
    assert done.stats.reused_tokens == first.stats.prompt_tokens + len(first.token_ids)


@pytest.mark.parametrize("crops", [(STAR,), "auto"], ids=["a box", "auto"])
def test_a_closer_look_after_an_answer_reuses_what_was_before_it(engine, crops):
    plain = about(None)
    first = ask(engine, plain)
    turns = (plain, Turn("assistant", first.text), about(crops, "What color is the star now?"))
    done = asked_on(engine, *turns)
    assert done.stats.reused_tokens == first.stats.prompt_tokens + len(first.token_ids)
    later = (*turns, Turn("assistant", done.text), Turn("user", "What color is the heart?"))
    assert asked_on(engine, *later).stats.reused_tokens > done.stats.prompt_tokens


@pytest.mark.parametrize(("crops", "boxes"), [((STAR, HEART), (STAR, HEART)), ("auto", EVEN)], ids=["boxes", "auto"])
def test_each_tile_is_a_group_of_its_own_in_the_masks(small_engine, crops, boxes):
    request = Request((about(crops, "what"),))
    view, masks = small_engine.inspect(request), small_engine.mask(request)
    assert [tile.box for tile in view.tiles] == [Box(0, 0, *SIZE), *boxes]
    assert [token.token_id for token in masks.tokens] == inputs_of(small_engine, request)["input_ids"][0].tolist()
    for mask in masks.masks:
        for tile in view.tiles:
            inside = range(tile.start, tile.stop)
            assert all(mask.allows(query, key) for query in inside for key in inside), "both ways"
        for one, next_one in zip(view.tiles, view.tiles[1:], strict=False):
            before, after = range(one.start, one.stop), range(next_one.start, next_one.stop)
            assert not any(mask.allows(query, key) for query in before for key in after), "no later tile"
            assert masks.reason(mask.kind, one.start, one.stop - 1) == "same image"
    last = len(masks.tokens) - 1
    assert all(masks.reason("global", last, tile.start) == "causal" for tile in view.tiles)


@pytest.mark.parametrize(("crops", "boxes"), [((STAR,), (STAR,)), ("auto", EVEN)], ids=["a box", "auto"])
def test_what_a_word_rests_on_lies_on_the_whole_picture_and_on_the_crops(small_engine, crops, boxes):
    request = Request((about(crops, "what"),), max_new_tokens=4)
    *_, done = small_engine.stream(request)
    report = small_engine.why(Answered(request, done), [1])
    labels = ["picture 1", *(f"picture 1, crop {number + 1}" for number in range(len(boxes)))]
    for tiles in (report.rests_on.tiles, report.attention.tiles):
        assert [one.tile.label for one in tiles] == labels
        assert [one.tile.box for one in tiles] == [Box(0, 0, *SIZE), *boxes]
    assert max(max(map(max, one.grid)) for one in report.rests_on.tiles) == 1
    if report.place is not None:
        left, top, right, bottom = report.place.box
        assert 0 <= left < right <= SIZE[0]
        assert 0 <= top < bottom <= SIZE[1]


def test_the_map_of_the_demo_model_finds_the_star_in_its_crop_too(engine):
    request = Request((about((STAR,)),), confidence=True, max_new_tokens=24)
    *events, done = engine.stream(request)
    texts = [event.choice.text for event in events if isinstance(event, TokenEvent) and event.choice is not None]
    report = engine.why(Answered(request, done), [texts.index(" yellow")])
    assert report.place is not None
    assert report.place.picture == 0
    middle = (report.place.box.left + report.place.box.right) / 2, (report.place.box.top + report.place.box.bottom) / 2
    assert STAR.left < middle[0] < STAR.right
    assert STAR.top < middle[1] < STAR.bottom
