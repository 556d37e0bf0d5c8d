"""Messages and pictures -> model inputs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gemma3_core.chat_template import Message, render_chat
from gemma3_core.errors import ChatTemplateError, PromptError, UnsupportedOptionError
from gemma3_core.hub import read_json, resolve_folder, write_json
from gemma3_core.image_processor import Gemma3ImageProcessor, ImageInputs, ImageProcessor, image_processor_class
from gemma3_core.images import ImageSource, decode_base64, load_image
from gemma3_core.tokenizer import (
    Gemma3Tokenizer,
    ModelInputs,
    TokenIds,
    to_tensors,
)

Images = ImageSource | Sequence[ImageSource] | Sequence[Sequence[ImageSource]]
Conversation = Sequence[Message]

_DEFAULT_IMAGE_SEQ_LENGTH = 256  # of the published checkpoints: 64 x 64 patches pooled 4 x 4
_IMAGE_KEYS = ("image", "url", "path", "base64")


class Gemma3Processor:
    """The image processor, the tokenizer, and the text that stands where a picture is."""

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: Gemma3Tokenizer,
        image_seq_length: int = _DEFAULT_IMAGE_SEQ_LENGTH,
        chat_template: str | None = None,
    ) -> None:
        """`image_seq_length` is the number of soft tokens per picture and per crop."""
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_seq_length = image_seq_length
        self.chat_template = chat_template or tokenizer.chat_template
        soft_tokens = tokenizer.image_token * image_seq_length
        self.full_image_sequence = f"\n\n{tokenizer.boi_token}{soft_tokens}{tokenizer.eoi_token}\n\n"

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        token: str | None = None,
        *,
        backend: str | None = None,
        device: torch.device | str = "cpu",
    ) -> "Gemma3Processor":
        """Read a checkpoint's tokenizer, image processor and processor_config.json; where the last
        two are missing, the published values apply.

        `backend` is the image processor's: None or "torchvision" (tensors, resized on `device`), or
        "pil". Raises CheckpointError, ConfigError, UnsupportedOptionError.
        """
        folder = resolve_folder(source, revision, token)
        older = read_json(folder / "preprocessor_config.json", optional=True)
        config = {
            "image_seq_length": older.get("image_seq_length"),
            **read_json(folder / "processor_config.json", optional=True),
        }
        return cls(
            _image_processor(folder, backend, device),
            Gemma3Tokenizer.from_pretrained(folder),
            image_seq_length=config["image_seq_length"] or _DEFAULT_IMAGE_SEQ_LENGTH,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files, preprocessor_config.json and processor_config.json."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        content = {"image_seq_length": self.image_seq_length, "processor_class": "Gemma3Processor"}
        write_json(Path(folder) / "processor_config.json", content)
        if self.chat_template is not None:
            (Path(folder) / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    def __call__(
        self,
        images: Images | None = None,
        text: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        do_pan_and_scan: bool | Sequence[bool] | None = None,
        pan_and_scan_min_crop_size: int | None = None,
        pan_and_scan_max_num_crops: int | None = None,
        pan_and_scan_min_ratio_to_activate: float | None = None,
    ) -> ModelInputs:
        """`input_ids`, `attention_mask`, `token_type_ids` [B, T] (1 where a soft token is) and, with
        pictures, `pixel_values` [N, 3, S, S]. Lists by default, tensors with `return_tensors="pt"`.

        Each `<start_of_image>` in a text takes the next picture: `images` is one picture, the
        pictures of one text, or a list of pictures for each text. Without a text there is one that
        holds only its pictures. `do_pan_and_scan` may be a list, one setting for each picture. Special
        tokens in the text count as such (see `escape_messages`). Raises PromptError where the counts of
        pictures and places differ.
        """
        groups = None if images is None else _grouped(images)
        texts = self._texts(text, groups)
        self._check_counts(texts, groups)
        pictures = [picture for group in groups or [] for picture in group]
        processed = None
        if pictures:
            processed = self._process_images(
                pictures,
                do_pan_and_scan,
                pan_and_scan_min_crop_size=pan_and_scan_min_crop_size,
                pan_and_scan_max_num_crops=pan_and_scan_max_num_crops,
                pan_and_scan_min_ratio_to_activate=pan_and_scan_min_ratio_to_activate,
            )
            texts = self.expand_images(texts, processed.num_crops)
        inputs = self.tokenizer(
            texts, add_special_tokens=add_special_tokens, padding=padding, padding_side=padding_side
        )
        return self._assemble(inputs, processed, return_tensors)

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        do_pan_and_scan: bool | Sequence[bool] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The prompt of a conversation, or of each of several, by the checkpoint's chat template.

        Text by default; with `tokenize=True` the input ids, with `return_dict=True` as well all
        ModelInputs. A picture is a part {"type": "image", "image" | "url" | "path" | "base64": …}.
        `processor_kwargs` are further arguments of `__call__`.
        """
        conversations = [_with_image_urls(chat) for chat in _batch(conversation)]
        prompts = [
            self._render(chat, chat_template, add_generation_prompt, continue_final_message) for chat in conversations
        ]
        is_batch = _is_batch(conversation)
        if not tokenize:
            return prompts if is_batch else prompts[0]
        groups = [list(self._pictures(chat)) for chat in conversations]
        options: dict[str, Any] = {
            "add_special_tokens": not prompts[0].startswith(self.tokenizer.bos_token),
            "padding": padding,
            "padding_side": padding_side,
            "return_tensors": return_tensors,
            "do_pan_and_scan": do_pan_and_scan,
            **(processor_kwargs or {}),
        }
        inputs = self(images=groups if any(groups) else None, text=prompts, **options)
        return inputs if return_dict else inputs["input_ids"]

    def expand_images(self, texts: Sequence[str], num_crops: Sequence[int]) -> list[str]:
        """Put the soft tokens of the next picture, and of its crops, in place of each
        `<start_of_image>`; `num_crops` has one count per picture. Tokenise the result in one piece:
        line breaks on both sides of a picture join with the text's own into one token."""
        sequences = iter([self._image_text(count) for count in num_crops])
        expanded = []
        for text in texts:
            first, *rest = text.split(self.tokenizer.boi_token)
            expanded.append(first + "".join(next(sequences) + part for part in rest))
        return expanded

    def escape_special_tokens(self, text: str) -> str:
        """See Gemma3Tokenizer.escape_special_tokens."""
        return self.tokenizer.escape_special_tokens(text)

    def escape_messages(self, messages: Conversation) -> list[dict[str, Any]]:
        """A copy of messages in which no text can act as a special token: for words of visitors.

        Only the template then opens and ends turns, and only parts of type "image" are pictures.
        """
        return [{**message, "content": self._escape_content(message.get("content"))} for message in messages]

    def decode(self, ids: TokenIds, skip_special_tokens: bool = False) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(self, rows: Sequence[TokenIds] | torch.Tensor, skip_special_tokens: bool = False) -> list[str]:
        return self.tokenizer.batch_decode(rows, skip_special_tokens)

    def _escape_content(self, content: Any) -> Any:
        if isinstance(content, str):
            return self.escape_special_tokens(content)
        if not isinstance(content, list | tuple):
            return content  # render_chat says what is wrong with it
        return [
            {**part, "text": self.escape_special_tokens(part["text"])} if _is_text(part) else part for part in content
        ]

    def _render(self, chat: Conversation, template: str | None, open_turn: bool, keep_open: bool) -> str:
        template = template or self.chat_template
        if template is None:
            raise ChatTemplateError("This checkpoint has no chat template; write the prompt yourself.")
        return render_chat(
            template,
            chat,
            bos_token=self.tokenizer.bos_token,
            eos_token=self.tokenizer.eos_token,
            add_generation_prompt=open_turn,
            continue_final_message=keep_open,
        )

    def _pictures(self, chat: Conversation) -> Iterator[ImageSource]:
        for message in chat:
            parts = message["content"]
            for part in () if isinstance(parts, str) else parts:
                if part["type"] == "image":
                    for key in _IMAGE_KEYS:
                        if key in part:
                            yield self._picture(key, part[key])

    def _picture(self, key: str, source: Any) -> ImageSource:
        """A key that says what it holds is taken at its word: base64 is never read as a path."""
        limits = self.image_processor.limits
        if key == "base64" and isinstance(source, str) and not source.startswith("data:"):
            return load_image(decode_base64(source, limits), limits)
        return load_image(Path(source) if key == "path" and isinstance(source, str) else source, limits)

    def _texts(self, text: str | Sequence[str] | None, groups: list[list[ImageSource]] | None) -> list[str]:
        if text is None and groups is None:
            raise PromptError("There is neither a text nor a picture; give at least one of them.")
        if text is None:
            return [" ".join([self.tokenizer.boi_token] * len(group)) for group in groups or []]
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(item, str) for item in texts):
            raise PromptError("text must be a string or a list of strings, and not empty.")
        return texts

    def _check_counts(self, texts: list[str], groups: list[list[ImageSource]] | None) -> None:
        boi = self.tokenizer.boi_token
        places = [text.count(boi) for text in texts]
        given = [0] * len(texts) if groups is None else [len(group) for group in groups]
        if places != given:
            raise PromptError(
                f"The texts have {_counts(places)} places for pictures ({boi}), but {_counts(given)} pictures "
                "were given. Give one picture for each place, in a list of its own for each text."
            )

    def _process_images(
        self, pictures: list[ImageSource], do_pan_and_scan: bool | Sequence[bool] | None, **options: Any
    ) -> ImageInputs:
        if do_pan_and_scan is None or isinstance(do_pan_and_scan, bool):
            return self.image_processor(pictures, do_pan_and_scan=do_pan_and_scan, **options)
        if len(do_pan_and_scan) != len(pictures):
            raise PromptError(
                f"do_pan_and_scan has {len(do_pan_and_scan)} settings for {len(pictures)} pictures; "
                "give one for each picture, or one for all."
            )
        parts = [
            self.image_processor([picture], do_pan_and_scan=cut, **options)
            for picture, cut in zip(pictures, do_pan_and_scan, strict=True)
        ]
        counts = tuple(count for part in parts for count in part.num_crops)
        return ImageInputs(torch.cat([part.pixel_values for part in parts]), counts)

    def _image_text(self, num_crops: int) -> str:
        """Worded as Gemma 3 was trained with; the model depends on it."""
        image = self.full_image_sequence
        if num_crops == 0:
            return image
        crops = " ".join([image] * num_crops)
        return f"Here is the original image {image} and here are some crops to help you see better {crops}"

    def _assemble(self, inputs: ModelInputs, images: ImageInputs | None, return_tensors: str | None) -> ModelInputs:
        if return_tensors not in (None, "pt"):
            raise UnsupportedOptionError(f'return_tensors is {return_tensors!r}; only "pt" is supported.')
        image_id = self.tokenizer.image_token_id
        inputs["token_type_ids"] = [[int(i == image_id) for i in row] for row in inputs["input_ids"]]
        if return_tensors is not None:
            inputs = to_tensors(inputs, return_tensors)
        if images is not None:
            pixels = images.pixel_values
            inputs["pixel_values"] = pixels if return_tensors else list(pixels.cpu().numpy())
        return inputs


def _image_processor(folder: Path, backend: str | None, device: torch.device | str) -> ImageProcessor:
    processor = image_processor_class(backend).from_pretrained(folder)
    if isinstance(processor, Gemma3ImageProcessor):
        return processor.to(device)
    if torch.device(device).type != "cpu":
        raise UnsupportedOptionError(f'backend="pil" works on the CPU, not on {device}; leave one of them out.')
    return processor


def _grouped(images: Images) -> list[list[ImageSource]]:
    """-> one list of pictures per text."""
    if not isinstance(images, list | tuple):
        return [[images]]  # type: ignore[list-item]
    if images and all(isinstance(group, list | tuple) for group in images):
        return [list(group) for group in images]  # type: ignore[arg-type]
    return [list(images)]


def _is_batch(conversation: Conversation | Sequence[Conversation]) -> bool:
    return len(conversation) > 0 and isinstance(conversation[0], list | tuple)


def _batch(conversation: Any) -> list[Conversation]:
    return list(conversation) if _is_batch(conversation) else [conversation]


def _with_image_urls(chat: Conversation) -> list[Message]:
    """The other spelling of a picture, {"type": "image_url", "image_url": {"url": …}}, as ours."""
    return [
        {**m, "content": [_image_part(p) for p in m["content"]]}
        if isinstance(m, Mapping) and isinstance(m.get("content"), list)
        else m
        for m in chat
    ]


def _image_part(part: Any) -> Any:
    if not isinstance(part, Mapping) or part.get("type") != "image_url":
        return part
    url = part.get("image_url")
    return {"type": "image", "url": url.get("url", "") if isinstance(url, Mapping) else url}


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _counts(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else str(numbers)
