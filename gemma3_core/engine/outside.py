"""An engine whose answers come from another server, behind the same door: vLLM, SGLang, llama.cpp, or this program.

What the model saw can't be asked there. Where the same checkpoint is loaded on this machine, Inside reads the answer's
tokens again with it; else it says why there is nothing to see.
"""

import asyncio
import logging
import math
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NoReturn

import httpx

from gemma3_core.engine.api import (
    MAX_NEW_TOKENS,
    Answered,
    DoneEvent,
    Event,
    ModelInfo,
    PicturePreview,
    Request,
    StageEvent,
    Stats,
    TokenEvent,
    Turn,
)
from gemma3_core.engine.engine import AT_ONCE, Engine
from gemma3_core.engine.explain import PromptView
from gemma3_core.engine.fair_queue import FairQueue
from gemma3_core.engine.openai_client import Delta, OpenAIClient, StillLoadingError, TokenTold
from gemma3_core.engine.picture_previews import picture_previews
from gemma3_core.engine.picture_reader import PictureReader
from gemma3_core.engine.prompts import check_size, ordinal
from gemma3_core.engine.sent_pictures import SentPictures
from gemma3_core.errors import AttentionError, CheckpointError, PromptError, UnsupportedOptionError
from gemma3_core.generation.grammar import check_schema
from gemma3_core.generation.sampling import SamplingSettings
from gemma3_core.images.crops import Crops
from gemma3_core.images.load import ImageSource
from gemma3_core.images.processor import Gemma3ImageProcessor, ImageProcessor
from gemma3_core.inspection.confidence import Alternative, TokenChoice
from gemma3_core.inspection.mask_view import MaskView
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

logger = logging.getLogger(__name__)

_CONTEXT, _TOKENS_PER_PICTURE, _SIDE = 131_072, 256, 896
"""Gemma 3's, where neither the server nor a loaded checkpoint says them."""
_TICK_S = 0.1
_SEED_BITS = 31
_ALTERNATIVES = 5
_APART, _APART_PER_PICTURE = 2, 2
"""Tokens by which two ways of writing one prompt differ: the line breaks around a picture, a beginning told or not."""
_LOADS_WITHIN_S, _LOOKS_AGAIN_S = 600.0, 1.0
"""How long a server may load its model before the page starts."""
ELSEWHERE = "another server"
NOTE = "Another server answered. What stands here comes from reading its tokens again with {}, on this machine."
OTHER_PROMPT = (
    "The server counted {:,} tokens of prompt, and here it has {:,}. So its chat template is another one, and what "
    "stands here may not be what its model saw."
)
NO_LOCAL = (
    "Another server answered, and does not tell what its model saw. "
    "If its checkpoint is also loaded here, with --model, Inside reads the answer again."
)
UNTOLD = (
    "The server did not tell the tokens of this answer, or another model than {} wrote it, so there is nothing to read "
    "again."
)
OTHER_LOCAL = (
    "Another server answered with {}, and the checkpoint here is {}. Inside needs the same one: name it with --model."
)
NO_CROPS = (
    "Pan & scan and crops can't be asked of the server that answers, which prepares pictures itself. Leave them out."
)


class OutsideEngine(Engine):
    """An `Engine` whose answers a server writes; every method that needs a model of this machine is its own.

    `local` is an engine of this machine for Inside; it is used only if it has the server's checkpoint.
    """

    def __init__(self, client: OpenAIClient, offered: dict[str, Any], local: Engine | None, at_once: int = AT_ONCE):
        self._client, self._model_id = client, str(offered["id"])
        self._local, self._obstacle = local, NO_LOCAL
        if local is not None and not _same(local.info.name, self._model_id):
            self._local, self._obstacle = None, OTHER_LOCAL.format(_name_of(self._model_id), local.info.name)
        self._images: ImageProcessor = Gemma3ImageProcessor(
            image_seq_length=_TOKENS_PER_PICTURE, size={"height": _SIDE, "width": _SIDE}
        )
        self._tokenizer: Gemma3Tokenizer | None = None
        if self._local is not None:
            self._images, self._tokenizer = self._local._processor.image_processor, self._local._processor.tokenizer
        self.queue, self._pictures = FairQueue(max_running=at_once), PictureReader()
        self._sent = SentPictures(self._pictures)
        self.info = self._info(offered)

    @classmethod
    def connect(
        cls,
        url: str,
        model: str | None = None,
        key: str | None = None,
        local: Engine | None = None,
        at_once: int = AT_ONCE,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> "OutsideEngine":
        """Asks the server what it offers; `model` names one of it, by default its first. Waits for a server that loads
        its model. Raises CheckpointError for one without that model, Gemma3Error for one that can't be reached."""
        client = OpenAIClient(url, key, transport)
        offered = _offered(client)
        names = [one["id"] for one in offered]
        chosen = next((one for one in offered if model in (None, one["id"], _name_of(one["id"]))), None)
        if chosen is None:
            there = f"It has {', '.join(names)[:300]}." if names else "It offers none."
            raise CheckpointError(f"The server at {url} does not have {model or 'a model'}. {there}")
        return cls(client, chosen, local, at_once)

    def _info(self, offered: dict[str, Any]) -> ModelInfo:
        name, context, sees = _name_of(self._model_id), _context(offered), _sees(offered)
        if self._local is not None:
            local = self._local.info
            return replace(
                local,
                name=name,
                device=ELSEWHERE,
                int4=None,
                multimodal=local.multimodal and sees,
                context_length=min(context or local.context_length, local.context_length),
                continues_text=False,  # it is asked as a chat
                outside=NOTE.format(local.name),
            )
        return ModelInfo(
            name=name,
            device=ELSEWHERE,
            dtype="precision unknown",
            quantization="none",
            multimodal=sees,
            is_demo=False,
            num_parameters=0,
            context_length=context or _CONTEXT,
            tokens_per_picture=_TOKENS_PER_PICTURE,
            sampling=SamplingSettings(temperature=1.0),
            outside=self._obstacle,
        )

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        request = self._filled(request)
        stop, began = threading.Event() if stop is None else stop, time.monotonic()
        ticket = self.queue.enter(request.visitor)
        try:
            place = self.queue.wait(ticket, None, 0)
            while place:
                yield StageEvent("queued", f"{ordinal(place)} in the queue")
                if stop.is_set():
                    yield _Writing(self, request, began, began).done("cancelled")
                    return
                place = self.queue.wait(ticket, place, _TICK_S)
            writing = _Writing(self, request, began, time.monotonic())
            pictures = [picture for turn in request.turns for picture in turn.pictures]
            urls = yield from self._sent.write(ticket, pictures, stop)
            if stop.is_set():
                yield writing.done("cancelled")
                return
            yield from self._answered(self._body(request, urls), stop, writing)
        finally:
            self._sent.release(ticket)
            self.queue.leave(ticket)

    def _filled(self, request: Request) -> Request:
        if request.int4 and not request.int4_or_default:
            raise UnsupportedOptionError(f"{self.info.name} answers on another server, in the precision that it has.")
        if request.answer_so_far:
            raise UnsupportedOptionError(
                "An answer of another server can't be continued. Allow longer answers in the settings, and ask again."
            )
        if request.continue_text:
            raise UnsupportedOptionError(f"{self.info.name} answers as a chat here. Leave out continue_text.")
        self._check_sees(request.num_images)
        if request.pan_and_scan or any(turn.pan_and_scan or any(turn.crops) for turn in request.turns):
            raise UnsupportedOptionError(NO_CROPS)
        if not request.turns or request.turns[-1].role != "user" or not request.turns[-1].text.strip():
            raise PromptError("There is no question. Write one and send again.")
        if request.json_schema is not None:
            check_schema(request.json_schema)
        check_size(request, self.info.context_length)
        return replace(request, max_new_tokens=request.max_new_tokens or MAX_NEW_TOKENS, int4=None)

    def _answered(self, body: dict[str, Any], stop: threading.Event, writing: "_Writing") -> Iterator[Event]:
        writing.seed = body["seed"]
        yield StageEvent("reading", "Waiting for the server that answers")
        with _Reading(self._client, body) as pieces:
            while True:
                try:
                    piece = pieces.get(timeout=_TICK_S)
                except queue.Empty:
                    if stop.is_set():
                        break
                    if not writing.text:
                        yield StageEvent("reading", "Waiting for the server that answers")
                    continue
                if isinstance(piece, BaseException):
                    raise piece
                if piece is None:
                    yield writing.done("length" if writing.reason == "length" else "stop")
                    return
                yield from writing.take(piece)
                if stop.is_set():
                    break
        yield writing.done("cancelled")

    def _body(self, request: Request, urls: Sequence[str]) -> dict[str, Any]:
        """The question in OpenAI's form, with its pictures' data URLs. What the visitor left open is left to the
        server."""
        given = request.sampling
        own = {} if given is None else {name: getattr(given, name) for name in ("temperature", "top_p", "top_k")}
        if isinstance(given, SamplingSettings):  # known to vLLM, SGLang and llama.cpp, and sent only where they act
            own["min_p"] = given.min_p
            own["repetition_penalty"] = given.repetition_penalty if given.repetition_penalty != 1.0 else None
        seed = None if given is None else given.seed
        body = {
            "model": self._model_id,
            "messages": _messages(request, urls),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": request.max_new_tokens,
            "seed": secrets.randbits(_SEED_BITS) if seed is None else seed,
            **{name: value for name, value in own.items() if value is not None},
        }
        if request.stop_strings:
            body["stop"] = [*request.stop_strings]
        if request.confidence or self._tokenizer is not None:
            body |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        if request.json_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": check_schema(request.json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def preview(
        self, pictures: Sequence[ImageSource], pan_and_scan: bool, crops: Sequence[Crops] = ()
    ) -> Iterator[PicturePreview]:
        check_size(Request((Turn("user", "", tuple(pictures)),)), self.info.context_length)
        images = self._images.with_options(do_pan_and_scan=False)
        for preview in picture_previews(pictures, (), images, self.info.tokens_per_picture, self._pictures):
            yield replace(preview, note=NO_CROPS) if pan_and_scan or any(crops) else preview

    def picture_tokens(self, width: int, height: int, pan_and_scan: bool) -> int:
        del width, height, pan_and_scan
        return self.info.tokens_per_picture

    def inspect(self, request: Request) -> PromptView:
        return self._inside().inspect(_as_a_chat(request))

    def mask(self, request: Request) -> MaskView:
        return self._inside().mask(_as_a_chat(request))

    def _looked(
        self,
        look: Callable[..., Any],
        answered: Answered,
        arguments: tuple[Any, ...],
        stop: threading.Event | None,
        tell: Callable[[str], None] | None,
    ) -> Any:
        local = self._inside()
        return local._looked(look, _as_if_by(local, answered), arguments, stop, tell)

    @property
    def kept_bytes(self) -> int:
        return 0 if self._local is None else self._local.kept_bytes

    @property
    def is_ready(self) -> bool:
        return True  # whether the other server answers, an answer says

    @property
    def silent_s(self) -> float:
        return 0.0  # the other server looks after its own device

    def _inside(self) -> Engine:
        if self._local is None:
            raise AttentionError(self._obstacle)
        return self._local

    def adapted(self, adapter: Any) -> NoReturn:
        del adapter
        raise UnsupportedOptionError("Adapters belong to a model on this machine. Leave out --adapter or --openai.")

    def forget(self, visitor: str) -> None:
        if self._local is not None:
            self._local.forget(visitor)

    def evict(self) -> None:
        if self._local is not None:
            self._local.evict()

    def close(self) -> None:
        if self._local is not None:
            self._local.close()


class _Writing:
    """One answer as it comes."""

    def __init__(self, engine: OutsideEngine, request: Request, entered: float, started: float):
        self._info, self._tokenizer, self._request = engine.info, engine._tokenizer, request
        self._entered, self._started, self._first, self._last = entered, started, 0.0, 0.0
        self._told: list[TokenTold] = []
        self._usage: dict[str, Any] = {}
        self._pieces = 0
        self.text = ""
        self.reason: str | None = None
        self.seed: int | None = None
        self._model_id, self._by_another = engine._model_id, False

    def take(self, delta: Delta) -> Iterator[Event]:
        self._usage = delta.usage or self._usage
        self.reason = delta.reason or self.reason
        if delta.model and not self._by_another and not _same(delta.model, self._model_id):
            self._by_another = True
            logger.warning("the server answered with %.200r instead of %.200r", delta.model, self._model_id)
        if not delta.text and not delta.tokens:
            return
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._pieces += 1
        self.text += delta.text
        self._told += delta.tokens
        choices = [self._choice(token) for token in delta.tokens] if self._request.confidence else []
        yield TokenEvent(delta.text, choices[0] if choices else None)
        yield from (TokenEvent("", choice) for choice in choices[1:])

    def _choice(self, token: TokenTold) -> TokenChoice:
        others = tuple(Alternative(self._id(data), _shown(data), math.exp(logprob)) for data, logprob in token.others)
        return TokenChoice(self._id(token.data), _shown(token.data), math.exp(token.logprob), others)

    def _id(self, data: bytes) -> int:
        """The token's id in the checkpoint that is loaded here; 0 without one."""
        if self._tokenizer is None:
            return 0
        found = self._tokenizer.backend.token_to_id(_shown(data).replace(" ", "▁"))
        return 0 if found is None else found

    def _token_ids(self) -> tuple[int, ...]:
        """The answer's tokens: those that the server told, or where they do not write its text, its text's own. None
        of an answer by another model than the one here."""
        if self._tokenizer is None or self._by_another:
            return ()
        for ids in ([self._id(token.data) for token in self._told], self._encoded()):
            if self._tokenizer.decode(ids, skip_special_tokens=True) == self.text:
                return tuple(ids)
        return ()

    def _encoded(self) -> list[int]:
        assert self._tokenizer is not None
        return list(self._tokenizer.encode(self.text, add_special_tokens=False))

    def done(self, reason: Literal["stop", "length", "cancelled"]) -> DoneEvent:
        seconds, details = self._last - self._first, self._usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        new = _count(self._usage.get("completion_tokens")) or max(len(self._told), self._pieces)
        stats = Stats(
            model=self._info.name,
            device=self._info.device,
            dtype="precision unknown",
            quantization="none",
            num_images=self._request.num_images,
            num_crops=0,
            prompt_tokens=_count(self._usage.get("prompt_tokens")),
            reused_tokens=_count(cached),
            new_tokens=new,
            queue_s=round(self._started - self._entered, 4),
            time_to_first_token_s=round(self._first - self._started, 4) if self._first else None,
            tokens_per_s=round((new - 1) / seconds, 2) if seconds > 0 and new > 1 else None,
            stop_reason=reason,
            seed=self.seed,
        )
        return DoneEvent(self.text, stats, self._token_ids())


class _Reading:
    """Reads an answer in a thread of its own, whose end interrupts it wherever it is; `None` is the answer's end."""

    def __init__(self, client: OpenAIClient, body: dict[str, Any]):
        self._client, self._body = client, body
        self._pieces: queue.SimpleQueue[Delta | BaseException | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._has_left = False
        self._thread = threading.Thread(target=self._work, name="outside", daemon=True)

    def __enter__(self) -> queue.SimpleQueue[Delta | BaseException | None]:
        self._thread.start()
        return self._pieces

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._leave)
        self._thread.join()

    def _leave(self) -> None:
        self._has_left = True
        if self._task is not None:
            self._task.cancel()

    def _work(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        if self._has_left:  # before there was a task to cancel
            return
        self._task = asyncio.ensure_future(self._read())
        with suppress(asyncio.CancelledError):
            await self._task

    async def _read(self) -> None:
        try:
            async with aclosing(self._client.answer(self._body)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    self._pieces.put(delta)
            self._pieces.put(None)
        except Exception as error:  # noqa: BLE001  raised again where the answer is read
            self._pieces.put(error)


def _messages(request: Request, urls: Sequence[str]) -> list[dict[str, Any]]:
    coming = iter(urls)
    system = [{"role": "system", "content": request.system_prompt}] if request.system_prompt else []
    return [*system, *({"role": turn.role, "content": _content(turn, coming)} for turn in request.turns)]


def _content(turn: Turn, urls: Iterator[str]) -> str | list[dict[str, Any]]:
    if not turn.pictures:
        return turn.text
    parts: list[dict[str, Any]] = []
    own = islice(urls, len(turn.pictures))
    for caption, url in zip(turn.captions or [""] * len(turn.pictures), own, strict=True):
        parts += [{"type": "text", "text": caption}] if caption else []
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return [*parts, {"type": "text", "text": turn.text}]


def _same(one: str, other: str) -> bool:
    """Whether two names are of one checkpoint: "google/gemma-3-4b-it" and the folder "gemma-3-4b-it"."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower().removesuffix(".gguf"))

    return plain(one) == plain(other)


def _name_of(model_id: str) -> str:
    """The name that the page shows: llama.cpp names a model by the path of its file, which is its operator's affair."""
    is_path = model_id.startswith(("/", "./", "~")) or "\\" in model_id
    return re.split(r"[/\\]", model_id)[-1] if is_path else model_id


def _offered(client: OpenAIClient) -> list[dict[str, Any]]:
    """The server's models, once it has loaded them. Raises Gemma3Error."""
    end, is_told = time.monotonic() + _LOADS_WITHIN_S, False
    while True:
        try:
            with ThreadPoolExecutor(1) as beside:  # a notebook has an event loop running in this thread
                return beside.submit(asyncio.run, client.models()).result()
        except StillLoadingError:
            if time.monotonic() > end:
                raise
        if not is_told:
            logger.warning("the server is loading its model; waiting for it")
        is_told = True
        time.sleep(_LOOKS_AGAIN_S)


def _context(offered: dict[str, Any]) -> int | None:
    """Tokens of one conversation, as vLLM tells them, or llama.cpp: those of a slot, else those of its training."""
    meta = offered.get("meta")
    by_llama = [meta.get("n_ctx"), meta.get("n_ctx_train")] if isinstance(meta, dict) else []
    told = [offered.get("max_model_len"), *by_llama]
    return next((number for number in told if isinstance(number, int) and number > 0), None)


def _sees(offered: dict[str, Any]) -> bool:
    """False where llama.cpp says that its model reads text only; others do not tell."""
    form = offered.get("architecture")
    kinds = form.get("input_modalities") if isinstance(form, dict) else None
    return "image" in kinds if isinstance(kinds, list) else True


def told_otherwise(answered: Answered, tokens: int) -> str:
    """A sentence for another server's answer whose prompt has this many `tokens` here, and others there: its chat
    template may be another one. Empty where there is nothing to say."""
    told, pictures = answered.done.stats.prompt_tokens, answered.request.num_images
    if not told or abs(tokens - told) <= _APART + _APART_PER_PICTURE * pictures:
        return ""
    return OTHER_PROMPT.format(told, tokens)


def _as_a_chat(request: Request) -> Request:
    """The question as the local engine reads it: a base model goes on with a text where nothing else is said, and the
    server's tokens may stand for JSON in another form."""
    return replace(request, int4=None, continue_text=False, json_schema=None)


def _as_if_by(local: Engine, answered: Answered) -> Answered:
    """The answer as one of the local engine, which reads its tokens again. Raises AttentionError without tokens."""
    done = answered.done
    if not done.token_ids:
        raise AttentionError(UNTOLD.format(local.info.name))
    request = _as_a_chat(answered.request)
    stats = replace(
        done.stats,
        model=local.info.name,
        quantization=local.info.quantization,
        prompt_tokens=len(local.inspect(request).tokens),  # the server may have counted otherwise, or not at all
    )
    return Answered(request, replace(done, stats=stats))


def _shown(data: bytes) -> str:
    """A token as the page shows it; a part of a character by its number, as vocabularies do."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"<0x{data[0]:02X}>" if len(data) == 1 else data.decode(errors="replace")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 10**9 else 0
