"""Splits the options of a processor's call into the tokenizer's and the image processor's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma3_core.errors import UnsupportedOptionError, require_known
from gemma3_core.images.options import ImageProcessorConfig
from gemma3_core.tokenizer.conversations import refuse_unsupported
from gemma3_core.tokenizer.encoding import TextOptions

_TEXT = frozenset(TextOptions.__annotations__)
# The image processor refuses steps that Gemma 3 does not have, unless they are off.
_STEPS = {"do_center_crop", "crop_size", "do_pad", "pad_size"}
_IMAGE = frozenset(ImageProcessorConfig.__annotations__) | _STEPS | {"crops"}
_GROUPS = {"text_kwargs": _TEXT, "images_kwargs": _IMAGE}


@dataclass(frozen=True)
class CallOptions:
    """Options of the tokenizer and of the image processor; `token_type_ids` says whether to return these."""

    text: dict[str, Any]
    images: dict[str, Any]
    token_type_ids: bool = True


def split_options(options: Mapping[str, Any]) -> CallOptions:
    """Options as keywords, or in `text_kwargs`, `images_kwargs` and `common_kwargs` (for both).

    Raises UnsupportedOptionError for a name that neither knows, for one given twice, and for other media.
    """
    flat = dict(options)
    refuse_unsupported(flat)
    wanted = flat.pop("return_mm_token_type_ids", None)
    groups = {name: dict(flat.pop(name, None) or {}) for name in (*_GROUPS, "common_kwargs")}
    if "return_mm_token_type_ids" in groups["text_kwargs"]:
        wanted = groups["text_kwargs"].pop("return_mm_token_type_ids")
    common = groups.pop("common_kwargs")
    chosen: dict[str, dict[str, Any]] = {}
    for group, known in _GROUPS.items():
        given = groups[group]
        twice = sorted(set(given) & set(flat) & known)
        if twice:
            raise UnsupportedOptionError(f"{', '.join(twice)} is given twice, by itself and in {group}; choose one.")
        chosen[group] = {name: value for name, value in {**common, **flat}.items() if name in known} | given
    require_known("The processor", {*flat, *common}, _TEXT | _IMAGE)
    return CallOptions(chosen["text_kwargs"], chosen["images_kwargs"], wanted is not False)
