"""Messages and pictures -> model inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from gemma3_core.errors import ChatTemplateError, ConfigError, PromptError, UnsupportedOptionError, require_known
from gemma3_core.files.hub import pop_hub_options, read_json, resolve_folder
from gemma3_core.files.saving import folder_to_save_in, write_json, write_text
from gemma3_core.images.arrays import is_array
from gemma3_core.images.load import ImageSource
from gemma3_core.images.options import ImageProcessorConfig
from gemma3_core.images.processor import ImageProcessor, image_processor_class
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.processor_options import CallOptions, split_options
from gemma3_core.tokenizer.chat_template import template_variables
from gemma3_core.tokenizer.conversations import Conversation, pictures_of, refuse_unsupported, split_batch
from gemma3_core.tokenizer.messages import normalized_chat
from gemma3_core.tokenizer.tokenizer import TOKENIZER_OPTIONS, Gemma3Tokenizer, TokenIds

Images = ImageSource | Sequence[ImageSource] | Sequence[Sequence[ImageSource]]

_IMAGE_SEQ_LENGTH = 256  # of the published checkpoints: 64 x 64 patches pooled 4 x 4
_MOST_SOFT_TOKENS = 65_536  # the text of a picture repeats its token so often
_ONE_LIST_PER_TEXT = "Give one list of pictures per text, which may be empty: images=[[first, second], []]."


class Gemma3Processor:
    """The image processor, the tokenizer, and the text that represents a picture."""

    model_input_names: ClassVar = ["pixel_values", "input_ids", "attention_mask", "token_type_ids"]

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: Gemma3Tokenizer,
        chat_template: str | None = None,
        image_seq_length: int = _IMAGE_SEQ_LENGTH,
    ) -> None:
        """`image_seq_length` is the number of soft tokens per picture and per crop.

        Raises UnsupportedOptionError for arguments of other types, ConfigError for another number than 1 to 65,536.
        """
        _check_type("image_processor", image_processor, ImageProcessor)
        _check_type("tokenizer", tokenizer, Gemma3Tokenizer)
        _check_type("chat_template", chat_template, str | None)
        _check_type("image_seq_length", image_seq_length, int)
        if isinstance(image_seq_length, bool) or not 1 <= image_seq_length <= _MOST_SOFT_TOKENS:
            raise ConfigError(
                f"image_seq_length must be a whole number from 1 to {_MOST_SOFT_TOKENS:,}, got {image_seq_length!r}."
            )
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_seq_length = image_seq_length
        self.chat_template = chat_template or tokenizer.chat_template
        soft_tokens = tokenizer.image_token * image_seq_length
        self.full_image_sequence = f"\n\n{tokenizer.boi_token}{soft_tokens}{tokenizer.eoi_token}\n\n"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backend: str | None = None,
        use_fast: bool | None = None,
        device: torch.device | str | None = None,
        image_seq_length: int | None = None,
        chat_template: str | None = None,
        **options: Any,
    ) -> "Gemma3Processor":
        """Reads a checkpoint's tokenizer, preprocessor_config.json and processor_config.json; where the last two are
        missing, the published values apply.

        `backend` is the image processor's: None or "torchvision" (tensors, resized on `device`), or "pil"; `use_fast`
        says the same with True or False. Further options are HubOptions, or the tokenizer's (`padding_side`, …) and
        the image processor's (`do_pan_and_scan`, …), which win over the files.
        Raises CheckpointError, ConfigError, UnsupportedOptionError.
        """
        folder = resolve_folder(pretrained_model_name_or_path, weights=False, **pop_hub_options(options))
        older = read_json(folder / "preprocessor_config.json", optional=True)
        newer = read_json(folder / "processor_config.json", optional=True)
        lengths = (image_seq_length, newer.get("image_seq_length"), older.get("image_seq_length"), _IMAGE_SEQ_LENGTH)
        length = next(length for length in lengths if length is not None)
        of_images = {name: options.pop(name) for name in ImageProcessorConfig.__annotations__ if name in options}
        if backend is None and use_fast is not None:
            backend = "torchvision" if use_fast else "pil"
        images = image_processor_class(backend).from_pretrained(folder, device=device, **of_images)
        require_known("The processor", options, {*TOKENIZER_OPTIONS, *ImageProcessorConfig.__annotations__})
        tokenizer = Gemma3Tokenizer.from_pretrained(folder, **options)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return cls(images, tokenizer, chat_template, length)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> list[str]:
        """Writes the tokenizer's files, preprocessor_config.json and processor_config.json; returns the last's path.

        Raises CheckpointError, UnsupportedOptionError.
        """
        folder = folder_to_save_in(save_directory, options)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        content = {"image_seq_length": self.image_seq_length, "processor_class": "Gemma3Processor"}
        path = folder / "processor_config.json"
        write_json(path, content)
        if self.chat_template is not None:
            write_text(folder / "chat_template.jinja", self.chat_template)
        return [str(path)]

    @property
    def boi_token(self) -> str:
        """`<start_of_image>`: marks where a text has its next picture."""
        return str(self.tokenizer.boi_token)

    @property
    def image_token(self) -> str:
        """`boi_token`, under transformers' name; the soft token is `tokenizer.image_token`."""
        return self.boi_token

    @property
    def image_token_id(self) -> int | None:
        """The id of `<start_of_image>`."""
        return self.tokenizer.token_id(self.boi_token)

    def __call__(
        self, images: Images | None = None, text: str | Sequence[str] | None = None, **options: Any
    ) -> ModelInputs:
        """`input_ids`, `attention_mask`, `token_type_ids` [B, T] (1 where a soft token is) and, with
        pictures, `pixel_values` [N, 3, S, S]. Lists by default, tensors with `return_tensors="pt"`.

        Each `<start_of_image>` in a text takes the next picture: `images` is one picture, the
        pictures of one text, or a list of pictures for each text. Without a text, one is made that
        holds only its pictures. `options` are those of the tokenizer's call and of the image processor,
        as keywords or in `text_kwargs` and `images_kwargs`; `do_pan_and_scan` may be a list, one
        setting per picture. `crops` has one entry per picture, in the order of the texts, and replaces pan & scan's
        crops: boxes (left, top, right, bottom) in pixels, "auto" for an even tiling, or None. Special tokens in the
        text work as such (see `escape_messages`).
        Raises PromptError where the counts of pictures and places differ, or truncation cuts a picture.
        """
        chosen = split_options(options)
        groups = None if images is None else grouped_pictures(images)
        texts = self._texts(text, groups)
        self._check_counts(texts, groups)
        pictures = [picture for group in groups or [] for picture in group]
        processed = ModelInputs()
        if pictures:
            processed = self._process_images(pictures, chosen.images)
            texts = self.expand_images(texts, [int(count) for count in processed.pop("num_crops")])
        inputs = self.tokenizer(texts, **{**chosen.text, "return_tensors": None})
        self._check_soft_tokens(texts, inputs["input_ids"], chosen)
        if chosen.token_type_ids:
            soft = self.tokenizer.image_token_id
            inputs["token_type_ids"] = [[int(i == soft) for i in row] for row in inputs["input_ids"]]
        return ModelInputs({**inputs, **processed}, tensor_type=chosen.text.get("return_tensors"))

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        chat_template: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, str]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = False,
        return_tensors: str | None = "auto",
        return_dict: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The prompt of a conversation, or of each of several, by the checkpoint's chat template.

        Text by default; the input ids with `tokenize=True`, all ModelInputs with `return_dict=True` as well.
        A picture is a part {"type": "image", "image" | "url" | "path" | "base64": …}; `normalized_message` says which
        other spellings are read, such as OpenAI's.
        `options` and `processor_kwargs` are the template's variables and the options of `__call__`.
        """
        refuse_unsupported(options)
        chats, is_batch = split_batch(conversation)
        if not isinstance(chat_template, str | None):
            raise UnsupportedOptionError(f"chat_template must be a template's text, got {chat_template!r}.")
        if not isinstance(processor_kwargs, Mapping | None):
            raise UnsupportedOptionError(f"processor_kwargs must be a dict of options, got {processor_kwargs!r}.")
        template = chat_template or self.chat_template
        if template is None:
            raise ChatTemplateError("This checkpoint has no chat template; pass chat_template=.")
        names = template_variables(template)
        variables = {name: value for name, value in options.items() if name in names}
        call = {name: value for name, value in options.items() if name not in names} | dict(processor_kwargs or {})
        given = call.pop("images", None)
        split_options(call)  # refuses unknown options with tokenize=False, too
        prompts = self.tokenizer.apply_chat_template(
            chats,
            tools,
            documents,
            template,
            add_generation_prompt,
            continue_final_message,
            tokenize=False,
            **variables,
        )
        if not tokenize:
            return prompts if is_batch else prompts[0]
        if return_tensors != "auto":
            call["return_tensors"] = return_tensors
        if prompts[0].startswith(self.tokenizer.bos_token):
            call["add_special_tokens"] = False  # the template wrote it already
        limits = self.image_processor.limits
        groups: Any = [list(pictures_of(chat, limits)) for chat in chats] if given is None else given
        inputs = self(images=groups if given is not None or any(groups) else None, text=prompts, **call)
        return inputs if return_dict else inputs["input_ids"]

    def post_process_image_text_to_text(
        self, generated_outputs: TokenIds | Sequence[TokenIds], skip_special_tokens: bool = True, **options: Any
    ) -> Any:
        """The texts of the ids that `generate` returned."""
        return self.tokenizer.decode(generated_outputs, skip_special_tokens, **options)

    def expand_images(self, texts: Sequence[str], num_crops: Sequence[int]) -> list[str]:
        """Replaces each `<start_of_image>` with the soft tokens of the next picture and its crops; `num_crops` has
        one count per picture. Tokenise the result as a whole: the line breaks around a picture join with the text's
        own into one token."""
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
        """A copy of visitors' messages in which no text can act as a special token.

        Then only the template opens and ends turns, and only parts of type "image" are pictures.
        """
        chat = normalized_chat(messages)
        return [{**message, "content": self._escape_content(message["content"])} for message in chat]

    def decode(self, *args: Any, **options: Any) -> Any:
        """See Gemma3Tokenizer.decode."""
        return self.tokenizer.decode(*args, **options)

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """See Gemma3Tokenizer.batch_decode."""
        return self.tokenizer.batch_decode(*args, **options)

    def _escape_content(self, content: Any) -> Any:
        if isinstance(content, str):
            return self.escape_special_tokens(content)
        return [
            {**part, "text": self.escape_special_tokens(part["text"])} if part["type"] == "text" else part
            for part in content
        ]

    def _texts(self, text: Any, groups: list[list[ImageSource]] | None) -> list[str]:
        if text is None and groups is None:
            raise PromptError("There is neither a text nor a picture; give at least one of them.")
        if text is None:
            return [" ".join([self.boi_token] * len(group)) for group in groups or []]
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(item, str) for item in texts):
            kinds = sorted({type(item).__name__ for item in texts}) if isinstance(texts, list | tuple) else []
            got = f"a {type(text).__name__}" + (f" of {', '.join(kinds)}" if kinds else "")
            hint = " Pictures come first: name both, images= and text=." if is_array(text) else ""
            raise PromptError(f"text is {got}; it must be a string or a list of strings, and not empty.{hint}")
        return list(texts)

    def _check_counts(self, texts: list[str], groups: list[list[ImageSource]] | None) -> None:
        if groups and any(groups) and None in (self.tokenizer.boi_token_id, self.tokenizer.image_token_id):
            raise PromptError(
                f"This tokenizer knows no {self.boi_token} or {self.tokenizer.image_token}: its model reads text only. "
                "Take a checkpoint of 4B or larger, or leave the pictures out."
            )
        if groups is not None and len(groups) != len(texts):
            raise PromptError(
                f"There are {len(texts)} texts, and pictures for {len(groups)} of them. {_ONE_LIST_PER_TEXT}"
            )
        places = [text.count(self.boi_token) for text in texts]
        given = [0] * len(texts) if groups is None else [len(group) for group in groups]
        if places != given and not (groups is None and self.tokenizer.boi_token_id is None):
            raise PromptError(
                f"The texts have {_counts(places)} places for pictures ({self.boi_token}), but {_counts(given)} "
                "pictures were given. Give one picture for each place."
            )

    def _check_soft_tokens(self, texts: list[str], rows: list[list[int]], chosen: CallOptions) -> None:
        """Raises PromptError where truncation removed soft tokens: the model could not place the picture's features."""
        token, token_id = self.tokenizer.image_token, self.tokenizer.image_token_id
        wanted = [text.count(token) for text in texts]
        kept = [row.count(token_id) for row in rows]
        if token_id is not None and wanted != kept and len(kept) == len(wanted):
            raise PromptError(
                f"Truncation cuts pictures: {_counts(wanted)} soft tokens are needed, and {_counts(kept)} are left "
                f"within max_length={chosen.text.get('max_length')}. Take a larger max_length, or leave truncation out."
            )

    def _process_images(self, pictures: list[ImageSource], options: dict[str, Any]) -> ModelInputs:
        cuts = options.get("do_pan_and_scan")
        if not isinstance(cuts, list | tuple):
            return self.image_processor(pictures, **options)
        if len(cuts) != len(pictures):
            raise PromptError(f"do_pan_and_scan has {len(cuts)} settings for {len(pictures)} pictures; give as many.")
        apart, crops = {**options, "return_tensors": None}, options.get("crops") or [None] * len(pictures)
        if len(crops) != len(pictures):
            raise PromptError(f"crops has {len(crops)} entries for {len(pictures)} pictures; give one per picture.")
        parts = [
            self.image_processor([picture], **{**apart, "do_pan_and_scan": cut, "crops": [own]})
            for picture, cut, own in zip(pictures, cuts, crops, strict=True)
        ]
        return ModelInputs(
            {name: [value for part in parts for value in part[name]] for name in ("pixel_values", "num_crops")},
            tensor_type=options.get("return_tensors"),
        )

    def _image_text(self, num_crops: int) -> str:
        """The wording is the one that Gemma 3 was trained with."""
        image = self.full_image_sequence
        if num_crops == 0:
            return image
        crops = " ".join([image] * num_crops)
        return f"Here is the original image {image} and here are some crops to help you see better {crops}"


def _check_type(name: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        expected = getattr(kind, "__name__", str(kind))
        raise UnsupportedOptionError(
            f"{name} must be a {expected}, got {type(value).__name__}. The order is image_processor, tokenizer, "
            "chat_template, image_seq_length."
        )


def grouped_pictures(images: Any) -> list[list[ImageSource]]:
    """-> one list of pictures per text; a batch [N, …] of pictures is a list of them."""
    if is_array(images) and images.ndim == 4:
        return [list(images)]
    if not isinstance(images, list | tuple):
        return [[images]]
    batches = [isinstance(group, list | tuple) or (is_array(group) and group.ndim == 4) for group in images]
    if images and all(batches):
        return [list(group) for group in images]
    if any(batches):
        raise PromptError(f"images has lists of pictures beside single pictures. {_ONE_LIST_PER_TEXT}")
    return [list(images)]


def _counts(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else str(numbers)
