"""What `generate` begins with: ids, masks and pictures checked, and only what a cache does not hold yet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.generation.chunks import PicturesByColumn
from gemma3_core.generation.config import GenerationConfig
from gemma3_core.nn.cache import KVCache

TEXT_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
PICTURE_INPUTS = ("token_type_ids", "pixel_values")
_BY_COLUMN = ("input_ids", "inputs_embeds", "position_ids", "token_type_ids")
_INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class GenerationInputs:
    """A checked prompt on the model's device.

    ids [B, T] are what the result begins with ([B, 0] where only embeddings were given), mask [B, T] is 0 on their
    padding; fields are the model's inputs, without what the cache holds. length is the prompt's as it was given,
    past what the cache holds, both in tokens a row.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    fields: dict[str, torch.Tensor]
    length: int
    past: int

    @property
    def unread(self) -> int:
        """Tokens a row that are to be read."""
        prompt = self.fields.get("input_ids", self.fields.get("inputs_embeds"))
        assert prompt is not None
        return prompt.shape[1]


def prepare_inputs(
    model: Any, given: Mapping[str, torch.Tensor | None], config: GenerationConfig, cache: KVCache | None
) -> GenerationInputs:
    """Checks what `generate` was given and fills in what it left out. Raises PromptError, UnsupportedOptionError.

    Without ids or embeddings a prompt is the beginning of a text. Without a mask, padding ids in the prompt are
    padding, as in transformers. On a cache the prompt is either the whole conversation, of which only what the
    cache lacks is read, or the new part alone with an attention_mask over both.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    _check_tensors(model, fields)
    fields = {name: value.to(model.device) for name, value in fields.items()}
    embeds, ids = fields.get("inputs_embeds"), fields.get("input_ids")
    if ids is None:
        ids = _first_ids(model, fields, config) if embeds is None else _no_ids(embeds)
    _check_prompt(model, ids, embeds)
    main = ids if embeds is None else embeds
    rows, length = main.shape[:2]
    past = 0 if cache is None else cache.get_seq_length()
    if "attention_mask" not in fields and (inferred := _inferred_mask(ids, config)) is not None:
        fields["attention_mask"] = inferred
    _check_shapes(fields, rows, length, past)
    if "attention_mask" in fields:
        fields["attention_mask"] = (fields["attention_mask"] != 0).long()
    _check_blocks(model, ids)
    mask = fields.get("attention_mask")
    own_mask = None if mask is None or not ids.shape[1] else mask[:, -ids.shape[1] :]
    fields.pop("input_ids", None)
    fields["input_ids" if embeds is None else "inputs_embeds"] = main
    if cache is not None and past:
        fields = _unread(model, fields, cache, length)
    _check_count(model, fields)
    return GenerationInputs(ids, own_mask, fields, length, past)


def _check_tensors(model: Any, fields: Mapping[str, Any]) -> None:
    """Only inputs that the model takes, and only tensors."""
    sees = hasattr(model.config, "image_token_index")
    unknown = sorted(set(fields) - {*TEXT_INPUTS, *(PICTURE_INPUTS if sees else ())})
    if unknown:
        raise UnsupportedOptionError(f"generate of {type(model).__name__} does not know {', '.join(unknown)}.")
    for name, value in fields.items():
        if not isinstance(value, torch.Tensor):
            raise PromptError(
                f"{name} must be a tensor, got {type(value).__name__}. Ask the processor or tokenizer for tensors: "
                'return_tensors="pt".'
            )


def _first_ids(model: Any, fields: Mapping[str, torch.Tensor], config: GenerationConfig) -> torch.Tensor:
    """The beginning of a text, one a row [B, 1], where no prompt is given."""
    if fields:
        raise PromptError(f"There is {', '.join(sorted(fields))}, but no prompt. Give input_ids.")
    if config.bos_token_id is None:
        raise PromptError("There is no prompt: give input_ids, or a bos_token_id to begin with.")
    return torch.tensor([[config.bos_token_id]], device=model.device)


def _no_ids(embeds: torch.Tensor) -> torch.Tensor:
    return torch.empty(embeds.shape[0], 0, dtype=torch.long, device=embeds.device)


def _check_prompt(model: Any, ids: torch.Tensor, embeds: torch.Tensor | None) -> None:
    """Types, and ids within the vocabulary."""
    if ids.dtype not in _INTEGERS or ids.ndim != 2:
        raise PromptError(
            f"input_ids must be whole numbers [batch, tokens], got {str(ids.dtype).removeprefix('torch.')} "
            f"{list(ids.shape)}."
        )
    if embeds is not None:
        width = model.text_config.hidden_size
        if embeds.ndim != 3 or embeds.shape[2] != width or (ids.shape[1] and ids.shape != embeds.shape[:2]):
            raise PromptError(
                f"inputs_embeds must be [batch, tokens, {width}], one for each of input_ids if these are given too, "
                f"got {list(embeds.shape)} and {list(ids.shape)}."
            )
    if 0 in (ids if embeds is None else embeds).shape[:2]:
        raise PromptError(f"The prompt is empty: {list(ids.shape)} ids. Give at least one token in each row.")
    soft, vocabulary = getattr(model.config, "image_token_index", -1), model.text_config.vocab_size
    wrong = ids[((ids < 0) | (ids >= vocabulary)) & (ids != soft)]
    if len(wrong):
        raise PromptError(
            f"input_ids hold {int(wrong[0])}; the vocabulary has {vocabulary:,} tokens from 0 on. "
            "Use the tokenizer of this checkpoint."
        )


def _inferred_mask(ids: torch.Tensor, config: GenerationConfig) -> torch.Tensor | None:
    """0 where the padding id stands; None without padding, or where the padding id is a stop too."""
    pad = config.pad_id
    if pad is not None and type(pad) is not int:
        raise UnsupportedOptionError(f"pad_token_id must be an id, got {pad!r}.")
    if pad is None or pad in config.stop_ids or not bool((ids == pad).any()):
        return None
    return (ids != pad).long()


def _check_shapes(fields: Mapping[str, torch.Tensor], rows: int, length: int, past: int) -> None:
    """One row of everything for each row of the prompt, one column for each token; some token in each row."""
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
    """Every run of soft tokens is whole pictures."""
    size = getattr(model.config, "mm_tokens_per_image", None)
    if size is None:
        return
    edges = torch.nn.functional.pad(_soft(model, ids).int(), (1, 1)).diff(dim=1)
    runs = (edges == -1).nonzero()[:, 1] - (edges == 1).nonzero()[:, 1]  # both row by row, so they pair up
    if broken := [int(run) for run in runs if run % size]:
        raise PromptError(
            f"An image block of the prompt has {broken[0]} soft tokens; a picture has {size}. "
            "The prompt was cut off inside a picture: shorten the text instead, or leave the picture out."
        )


def _check_count(model: Any, fields: Mapping[str, torch.Tensor]) -> None:
    """One picture for each block of the prompt that is read. Pictures in embeddings are counted by forward."""
    size = getattr(model.config, "mm_tokens_per_image", None)
    if size is None or "input_ids" not in fields:
        return
    places = int(_soft(model, fields["input_ids"]).sum()) // size
    given = fields["pixel_values"].shape[0] if "pixel_values" in fields else 0
    if places != given:
        raise PromptError(
            f"The prompt has places for {places} pictures, pixel_values hold {given}. Give one picture for each place, "
            "and both as the processor made them."
        )


def _soft(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return ids == model.config.image_token_index


def _unread(model: Any, fields: dict[str, torch.Tensor], cache: KVCache, length: int) -> dict[str, torch.Tensor]:
    """The inputs without what the cache holds. PromptError where they do not follow on it."""
    past, rows = cache.get_seq_length(), next(iter(fields.values())).shape[0]
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
    """Where all pictures of a conversation are given, those that the cache holds are left out."""
    places = _soft(model, fields["input_ids"])
    if bool((places[:, past - 1] & places[:, past]).any()):
        raise PromptError(f"past_key_values end inside a picture, at token {past}. Cut the conversation outside of it.")
    pictures = fields["pixel_values"]
    if int(places.sum()) != pictures.shape[0] * model.config.mm_tokens_per_image:
        return fields  # only the new ones are given, or too few: they are counted later
    others = {name: value for name, value in fields.items() if name != "pixel_values"}
    return {**others, **PicturesByColumn(places, {"pixel_values": pictures}).beginning_in(past, places.shape[1])}
