"""The engine's inputs and outputs: frozen dataclasses, no tensors.

Components and clients see only these, so another engine (replicas, other machines) fits behind the same door.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from PIL.Image import Image

from gemma3_core.adapters.facts import AdapterFacts
from gemma3_core.generation.sampling import SamplingSettings
from gemma3_core.images.crops import Crops
from gemma3_core.images.load import ImageSource
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.confidence import TokenChoice

MAX_NEW_TOKENS = 256
"""The longest answer, in tokens, if a request sets no limit."""

StageName = Literal["loading", "queued", "preparing", "encoding", "reading", "writing"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; its pictures come before its text.

    `pan_and_scan` overrides the request's setting, so that an earlier turn keeps the setting it was asked with.
    `captions` are texts before the pictures, one for each and empty where there is none, such as a video frame's time;
    or there are none at all. So are `crops`, which replace what pan & scan gives a picture: boxes in its pixels, "auto"
    for an even tiling, or None.
    """

    role: Literal["user", "assistant"]
    text: str
    pictures: tuple[ImageSource, ...] = ()
    pan_and_scan: bool | None = None
    captions: tuple[str, ...] = ()
    crops: tuple[Crops, ...] = ()


@dataclass(frozen=True)
class PartialSampling:
    """A request's sampling settings; None takes the value from the model's generation_config.json.

    Raises SamplingError for values out of range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self.settings(SamplingSettings())

    def settings(self, default: SamplingSettings) -> SamplingSettings:
        """The complete settings; `default` fills in what is None."""
        return replace(default, **{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class Request:
    """A conversation whose last turn is the question to answer.

    The engine fills in open fields: `sampling` from the checkpoint's generation_config.json, `int4` from the server's
    setting, `max_new_tokens` with `MAX_NEW_TOKENS`, or less if the context has less room. Asking for a precision that
    the model lacks is an error; with `int4_or_default` the server's setting is used instead.

    With `confidence`, each token comes with its probability and the likeliest alternatives. The queue takes turns among
    `visitor`s. With `reuse`, the engine keeps the KV cache for this visitor's next question; without, it prefills the
    whole prompt and keeps nothing. `answer_so_far` are the tokens of an answer that was cut: the new one goes on from
    there, and its DoneEvent has the whole text. `continue_text` says whether the model goes on with the texts as they
    stand, or answers in a chat's form; open, it is as the model was trained (`ModelInfo`). With `json_schema`, a JSON
    Schema as text, only what fits is sampled, so that an answer that ends with "stop" is JSON of that form; the prompt
    is unchanged. `MAX_PICTURES` and the other bounds in prompts.py apply to all turns together. With `check_pictures`
    and `confidence`, the answer is read once more without its pictures, in one pass over the words, and its DoneEvent
    says how much they changed; not with a `json_schema`. The caller must stop and cut the answer at the first of the
    `stop_strings`, since the engine does not; another server is told them, and stops by itself.
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
    answer_so_far: tuple[int, ...] = ()
    continue_text: bool | None = None
    json_schema: str | None = None
    check_pictures: bool = False
    stop_strings: tuple[str, ...] = ()

    def settings(self, default: SamplingSettings) -> SamplingSettings:
        """The answer's sampling settings; the model's `default` fills in what the request leaves open."""
        sampling = self.sampling or default
        return sampling if isinstance(sampling, SamplingSettings) else sampling.settings(default)

    @property
    def num_images(self) -> int:
        return sum(len(turn.pictures) for turn in self.turns)


@dataclass(frozen=True)
class StageEvent:
    """What the engine is doing; `text` says it in words for the page ("Encoding 3 pictures")."""

    stage: StageName
    text: str


@dataclass(frozen=True)
class TokenEvent:
    """The next piece of the answer's text; empty while a character is incomplete.

    `choice` describes the token if the request asks for confidence. The last piece of a broken character has none.
    """

    text: str
    choice: TokenChoice | None = None


@dataclass(frozen=True)
class Stats:
    """Figures of one answer; times in seconds, lengths in tokens.

    `reused_tokens` of the prompt were already in the KV cache. `prompt_tokens` is 0 for an answer that was stopped
    before its prompt was known. `seed` is the one that the answer was sampled with, drawn where the request named none;
    None if it is greedy. `revision` is that of the model's `ModelInfo`.
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
    seed: int | None = None
    revision: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class DoneEvent:
    """The end of an answer, stopped or not: its text, its figures, and its token ids without the stop token.

    `picture_effect` is the largest change of a token's probability when no word sees a picture: 0 if the pictures
    changed nothing, None if the request did not ask for it or the conversation is too long.
    """

    text: str
    stats: Stats
    token_ids: tuple[int, ...] = ()
    picture_effect: float | None = None


Event = StageEvent | TokenEvent | DoneEvent


@dataclass(frozen=True)
class Answered:
    """A request and the end of its answer: what the engine needs to inspect the answer later."""

    request: Request
    done: DoneEvent


@dataclass(frozen=True)
class PicturePreview:
    """What the encoder will get of one picture: the whole picture first, then each crop.

    `width` and `height` are the picture's size in pixels; `original` is a copy for display, scaled down if large.
    `tiles` are RGB images at the encoder's size; `boxes` are the crops in the picture's pixels; `tokens` counts the
    soft tokens of all tiles; `note` says in a sentence what pan & scan does here.
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

    `default` is the server's setting; `obstacle` says why the other precision is unavailable, and is empty if it is
    available. Both byte counts cover all weights. `left` names layers that int4 should cover but that stay in full
    precision.
    """

    default: bool
    obstacle: str
    full_bytes: int
    int4_bytes: int
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelInfo:
    """The model that answers, for the page's badge and texts.

    `quantization` is the server's setting; `int4` is None for an engine without int4. `layers` lists the decoder's
    layer kinds, "local" or "global", first layer first. `vocabulary` is equal for two models that have the same tokens
    under the same ids; only their tokens can be compared. `borrowed` means that a GPU is lent for each answer, so that
    no KV cache is kept between answers. `revision` tells two checkpoints of one name apart; `hub_id` is empty for one
    that is not of the Hub. `why_text_only` says why a model that could read pictures does not. A base model,
    which was not trained on chats, `continues_text`. `adapter` changes what the model `base_name` answers. Where
    another server answers, `outside` says what Inside shows, or why it shows nothing.
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
    borrowed: bool = False
    revision: str = ""
    hub_id: str = ""
    why_text_only: str = ""
    continues_text: bool = False
    adapter: AdapterFacts | None = None
    base_name: str = ""
    outside: str = ""
