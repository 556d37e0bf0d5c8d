"""The options of a processor's call -> those of the tokenizer and those of the image processor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.images.options import ImageProcessorConfig
from gemma3_core.tokenizer.encoding import TextOptions

_TEXT = frozenset(TextOptions.__annotations__)
# Steps that Gemma 3 does not have go to the image processor too: it says so.
_IMAGE = frozenset(ImageProcessorConfig.__annotations__) | {"do_center_crop", "crop_size", "do_pad", "pad_size"}
_GROUPS = {"text_kwargs": _TEXT, "images_kwargs": _IMAGE}


@dataclass(frozen=True)
class CallOptions:
    """Options by whom they belong to; `token_type_ids` says whether these are wanted."""

    text: dict[str, Any]
    images: dict[str, Any]
    token_type_ids: bool = True

    @property
    def return_tensors(self) -> str | None:
        """The kind that the whole result comes in."""
        return self.text.get("return_tensors")


def split_options(options: Mapping[str, Any]) -> CallOptions:
    """Options as keywords, or in `text_kwargs`, `images_kwargs` and `common_kwargs` (for both).

    Raises UnsupportedOptionError for a name that neither knows, for one given twice, and for other media.
    """
    flat = dict(options)
    _refuse_other_media(flat)
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
    unknown = sorted({*flat, *common} - _TEXT - _IMAGE)
    if unknown:
        raise UnsupportedOptionError(
            f"The processor has no option {', '.join(unknown)}. For texts it knows {', '.join(sorted(_TEXT))}; "
            f"for pictures {', '.join(sorted(ImageProcessorConfig.__annotations__))}."
        )
    return CallOptions(chosen["text_kwargs"], chosen["images_kwargs"], wanted is not False)


def _refuse_other_media(options: dict[str, Any]) -> None:
    for name in ("videos", "audio", "videos_kwargs", "audio_kwargs"):
        if options.pop(name, None):
            raise UnsupportedOptionError(f"{name} was given; Gemma 3 reads texts and pictures only.")
    if options.pop("return_text_replacement_offsets", None):
        raise UnsupportedOptionError(
            "return_text_replacement_offsets is not supported; expand_images gives the text with its soft tokens."
        )
