"""The figures under an answer: model and time, and the rest on demand."""

from gemma3_core.engine import Stats

PICTURE_CHANGED_NOTHING = (
    "The picture changed nothing in the whole answer: no word of it is more or less likely without the picture."
)


def short_line(stats: Stats) -> str:
    """For example "demo model · 0.9 s"; also says if the answer was cut or stopped."""
    parts = [stats.model]
    if stats.time_to_first_token_s is not None:
        decoding_s = (stats.new_tokens - 1) / stats.tokens_per_s if stats.tokens_per_s else 0.0
        parts.append(f"{stats.time_to_first_token_s + decoding_s:.1f} s")
    if stats.stop_reason == "length":
        parts.append(f"cut at {count(stats.new_tokens, 'token')}")
    if stats.stop_reason == "cancelled":
        parts.append("stopped")
    return " · ".join(parts)


def figures_line(stats: Stats) -> str:
    """For example "demo model · bfloat16 · 1 picture, 2 crops · 212 tokens · first token 0.21 s"."""
    parts = [stats.model, stats.dtype if stats.quantization == "none" else stats.quantization]
    if stats.num_images:
        parts.append(_pictures(stats))
    parts += [_tokens(stats), *_speed(stats)]
    if stats.stop_reason == "length":
        parts.append(f"cut at {stats.new_tokens:,} new tokens")
    if stats.stop_reason == "cancelled":
        parts.append(f"stopped after {count(stats.new_tokens, 'token')}")
    return " · ".join(parts)


def count(number: int, noun: str) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _speed(stats: Stats) -> list[str]:
    parts = []
    if stats.time_to_first_token_s is not None:
        parts.append(f"first token {stats.time_to_first_token_s:.2f} s")
    if stats.tokens_per_s is not None:
        parts.append(f"{stats.tokens_per_s:.0f} tokens/s")
    return parts


def _pictures(stats: Stats) -> str:
    pictures = count(stats.num_images, "picture")
    return f"{pictures}, {count(stats.num_crops, 'crop')}" if stats.num_crops else pictures


def _tokens(stats: Stats) -> str:
    tokens = count(stats.prompt_tokens, "token")
    return f"{tokens} ({stats.reused_tokens:,} reused)" if stats.reused_tokens else tokens
