"""What an app needs: load a checkpoint, queue questions, stream answers, preview pictures."""

import logging
import re
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import wait
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from gemma3_core.adapters.files import StoredAdapter, read_adapter
from gemma3_core.config.gemma3 import GLOBAL
from gemma3_core.engine.adapted import AdaptedVariants, AnyVariants
from gemma3_core.engine.answer import AnswerWriter
from gemma3_core.engine.api import (
    MAX_NEW_TOKENS,
    Answered,
    DoneEvent,
    Event,
    Int4Choice,
    ModelInfo,
    PicturePreview,
    Request,
    StageEvent,
    Turn,
)
from gemma3_core.engine.async_bridge import in_event_loop
from gemma3_core.engine.device_loop import DeviceLoop
from gemma3_core.engine.explain import (
    Look,
    OcclusionReport,
    PromptView,
    check_answered,
    look_at_attention,
    look_without_region,
    view_mask,
    view_prompt,
)
from gemma3_core.engine.fair_queue import FairQueue, Ticket
from gemma3_core.engine.memory import is_out_of_memory
from gemma3_core.engine.own_thread import start_in_own_thread
from gemma3_core.engine.picture_previews import picture_previews
from gemma3_core.engine.picture_reader import HeldTiles, PictureReader
from gemma3_core.engine.precisions import ONLY_PLAIN, ModelVariants, quantization_name
from gemma3_core.engine.prefix_cache import PrefixCache, cache_budget
from gemma3_core.engine.prompts import (
    Prompt,
    Tiles,
    check_size,
    ordinal,
    read_prompt,
)
from gemma3_core.engine.sequence import RunningRequest
from gemma3_core.engine.slot_runner import Background
from gemma3_core.engine.why import WordReport, look_at_word
from gemma3_core.errors import (
    AttentionError,
    ContextLengthError,
    ImageError,
    OutOfMemoryError,
    PromptError,
    StoppedError,
    UnsupportedOptionError,
)
from gemma3_core.files.hub import hub_id_of, revision_of
from gemma3_core.generation.grammar import Grammar, Grammars, check_schema
from gemma3_core.generation.loop import DecodePass, check_length
from gemma3_core.gguf.checkpoint import why_text_only
from gemma3_core.images.crops import Crops
from gemma3_core.images.load import ImageSource, read_header
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.attention import Check
from gemma3_core.inspection.confidence import vocabulary_fingerprint
from gemma3_core.inspection.heat_maps import AttentionMap, LayerChoice
from gemma3_core.inspection.mask_view import MaskView
from gemma3_core.int4.quantize import DEFAULT_GROUP_SIZE, TorchAoConfig
from gemma3_core.kernels.cpu import FEW_ROWS
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.pretrained import pick_device, resolve_checkpoint
from gemma3_core.nn.cache import cache_bytes
from gemma3_core.parallel.processes import LocalProcesses, Starter, leave, load_shared
from gemma3_core.processor import Gemma3Processor

T = TypeVar("T")
logger = logging.getLogger(__name__)

DEMO_MODEL = Path(__file__).resolve().parents[2] / "assets" / "demo_model"
DEMO_NAME = "demo model"

_BASE = re.compile(r"\d+[bm]-pt(?![a-z]|[-_]?br\b)", re.IGNORECASE)
"""In the names of published base models. They hold a chat template too, which they were not trained on."""
NO_MEMORY = (
    "There is not enough memory for this conversation. Send fewer pictures, switch pan & scan off, or start "
    "a new conversation."
)
AT_ONCE = FEW_ROWS
"""Questions that are answered at once: as many as a CPU multiplies while it reads its weights once."""
_SEED_BITS = 31  # short enough to be copied by hand
_TICK_S = 0.1  # a waiting request can be stopped within this time
_BETWEEN_ROUNDS_S = 0.005  # while a look waits for a picture


class Engine:
    """One loaded model, in full precision and in int4, behind a queue; safe to use from many threads."""

    def __init__(
        self,
        precisions: AnyVariants,
        processor: Gemma3Processor,
        name: str,
        is_demo: bool = False,
        folder: Path | None = None,
        queue: FairQueue | None = None,
        pictures: PictureReader | None = None,
        tiles: HeldTiles | None = None,
        loop: DeviceLoop | None = None,
        kept: PrefixCache | None = None,
        at_once: int = AT_ONCE,
    ):
        if at_once < 1:
            raise UnsupportedOptionError(f"At least 1 question must be answered at once, got {at_once}.")
        self._precisions, self._processor, self._folder = precisions, processor, folder
        self._pictures = PictureReader() if pictures is None else pictures
        self._tiles = HeldTiles() if tiles is None else tiles
        # Both precisions share device, dtype, stop ids and encoder; only decoder passes differ between them.
        self._model = precisions.default
        self._loop = DeviceLoop(self._model.device) if loop is None else loop
        budget = cache_budget(self._model.device)[0]
        self.queue = FairQueue(max_running=at_once, budget=budget) if queue is None else queue
        self.info = self._describe(name, is_demo, folder)
        self._writer = AnswerWriter(precisions, processor, self.queue.max_running, kept, self._background)
        stops = self._model.generation_config.stop_ids
        self._grammars = Grammars(processor.tokenizer, self._model.text_config.vocab_size, stops)
        if self.info.why_text_only:
            logger.warning(self.info.why_text_only)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        int4: bool = False,
        int4_group_size: int = DEFAULT_GROUP_SIZE,
        *,
        name: str | None = None,
        beside: "Engine | None" = None,
        at_once: int = AT_ONCE,
        mmproj: str | Path | None = None,
        adapter: str | Path | StoredAdapter | None = None,
        merge_adapter: bool = False,
        tensor_parallel: int = 1,
        start: Starter | None = None,
    ) -> Self:
        """Loads a checkpoint folder, a GGUF file or a Hub id; None is the embedded demo model and downloads nothing.

        `int4` is the default precision; the other one is made when it is first requested. A checkpoint with int4
        weights always answers in int4. `name` is the model's name, by default the folder's. `beside` is an engine on
        the same device: both share its queue and the turns of their passes, and its bounds on decoding pictures hold
        for both. Otherwise, `at_once` questions are answered at once. `mmproj` is the file with a GGUF file's vision
        tower, where it does not lie beside it. With `adapter`, a folder or Hub id, this is what `adapted` gives, or
        with `merge_adapter` an engine whose weights the adapter is part of. With `tensor_parallel` so many processes
        share the layers, each on a device of its own; `start` starts the others (by default on this machine). Raises
        CheckpointError, ConfigError, UnsupportedOptionError.
        """
        # Before the model, since it is small and may be the wrong one.
        stored = read_adapter(adapter) if isinstance(adapter, str | Path) else adapter
        folder = resolve_checkpoint(model or DEMO_MODEL, mmproj=mmproj)
        config = TorchAoConfig(int4_group_size)
        merged = stored if merge_adapter else None
        share = None
        if tensor_parallel > 1:
            source = (str(model or DEMO_MODEL), None if mmproj is None else str(mmproj))
            others = LocalProcesses() if start is None else start
            share = partial(load_shared, source=source, size=tensor_parallel, start=others)
        load = partial(ModelVariants.load, folder, dtype, pick_device(device), int4, config, merged, share)
        precisions = cls._loaded(load)
        name = name or (DEMO_NAME if model is None else Path(model).name)
        processor = Gemma3Processor.from_pretrained(folder, device=cls._resizes_on(precisions.default.device))
        own = (precisions, processor, name, model is None, folder)
        engine = cls(*own, at_once=at_once) if beside is None else cls(*own, *beside._shared)
        return engine if stored is None or merge_adapter else engine.adapted(stored)

    def adapted(self, adapter: str | Path | StoredAdapter) -> Self:
        """An engine that answers with an adapter, whose model shares all weights of this one's, and its queue.

        The two answer side by side; neither keeps caches for the other. Raises CheckpointError if the adapter does not
        fit this model, UnsupportedOptionError.
        """
        stored = read_adapter(adapter) if isinstance(adapter, str | Path) else adapter
        if self._precisions.lead is not None:
            raise UnsupportedOptionError(ONLY_PLAIN)
        if not isinstance(self._precisions, ModelVariants) or self._precisions.adapter is not None:
            raise UnsupportedOptionError(f"{self.info.name} has an adapter already. Start from the base.")
        precisions = self._loaded(partial(AdaptedVariants, self._precisions, stored))
        own = (precisions, self._processor, self.info.name, self.info.is_demo, self._folder)
        return type(self)(*own, *self._shared)

    @property
    def _shared(self) -> tuple[FairQueue, PictureReader, HeldTiles, DeviceLoop, PrefixCache]:
        """What engines on one device have in common."""
        return self.queue, self._pictures, self._tiles, self._loop, self._writer.kept

    @property
    def _background(self) -> Background | None:
        return self._loop.in_background

    @staticmethod
    def _loaded(load: Callable[[], T]) -> T:
        return start_in_own_thread(load, "loading").result()

    @staticmethod
    def _resizes_on(device: torch.device) -> torch.device:
        """Where pictures are resized: on the model's device if that is CUDA, and otherwise on the CPU."""
        return device if device.type == "cuda" else torch.device("cpu")

    def _describe(self, name: str, is_demo: bool, folder: Path | None) -> ModelInfo:
        model, precisions = self._model, self._precisions
        adapter, revision = precisions.adapter, "" if folder is None else revision_of(folder)
        return ModelInfo(
            name=name if adapter is None else f"{name} + {adapter.name}",
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            quantization=quantization_name(precisions.default_int4),
            multimodal=isinstance(model, Gemma3ForConditionalGeneration),
            is_demo=is_demo and adapter is None,
            num_parameters=precisions.num_parameters,
            context_length=model.text_config.max_position_embeddings,
            tokens_per_picture=self._processor.image_seq_length,
            sampling=model.generation_config.sampling(),
            int4=Int4Choice(
                default=precisions.default_int4,
                obstacle=precisions.obstacle,
                full_bytes=precisions.full_bytes,
                int4_bytes=precisions.int4_bytes,
                left=precisions.left,
            ),
            layers=tuple("global" if kind == GLOBAL else "local" for kind in model.text_config.layer_types or ()),
            heads=model.text_config.num_attention_heads,
            vocabulary=vocabulary_fingerprint(self._processor.tokenizer),
            revision=revision if adapter is None else f"{revision}+{adapter.revision}",
            hub_id="" if folder is None else hub_id_of(folder),
            why_text_only="" if folder is None else why_text_only(folder),
            continues_text=self._processor.chat_template is None or is_base_name(name),
            adapter=adapter,
            base_name="" if adapter is None else name,
        )

    def preview(
        self, pictures: Sequence[ImageSource], pan_and_scan: bool, crops: Sequence[Crops] = ()
    ) -> Iterator[PicturePreview]:
        """Yields what the encoder would get of each picture, in order; `crops` as in a Turn.

        Raises ImageError naming the broken picture, and PromptError if there are too many or the model reads text only.
        """
        self._check_sees(len(pictures))
        check_size(Request((Turn("user", "", tuple(pictures)),)), self.info.context_length)
        images = self._processor.image_processor.with_options(do_pan_and_scan=pan_and_scan)
        yield from picture_previews(pictures, crops, images, self._processor.image_seq_length, self._pictures)

    def picture_tokens(self, width: int, height: int, pan_and_scan: bool) -> int:
        """What a picture of this size costs in the prompt, crops included."""
        images = self._processor.image_processor.with_options(do_pan_and_scan=pan_and_scan)
        return (1 + len(images.boxes(width, height))) * self._processor.image_seq_length

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        """Yields stages, pieces of the answer's text, and a DoneEvent with its figures.

        Setting `stop` from another thread, also while queued, ends the answer with a DoneEvent that says "cancelled".
        Closing the iterator ends the work without one. Both take effect after the current pass: one token, one chunk of
        the prompt, a few tiles, or the decoding of one picture. Raises Gemma3Error for errors that the visitor can fix;
        the request leaves nothing behind.
        """
        running = RunningRequest(self._checked(request), self.info, self._processor.tokenizer)
        with closing(self._events(running, stop)) as events:
            for event in events:
                yield event
                if isinstance(event, DoneEvent):
                    return
                if stop is not None and stop.is_set() and not running.in_loop:
                    break
        yield running.done("cancelled")

    def astream(self, request: Request, stop: threading.Event | None = None) -> AsyncGenerator[Event]:
        """`stream` for asyncio: the work runs in its own thread, and a stage is repeated once a second while nothing
        happens."""
        return in_event_loop(self.stream(request, stop))

    def _events(self, running: RunningRequest, stop: threading.Event | None) -> Generator[Event]:
        request = running.request
        ticket = self.queue.enter(request.visitor, ready=False)
        try:
            running.grammar = yield from self._compiled(request)  # within the queue's bounds for each visitor
            running.prompt = prompt = yield from self._when_it_is_its_turn(ticket, request)
            running.start()
            was_ready = self._precisions.ready(bool(request.int4))
            with closing(self._run(running, prompt, stop)) as events:
                for event in events:
                    ended = isinstance(event, DoneEvent) and event.stats.stop_reason != "cancelled"
                    if ended and was_ready:  # otherwise it took longer, or less, than the next answers will
                        self.queue.remember(running.running_s)
                    yield event
        except (RuntimeError, MemoryError) as error:  # raised before the passes; `_written` handles errors in them
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(NO_MEMORY) from None
        finally:
            self._tiles.release(ticket)
            self.queue.leave(ticket)

    def _run(self, running: RunningRequest, prompt: Prompt, stop: threading.Event | None = None) -> Generator[Event]:
        """Yields the events of an answer, whose passes run between those of others."""
        yield from self._prepared(bool(prompt.request.int4))
        running.in_loop = True
        passes = self._written(running, prompt)
        yield from self._loop.run(passes, threading.Event().is_set if stop is None else stop.is_set)

    def _compiled(self, request: Request) -> Generator[StageEvent, None, Grammar | None]:
        """Compiles the schema of an answer, if it has one, in this thread. Raises SchemaError,
        UnsupportedOptionError."""
        if request.json_schema is None:
            return None
        if not self._grammars.is_ready:
            yield StageEvent("preparing", "Reading the vocabulary for an answer in JSON")
        return self._grammars.compile(request.json_schema)

    def _prepared(self, int4: bool) -> Iterator[StageEvent]:
        """Makes or loads the precision's weights if they are missing, in this thread: others are answered meanwhile."""
        for text in self._precisions.prepare(int4):
            yield StageEvent("preparing", text)

    def _written(self, running: RunningRequest, prompt: Prompt) -> Iterator[Event | DecodePass]:
        """Yields the writer's events and decode steps. If memory runs out before the first token, evicts kept caches
        and tries once more.

        Raises OutOfMemoryError if that fails too.
        """
        try:
            yield from self._writer.answer(running, prompt)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if running.has_tokens:
                raise OutOfMemoryError(NO_MEMORY) from None
        # Outside `except`: the error keeps the failed pass and its memory alive.
        self._writer.make_room()
        try:
            yield from self._writer.answer(running, prompt)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(NO_MEMORY) from None

    def _when_it_is_its_turn(self, ticket: Ticket, request: Request) -> Generator[StageEvent, None, Prompt]:
        """Waits for the ticket's turn; returns the request's prompt with its tiles.

        Decodes the pictures while others are answered, so that a broken picture fails at once and a large one delays
        nobody.
        """
        prompt = self._with_length(self._read_prompt(request))
        tiles = Tiles(prompt, self._processor.image_processor)
        while not self._tiles.hold(ticket, tiles.num_bytes, _TICK_S):
            yield StageEvent("queued", "Waiting until there is room for these pictures")
        for number, work, num_bytes in tiles.jobs():
            future = self._pictures.submit(work, num_bytes)
            try:
                while not wait([future], _TICK_S).done:
                    yield StageEvent("queued", f"Opening picture {number + 1} of {len(prompt.pictures)}")
                future.result()
            finally:
                future.cancel()
        length = prompt.num_tokens + (prompt.request.max_new_tokens or 0)
        self.queue.make_ready(ticket, cache_bytes(self._model.text_config, length, self._model.dtype))
        yield from self._wait_for_turn(ticket)
        return tiles.prompt()

    def _read_prompt(self, request: Request) -> Prompt:
        return read_prompt(request, self._processor, self.info.continues_text)

    def _checked(self, request: Request, asked: bool = True) -> Request:
        """Fills in the request and checks everything that can be checked before a picture is decoded.

        Leaves the answer's length open. Unless `asked`, the question may be empty. Raises PromptError,
        ContextLengthError, UnsupportedOptionError.
        """
        request = self._filled(request)
        self._precisions.require(bool(request.int4))
        if request.max_new_tokens is not None and request.max_new_tokens < 1:
            raise PromptError(f"The answer must be allowed at least 1 token, got {request.max_new_tokens}.")
        if not request.turns or request.turns[-1].role != "user" or (asked and not request.turns[-1].text.strip()):
            raise PromptError("There is no question. Write one and send again.")
        vocabulary = self._model.text_config.vocab_size
        if any(not 0 <= token < vocabulary for token in request.answer_so_far):
            raise PromptError("The answer so far has tokens that this model doesn't have. Ask again.")
        if request.json_schema is not None:
            check_schema(request.json_schema)
        self._check_sees(request.num_images)
        most = self.info.context_length // self.info.tokens_per_picture
        if request.num_images > most:
            raise ContextLengthError(
                f"{request.num_images} pictures are too many: at {self.info.tokens_per_picture} tokens each, at most "
                f"{most} fit into this model's context of {self.info.context_length:,} tokens. "
                "Send fewer, or start a new conversation."
            )
        check_size(request, self.info.context_length)
        return request

    def _filled(self, request: Request) -> Request:
        """The request with the model's sampling, a seed and the server's precision in its open fields."""
        default = self._precisions.default_int4
        int4 = default if request.int4 is None else request.int4
        if request.int4_or_default and int4 != default and self._precisions.obstacle:
            int4 = default
        sampling = request.settings(self.info.sampling)
        if not sampling.greedy and sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(_SEED_BITS))
        return replace(request, sampling=sampling, int4=int4)

    def _with_length(self, prompt: Prompt) -> Prompt:
        """The prompt with its request's `max_new_tokens` filled in. Raises ContextLengthError."""
        length = prompt.request.max_new_tokens
        if length is None:
            length = max(1, min(MAX_NEW_TOKENS, self.info.context_length - prompt.num_tokens))
        check_length(self._model.text_config, prompt.num_tokens, length)
        return replace(prompt, request=replace(prompt.request, max_new_tokens=length))

    def _check_sees(self, pictures: int) -> None:
        if pictures and not self.info.multimodal:
            raise PromptError(
                self.info.why_text_only
                or f"{self.info.name} reads text only. Remove the picture, or choose a model that reads pictures."
            )

    def _wait_for_turn(self, ticket: Ticket) -> Iterator[StageEvent]:
        place, told = self.queue.wait(ticket, None, 0), ""
        while place:
            if (text := self._queue_text(place)) != told:
                told = text
            # Sent again each tick: the server notices a closed page only when it sends something.
            yield StageEvent("queued", told)
            place = self.queue.wait(ticket, place, _TICK_S)

    def _queue_text(self, place: int) -> str:
        text, mean = f"{ordinal(place)} in the queue", self.queue.mean_turn_s
        return text if mean is None else f"{text}, about {max(1, round(-(-place // self.queue.max_running) * mean))} s"

    def forget(self, visitor: str) -> None:
        """Evicts what is kept for a visitor's next question; call it when the visitor has left."""
        self._writer.kept.forget(visitor)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the caches that are kept for visitors' next questions."""
        return self._writer.kept.num_bytes

    @property
    def is_ready(self) -> bool:
        """Whether it can answer: False once its device is lost, or a process that holds a part of the model has
        ended."""
        lead = self._precisions.lead
        return not self.device_is_lost and (lead is None or lead.is_whole)

    @property
    def device_is_lost(self) -> bool:
        """Whether the device can't go on in this process: on CUDA, after an illegal access and the like."""
        return self._loop.is_lost

    @property
    def silent_s(self) -> float:
        """Seconds since the device last began a pass; 0 while nothing runs."""
        return self._loop.silent_s

    def evict(self) -> None:
        """Evicts what is kept for visitors who have not come back for a while; call it regularly."""
        self._writer.kept.evict()

    def inspect(self, request: Request) -> PromptView:
        """The tokens of a request's prompt, and the tiles that its image blocks stand for.

        Fast: runs no model, does not queue, and reads only the sizes of pictures. The question may be empty. Raises
        what `stream` raises before it answers, except for damage behind a picture's header.
        """
        request = self._checked(request, asked=False)
        return view_prompt(self._read_prompt(request), self._processor)

    def mask(self, request: Request) -> MaskView:
        """The attention masks of a request's prompt, as the forward pass uses them.

        As fast as `inspect`, and raises the same errors.
        """
        request = self._checked(request)
        return view_mask(self._read_prompt(request), self._processor, self._model)

    def attention(
        self,
        answered: Answered,
        tokens: Sequence[int],
        layer: LayerChoice = "global",
        head: int | None = None,
        *,
        stop: threading.Event | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> AttentionMap:
        """Where the answer's `tokens` (numbered from 0) looked when they were written, as the mean over them.

        Runs the model that answered, in the same precision. The call waits in the queue; `tell` receives its place
        there in words. `layer` is a number, "global" (the mean over the global layers) or "rollout"; `head` None is the
        mean over the heads. Setting `stop` from another thread raises StoppedError within one layer or picture and
        leaves the queue. Raises AttentionError for an answer that can't be inspected (pictures gone, another model
        loaded, no such token), QueueFullError, UnsupportedOptionError.
        """
        return self._looked(look_at_attention, answered, (tuple(tokens), layer, head), stop, tell)

    def why(
        self,
        answered: Answered,
        tokens: Sequence[int],
        picture: int | None = None,
        box: Box | None = None,
        *,
        stop: threading.Event | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> WordReport:
        """Why the answer has the word of these `tokens` (numbered from 0, one after the other).

        Tells what the word rests on, its probability with and without the pictures, what each layer would have said,
        and which heads looked at `box` in the pixels of `picture`, or at the region that the word rests on most. Reads
        at most 64 rows, in batches between other answers' passes. Waits, stops and raises like `attention`.
        """
        return self._looked(look_at_word, answered, (tuple(tokens), picture, box), stop, tell)

    def occlude(
        self,
        answered: Answered,
        token: int,
        picture: int | None = None,
        box: Box | None = None,
        *,
        stop: threading.Event | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> OcclusionReport:
        """Hides a region of a picture: how the probability of the answer's token number `token` (from 0) changes, and
        the answer without the region.

        `box` is in the original picture's pixels. Without it, the hottest region of the token's map is hidden, on
        `picture` (numbered from 0) or, if that is None, on any. Waits, stops and raises like `attention`.
        """
        return self._looked(look_without_region, answered, (token, picture, box), stop, tell)

    def _looked(
        self,
        look: Callable[..., T],
        answered: Answered,
        arguments: tuple[Any, ...],
        stop: threading.Event | None,
        tell: Callable[[str], None] | None,
    ) -> T:
        """What `look(answered, *arguments, …)` finds with the model that gave an answer, once it is the request's turn
        in the queue; the rest is what a Look takes."""
        stats = answered.done.stats
        if stats.model != self.info.name:
            raise AttentionError(
                f"This answer is by {stats.model}, but {self.info.name} is loaded now. "
                "Ask again, and look at the new answer."
            )
        if not answered.done.token_ids:
            raise AttentionError("This answer has no tokens to look at. Ask again, and look at the new answer.")
        int4 = stats.quantization == quantization_name(True)
        self._precisions.require(int4)
        ticket = self.queue.enter(answered.request.visitor, ready=False)
        try:
            prompt = _told(self._when_it_is_its_turn(ticket, answered.request), stop, tell)
            check_answered(answered, prompt, self._model.text_config)
            work = self._look(partial(look, answered, *arguments), prompt, int4, partial(check_stop, stop))
            return _told(work, stop, tell)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(NO_MEMORY) from None
        except ImageError as error:
            raise AttentionError(f"The pictures of this answer are gone ({error}). Add them and ask again.") from None
        finally:
            self._tiles.release(ticket)
            self.queue.leave(ticket)

    def _look(self, look: Look[T], prompt: Prompt, int4: bool, check: Check) -> Generator[StageEvent, None, T]:
        """Prepares the precision and returns what `look` finds; `prompt` has its tiles."""

        def check_and_give_way() -> None:
            check()
            self._loop.give_way()

        def decode(work: Callable[[], None], num_bytes: int) -> None:
            future = self._pictures.submit(work, num_bytes)
            while not wait([future], _BETWEEN_ROUNDS_S).done:
                self._loop.give_way()
            future.result()

        def found() -> T:
            check()
            model = self._precisions.model(int4)
            return look(prompt, self._processor, model, check_and_give_way, decode, grammar)

        grammar = yield from self._compiled(prompt.request)
        yield from self._prepared(int4)
        future = self._loop.submit(found)
        try:
            while not wait([future], _TICK_S).done:
                if not future.running():  # else it looks at the stop itself
                    yield StageEvent("queued", "Waiting for another look inside")
            return future.result()
        finally:
            if not future.cancel():
                wait([future])

    def close(self) -> None:
        """Frees the model's memory; running answers fail."""
        self._writer.kept.clear()
        if self._precisions.lead is not None:
            self._precisions.lead.close()
            leave()
        del self._model, self._precisions, self._writer


def is_base_name(name: str) -> bool:
    """Whether a model's name says that it is a base model, as "gemma-3-4b-pt" does."""
    return _BASE.search(name) is not None and re.search(r"[-_]it\b", name, re.IGNORECASE) is None


def check_picture(source: ImageSource) -> None:
    """Raises ImageError if the header shows that the source is not a readable picture."""
    read_header(source)


def _told(
    events: Generator[StageEvent, None, T], stop: threading.Event | None, tell: Callable[[str], None] | None
) -> T:
    """Runs a generator to its end and returns its value; passes the text of each event to `tell`, and ends with
    StoppedError once `stop` is set."""
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            check_stop(stop)
            if tell is not None:
                tell(event.text)


def check_stop(stop: threading.Event | None) -> None:
    """Raises StoppedError if `stop` is set."""
    if stop is not None and stop.is_set():
        raise StoppedError("This was stopped before it finished. Ask for it again.")
