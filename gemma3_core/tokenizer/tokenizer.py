"""Text to token ids and back, over the `tokenizers` library. Special ids live only here."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer

from gemma3_core.errors import CheckpointError, PromptError, UnsupportedOptionError, require_known
from gemma3_core.files.hub import pop_hub_options, read_json, resolve_folder
from gemma3_core.files.saving import folder_to_save_in, write_json, write_text
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.tokenizer.added_tokens import (
    EXTRA,
    OLDER_EXTRA,
    NewToken,
    as_new_tokens,
    check_names,
    listed_extra_tokens,
    special,
    text_of,
)
from gemma3_core.tokenizer.conversations import Conversation, refuse_unsupported, render_prompts, split_batch
from gemma3_core.tokenizer.encoding import (
    NO_LIMIT,
    TextOptions,
    check_texts,
    collect,
    encode_texts,
    first_row,
    pad_rows,
)
from gemma3_core.tokenizer.files import read_backend, read_chat_template
from gemma3_core.tokenizer.special_tokens import SpecialTexts, SpecialTokens
from gemma3_core.tokenizer.token_ids import TokenIds, is_rows, plain_ids

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NAMED = tuple(field.name for field in fields(SpecialTokens))
TOKENIZER_OPTIONS = frozenset(
    {"padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces", *_NAMED}
)
"""Options of from_pretrained that replace the values in tokenizer_config.json."""
_NOT_IN_TRANSFORMERS = "end_of_turn_token"  # our name; transformers has none for this token


class Gemma3Tokenizer:
    """A byte-fallback BPE tokenizer with Gemma 3's special tokens and its chat template's text."""

    is_fast = True
    model_input_names: ClassVar = ["input_ids", "attention_mask"]

    def __init__(
        self,
        backend: Tokenizer,
        config: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """`config` is the content of tokenizer_config.json. Raises CheckpointError where the
        vocabulary lacks a token that the config names or that every Gemma 3 needs."""
        self.backend = backend
        self.config = {k: v for k, v in (config or {}).items() if k != "chat_template"}
        self.chat_template = chat_template
        self.special_tokens = SpecialTokens.from_config(self.config)
        self.extra_special_tokens = listed_extra_tokens(self.config)
        """Special tokens without a name of their own."""
        self.name_or_path = ""
        self.padding_side: str = self.config.get("padding_side") or "left"
        self.truncation_side: str = self.config.get("truncation_side") or "right"
        limit = self.config.get("model_max_length")
        self.model_max_length: int = NO_LIMIT if limit is None else limit
        # Each call says how to truncate and pad; tokenizer.json's own settings would apply to all calls.
        self.backend.no_truncation()
        self.backend.no_padding()
        TextOptions(padding_side=self.padding_side, truncation_side=self.truncation_side)
        self._check_special_tokens()
        # Named tokens are special even where tokenizer.json doesn't say so, such as `<mask>`.
        named = [token for token in (*self.special_tokens.names(), *self.extra_special_tokens) if token in self]
        self._make_special(named)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        use_fast: bool = True,
        chat_template: str | None = None,
        **options: Any,
    ) -> "Gemma3Tokenizer":
        """Reads tokenizer.json, tokenizer_config.json and the chat template of a checkpoint.

        `options` are HubOptions, or win over tokenizer_config.json: padding_side, truncation_side, model_max_length
        and the named tokens (`bos_token`, …). There is one implementation, so `use_fast` changes nothing.
        Raises CheckpointError, UnsupportedOptionError.
        """
        del use_fast
        hub = pop_hub_options(options)
        require_known("The tokenizer", options, TOKENIZER_OPTIONS)
        folder = resolve_folder(pretrained_model_name_or_path, weights=False, **hub)
        config = {**read_json(folder / "tokenizer_config.json", optional=True), **options}
        tokenizer = cls(read_backend(folder), config, chat_template or read_chat_template(folder, config))
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> tuple[str, ...]:
        """Writes tokenizer.json, tokenizer_config.json and the chat template, if any; returns their paths.

        Raises CheckpointError, UnsupportedOptionError.
        """
        folder = folder_to_save_in(save_directory, options)
        write_text(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        named = self.special_tokens_map
        images = {k: named[k] for k in ("boi_token", "eoi_token", "image_token") if k in named}
        config = {**self.config, **named, EXTRA: images}
        for name in ("model_specific_special_tokens", OLDER_EXTRA):
            config.pop(name, None)
        if self.extra_special_tokens:
            config |= {EXTRA: self.extra_special_tokens, "model_specific_special_tokens": images}
        config.setdefault("tokenizer_class", "GemmaTokenizer")
        config |= {"padding_side": self.padding_side, "model_max_length": self.model_max_length}
        if self.truncation_side != "right":  # the default, which files leave out
            config["truncation_side"] = self.truncation_side
        write_json(folder / "tokenizer_config.json", config)
        written = ["tokenizer_config.json", "tokenizer.json"]
        if self.chat_template is not None:
            write_text(folder / "chat_template.jinja", self.chat_template)
            written.append("chat_template.jinja")
        return tuple(str(folder / name) for name in written)

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def __contains__(self, token: str) -> bool:
        return self.backend.token_to_id(token) is not None

    def __getattr__(self, name: str) -> Any:
        """The named tokens and their ids: bos_token, bos_token_id, …; an id is None where the vocabulary lacks it."""
        field = name.removesuffix("_id")
        if field in _NAMED and "special_tokens" in self.__dict__:
            token = getattr(self.special_tokens, field)
            return token if field == name else self.token_id(token)
        if field in ("sep_token", "cls_token"):
            return None  # Gemma has none
        raise AttributeError(f"Gemma3Tokenizer has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """`tokenizer.pad_token = …` names another token; raises CheckpointError where the vocabulary lacks it."""
        field = name.removesuffix("_id")
        if field not in _NAMED:
            super().__setattr__(name, value)
            return
        token = value if field == name else self.convert_ids_to_tokens(value)
        if not isinstance(token, str) or token not in self:
            raise CheckpointError(f"{field} can't be {value!r}: the vocabulary has no such token. Name one of its own.")
        self.special_tokens = replace(self.special_tokens, **{field: token})
        self._make_special([token])

    @property
    def vocab_size(self) -> int:
        """The number of tokens without the added ones; `len()` counts these too."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        return self.backend.get_vocab(with_added_tokens=True)

    vocab = property(get_vocab)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named tokens that the vocabulary has."""
        named = {name: getattr(self.special_tokens, name) for name in _NAMED if name != _NOT_IN_TRANSFORMERS}
        return {name: token for name, token in named.items() if token in self}

    @property
    def all_special_tokens(self) -> list[str]:
        """The named and the extra tokens, each once. `special_ids` has more: all that decoding can leave out."""
        return list(dict.fromkeys((*self.special_tokens_map.values(), *self.extra_special_tokens)))

    @property
    def all_special_ids(self) -> list[int]:
        return [self._required_id(token) for token in self.all_special_tokens]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self.backend.get_added_tokens_decoder()

    def add_tokens(self, new_tokens: NewToken | Sequence[NewToken], special_tokens: bool = False) -> int:
        """Adds tokens at the end of the vocabulary; returns how many are new.

        `special_tokens` are those that `decode(skip_special_tokens=True)` leaves out. The model needs rows for the new
        ones: `model.resize_token_embeddings(len(tokenizer))`. Raises UnsupportedOptionError.
        """
        tokens = as_new_tokens(new_tokens)
        add = self.backend.add_special_tokens if special_tokens else self.backend.add_tokens
        count = add(tokens)
        self._read_special_ids()
        return count

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, NewToken | Sequence[NewToken]],
        replace_extra_special_tokens: bool = True,
    ) -> int:
        """Names special tokens (bos_token, …; extra_special_tokens for a list without names), and adds those that are
        new to the vocabulary; returns how many are.

        A list takes the place of the extra tokens so far, or joins them without `replace_extra_special_tokens`. See
        `add_tokens`. Raises UnsupportedOptionError.
        """
        check_names(special_tokens_dict, [name for name in _NAMED if name != _NOT_IN_TRANSFORMERS])
        extra = special_tokens_dict.get(EXTRA) or special_tokens_dict.get(OLDER_EXTRA) or ()
        kept = [] if replace_extra_special_tokens else self.extra_special_tokens
        extra = [special(token) for token in as_new_tokens(extra) if text_of(token) not in kept]
        named = {name: special(special_tokens_dict[name]) for name in special_tokens_dict if name in _NAMED}  # type: ignore[arg-type]
        count = self.add_tokens([*named.values(), *extra], special_tokens=True)
        if extra:
            self.extra_special_tokens = [*kept, *map(text_of, extra)]
        for name, token in named.items():
            setattr(self, name, text_of(token))
        return count

    def num_special_tokens_to_add(self) -> int:
        """How many tokens `add_special_tokens` puts around a text."""
        return self.backend.num_special_tokens_to_add(False)

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """The id of a token, or of each; the id of `<unk>` for unknown tokens."""
        if isinstance(tokens, str):
            token_id = self.token_id(tokens)
            return self._required_id(self.special_tokens.unk_token) if token_id is None else token_id
        return [self.convert_tokens_to_ids(token) for token in tokens]  # type: ignore[misc]

    def convert_ids_to_tokens(self, ids: TokenIds, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each in a row; None for an id beyond the vocabulary."""
        row = plain_ids(ids)
        if isinstance(row, int):
            return self.backend.id_to_token(row)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend.id_to_token(i) for i in row if i not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return str(self.backend.decoder.decode(tokens))

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The tokens of a text, as the vocabulary spells them."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def encode(
        self, text: str | Sequence[str], text_pair: str | None = None, add_special_tokens: bool = True, **options: Any
    ) -> Any:
        """The ids of one text (of each text of a list); `add_special_tokens` puts `<bos>` in front.

        tokenizer.json's post-processor decides which tokens are added, as in the reference, which then ignores
        `add_bos_token` of tokenizer_config.json.
        """
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def decode(
        self,
        token_ids: TokenIds | Sequence[TokenIds],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """The text of a row of ids, or the texts of several rows; each byte of an incomplete character becomes
        U+FFFD. Raises PromptError for anything but ids."""
        if clean_up_tokenization_spaces:
            warnings.warn(
                "clean_up_tokenization_spaces does nothing here: it would remove spaces that belong to the text.",
                stacklevel=2,
            )
        ids = token_ids["input_ids"] if isinstance(token_ids, Mapping) else token_ids
        if is_rows(ids):
            return [self._decode_row(plain_ids(row), skip_special_tokens) for row in ids]  # type: ignore[union-attr]
        return self._decode_row(plain_ids(ids), skip_special_tokens)

    def batch_decode(
        self,
        sequences: TokenIds | Iterable[TokenIds],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The texts of several rows; a single row gives a list of one text."""
        rows: Any = sequences if hasattr(sequences, "__len__") or isinstance(sequences, int) else list(sequences)
        texts = self.decode(rows, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def __call__(self, text: str | Sequence[str] | None = None, text_pair: Any = None, **options: Any) -> ModelInputs:
        """`input_ids` and `attention_mask` of a text [T] or a batch of texts [B][T]; `options` are TextOptions.

        Lists by default, [B, T] with `return_tensors="pt"` or "np". Raises PromptError, UnsupportedOptionError.
        """
        if text_pair is not None:
            raise UnsupportedOptionError("text_pair is not supported: write both texts into one prompt.")
        require_known("The tokenizer's call", options, TextOptions.__annotations__)
        chosen = TextOptions(**options)
        texts, is_batch = check_texts(text, chosen.is_split_into_words)
        chosen.warn()
        encodings = encode_texts(self.backend, texts, chosen, self.model_max_length, self.truncation_side)
        sources = list(range(len(encodings)))
        if chosen.return_overflowing_tokens:
            sources = [i for i, e in enumerate(encodings) for _ in (e, *e.overflowing)]
            encodings = [part for e in encodings for part in (e, *e.overflowing)]
        width = chosen.padded_width(max((len(e.ids) for e in encodings), default=0), self.model_max_length)
        if width is not None:
            side = chosen.padding_side or self._side("padding_side")
            for encoding in encodings:
                encoding.pad(width, direction=side, pad_id=self.pad_token_id, pad_token=self.pad_token)
        inputs = collect(encodings, chosen)
        if chosen.return_overflowing_tokens:
            inputs["overflow_to_sample_mapping"] = sources
        elif not is_batch and chosen.return_tensors is None:
            return first_row(inputs)
        return inputs.convert_to_tensors(chosen.return_tensors)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> ModelInputs:
        """Pads rows of ids: a dict of rows (or of one row), a list of such dicts, or rows of ids.

        Padding is 0 in `attention_mask` and `token_type_ids`, 1 in `special_tokens_mask`.
        """
        options = TextOptions(
            padding=padding, max_length=max_length, pad_to_multiple_of=pad_to_multiple_of, padding_side=padding_side,
            truncation=False, return_tensors=return_tensors, verbose=verbose,
        )  # fmt: skip
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
        if return_attention_mask is False:
            del fills["attention_mask"]
        side = padding_side or self._side("padding_side")
        return pad_rows(encoded_inputs, options, fills, self.model_max_length, side)

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **template_variables: Any,
    ) -> Any:
        """The prompt of a conversation, or of each of several, by the checkpoint's chat template.

        ModelInputs by default; the ids alone with `return_dict=False`, text with `tokenize=False`. Pictures are not
        read, only marked by `<start_of_image>`: the processor's method of this name reads them.
        """
        refuse_unsupported(template_variables)
        chats, is_batch = split_batch(conversation)
        prompts = render_prompts(
            chats,
            chat_template or self.chat_template,
            self.special_tokens,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={"tools": tools, "documents": documents, **template_variables},
        )
        texts = prompts if is_batch else prompts[0]
        if not tokenize:
            return texts
        options = {"padding": padding, "truncation": truncation, "max_length": max_length, **(tokenizer_kwargs or {})}
        inputs = self(texts, add_special_tokens=False, return_tensors=return_tensors, **options)
        return inputs if return_dict else inputs["input_ids"]

    def escape_special_tokens(self, text: str) -> str:
        """Makes special tokens in a visitor's text plain text; see SpecialTexts.escaped."""
        return self._special_texts.escaped(text)

    def _side(self, name: str) -> str:
        """Users can set `tokenizer.padding_side` to anything, so it is checked where it is used."""
        TextOptions(**{name: getattr(self, name)})
        return str(getattr(self, name))

    def _decode_row(self, ids: int | list[int], skip_special_tokens: bool) -> str:
        row = [ids] if isinstance(ids, int) else ids
        if any(i < 0 or i > 0xFFFFFFFF for i in row):
            advice = "Labels hold -100 where there is no loss: leave those out."
            raise PromptError(f"Token ids begin at 0, got {min(row)} to {max(row)}. {advice}")
        return self.backend.decode(row, skip_special_tokens=skip_special_tokens)

    def _make_special(self, tokens: Iterable[str]) -> None:
        """Tokens of the vocabulary become special; those that are keep how they match (AddedToken.lstrip, …)."""
        already = {token.content for token in self.backend.get_added_tokens_decoder().values() if token.special}
        self.backend.add_special_tokens([special(token) for token in tokens if token not in already])
        self._read_special_ids()

    def _read_special_ids(self) -> None:
        added = self.backend.get_added_tokens_decoder().items()
        special = {token_id: token.content for token_id, token in added if token.special}
        self.special_ids = frozenset(special)  # what decode(skip_special_tokens=True) leaves out
        self._special_texts = SpecialTexts(special.values())

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
                f"The tokenizer's vocabulary lacks {', '.join(missing)}. tokenizer.json and "
                "tokenizer_config.json belong to different models, or one is damaged: download both again."
            )


class StreamingDecoder:
    """Token ids in, finished text out, at a cost per token that doesn't grow with the answer.

    A character outside the vocabulary is a run of byte tokens. `decode` decodes a run as a whole: if it is not UTF-8,
    each of its bytes becomes U+FFFD. So a run is held back until it ends, and the pieces together equal
    `decode(ids, skip_special_tokens=True)`.
    """

    def __init__(self, tokenizer: Gemma3Tokenizer) -> None:
        self._backend = tokenizer.backend
        self._special_ids = tokenizer.special_ids
        self._byte_run: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes, which may be empty."""
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return ""
        if BYTE_TOKEN.fullmatch(token):
            self._byte_run.append(token_id)
            return ""
        return self.finish() + self._backend.decode([token_id], skip_special_tokens=False)

    def finish(self) -> str:
        """The text that was held back; call it after the last token."""
        run, self._byte_run = self._byte_run, []
        return self._backend.decode(run, skip_special_tokens=False) if run else ""
