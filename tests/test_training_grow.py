"""A grown checkpoint answers as the smaller one it grew from, and its copies can part ways."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gemma3_core.config import GLOBAL, LOCAL
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.tokenizer import Gemma3Tokenizer
from training.evaluate import DEMO_MODEL
from training.grow import grow, layer_places, main
from training.model import DENSE_HEADS, DenseHeads, demo_config, initialise
from training.tokenizer import TOKENIZER_FILES

ENCODER = {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 3}
DECODER = {"num_hidden_layers": 6, "layer_types": None}
TOLERANCE = 1e-5  # of the largest number


def write_small(folder: Path, encoder: dict | None = None, decoder: dict | None = None) -> None:
    """A checkpoint of random weights, norms and biases too, at the demo model's earlier size but for some fields."""
    tokenizer = Gemma3Tokenizer.from_pretrained(DEMO_MODEL)
    config = demo_config(tokenizer)
    model = Gemma3ForConditionalGeneration(
        config.replace(
            vision_config=config.vision_config.replace(**{**ENCODER, **(encoder or {})}),
            text_config=config.text_config.replace(**{**DECODER, **(decoder or {})}),
        )
    )
    initialise(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes((DEMO_MODEL / name).read_bytes())


def loaded(folder: Path) -> Gemma3ForConditionalGeneration:
    return Gemma3ForConditionalGeneration.from_pretrained(folder, dtype="float32")


def narrow_heads() -> DenseHeads:
    """Dense heads that read patches of the smaller encoder."""
    heads = DenseHeads()
    for name in ("patch", "patch_character"):
        setattr(heads, name, nn.Linear(ENCODER["hidden_size"], getattr(heads, name).out_features))
    return heads


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_small(folder)
    torch.manual_seed(2)
    torch.save(narrow_heads().state_dict(), folder / DENSE_HEADS)
    return folder


@pytest.fixture(scope="module")
def large(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    grow(small, folder)
    return folder


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_it_has_todays_shape_and_the_same_other_files(small: Path, large: Path) -> None:
    today = demo_config(Gemma3Tokenizer.from_pretrained(DEMO_MODEL))
    grown = loaded(large).config
    assert grown.vision_config.replace(extra={}) == today.vision_config
    assert grown.text_config.replace(extra={}) == today.text_config
    assert {path.name for path in large.iterdir()} == {path.name for path in small.iterdir()}
    for name in TOKENIZER_FILES:
        assert (large / name).read_bytes() == (small / name).read_bytes(), name


@torch.no_grad()
def test_it_sees_answers_and_reads_the_same(small: Path, large: Path) -> None:
    before, after = loaded(small), loaded(large)
    torch.manual_seed(3)
    pixels = torch.rand(2, 3, 224, 224) * 2 - 1
    seen, grown = before.get_image_features(pixels), after.get_image_features(pixels)
    assert_close(grown.last_hidden_state, seen.last_hidden_state.repeat(1, 1, 2))
    assert_close(grown.pooler_output, seen.pooler_output)
    config = before.config
    picture = [config.boi_token_index, *[config.image_token_index] * 64, config.eoi_token_index]
    ids = torch.tensor([[2, *range(300, 310), *picture, *range(320, 350)]])
    types = (ids == config.image_token_index).long()
    logits = [model(input_ids=ids, token_type_ids=types, pixel_values=pixels[:1]).logits for model in (before, after)]
    assert_close(logits[1], logits[0])
    heads, wide = narrow_heads(), DenseHeads()
    heads.load_state_dict(torch.load(small / DENSE_HEADS, weights_only=True))
    wide.load_state_dict(torch.load(large / DENSE_HEADS, weights_only=True))
    for name in ("patch", "patch_character"):
        read = getattr(heads, name)(seen.last_hidden_state)
        assert_close(getattr(wide, name)(grown.last_hidden_state), read)
    for name in ("token", "token_characters", "token_height", "token_place"):
        assert torch.equal(getattr(wide, name).weight, getattr(heads, name).weight), name


@torch.no_grad()
def test_what_reads_the_copies_of_a_channel_differs(small: Path, large: Path) -> None:
    """Equal weights would get equal gradients, and stay copies for ever."""
    before, after = loaded(small).model, loaded(large).model
    pairs = [tuple(model.multi_modal_projector.mm_input_projection_weight.T for model in (after, before))]
    heads, wide = (torch.load(folder / DENSE_HEADS, weights_only=True) for folder in (small, large))
    pairs += [(wide[f"{name}.weight"], heads[f"{name}.weight"]) for name in ("patch", "patch_character")]
    places = layer_places(["encoder"] * 4, ["encoder"] * 6)
    for layer, place in zip(before.vision_tower.encoder.layers, places, strict=True):
        for name, weight in layer.named_parameters():
            if weight.ndim == 2:
                grown = after.vision_tower.encoder.layers[place].get_parameter(name)
                pairs.append((grown, weight.repeat(2, 1)))
    assert len(pairs) == 1 + 2 + 6 * 4
    for weight, expected in pairs:
        one, two = weight.chunk(2, dim=1)
        assert_close(one + two, expected)
        assert ((one - two).abs() > 0.01 * expected.abs()).float().mean() > 0.9


def test_what_grew_learns_from_the_first_step(large: Path) -> None:
    """Layers that begin as identities have gradients where they are silent."""
    model = loaded(large)
    ids = torch.tensor([[2, *[model.config.image_token_index] * 64, *range(300, 310)]])
    types = (ids == model.config.image_token_index).long()
    logits = model(input_ids=ids, token_type_ids=types, pixel_values=torch.rand(1, 3, 224, 224)).logits
    logits[0, -1].logsumexp(0).backward()
    for layer in model.model.vision_tower.encoder.layers:
        assert layer.self_attn.out_proj.weight.grad.abs().max() > 0
        assert layer.mlp.fc2.weight.grad.abs().max() > 0
    for layer in model.decoder.layers:
        assert layer.post_attention_layernorm.weight.grad.abs().max() > 0
        assert layer.post_feedforward_layernorm.weight.grad.abs().max() > 0


def test_layers_are_spread_among_those_of_their_kind() -> None:
    assert layer_places("aaa", "aaa") == [0, 1, 2]
    assert layer_places("aaa", "aaaaaa") == [1, 3, 5]
    assert layer_places("aaaa", "aaaaaa") == [1, 2, 3, 5]
    kept, wanted = [*[LOCAL] * 5, GLOBAL], [*[LOCAL] * 5, GLOBAL] * 2
    places = layer_places(kept, wanted)
    assert places == sorted(set(places))
    assert [wanted[place] for place in places] == kept
    assert places[-1] == 11
    assert min(places) <= 1


@pytest.mark.parametrize(("kept", "wanted"), [("aaa", "aa"), ("ab", "aaa"), ("ba", "aab"), ("abb", "bab")])
def test_layers_without_a_place_are_refused(kept: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"have no place for layer . of the {len(kept)} there are"):
        layer_places(kept, wanted)


@pytest.mark.parametrize(
    ("encoder", "decoder", "says"),
    [
        ({}, {"hidden_size": 128}, "another width"),
        ({}, {"num_hidden_layers": 13}, "no place for layer"),
        ({"num_hidden_layers": 7}, {}, "no place for layer"),
        ({"hidden_size": 256, "num_attention_heads": 4}, {}, "not the same multiple"),
        ({"intermediate_size": 256}, {}, "not the same multiple"),
    ],
)
def test_a_checkpoint_that_is_no_smaller_version_is_refused(
    tmp_path: Path, encoder: dict, decoder: dict, says: str
) -> None:
    write_small(tmp_path / "old", encoder, decoder)
    with pytest.raises(ValueError, match=says):
        grow(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_does_not_grow_in_its_own_folder(small: Path) -> None:
    with pytest.raises(ValueError, match="a folder of its own"):
        grow(small, small / ".." / small.name)


def test_the_command_says_why_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small(tmp_path / "old", decoder={"hidden_size": 128})
    monkeypatch.setattr(sys, "argv", ["grow", str(tmp_path / "old"), str(tmp_path / "new")])
    with pytest.raises(SystemExit):
        main()
    assert "error: the decoder has another width" in capsys.readouterr().err
