"""Heat maps: weights of soft tokens in the original's pixels, on the words, and what the demo model does."""

import pytest
import torch
from PIL import Image, ImageDraw
from places import DEMO_MODEL
from reference import image_prompt, pixels

from gemma3_core.config.gemma3 import GLOBAL, LOCAL
from gemma3_core.errors import AttentionError, UnsupportedOptionError
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.attention import replay, rollout, with_answer
from gemma3_core.inspection.heat_maps import TileMap, attention_figure, attention_map, chosen_layers, map_of
from gemma3_core.inspection.occlusion import hidden, occlusion, token_probability
from gemma3_core.inspection.prompt import PromptToken, Tile, prompt_tokens, tiles_of
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.processor import Gemma3Processor
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer


@pytest.fixture(scope="module")
def model(reference_folder) -> Gemma3ForConditionalGeneration:
    return Gemma3ForConditionalGeneration.from_pretrained(reference_folder)


@pytest.fixture(scope="module")
def tokenizer(small_tokenizer_folder) -> Gemma3Tokenizer:
    return Gemma3Tokenizer.from_pretrained(small_tokenizer_folder)


def tokens_of(count: int, soft: range) -> list[PromptToken]:
    return [
        PromptToken(c, 5, f"w{c}", "image" if c in soft else "text", 0 if c in soft else None) for c in range(count)
    ]


def test_each_soft_token_lands_where_it_lies_in_the_original():
    """A wide crop of 80 x 40 at (100, 20), seen as 4 x 4 soft tokens: cells of 20 x 10 pixels."""
    tile = Tile(0, 0, Box(100, 20, 180, 60), 2, 18)
    for row in range(4):
        for column in range(4):
            weights = torch.zeros(20)
            weights[2 + 4 * row + column] = 1.0
            made = map_of(weights, tokens_of(20, range(2, 18)), [tile], "global", (5,), None)
            cell = Box(100 + 20 * column, 20 + 10 * row, 120 + 20 * column, 30 + 10 * row)
            assert made.hottest() == (tile, cell)
            heat = made.tiles[0].pixels()
            assert heat.shape == (40, 80)
            y, x = divmod(int(heat.argmax()), 80)
            assert cell.left <= 100 + x < cell.right
            assert cell.top <= 20 + y < cell.bottom
            assert made.tiles[0].total == made.on_pictures == 1


def test_cells_cover_boxes_that_do_not_divide_evenly():
    tile_map = TileMap(Tile(0, None, Box(3, 5, 13, 12), 0, 9), ((0.0,) * 3,) * 3)
    cells = [tile_map.cells((i, i), (i, i)) for i in range(3)]
    assert cells == [Box(3, 5, 7, 8), Box(6, 7, 10, 10), Box(9, 9, 13, 12)]
    assert tile_map.cells((0, 2), (0, 2)) == tile_map.tile.box


def test_the_hottest_region_is_what_lies_around_the_peak_and_is_a_fifth_as_hot():
    grid = torch.zeros(4, 4)
    grid[1, 1], grid[1, 2], grid[2, 2] = 0.4, 0.2, 0.3
    grid[3, 0] = 0.39  # as hot, but not connected
    grid[0, 1] = 0.07  # connected, but less than a fifth
    weights = torch.cat([torch.zeros(1), grid.flatten()])
    tile = Tile(0, None, Box(0, 0, 8, 8), 1, 17)
    made = map_of(weights, tokens_of(17, range(1, 17)), [tile], "global", (5,), None)
    assert made.hottest() == (tile, Box(2, 2, 6, 6))
    with pytest.raises(AttentionError, match="no picture number 2"):
        made.hottest(picture=1)
    nothing = map_of(torch.ones(3), tokens_of(3, range(0)), [], "global", (5,), None)
    with pytest.raises(AttentionError, match="no picture"):
        nothing.hottest()


@pytest.fixture(scope="module")
def turn() -> dict[str, torch.Tensor]:
    ids, types = image_prompt("t3 i i i t4")
    inputs = {"input_ids": ids, "token_type_ids": types, "pixel_values": pixels(3)}
    return with_answer(inputs, [40, 41, 42])


def tiles(turn) -> tuple[Tile, ...]:
    return tiles_of(turn["token_type_ids"], [(200, 100)], [[Box(0, 0, 100, 100), Box(100, 0, 200, 100)]])


@pytest.mark.parametrize(("layer", "head"), [("global", None), ("global", 2), (0, None), (3, 1), ("rollout", None)])
def test_maps_hold_the_weights_of_the_rows_and_all_of_them(model, tokenizer, turn, layer, head):
    rows = [turn["input_ids"].shape[1] - 2, turn["input_ids"].shape[1] - 3]
    tokens = prompt_tokens(tokenizer, turn["input_ids"], None, turn["token_type_ids"])
    made = attention_map(model, turn, rows, tokens, tiles(turn), layer, head)
    if layer == "rollout":
        expected = rollout(model, turn, rows).mean(dim=0)
        assert made.layers == tuple(range(7))
    else:
        weights = replay(model, turn, rows).weights
        assert made.layers == ((5,) if layer == "global" else (layer,))
        weights = weights[list(made.layers)].mean(dim=0)
        expected = (weights.mean(dim=0) if head is None else weights[head]).mean(dim=0)
    for tile_map in made.tiles:
        shown = torch.tensor(tile_map.grid)
        assert shown.shape == (4, 4)
        assert torch.allclose(shown.flatten(), expected[tile_map.tile.start : tile_map.tile.stop])
    words = [word.token.column for word in made.tokens]
    assert words == [c for c in range(len(tokens)) if turn["token_type_ids"][0, c] == 0]
    assert all(abs(word.weight - expected[word.token.column]) < 1e-6 for word in made.tokens)
    assert abs(made.on_pictures + sum(word.weight for word in made.tokens) - 1) < 1e-5
    assert hash(made), "plain data"


@pytest.mark.parametrize(
    ("layer", "head", "error", "words"),
    [
        (7, None, AttentionError, "0 to 6"),
        (-1, None, AttentionError, "0 to 6"),
        ("local", None, AttentionError, "'local'"),
        (True, None, AttentionError, "True"),
        (0, 4, AttentionError, "0 to 3"),
        ("rollout", 1, UnsupportedOptionError, "all heads"),
    ],
)
def test_choices_that_do_not_exist_are_refused(model, layer, head, error, words):
    with pytest.raises(error, match=words):
        chosen_layers(model.text_config, layer, head)


def test_a_model_without_global_layers_has_no_mean_over_them(model):
    config = model.text_config.replace(layer_types=(LOCAL,) * 7)
    with pytest.raises(AttentionError, match="no global layer"):
        chosen_layers(config, "global", None)
    assert GLOBAL in model.text_config.layer_types


def test_figures_show_each_square_and_the_words(model, tokenizer, turn, tmp_path):
    tokens = prompt_tokens(tokenizer, turn["input_ids"], None, turn["token_type_ids"])
    made = attention_map(model, turn, [turn["input_ids"].shape[1] - 1], tokens, tiles(turn))
    figure = attention_figure(made, [Image.new("RGB", (200, 100), "navy")], most_words=3)
    assert len(figure.axes) == 4
    assert [axis.get_title().split(":")[0] for axis in figure.axes] == [
        *["picture 1", "picture 1, crop 1", "picture 1, crop 2", "words"]
    ]
    figure.savefig(tmp_path / "map.png", dpi=40)
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_hidden_regions_take_the_color_around_them():
    picture = Image.new("RGB", (40, 30), (200, 100, 0))
    ImageDraw.Draw(picture).rectangle((10, 10, 19, 19), fill=(0, 0, 255))
    without = hidden(picture, Box(10, 10, 20, 20))
    assert without.getcolors() == [(1200, (200, 100, 0))]
    assert picture.getpixel((15, 15)) == (0, 0, 255), "the picture itself stays as it is"
    corner = hidden(picture, Box(0, 0, 12, 12))
    assert corner.getpixel((0, 0)) == corner.getpixel((11, 11)) != (0, 0, 255)
    everything = hidden(picture, Box(0, 0, 40, 30))
    assert len(everything.getcolors()) == 1
    for box in (Box(0, 0, 41, 30), Box(-1, 0, 4, 4), Box(4, 4, 4, 9), Box(0, 9, 5, 5)):
        with pytest.raises(AttentionError, match="40 x 30"):
            hidden(picture, box)


@pytest.fixture(scope="module")
def demo() -> tuple[Gemma3ForConditionalGeneration, Gemma3Processor]:
    return (
        Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype="float32"),
        Gemma3Processor.from_pretrained(DEMO_MODEL),
    )


@pytest.fixture(scope="module")
def scene() -> tuple[Image.Image, Box, Box]:
    """A red circle and a blue square, and their boxes."""
    circle, square = Box(30, 140, 100, 210), Box(150, 30, 200, 80)
    picture = Image.new("RGB", (240, 240), "beige")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((circle.left, circle.top, circle.right - 1, circle.bottom - 1), fill=(220, 30, 30))
    draw.rectangle((square.left, square.top, square.right - 1, square.bottom - 1), fill="blue")
    return picture, circle, square


def ask(demo, picture: Image.Image) -> dict[str, torch.Tensor]:
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What color is the circle?"}]
    return demo[1].apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )


@pytest.mark.parametrize(("layer", "least"), [("global", 0.25), (11, 0.5)])
def test_the_demo_model_looks_at_the_circle_to_tell_its_color(demo, scene, layer, least):
    """The mean of heads, on the row that writes "red"; other words look elsewhere.

    Of the two global layers the last looks at it, and the other one at the whole picture.
    """
    model, processor = demo
    picture, circle, square = scene
    prompt = ask(demo, picture)
    answer = [processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("The", " circle", " is")]
    turn = with_answer(prompt, answer)
    whole = tiles_of(turn["token_type_ids"], [picture.size], [[]])
    tokens = prompt_tokens(processor.tokenizer, turn["input_ids"], None, turn["token_type_ids"])
    made = attention_map(model, turn, [turn["input_ids"].shape[1] - 1], tokens, whole, layer)
    heat = made.tiles[0].pixels()
    on_circle, on_square = (
        heat[box.top : box.bottom, box.left : box.right].sum() / heat.sum() for box in (circle, square)
    )
    assert on_circle > least, on_circle
    assert on_square < 0.1, on_square
    assert made.on_pictures > 0.5
    _, hot = made.hottest()
    assert circle.left <= (hot.left + hot.right) / 2 < circle.right
    assert circle.top <= (hot.top + hot.bottom) / 2 < circle.bottom


def test_hiding_the_circle_changes_the_answer_and_hiding_the_square_does_not(demo, scene):
    model, processor = demo
    picture, circle, square = scene
    tokenizer = processor.tokenizer
    answer = [tokenizer.encode(word, add_special_tokens=False)[0] for word in ("The", " circle", " is", " red", ".")]
    stops = model.generation_config.stop_ids
    prompt = ask(demo, picture)
    without, beside = (
        occlusion(model, prompt, ask(demo, hidden(picture, box)), answer, 3, 12, stops) for box in (circle, square)
    )
    assert without.token_id == beside.token_id == answer[3]
    assert without.before == beside.before > 0.9
    assert without.after < 0.2
    assert beside.after > 0.9
    assert beside.answer_ids == tuple(answer)
    assert without.answer_ids != tuple(answer)
    with torch.no_grad():
        logits = model(**with_answer(prompt, answer[:3])).logits[0, -1]
    assert abs(without.before - logits.softmax(dim=-1)[answer[3]].item()) < 1e-4
    with pytest.raises(AttentionError, match="5 tokens, numbered from 0; there is no number 5"):
        token_probability(model, prompt, answer, 5)
