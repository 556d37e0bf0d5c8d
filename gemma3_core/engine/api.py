"""What goes into the engine and what comes out: frozen dataclasses, no tensors.

Components and clients see only these, so that another engine (replicas, other machines) fits behind
the same door.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from PIL.Image import Image

from gemma3_core.generation.sampling import SamplingSettings
from gemma3_core.images.load import ImageSource
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.confidence import TokenChoice

MAX_NEW_TOKENS = 256
"""The longest answer where a request doesn't say."""

StageName = Literal["loading", "queued", "preparing", "encoding", "reading", "writing"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; pictures stand before the text.

    `pan_and_scan` None is the request's setting; an earlier turn can keep the one that it was asked with.
    """

    role: Literal["user", "assistant"]
    text: str
    pictures: tuple[ImageSource, ...] = ()
    pan_and_scan: bool | None = None


@dataclass(frozen=True)
class PartialSampling:
    """What a request says about sampling; None leaves a value to the model's generation_config.json.

    Raises SamplingError for values out of range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self.settings(SamplingSettings())

    def settings(self, default: SamplingSettings) -> SamplingSettings:
        """The whole settings, with `default` where this says nothing."""
        return replace(default, **{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class Request:
    """A conversation whose last turn is the question to answer.

    The engine fills in what is left open: `sampling` from the checkpoint's generation_config.json, `int4` from the
    server's setting, `max_new_tokens` with `MAX_NEW_TOKENS`, or less where the context has less room. A precision
    that the model doesn't have is an error; with `int4_or_default` the server's setting answers instead.

    With `confidence` each token comes with its probability and the likeliest alternatives. The queue takes turns
    among `visitor`s. With `reuse` the engine keeps what it has read for this visitor's next question; without, it
    reads the whole prompt and keeps nothing. `MAX_PICTURES` and the other bounds in prompts.py hold for all turns
    together.
    """

    turns: tuple[Turn, ...]
    system_prompt: str = ""
    pan_and_scan: bool = False
    int4: bool | None = None
    max_new_tokens: int | None = None
    sampling: SamplingSettings | PartialSampling | None = None
    visitor: str = ""
    confidence: bool = False
    reuse: bool = True
    int4_or_default: bool = False

    def settings(self, default: SamplingSettings) -> SamplingSettings:
        """How the answer is sampled; `default` is how the model is sampled where the request says nothing."""
        sampling = self.sampling or default
        return sampling if isinstance(sampling, SamplingSettings) else sampling.settings(default)

    @property
    def num_images(self) -> int:
        return sum(len(turn.pictures) for turn in self.turns)


@dataclass(frozen=True)
class StageEvent:
    """What the engine is doing, and the same in words for the page ("Encoding 3 pictures")."""

    stage: StageName
    text: str


@dataclass(frozen=True)
class TokenEvent:
    """The next piece of the answer's text (it may be empty while a character is incomplete).

    `choice` is the token behind it where the request asks for confidence; the rest of a broken character has none.
    """

    text: str
    choice: TokenChoice | None = None


@dataclass(frozen=True)
class Stats:
    """Figures of one answer; times in seconds, lengths in tokens.

    `reused_tokens` of the prompt were in the KV cache already. An answer that was stopped before its prompt was
    known has 0 `prompt_tokens`.
    """

    model: str
    device: str
    dtype: str
    quantization: str
    num_images: int
    num_crops: int
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    queue_s: float
    time_to_first_token_s: float | None
    tokens_per_s: float | None
    stop_reason: Literal["stop", "length", "cancelled"]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class DoneEvent:
    """The end of an answer, stopped or not: its text, its figures, and its tokens without the stop token."""

    text: str
    stats: Stats
    token_ids: tuple[int, ...] = ()


Event = StageEvent | TokenEvent | DoneEvent


@dataclass(frozen=True)
class Answered:
    """A request and the end of its answer: what the engine needs to look at that answer again."""

    request: Request
    done: DoneEvent


@dataclass(frozen=True)
class PicturePreview:
    """What the encoder will get of one picture: the whole first, then each crop.

    `width` and `height` are the picture's, in pixels; `original` is it for looking at, made smaller where it is
    large. `tiles` are RGB pictures at the encoder's size; `boxes` are the crops on the picture, in its pixels;
    `tokens` counts the soft tokens of all tiles; `note` says in a sentence what pan & scan does here.
    """

    width: int
    height: int
    original: Image
    tiles: tuple[Image, ...]
    boxes: tuple[Box, ...]
    tokens: int
    note: str


@dataclass(frozen=True)
class Int4Choice:
    """What a request may choose with `int4`.

    `default` is the server's setting; `obstacle` says why the other one can't be had, empty where it can. Bytes
    are those of all weights; `left` names layers that stay in full precision although int4 is meant for them.
    """

    default: bool
    obstacle: str
    full_bytes: int
    int4_bytes: int
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelInfo:
    """The model that answers, for the page's badge and texts.

    `quantization` is that of the server's setting; `int4` None is an engine that knows no int4 at all. `layers`
    are the decoder's kinds, "local" and "global", first layer first. `vocabulary` is the same where two models have
    the same tokens under the same ids, so that these can be compared.
    """

    name: str
    device: str
    dtype: str
    quantization: str
    multimodal: bool
    is_demo: bool
    num_parameters: int
    context_length: int
    tokens_per_picture: int
    sampling: SamplingSettings
    int4: Int4Choice | None = None
    layers: tuple[str, ...] = ()
    heads: int = 0
    vocabulary: str = ""
