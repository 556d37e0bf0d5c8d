"""The pipelines: model, processor and generation behind one call, as in transformers.

A call prepares each input, pads those of a batch on the left, generates, and returns a list of records for each
input, one record a prompt.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from types import GeneratorType
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.generation.config import UNSUPPORTED, GenerationConfig
from gemma3_core.generation.generate import SAMPLING_ONLY
from gemma3_core.images.load import load_image
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.processor import Gemma3Processor
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

NEW_TOKENS = 256
"""The default of transformers' pipelines."""

Chat = Sequence[Mapping[str, Any]]

_BESIDE_CONFIG = ("generation_config", "streamer", "generator", "seed", "tokenizer", "past_key_values")


@dataclass
class CallOptions:
    """The options of a pipeline, or of one call with the pipeline's below, sorted by who takes them."""

    prepare: dict[str, Any] = field(default_factory=dict)
    """For the processor or tokenizer."""
    generate: dict[str, Any] = field(default_factory=dict)
    return_full_text: bool = True
    return_tensors: bool = False
    continue_final_message: bool | None = None
    skip_special_tokens: bool = True
    clean_up_tokenization_spaces: bool | None = None


_OF_RECORDS = [option.name for option in fields(CallOptions) if option.name not in ("prepare", "generate")]

Prepared = tuple[ModelInputs, list[Any]]
"""Model inputs with one row a prompt, and the caller's text or conversation for each row."""


class Pipeline:
    """Base of the two pipelines: batches, generation, records."""

    task: ClassVar[str]
    generation_defaults: ClassVar[Mapping[str, Any]]

    def __init__(
        self, model: Any, tokenizer: Gemma3Tokenizer, processor: Gemma3Processor | None = None, **options: Any
    ):
        """`options` are defaults of every call's. Raises UnsupportedOptionError."""
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.image_processor = None if processor is None else processor.image_processor
        self._batch_size = options.pop("batch_size", None)
        self._options = self._sorted_options(options)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Writes model and processor (or tokenizer); `options` are those of the model's save_pretrained."""
        self.model.save_pretrained(save_directory, **options)
        (self.processor or self.tokenizer).save_pretrained(save_directory)

    def _prepare(self, item: Any, options: CallOptions) -> Prepared:
        raise NotImplementedError

    def _prepare_options(self, options: dict[str, Any], chosen: CallOptions) -> None:
        """Puts those of `options` that the processor or tokenizer takes into `chosen.prepare`."""
        raise NotImplementedError

    def _record(self, given: str | Chat, generated: Any, tensors: bool) -> dict[str, Any]:
        raise NotImplementedError

    def _run(self, items: Any, options: dict[str, Any]) -> Any:
        """A list of lists of records for a list, an iterator of lists for a generator, else one list of records."""
        batch_size = options.pop("batch_size", None)
        if batch_size is None:
            batch_size = 1 if self._batch_size is None else self._batch_size
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UnsupportedOptionError(f"batch_size must be a whole number, 1 or more, got {batch_size!r}.")
        if options.pop("num_workers", None):
            raise UnsupportedOptionError("num_workers is not supported: the call prepares its inputs. Leave it out.")
        chosen = self._sorted_options(options, self._options)
        if not isinstance(items, GeneratorType | list):
            return next(self._records([items], 1, chosen))
        records = self._records(items, batch_size, chosen)
        return list(records) if isinstance(items, list) else records

    def _records(self, items: Iterable[Any], batch_size: int, options: CallOptions) -> Iterator[list[dict[str, Any]]]:
        rest = iter(items)
        while batch := list(islice(rest, batch_size)):
            prepared = [self._prepare(item, options) for item in batch]
            inputs = collate([rows for rows, _ in prepared], self.tokenizer.pad_token_id).to(self.device, self.dtype)
            sequences = iter(self.model.generate(**inputs, **self._generate_options(options.generate)).cpu())
            start = inputs["input_ids"].shape[1]
            for _, prompts in prepared:
                yield [self._finished(next(sequences), start, given, options) for given in prompts]

    def _finished(self, ids: torch.Tensor, start: int, given: str | Chat, options: CallOptions) -> dict[str, Any]:
        if options.return_tensors:
            return self._record(given, ids, tensors=True)
        answer: Any = self.tokenizer.decode(
            ids[start:],
            skip_special_tokens=options.skip_special_tokens,
            clean_up_tokenization_spaces=options.clean_up_tokenization_spaces,
        )
        if options.return_full_text:
            answer = joined(given, answer, options.continue_final_message)
        return self._record(given, answer, tensors=False)

    def _generate_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The caller's options, and the pipeline's defaults for what neither caller nor checkpoint sets."""
        own = given.get("generation_config")
        chosen = {**self.model.generation_config.to_dict(), **({} if own is None else own.to_dict()), **given}
        defaults = {"pad_token_id": self.tokenizer.pad_token_id, **self.generation_defaults}
        defaults = {name: value for name, value in defaults.items() if chosen.get(name) is None}
        if chosen.get("max_length") is not None:
            defaults.pop("max_new_tokens", None)
        if not {**defaults, **chosen}.get("do_sample"):
            defaults = {name: value for name, value in defaults.items() if name not in SAMPLING_ONLY}
        return {**defaults, **given}

    def _sorted_options(self, options: dict[str, Any], below: CallOptions | None = None) -> CallOptions:
        """`options` sorted by who takes them; `below` has the defaults. Raises UnsupportedOptionError."""
        options = {name: value for name, value in options.items() if value is not None}
        below = below or CallOptions()
        if "return_full_text" in options and options.get("return_tensors"):
            raise UnsupportedOptionError("return_full_text is for texts, return_tensors for ids. Give one of them.")
        shown = {name: options.pop(name) for name in _OF_RECORDS if name in options}
        options.pop("return_text", None)  # texts are always returned
        given = self._generation_given(options)
        # As in transformers, a generation_config replaces the options that the pipeline was made with.
        earlier = {} if "generation_config" in given else below.generate
        chosen = replace(below, prepare=dict(below.prepare), generate={**earlier, **given}, **shown)
        self._prepare_options(options, chosen)
        for name in ("return_dict_in_generate", "output_scores", "output_logits"):
            if chosen.generate.get(name):
                raise UnsupportedOptionError(f"{name} is for generate; a pipeline returns texts or return_tensors.")
        return chosen

    def _generation_given(self, options: dict[str, Any]) -> dict[str, Any]:
        """Removes the options of `generate` from `options` and returns them."""
        given = _mapping("generate_kwargs", options)
        for name in options.keys() & {*GenerationConfig.names(), *UNSUPPORTED, *_BESIDE_CONFIG}:
            if name in given:
                raise UnsupportedOptionError(f"{name} is given twice, by name and in generate_kwargs. Give it once.")
            given[name] = options.pop(name)
        stop = options.pop("stop_sequence", None)
        if stop is not None:
            given["stop_strings"] = [stop] if isinstance(stop, str) else list(stop)
        if given.get("stop_strings") is not None:
            given.setdefault("tokenizer", self.tokenizer)
        return given


class ImageTextToTextPipeline(Pipeline):
    """Pictures and text, or conversations with pictures, -> text."""

    task: ClassVar[str] = "image-text-to-text"
    generation_defaults: ClassVar[Mapping[str, Any]] = {"max_new_tokens": NEW_TOKENS}

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        """Answers `text`, which holds `<start_of_image>` in the place of each of `images`.

        Takes one text with one picture or several (path, URL, PIL, bytes, base64, data URL, array); a list of texts
        with a list of pictures for each; one conversation or a list of them as either argument; or texts alone.
        Returns a list of {"input_text", "generated_text"}, one a text; for a list of conversations or of texts
        without pictures a list of such lists. Options: max_new_tokens, generate_kwargs, return_full_text,
        return_tensors, stop_sequence, continue_final_message, skip_special_tokens, batch_size, timeout (seconds, for
        pictures by URL), and those of the processor and of `generate` by name. Raises PromptError, ImageError,
        UnsupportedOptionError.
        """
        if images is None and text is None:
            raise PromptError("There is neither a text nor a picture; give at least one of them.")
        if is_chat(text) or is_batch_of_chats(text):
            if images is not None:
                raise PromptError(
                    "Pictures of a conversation belong into its messages: "
                    '{"type": "image", "url": …} before {"type": "text", …} in a content.'
                )
            return self._run(list(text) if is_batch_of_chats(text) else tuple(text), options)
        if text is None:
            return self._run(_one_argument(images), options)
        if images is None:
            return self._run(list(text) if isinstance(text, tuple) else text, options)
        return self._run({"images": images, "text": text}, options)

    def _prepare_options(self, options: dict[str, Any], chosen: CallOptions) -> None:
        chosen.prepare.update(_mapping("processor_kwargs", options))
        chosen.prepare.update(options)

    def _prepare(self, item: Any, options: CallOptions) -> Prepared:
        assert self.processor is not None
        prepare = dict(options.prepare)
        timeout = prepare.pop("timeout", None)
        if is_chat(item):
            if timeout is not None:
                raise UnsupportedOptionError("timeout is for pictures beside a text. Leave it out for a conversation.")
            template = _template_options(item, options)
            return self.processor.apply_chat_template(list(item), **template, processor_kwargs=prepare), [item]
        images, text = (None, item) if isinstance(item, str) else _images_and_text(item)
        texts = [text] if isinstance(text, str) else list(text)
        if len(texts) > 1:
            prepare.setdefault("padding", True)
        if timeout is not None and images is not None:
            images = _loaded(images, self.processor, timeout)
        return self.processor(images=images, text=texts, return_tensors="pt", **prepare), list(texts)

    def _record(self, given: str | Chat, generated: Any, tensors: bool) -> dict[str, Any]:
        shown = given if isinstance(given, str) else list(given)
        return {"input_text": shown, "generated_token_ids" if tensors else "generated_text": generated}


class TextGenerationPipeline(Pipeline):
    """Text or conversations -> text. The default is to sample at temperature 0.7."""

    task: ClassVar[str] = "text-generation"
    generation_defaults: ClassVar[Mapping[str, Any]] = {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": True,
        "temperature": 0.7,
    }
    _encoding: ClassVar[tuple[str, ...]] = ("add_special_tokens", "truncation", "padding", "tools", "documents")

    def __call__(self, text_inputs: Any, **options: Any) -> Any:
        """Continues a text or a conversation: a list of {"generated_text"}; for a list of them a list of lists.

        `generated_text` is the whole text, or the conversation with one more message. Options:
        return_full_text, return_tensors, stop_sequence, continue_final_message, skip_special_tokens, batch_size,
        add_special_tokens, truncation, max_length, tokenizer_encode_kwargs, and those of `generate` by name.
        Raises PromptError, ChatTemplateError, UnsupportedOptionError.
        """
        if isinstance(text_inputs, list | tuple):
            text_inputs = tuple(text_inputs) if is_chat(text_inputs) else list(text_inputs)
        return self._run(text_inputs, options)

    def _prepare_options(self, options: dict[str, Any], chosen: CallOptions) -> None:
        if "max_length" in chosen.generate:
            chosen.prepare["max_length"] = chosen.generate["max_length"]
        chosen.prepare.update({name: options.pop(name) for name in self._encoding if name in options})
        chosen.prepare.update(_mapping("tokenizer_encode_kwargs", options))
        if options:
            raise UnsupportedOptionError(
                f"The pipeline {self.task!r} has no option {', '.join(sorted(options))}. Leave it out."
            )

    def _prepare(self, item: Any, options: CallOptions) -> Prepared:
        prepare = dict(options.prepare)
        if isinstance(item, str):
            for name in ("tools", "documents"):
                if name in prepare:
                    raise UnsupportedOptionError(f"{name} are for conversations; write them into the text.")
            return self.tokenizer([item], return_tensors="pt", **prepare), [item]
        if not is_chat(item):
            raise PromptError(f"An input is a text or a list of messages, got {type(item).__name__}.")
        prepare.pop("add_special_tokens", None)  # the template writes them
        return self.tokenizer.apply_chat_template(list(item), **_template_options(item, options), **prepare), [item]

    def _record(self, _: str | Chat, generated: Any, tensors: bool) -> dict[str, Any]:
        return {"generated_token_ids": generated.tolist()} if tensors else {"generated_text": generated}


def is_chat(value: Any) -> bool:
    """Whether it is one conversation: messages with a role."""
    if not isinstance(value, list | tuple):
        return False
    return bool(value) and all(isinstance(each, Mapping) and {"role", "content"} <= each.keys() for each in value)


def is_batch_of_chats(value: Any) -> bool:
    """Whether it is a list of conversations."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(is_chat(chat) for chat in value)


def joined(given: str | Chat, answer: str, continue_final_message: bool | None) -> Any:
    """The text with the answer appended, or the conversation with the answer as its last message (or its end)."""
    if isinstance(given, str):
        return given + answer
    if not _continues(given, continue_final_message):
        return [*given, {"role": "assistant", "content": answer}]
    last = dict(given[-1])
    content = last["content"]
    if isinstance(content, str):
        last["content"] = content + answer
    else:
        last["content"] = [*content[:-1], {**content[-1], "text": content[-1]["text"] + answer}]
    return [*given[:-1], last]


def collate(rows: Sequence[ModelInputs], pad_token_id: int) -> ModelInputs:
    """One batch of several: rows [1 or more, T] padded on the left to the longest, and all pictures."""
    longest = max(one["input_ids"].shape[1] for one in rows)
    whole = {}
    for name in dict.fromkeys(name for one in rows for name in one):
        parts = [one[name] for one in rows if name in one]  # a prompt of text alone has no pixels
        if name != "pixel_values":
            fill = pad_token_id if name == "input_ids" else 0  # 0 in attention_mask and token_type_ids
            parts = [F.pad(part, (longest - part.shape[1], 0), value=fill) for part in parts]
        whole[name] = torch.cat(parts)
    return ModelInputs(whole)


def _continues(chat: Chat, asked: bool | None) -> bool:
    """Whether the answer continues the last message: the default if that is the model's own."""
    return chat[-1]["role"] == "assistant" if asked is None else asked


def _template_options(chat: Chat, options: CallOptions) -> dict[str, Any]:
    continues = _continues(chat, options.continue_final_message)
    how = {"add_generation_prompt": not continues, "continue_final_message": continues}
    return {**how, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


def _mapping(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Removes an option that is a dict of options from `options`; a copy of it. Raises UnsupportedOptionError."""
    given = options.pop(name, None) or {}
    if not isinstance(given, Mapping):
        raise UnsupportedOptionError(f"{name} must be a dict of options, got {given!r}.")
    return dict(given)


def _one_argument(given: Any) -> Any:
    """A single argument: one conversation or {"images", "text"}, a list of either, or a generator."""
    if is_chat(given):
        return tuple(given)
    pairs = given if isinstance(given, list | tuple) else [given]
    if isinstance(given, GeneratorType) or is_batch_of_chats(given) or all(_is_pair(pair) for pair in pairs):
        return list(given) if isinstance(given, tuple) else given
    raise PromptError(
        "Pictures need a text that says <start_of_image> where each belongs (text=…), or a conversation with them."
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, Mapping) and "text" in value and bool({"images", "image"} & value.keys())


def _images_and_text(item: Any) -> tuple[Any, Any]:
    if not _is_pair(item):
        raise PromptError(
            f'An input is a text, a list of messages, or {{"images": …, "text": …}}, got {type(item).__name__}.'
        )
    images, text = item.get("images", item.get("image")), item["text"]
    if not isinstance(text, str | list | tuple):
        raise PromptError(f"text must be a string or a list of strings, got {type(text).__name__}.")
    return images, text


def _loaded(images: Any, processor: Gemma3Processor, timeout: float) -> Any:
    """The pictures themselves, each fetched within `timeout` seconds."""
    limits = replace(processor.image_processor.limits, timeout=timeout)
    if isinstance(images, list | tuple):
        return [_loaded(image, processor, timeout) for image in images]
    return load_image(images, limits)
