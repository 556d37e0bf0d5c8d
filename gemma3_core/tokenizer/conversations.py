"""One conversation or several, in the spellings that programs use -> messages, prompts and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from gemma3_core.errors import ChatTemplateError, ImageError, UnsupportedOptionError
from gemma3_core.images.arrays import is_array
from gemma3_core.images.limits import ImageLimits
from gemma3_core.images.load import ImageSource, decode_base64, load_image
from gemma3_core.tokenizer.chat_template import render_chat, template_variables
from gemma3_core.tokenizer.messages import IMAGE_KEYS, Message, normalized_chat
from gemma3_core.tokenizer.special_tokens import SpecialTokens

Conversation = Sequence[Message]

_OTHER_MEDIA = ("videos", "audio", "videos_kwargs", "audio_kwargs", "load_audio_from_video")
_UNSUPPORTED = {
    "return_assistant_tokens_mask": "Find the model's words between <start_of_turn>model and <end_of_turn> in the ids.",
    "sanitize_control_tokens": "Pass the messages through the processor's escape_messages.",
    "return_text_replacement_offsets": "Call expand_images.",
    **dict.fromkeys(_OTHER_MEDIA, "Gemma 3 reads texts and pictures only."),
}


def split_batch(conversation: Any) -> tuple[list[Conversation], bool]:
    """-> the conversations in one spelling (`normalized_message`), and whether they came as a batch.

    Raises ChatTemplateError, which says which message can't be read and why.
    """
    if not isinstance(conversation, list | tuple):
        raise ChatTemplateError(
            f"A conversation is a list of messages, not {type(conversation).__name__}; "
            'give [{"role": "user", "content": …}], or a list of such lists.'
        )
    if not conversation:
        raise ChatTemplateError("There are no messages; give at least one of role user.")
    is_batch = isinstance(conversation[0], list | tuple)
    chats = conversation if is_batch else [conversation]
    for chat in chats:
        if not isinstance(chat, list | tuple):
            raise ChatTemplateError(f"A batch is a list of lists of messages; one of them is a {type(chat).__name__}.")
    names = [f"Conversation {number}, message" for number in range(1, len(chats) + 1)] if is_batch else ["Message"]
    return [normalized_chat(chat, name) for chat, name in zip(chats, names, strict=True)], is_batch


def render_prompts(
    chats: Sequence[Conversation],
    template: str | None,
    special_tokens: SpecialTokens,
    *,
    add_generation_prompt: bool,
    continue_final_message: bool | str,
    variables: Mapping[str, Any],
) -> list[str]:
    """The prompt of each conversation; `variables` that are None are left out.

    Raises UnsupportedOptionError for a variable that the template does not use.
    """
    if template is None:
        raise ChatTemplateError("This checkpoint has no chat template; pass chat_template=.")
    given = {name: value for name, value in variables.items() if value is not None and value != []}
    unused = sorted(set(given) - template_variables(template))
    if unused:
        names = ", ".join(unused)
        raise UnsupportedOptionError(f"The chat template does not use {names}. Leave it out, or pass a chat_template.")
    if not all(isinstance(tool, Mapping) for tool in given.get("tools", ())):
        raise UnsupportedOptionError("tools must be a list of JSON schemas (dicts); functions are not converted.")
    return [
        render_chat(
            template,
            chat,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**vars(special_tokens), **given},
        )
        for chat in chats
    ]


def refuse_unsupported(options: dict[str, Any]) -> None:
    """Drops transformers' options that do not exist here. Raises UnsupportedOptionError where one is asked for."""
    for name, advice in _UNSUPPORTED.items():
        if options.pop(name, False):
            raise UnsupportedOptionError(f"{name} is not supported. {advice}")


def pictures_of(chat: Conversation, limits: ImageLimits) -> Iterator[ImageSource]:
    """The pictures of a conversation, in order; a part of type "image" without one gives none.

    Raises ImageError, which says which message's picture can't be read.
    """
    for number, message in enumerate(chat, 1):
        for part in () if isinstance(message["content"], str) else message["content"]:
            for key in IMAGE_KEYS if part["type"] == "image" else ():
                if part.get(key) is None:
                    continue
                try:
                    yield _picture(key, part[key], limits)
                except ImageError as error:
                    raise ImageError(f"Message {number} ({message['role']}): {error}") from error


def _picture(key: str, source: Any, limits: ImageLimits) -> ImageSource:
    """A picture that is not an object in memory is decoded. The key decides how a string is read: base64 is never read
    as a path."""
    if is_array(source) or isinstance(source, Image.Image):
        return source
    if key == "base64" and isinstance(source, str) and not source.startswith("data:"):
        source = decode_base64(source, limits)
    return load_image(Path(source) if key == "path" and isinstance(source, str) else source, limits)
