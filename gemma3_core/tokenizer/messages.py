"""Chat messages as programs write them (transformers, OpenAI, Anthropic) -> one spelling, that of Gemma's template."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemma3_core.errors import ChatTemplateError

Message = Mapping[str, Any]

IMAGE_KEYS = ("image", "url", "path", "base64")
_TEXT_TYPES = ("text", "input_text", "output_text", "refusal")
_IMAGE_TYPES = ("image", "input_image", "image_url")


def normalized_message(message: Any, name: str) -> dict[str, Any]:
    """-> {"role": …, "content": a text or a list of parts, …}, without the keys whose value is None.

    A part is {"type": "text", "text": …} or {"type": "image", "image" | "url" | "path" | "base64": …}; an image part
    may have no source, where the pictures are given beside the messages. An assistant's message that only calls tools
    has the content "". `name` ("Message 2") begins what a ChatTemplateError says.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ChatTemplateError(f"{name} is not a dict with the keys role (a text) and content.")
    role, content = message["role"], message.get("content")
    name = f"{name} ({role})"
    if content is None and role in ("assistant", "model"):
        content = ""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, str | list | tuple):
        got = "is missing" if content is None else f"is of type {type(content).__name__}"
        raise ChatTemplateError(f"{name}: the content {got}. Give a text or a list of parts.")
    if not isinstance(content, str):
        content = [
            part for number, item in enumerate(content, 1) for part in _parts(item, f"{name}, part {number}")
        ]  # fmt: skip
    kept = {key: value for key, value in message.items() if value is not None}
    return {**kept, "role": "system" if role == "developer" else role, "content": content}


def _parts(part: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """The parts that one item of a message's content stands for: several where its text is a list."""
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise ChatTemplateError(f"{name} is of type {type(part).__name__}. Give a text, or a dict with a type.")
    kind = part.get("type") or _type_by_keys(part)
    if kind in _TEXT_TYPES:
        text = part.get("refusal" if kind == "refusal" else "text")
        texts = text if isinstance(text, list | tuple) else [text]
        if not all(isinstance(item, str) for item in texts):
            raise ChatTemplateError(f'{name} has no text. Give it under the key "text".')
        yield from ({**part, "type": "text", "text": item} for item in texts)
    elif kind in _IMAGE_TYPES:
        yield _image(part, kind, name)
    else:
        got = f"of type {kind!r}" if kind else "without a type"
        raise ChatTemplateError(f'{name} is {got}. Gemma 3 reads parts of type "text" and "image" only.')


def _type_by_keys(part: Mapping[str, Any]) -> str | None:
    """The type of a part that does not name it."""
    named = [kind for kind in ("text", "image_url", "image") if part.get(kind) is not None]
    return named[0] if len(named) == 1 else None


def _image(part: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    """An image part, whose source may be written as OpenAI's `image_url` or as Anthropic's `source`."""
    if any(part.get(key) is not None for key in IMAGE_KEYS):
        return {**part, "type": "image"}
    address = part.get("image_url")
    if isinstance(address, Mapping):
        address = address.get("url")
    source = part.get("source")
    if isinstance(source, Mapping):
        address = source.get("url")
        if source.get("data") is not None:
            return {"type": "image", "base64": source["data"]}
    if address is not None:
        return {"type": "image", "url": address}
    if part.get("file_id") is not None:
        raise ChatTemplateError(f"{name} names a file of another service (file_id). Give its address or its data.")
    if kind != "image" or source is not None:
        raise ChatTemplateError(f"{name} has no picture. Give its address, or a data URL.")
    return part


def normalized_chat(messages: Sequence[Any], name: str = "Message") -> list[dict[str, Any]]:
    """All messages of one conversation. Raises ChatTemplateError, which says which message and why."""
    return [normalized_message(message, f"{name} {number}") for number, message in enumerate(messages, 1)]
