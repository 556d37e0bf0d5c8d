"""A larger checkpoint that answers as the one it grew from: `python -m training.grow OLD NEW`.

What a smaller demo model has learnt is kept when `model.demo_config` gets larger: further layers begin as
identities, and a wider encoder holds each of its channels several times, read in random parts that add up to the
whole (Net2Net, Chen, Goodfellow and Shlens, 2016), so that the copies part ways in training.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.tokenizer import Gemma3Tokenizer
from training.model import DENSE_HEADS, DenseHeads, demo_config, initialise

_LEAST_PART = 0.3  # of a weight that one of two copies takes over; the other one takes the rest


def grow(old: Path, new: Path, seed: int = 0) -> None:
    """Writes to `new` the checkpoint `old` at today's size, and its dense heads where it has some.

    Raises ValueError where `old` is no smaller version: another width of the decoder, more layers, a width of the
    encoder that does not go into today's. Or where both are one folder.
    """
    if old.resolve() == new.resolve():
        raise ValueError("give a folder of its own for what grows; the old checkpoint stays")
    small = Gemma3ForConditionalGeneration.from_pretrained(old, dtype="float32")
    large = Gemma3ForConditionalGeneration(demo_config(Gemma3Tokenizer.from_pretrained(old)))
    initialise(large, seed)
    torch.manual_seed(seed)
    copies = _copies(small, large)
    with torch.no_grad():
        _grow_encoder(small, large, copies)
        _grow_decoder(small, large)
    shutil.copytree(old, new, dirs_exist_ok=True)
    large.save_pretrained(new)
    if (old / DENSE_HEADS).exists():
        state = torch.load(old / DENSE_HEADS, weights_only=True)
        for name in ("patch", "patch_character"):
            if f"{name}.weight" in state:
                state[f"{name}.weight"] = _shared_out(state[f"{name}.weight"], copies)
        DenseHeads().load(state)
        torch.save(state, new / DENSE_HEADS)


def layer_places(kept: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where the layers of a smaller model stand among those of a larger one, spread out, each at one of its kind.

    The last stays the last. Raises ValueError where there are too few.
    """
    places: list[int] = []
    end = len(wanted)
    for number in reversed(range(len(kept))):
        spread = round((number + 1) * len(wanted) / len(kept)) - 1
        fitting = [place for place in range(number, end) if wanted[place] == kept[number]]
        if not fitting:
            raise ValueError(f"{len(wanted)} layers have no place for layer {number} of the {len(kept)} there are")
        end = min(fitting, key=lambda place: abs(place - spread))
        places.append(end)
    return places[::-1]


def _copies(small: Gemma3ForConditionalGeneration, large: Gemma3ForConditionalGeneration) -> int:
    """How often the larger encoder holds each channel of the smaller."""
    if small.text_config.hidden_size != large.text_config.hidden_size:
        raise ValueError("the decoder has another width; only its layers can become more")
    before, after = small.config.vision_config, large.config.vision_config
    copies, rest = divmod(after.hidden_size, before.hidden_size)
    widths = (before.intermediate_size * copies, before.num_attention_heads * copies)
    if rest or widths != (after.intermediate_size, after.num_attention_heads):
        raise ValueError("the encoder's widths are not the same multiple of the smaller one's")
    return copies


def _grow_encoder(small: Gemma3ForConditionalGeneration, large: Gemma3ForConditionalGeneration, copies: int) -> None:
    from_tower, to_tower = small.model.vision_tower, large.model.vision_tower
    for name in ("patch_embedding.weight", "patch_embedding.bias"):
        _set(to_tower.embeddings, name, _repeated(from_tower.embeddings.get_parameter(name), copies))
    positions = from_tower.embeddings.position_embedding.weight
    to_tower.embeddings.position_embedding.weight.copy_(positions.repeat(1, copies))
    from_layers, to_layers = from_tower.encoder.layers, to_tower.encoder.layers
    places = layer_places(["encoder"] * len(from_layers), ["encoder"] * len(to_layers))
    for layer, place in zip(from_layers, places, strict=True):
        for name, parameter in layer.named_parameters():
            wide = _shared_out(parameter, copies) if parameter.ndim == 2 else parameter
            _set(to_layers[place], name, _repeated(wide, copies))
    for place in set(range(len(to_layers))) - set(places):
        for name in ("self_attn.out_proj.weight", "self_attn.out_proj.bias", "mlp.fc2.weight", "mlp.fc2.bias"):
            nn.init.zeros_(to_layers[place].get_parameter(name))
    for name, parameter in from_tower.post_layernorm.named_parameters():
        _set(to_tower.post_layernorm, name, _repeated(parameter, copies))
    from_projector, to_projector = small.model.multi_modal_projector, large.model.multi_modal_projector
    to_projector.mm_soft_emb_norm.weight.copy_(_repeated(from_projector.mm_soft_emb_norm.weight, copies))
    projection = _shared_out(from_projector.mm_input_projection_weight.T, copies).T
    to_projector.mm_input_projection_weight.copy_(projection)


def _grow_decoder(small: Gemma3ForConditionalGeneration, large: Gemma3ForConditionalGeneration) -> None:
    from_layers, to_layers = small.decoder.layers, large.decoder.layers
    kept, wanted = small.text_config.layer_types, large.text_config.layer_types
    assert kept is not None
    assert wanted is not None
    places = layer_places(kept, wanted)
    for layer, place in zip(from_layers, places, strict=True):
        to_layers[place].load_state_dict(layer.state_dict())
    for place in set(range(len(to_layers))) - set(places):
        for name in ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"):
            nn.init.constant_(to_layers[place].get_parameter(name), -1.0)  # the norm multiplies by 1 + weight
    large.decoder.embed_tokens.weight.copy_(small.decoder.embed_tokens.weight)
    large.decoder.norm.load_state_dict(small.decoder.norm.state_dict())


def _repeated(parameter: torch.Tensor, copies: int) -> torch.Tensor:
    """What writes channels [N, ...], for all copies of them [copies * N, ...]."""
    return parameter.repeat(copies, *[1] * (parameter.ndim - 1))


def _shared_out(weight: torch.Tensor, copies: int) -> torch.Tensor:
    """What reads channels [M, N], as random parts for each copy [M, copies * N] whose sum is the whole."""
    parts = _LEAST_PART + (1.0 - 2 * _LEAST_PART) * torch.rand(copies, *weight.shape)
    return torch.cat(list(weight * parts / parts.sum(dim=0)), dim=1)


def _set(module: nn.Module, name: str, value: torch.Tensor) -> None:
    module.get_parameter(name).copy_(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    try:
        grow(arguments.old, arguments.new)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
