"""The inputs of `generate`: checks ids, masks and pictures, and drops the tokens that the cache holds already."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.generation.chunks import PicturesByColumn
from gemma3_core.generation.config import GenerationConfig
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.inputs import require_prompt, require_tensors

TEXT_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
PICTURE_INPUTS = ("token_type_ids", "pixel_values")
_BY_COLUMN = ("input_ids", "inputs_embeds", "position_ids", "token_type_ids")


@dataclass(frozen=True)
class GenerationInputs:
    """A checked prompt on the model's device.

    ids [B, T] are what the result begins with ([B, 0] if only embeddings were given); mask [B, T] is 0 on their
    padding. fields are the model's inputs, without the tokens that the cache holds already. length counts a row of
    the prompt as it was given, past counts a row of the cache, both in tokens.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    fields: dict[str, torch.Tensor]
    length: int
    past: int

    @property
    def unread(self) -> int:
        """Tokens a row that are not in the cache yet."""
        return next(self.fields[name] for name in ("input_ids", "inputs_embeds") if name in self.fields).shape[1]


def prepare_inputs(
    model: Any, given: Mapping[str, torch.Tensor | None], config: GenerationConfig, cache: KVCache | None
) -> GenerationInputs:
    """Checks the inputs of `generate` and completes them. Raises PromptError, UnsupportedOptionError.

    Without ids or embeddings a text begins with bos_token_id. Without a mask, pad ids in the prompt are padding, as in
    transformers. With a cache, the prompt is either the whole conversation, whose cached tokens are skipped, or only
    the new tokens with an attention_mask over both.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    sees = hasattr(model.config, "image_token_index")
    if unknown := sorted(set(fields) - {*TEXT_INPUTS, *(PICTURE_INPUTS if sees else ())}):
        raise UnsupportedOptionError(f"generate of {type(model).__name__} does not know {', '.join(unknown)}.")
    require_tensors(**fields)
    fields = {name: value.to(model.device) for name, value in fields.items()}
    embeds, ids = fields.get("inputs_embeds"), fields.pop("input_ids", None)
    if ids is None and embeds is not None:
        ids = torch.empty(embeds.shape[0], 0, dtype=torch.long, device=embeds.device)
    elif ids is None:
        ids = _first_ids(model, fields, config)
    main = ids if embeds is None else embeds
    require_prompt("input_ids" if embeds is None else "inputs_embeds", main)
    _check_ids(model, ids, embeds)
    rows, length = main.shape[:2]
    past = 0 if cache is None else cache.get_seq_length()
    if "attention_mask" not in fields and (inferred := _inferred_mask(ids, config)) is not None:
        fields["attention_mask"] = inferred
    _check_shapes(fields, rows, length, past)
    own_mask = None
    if "attention_mask" in fields:
        fields["attention_mask"] = (fields["attention_mask"] != 0).long()
        own_mask = fields["attention_mask"][:, -ids.shape[1] :] if ids.shape[1] else None
    if sees:
        _check_blocks(model, ids)
    if embeds is None:
        fields["input_ids"] = ids
    if cache is not None and past:
        fields = _unread(model, fields, cache, rows, length)
    if sees and embeds is None:
        _check_count(model, fields)
    return GenerationInputs(ids, own_mask, fields, length, past)


def _first_ids(model: Any, fields: Mapping[str, torch.Tensor], config: GenerationConfig) -> torch.Tensor:
    """bos_token_id [1, 1], if there is no prompt."""
    if fields:
        raise PromptError(f"There is {', '.join(sorted(fields))}, but no prompt. Give input_ids.")
    if config.bos_token_id is None:
        raise PromptError("There is no prompt: give input_ids, or a bos_token_id to begin with.")
    return torch.tensor([[config.bos_token_id]], device=model.device)


def _check_ids(model: Any, ids: torch.Tensor, embeds: torch.Tensor | None) -> None:
    """Ids within the vocabulary (on a GPU the embedding does not check), and one for each embedding."""
    if embeds is not None and ids.shape[1] and ids.shape != embeds.shape[:2]:
        raise PromptError(
            f"inputs_embeds must hold one embedding for each of input_ids, got {list(embeds.shape)} and "
            f"{list(ids.shape)}."
        )
    soft, vocabulary = getattr(model.config, "image_token_index", -1), model.text_config.vocab_size
    wrong = ids[((ids < 0) | (ids >= vocabulary)) & (ids != soft)]
    if len(wrong):
        raise PromptError(
            f"input_ids hold {int(wrong[0])}; the vocabulary has {vocabulary:,} tokens from 0 on. "
            "Use the tokenizer of this checkpoint."
        )


def inputs_of_next_pass(
    input_ids: torch.Tensor, past: int, inputs_embeds: torch.Tensor | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs of `forward` for rows [B, past + T] whose first `past` tokens are read already.

    The last T columns of `given` stay (token types of new tokens are 0), but an attention_mask stays whole, and labels
    are left out. Pictures belong to the first pass, and so do embeddings, which then stand for the ids.
    """
    later = ("labels", "pixel_values", "soft_tokens", "mm_encoder_outputs") if past else ("labels",)
    fields = {name: value for name, value in given.items() if value is not None and name not in later}
    if (types := fields.get("token_type_ids")) is not None:
        fields["token_type_ids"] = F.pad(types, (0, input_ids.shape[1] - types.shape[1]))[:, past:]
    if (positions := fields.get("position_ids")) is not None:
        fields["position_ids"] = positions[:, past - input_ids.shape[1] :]
    if inputs_embeds is not None and not past:
        return {"inputs_embeds": inputs_embeds, **fields}
    return {"input_ids": input_ids[:, past:], **fields}


def _inferred_mask(ids: torch.Tensor, config: GenerationConfig) -> torch.Tensor | None:
    """0 on the pad id; None without padding, or if the pad id ends answers too."""
    pad = config.pad_id
    if pad is not None and type(pad) is not int:
        raise UnsupportedOptionError(f"pad_token_id must be an id, got {pad!r}.")
    if pad is None or pad in config.stop_ids or not bool((ids == pad).any()):
        return None
    return (ids != pad).long()


def _check_shapes(fields: Mapping[str, torch.Tensor], rows: int, length: int, past: int) -> None:
    """Every input has the prompt's rows and columns; no row is empty or padded on the right."""
    for name in ("position_ids", "token_type_ids"):
        value = fields.get(name)
        if value is not None and tuple(value.shape) != (rows, length):
            raise PromptError(f"{name} must be [{rows}, {length}] like the prompt, got {list(value.shape)}.")
    mask = fields.get("attention_mask")
    if mask is None:
        return
    if mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] not in (length, past + length):
        before = f" or [{rows}, {past + length}] with what the cache holds" if past else ""
        raise PromptError(
            f"attention_mask must be [{rows}, {length}] like the prompt{before}, got {list(mask.shape)}. "
            "generate takes no ready masks."
        )
    if bool((mask[:, -1] == 0).any()):
        empty = bool((mask == 0).all(dim=1).any())
        raise PromptError(
            "A row of the prompt is empty: its attention_mask is 0 throughout."
            if empty
            else "The prompt is padded on the right; an answer must follow its last token. Use padding_side='left'."
        )


def _check_blocks(model: Any, ids: torch.Tensor) -> None:
    """Every run of soft tokens holds whole pictures."""
    size = model.config.mm_tokens_per_image
    edges = torch.nn.functional.pad(_soft(model, ids).int(), (1, 1)).diff(dim=1)
    runs = (edges == -1).nonzero()[:, 1] - (edges == 1).nonzero()[:, 1]  # both row by row, so they pair up
    if broken := [int(run) for run in runs if run % size]:
        raise PromptError(
            f"An image block of the prompt has {broken[0]} soft tokens; a picture has {size}. "
            "The prompt was cut off inside a picture: shorten the text instead, or leave the picture out."
        )


def _check_count(model: Any, fields: Mapping[str, torch.Tensor]) -> None:
    """One picture for each image block that is read. (forward counts the pictures of embeddings.)"""
    places = int(_soft(model, fields["input_ids"]).sum()) // model.config.mm_tokens_per_image
    given = fields["pixel_values"].shape[0] if "pixel_values" in fields else 0
    if places != given:
        raise PromptError(
            f"The prompt has places for {places} pictures, pixel_values hold {given}. Give one picture for each place, "
            "and both as the processor made them."
        )


def _soft(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return ids == model.config.image_token_index


def _unread(
    model: Any, fields: dict[str, torch.Tensor], cache: KVCache, rows: int, length: int
) -> dict[str, torch.Tensor]:
    """The inputs without what the cache holds. Raises PromptError if they do not continue it."""
    past = cache.get_seq_length()
    if cache.batch_size != rows:
        raise PromptError(f"The prompt has {rows} rows, past_key_values {cache.batch_size}: not the same ones.")
    mask = fields.get("attention_mask")
    if mask is not None and mask.shape[1] == past + length:
        return fields
    if length <= past:
        raise PromptError(
            f"past_key_values hold {past} tokens already, the prompt has {length}. Give the whole conversation, or the "
            "new tokens alone with an attention_mask over all of it."
        )
    if "pixel_values" in fields and "input_ids" in fields:
        fields = _without_read_pictures(model, fields, past)
    return {name: value[:, past:] if name in _BY_COLUMN else value for name, value in fields.items()}


def _without_read_pictures(model: Any, fields: dict[str, torch.Tensor], past: int) -> dict[str, torch.Tensor]:
    """Leaves out the pictures that the cache holds, if those of the whole conversation are given."""
    places = _soft(model, fields["input_ids"])
    if bool((places[:, past - 1] & places[:, past]).any()):
        raise PromptError(f"past_key_values end inside a picture, at token {past}. Cut the conversation outside of it.")
    pictures = fields["pixel_values"]
    if int(places.sum()) != pictures.shape[0] * model.config.mm_tokens_per_image:
        return fields  # only the new ones are given, or too few: they are counted later
    others = {name: value for name, value in fields.items() if name != "pixel_values"}
    return {**others, **PicturesByColumn(places, {"pixel_values": pictures}).beginning_in(past, places.shape[1])}
