"""The named tokens, how tokenizer_config.json spells them, and how to escape them in what visitors type."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Breaks up a special token that somebody typed. It is invisible, not white space (so templates that trim
# leave it alone), and a token of its own in Gemma's vocabulary.
_WORD_JOINER = "\u2060"


@dataclass(frozen=True)
class SpecialTokens:
    """The named tokens; the defaults are Gemma 3's, for folders whose config doesn't name them.

    `boi` and `eoi` enclose a picture, `image` is the soft token that its features replace.
    """

    bos_token: str = "<bos>"
    eos_token: str = "<eos>"
    unk_token: str = "<unk>"
    pad_token: str = "<pad>"
    mask_token: str = "<mask>"
    boi_token: str = "<start_of_image>"
    eoi_token: str = "<end_of_image>"
    image_token: str = "<image_soft_token>"
    end_of_turn_token: str = "<end_of_turn>"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SpecialTokens":
        """Reads tokenizer_config.json: a token is a string or {"content": string}, at the top level
        or in `extra_special_tokens` (older) or `model_specific_special_tokens` (newer spelling)."""
        named: dict[str, Any] = {}
        for group in ("extra_special_tokens", "model_specific_special_tokens"):
            if isinstance(config.get(group), Mapping):
                named.update(config[group])
        named.update({key: value for key, value in config.items() if key in cls.__annotations__})
        texts = {k: v["content"] if isinstance(v, Mapping) else v for k, v in named.items()}
        return cls(**{k: v for k, v in texts.items() if k in cls.__annotations__ and v})

    def names(self) -> list[str]:
        return [getattr(self, field) for field in self.__annotations__]


class SpecialTexts:
    """The spellings of the special tokens, to find them in what somebody typed."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = tuple(texts)
        longest_first = sorted(self._texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def escaped(self, text: str) -> str:
        """The text looks the same to a reader, but holds no special tokens for the model.

        Without this, a visitor could end the turn with `<end_of_turn>` or upset the count of pictures with
        `<start_of_image>`. An invisible word joiner (U+2060) after the first character of such a string makes it
        plain text. Half a special token at the end is broken up too: a template may join it with the next text.
        """
        broken = self._pattern.sub(lambda match: _break(match.group()), text)
        body = broken.rstrip()
        for token in self._texts:
            for size in range(len(token) - 1, 0, -1):
                if body.endswith(token[:size]):
                    return body[:-size] + _break(token[:size]) + broken[len(body) :]
        return broken


def _break(text: str) -> str:
    return text[0] + _WORD_JOINER + text[1:]
