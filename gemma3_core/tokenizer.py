"""Text to token ids and back, over the `tokenizers` library. Special ids live only here."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer

from gemma3_core.errors import CheckpointError, PromptError, UnsupportedOptionError
from gemma3_core.hub import read_json, resolve_folder, write_json

TokenIds = int | Sequence[int] | torch.Tensor

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Breaks up a special token that somebody typed: invisible, no white space (so templates that trim
# leave it alone), and a token of its own in Gemma's vocabulary.
_WORD_JOINER = "\u2060"


@dataclass(frozen=True)
class SpecialTokens:
    """The named tokens; the values are Gemma 3's, for folders whose config doesn't name them.

    `boi` and `eoi` stand around a picture, `image` is the soft token that its features replace.
    """

    bos_token: str = "<bos>"
    eos_token: str = "<eos>"
    pad_token: str = "<pad>"
    unk_token: str = "<unk>"
    mask_token: str = "<mask>"
    boi_token: str = "<start_of_image>"
    eoi_token: str = "<end_of_image>"
    image_token: str = "<image_soft_token>"
    end_of_turn_token: str = "<end_of_turn>"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SpecialTokens":
        """Read tokenizer_config.json: a name is a string or {"content": string}, at the top level
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


class ModelInputs(dict[str, Any]):
    """Named inputs of the model, as keys and as attributes; `model(**inputs)` takes them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} here, only {', '.join(self)}") from None

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> "ModelInputs":
        """Move each tensor in place and return self; `dtype` touches only floating tensors."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                self[name] = value.to(device, dtype if value.is_floating_point() else None)
        return self


class Gemma3Tokenizer:
    """A byte-fallback BPE tokenizer with Gemma 3's special tokens and its chat template's text."""

    def __init__(
        self,
        backend: Tokenizer,
        config: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """`config` is the content of tokenizer_config.json. Raises CheckpointError where the
        vocabulary lacks a token that the config names, or one that no Gemma 3 can do without."""
        self.backend = backend
        self.config = {k: v for k, v in (config or {}).items() if k != "chat_template"}
        self.chat_template = chat_template
        self.special_tokens = SpecialTokens.from_config(self.config)
        self.padding_side: str = self.config.get("padding_side") or "left"
        self.model_max_length: int | None = self.config.get("model_max_length")
        self._check_special_tokens()
        self._mark_special_tokens()
        added = self.backend.get_added_tokens_decoder().items()
        special = {token_id: token.content for token_id, token in added if token.special}
        self.special_ids = frozenset(special)  # what decode(skip_special_tokens=True) leaves out
        self._special_texts = tuple(special.values())
        self._special_pattern = _any_of(special.values())

    @classmethod
    def from_pretrained(
        cls, source: str | Path, revision: str | None = None, token: str | None = None
    ) -> "Gemma3Tokenizer":
        """Read tokenizer.json, tokenizer_config.json and the chat template of a checkpoint."""
        folder = resolve_folder(source, revision, token)
        config = read_json(folder / "tokenizer_config.json", optional=True)
        return cls(_read_backend(folder), config, _read_chat_template(folder, config))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, where there is one, the template."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        named = {f: t for f, t in vars(self.special_tokens).items() if t in self}
        # `end_of_turn_token` is no name that transformers knows; it need not be written.
        named.pop("end_of_turn_token", None)
        images = {k: named[k] for k in ("boi_token", "eoi_token", "image_token") if k in named}
        config = {**self.config, **named, "extra_special_tokens": images}
        config.pop("model_specific_special_tokens", None)
        config.setdefault("tokenizer_class", "GemmaTokenizer")
        config["padding_side"] = self.padding_side
        write_json(folder / "tokenizer_config.json", config)
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def __contains__(self, token: str) -> bool:
        return self.backend.token_to_id(token) is not None

    @property
    def bos_token(self) -> str:
        return self.special_tokens.bos_token

    @property
    def bos_token_id(self) -> int:
        return self._required_id(self.special_tokens.bos_token)

    @property
    def eos_token(self) -> str:
        return self.special_tokens.eos_token

    @property
    def eos_token_id(self) -> int:
        return self._required_id(self.special_tokens.eos_token)

    @property
    def pad_token(self) -> str:
        return self.special_tokens.pad_token

    @property
    def pad_token_id(self) -> int:
        return self._required_id(self.special_tokens.pad_token)

    @property
    def unk_token_id(self) -> int | None:
        return self.token_id(self.special_tokens.unk_token)

    @property
    def boi_token(self) -> str:
        return self.special_tokens.boi_token

    @property
    def boi_token_id(self) -> int | None:
        """`<start_of_image>`; None in a vocabulary without pictures."""
        return self.token_id(self.special_tokens.boi_token)

    @property
    def eoi_token(self) -> str:
        return self.special_tokens.eoi_token

    @property
    def eoi_token_id(self) -> int | None:
        """`<end_of_image>`; None in a vocabulary without pictures."""
        return self.token_id(self.special_tokens.eoi_token)

    @property
    def image_token(self) -> str:
        return self.special_tokens.image_token

    @property
    def image_token_id(self) -> int | None:
        """`<image_soft_token>`; None in a vocabulary without pictures."""
        return self.token_id(self.special_tokens.image_token)

    @property
    def end_of_turn_token_id(self) -> int | None:
        """`<end_of_turn>`, where an answer stops; None in a vocabulary without turns."""
        return self.token_id(self.special_tokens.end_of_turn_token)

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of one text; `add_special_tokens` puts `<bos>` in front.

        Which tokens are added is tokenizer.json's rule (its post-processor), as in the reference,
        which ignores `add_bos_token` of tokenizer_config.json when it reads such a file.
        """
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: TokenIds, skip_special_tokens: bool = False) -> str:
        """The text of one row of ids; bytes that make no whole character become U+FFFD each."""
        row = [ids] if isinstance(ids, int) else [int(i) for i in ids]
        return self.backend.decode(row, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, rows: Iterable[TokenIds], skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in rows]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> ModelInputs:
        """`input_ids` and `attention_mask` [B, T] of a text or a batch of texts.

        Lists by default, tensors with `return_tensors="pt"`; `padding=True` fills up to the longest.
        """
        texts = [text] if isinstance(text, str) else list(text)
        encodings = self.backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        inputs = self.pad([encoding.ids for encoding in encodings], padding, padding_side)
        if return_tensors is None:
            return inputs if not isinstance(text, str) else _first_row(inputs)
        return to_tensors(inputs, return_tensors)

    def pad(
        self,
        rows: Sequence[Sequence[int]],
        padding: bool | str = True,
        padding_side: str | None = None,
    ) -> ModelInputs:
        """Rows of ids -> lists `input_ids` and `attention_mask`, filled up to the longest row."""
        side = padding_side or self.padding_side
        if side not in ("left", "right"):
            raise UnsupportedOptionError(f'padding_side is {side!r}; it must be "left" or "right".')
        if padding not in (True, False, "longest"):
            raise UnsupportedOptionError(f'padding is {padding!r}; it must be True, False or "longest".')
        width = max(map(len, rows), default=0) if padding else 0
        inputs = ModelInputs(input_ids=[], attention_mask=[])
        for row in rows:
            fill = max(0, width - len(row))
            pads, zeros, ones = [self.pad_token_id] * fill, [0] * fill, [1] * len(row)
            left = side == "left"
            inputs["input_ids"].append([*pads, *row] if left else [*row, *pads])
            inputs["attention_mask"].append(zeros + ones if left else ones + zeros)
        return inputs

    def escape_special_tokens(self, text: str) -> str:
        """The same text to a reader, but without special tokens for the model.

        A visitor who types `<end_of_turn>` would end the turn, one who types `<start_of_image>`
        would upset the count of pictures. An invisible word joiner (U+2060) after the first
        character of such a string makes it plain characters. Half a special token at the end is
        broken too: a template may join it with the beginning of the next text.
        """
        broken = self._special_pattern.sub(lambda m: _break(m.group()), text)
        body = broken.rstrip()
        for token in self._special_texts:
            for size in range(len(token) - 1, 0, -1):
                if body.endswith(token[:size]):
                    return body[:-size] + _break(token[:size]) + broken[len(body) :]
        return broken

    def _required_id(self, token: str) -> int:
        token_id = self.token_id(token)
        assert token_id is not None, f"{token} was checked when the tokenizer was made"
        return token_id

    def _check_special_tokens(self) -> None:
        special = self.special_tokens
        required = {special.bos_token, special.eos_token, special.pad_token}
        defaults = set(SpecialTokens().names())
        absent = [token for token in special.names() if token not in self]
        missing = [token for token in absent if token in required or token not in defaults]
        if missing:
            raise CheckpointError(
                f"The tokenizer's vocabulary lacks {', '.join(missing)}. Its tokenizer.json and "
                "tokenizer_config.json belong to different models, or one is damaged: fetch both."
            )

    def _mark_special_tokens(self) -> None:
        """Named tokens are special even where tokenizer.json doesn't say so (`<mask>` is one)."""
        named = [token for token in self.special_tokens.names() if token in self]
        self.backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in named])


class StreamingDecoder:
    """Token ids in, finished text out, at a cost per token that doesn't grow with the answer.

    A character outside the vocabulary comes as byte tokens. `decode` reads each run of byte tokens
    as one: if the run as a whole is no UTF-8, each of its bytes becomes U+FFFD. So a run is held
    back until it ends, and the pieces together equal `decode(ids, skip_special_tokens=True)`.
    """

    def __init__(self, tokenizer: Gemma3Tokenizer) -> None:
        self._backend = tokenizer.backend
        self._special_ids = tokenizer.special_ids
        self._byte_run: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token finishes, which may be empty."""
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return ""
        if _BYTE_TOKEN.fullmatch(token):
            self._byte_run.append(token_id)
            return ""
        return self.finish() + self._backend.decode([token_id], skip_special_tokens=False)

    def finish(self) -> str:
        """What was held back; call it after the last token."""
        run, self._byte_run = self._byte_run, []
        return self._backend.decode(run, skip_special_tokens=False) if run else ""


def to_tensors(inputs: ModelInputs, kind: str) -> ModelInputs:
    """Lists [B][T] of numbers -> int64 tensors [B, T]. Raises PromptError for unequal rows."""
    if kind != "pt":
        raise UnsupportedOptionError(f'return_tensors is {kind!r}; only "pt" is supported.')
    lengths = sorted({len(row) for row in inputs["input_ids"]})
    if len(lengths) > 1:
        raise PromptError(
            f"The prompts are of different lengths ({lengths[0]} to {lengths[-1]} tokens); "
            "pass padding=True to make one batch of them."
        )
    return ModelInputs({k: torch.tensor(v, dtype=torch.int64) for k, v in inputs.items()})


def _first_row(inputs: ModelInputs) -> ModelInputs:
    return ModelInputs({name: rows[0] for name, rows in inputs.items()})


def _break(text: str) -> str:
    return text[0] + _WORD_JOINER + text[1:]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _read_backend(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError("The checkpoint has no tokenizer.json; fetch it, or name another folder.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001  the library raises bare Exception for each kind of damage
        raise CheckpointError("tokenizer.json is damaged; fetch the file again.") from None


def _read_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else chat_template.json, else the config's key: a text or named texts."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    template = (read_json(folder / "chat_template.json", optional=True) or config).get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
