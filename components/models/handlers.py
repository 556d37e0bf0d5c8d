"""The handlers of the machine's models: look for them, run one, stop a download. Each asks first who wants to know."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from components.models.machine import Machine, is_owner, require_owner
from components.models.panel import Way, models_html, offer_too_large, progress_html, too_large
from gemma3_core.engine import (
    PUBLISHED,
    UNGATED,
    FoundModel,
    Gemma3Error,
    ModelEntry,
    ModelRegistry,
    StoppedError,
    find_models,
    free_memory,
)

logger = logging.getLogger(__name__)

UNEXPECTED = "Something went wrong while loading the model. Try again; if it happens again, see the server's log."
GONE = "This list is from an earlier start. Look again, and choose once more."
_TICK_S = 0.5
_INT4 = "int4"
Update = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class _Choice:
    """What a button runs: an entry of the registry, or a model that was found, in a precision."""

    entry: ModelEntry
    model: FoundModel | None = None
    way: str = ""


class ModelsHandlers:
    """Their outputs are the progress, its Stop button, the list, and the choice of a model in the settings."""

    def __init__(
        self, models: ModelRegistry, machine: Machine, find: Callable[[], list[FoundModel]] | None = None
    ) -> None:
        self._models, self._machine = models, machine
        self._find = find or self._look
        self._at_start = models.names
        self._found: list[FoundModel] | None = None
        self._choices: list[_Choice] = []

    def _look(self) -> list[FoundModel]:
        machine = self._machine
        offered = [
            entry.source for entry in self._models.entries if not entry.from_hub and os.path.exists(entry.source)
        ]
        return find_models([*machine.folders, *offered], machine.everywhere, machine.device, machine.dtype)

    def names(self, request: gr.Request) -> tuple[str, ...]:
        """The models that can be chosen as a page opens: for the owner also those that have come since the start."""
        return self._models.names if is_owner(request) else self._at_start

    async def open(self, request: gr.Request, again: bool = False) -> AsyncGenerator[Update]:
        """Lists the models, and follows what is being loaded."""
        require_owner(request)
        if self._found is None or again:
            yield self._update(list_="<p class='note'>Looking for models …</p>")
            self._found = await asyncio.to_thread(self._find)
        yield self._update(list_=await asyncio.to_thread(self._list))
        while self._models.loading:
            yield self._update()
            await asyncio.sleep(_TICK_S)
        yield self._update(list_=await asyncio.to_thread(self._list))

    async def look_again(self, request: gr.Request) -> AsyncGenerator[Update]:
        async with aclosing(self.open(request, again=True)) as updates:
            async for update in updates:
                yield update

    async def run(self, number: float | None, request: gr.Request) -> AsyncGenerator[Update]:
        """Downloads and loads what the button with this number stands for, and chooses it in the settings."""
        require_owner(request)
        index = -1 if number is None else int(number)
        if not 0 <= index < len(self._choices):
            raise Gemma3Error(GONE)
        choice, failure, remark, name = self._choices[index], "", "", None
        try:
            self._require_room(choice)
            entry = self._models.offer(choice.entry)
            yield self._update()
            async with aclosing(self._models.aprepare(entry.name)) as stages:
                told = ""
                async for _ in stages:
                    now = progress_html(self._models.loading)
                    yield self._update(gr.skip() if now == told else now)
                    told = now
            name = entry.name
            if entry.from_hub:  # now it is in the Hub's cache
                self._found = await asyncio.to_thread(self._find)
        except StoppedError as error:
            remark = str(error)
        except Gemma3Error as error:
            failure = str(error)
        except Exception:
            logger.exception("loading a model failed")
            failure = UNEXPECTED
        ended = progress_html(self._models.loading, failure, remark)
        yield self._update(ended, await asyncio.to_thread(self._list), chosen=name)

    def stop(self, request: gr.Request) -> None:
        """Ends the downloads; what has arrived is kept."""
        require_owner(request)
        for name in self._models.loading:
            self._models.stop_loading(name)

    def _update(self, progress: Any = None, list_: str | None = None, chosen: str | None = None) -> Update:
        stops = any(one.share is not None for one in self._models.loading.values())
        shown = gr.skip() if list_ is None else list_
        names = gr.skip() if chosen is None else gr.update(choices=list(self._models.names), value=chosen)
        progress = progress_html(self._models.loading) if progress is None else progress
        return progress, gr.update(visible=stops), shown, names

    def _list(self) -> str:
        found, room = self._found or [], self._room()
        entries, loaded = self._models.entries, self._models.in_memory
        offers, listed = [], []
        here = {model.repo_id for model in found if not model.problem}
        for source in (UNGATED, PUBLISHED) if self._machine.offers else ():
            entry = next((one for one in entries if one.source == source), None)
            if entry is not None and source.partition(":")[0] not in here:
                obstacle = "" if entry.name in loaded else offer_too_large(source, room)
                offers.append((entry, Way(self._number(_Choice(entry)), "Download and run", obstacle)))
        for model in found:
            if os.path.realpath(model.source) == os.path.realpath(self._models.first_source):
                continue
            entry = self._entry(model)
            state = "loaded now" if entry.name in loaded else ""
            ways = [self._way(model, way, room) for way in model.ways]
            if ways and all(way.obstacle for way in ways):
                ways = [min(zip(model.ways, ways, strict=True), key=lambda pair: model.needs[pair[0]])[1]]
            listed.append((model, state, ways))
        return models_html(self._models.first.info.name, offers, listed, free_memory(self._machine.device),
                           self._machine.everywhere)  # fmt: skip

    def _way(self, model: FoundModel, way: str, room: int | None) -> Way:
        obstacle = too_large(model, way, room) if room is not None and model.needs[way] > room else ""
        entry = replace(self._entry(model), int4=way == _INT4)
        return Way(self._number(_Choice(entry, model, way)), f"Run in {way}", obstacle)

    def _entry(self, model: FoundModel) -> ModelEntry:
        """The entry of a found model that is offered already, also as a repository of the Hub, or else a new one."""
        for entry in self._models.entries:
            same = os.path.realpath(entry.source) == os.path.realpath(model.source)
            repo_id, _, file = entry.source.partition(":")
            if same or (entry.from_hub and repo_id == model.repo_id and file in ("", os.path.basename(model.source))):
                return entry
        return ModelEntry(model.name, os.path.abspath(model.source))

    def _number(self, choice: _Choice) -> int:
        """The number by which the page names a choice; it stays the same when the list is drawn again."""
        if choice not in self._choices:
            self._choices.append(choice)
        return self._choices.index(choice)

    def _room(self) -> int | None:
        """Free memory, with that of the models that make way for another one."""
        free = free_memory(self._machine.device)
        if free is None:
            return None
        leaving = set(self._models.makes_way())
        for model in self._found or ():
            entry = self._entry(model)
            if entry.name in leaving:
                way = _INT4 if entry.int4 and _INT4 in model.needs else model.ways[0]
                free += model.needs[way]
        return free

    def _require_room(self, choice: _Choice) -> None:
        """Raises Gemma3Error for a model that takes more than is free, before anything is downloaded."""
        room, model = self._room(), choice.model
        if (choice.entry if model is None else self._entry(model)).name in self._models.in_memory:
            return
        if model is None and (obstacle := offer_too_large(choice.entry.source, room)):
            raise Gemma3Error(obstacle)
        if model is not None and room is not None and model.needs[choice.way] > room:
            raise Gemma3Error(too_large(model, choice.way, room))
