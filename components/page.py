"""The page: the panels and the events that connect them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from components.arguments import read_arguments
from components.chat.composer import SOURCES, build_composer, build_making, build_notice, missing
from components.chat.conversation import Conversation
from components.chat.documents import Documents
from components.chat.handlers import ChatHandlers
from components.chat.keeping import Keeping
from components.chat.model_choice import ModelChoiceHandlers
from components.chat.panel import badge, build_chat
from components.chat.previews import Previews
from components.chat.returning import NOT_ARRIVED, Returning
from components.chat.table import MOST_ROWS, TableRows
from components.endpoint import build_ask_endpoint
from components.examples import Example, examples_for
from components.inside.handlers import InsideHandlers
from components.inside.panel import OPENED, Inside, build_inside
from components.models.handlers import ModelsHandlers
from components.models.machine import Machine
from components.openai.app import Completions
from components.serving.desk import FrontDesk, Operation
from components.serving.server import Page
from components.settings import FieldsForm, Settings, build_settings
from components.shown.conversation_list import conversation_list
from components.shown.image_strip import build_image_strip, build_token_count
from components.shown.picker import build_picker
from components.shown.share_menu import share_menu
from components.shown.table_form import table_form
from gemma3_core.engine import Engine, ModelRegistry

TITLE, TEXT_TITLE = "Gemma 3 and pictures", "Gemma 3"

# The browser reports which files the composer holds, so that the strip is drawn again only when they change, not with
# each letter of the question. The report is used for nothing else.
_FILES_JS = "(message) => window.ask.keepFiles(message)"

# Sending empties the composer at once, so that a letter typed right after it is not lost.
# While the composer shows Stop, or a picture is on its way to it, Enter sends nothing and the text stays.
_SEND_JS = """async (message, ...rest) => {
  window.ask.submitted();
  if (window.ask.isAnswering() || window.ask.isMissingPictures()) return [null, ...rest];
  const [state, _, ...values] = rest, standing = window.ask.answers();
  return [await window.ask.send(JSON.parse(JSON.stringify(message))), state, standing, ...values];
}"""
# Buttons in the conversation and in Inside carry the number of their answer or token in data-number (see page.js).
_NUMBER_JS = "(number, ...rest) => [Number(document.querySelector('#{}').dataset.number), ...rest]"
_INSIDE_JS = """(_, conversation) => {
  const { number, token } = document.querySelector("#inside-open").dataset;
  return [Number(number), conversation, token ? Number(token) : null];
}"""
_CLOSER_JS = """(number, region, text, ...rest) => {
  const { number: answer, region: drawn, text: asked } = document.querySelector("#look-closer").dataset;
  return [Number(answer), drawn ?? "", asked ?? "", ...rest];
}"""
_REGION_JS = "(selected) => [selected, document.querySelector('#hide-region').dataset.region]"
_HOTTEST_JS = "(selected) => [selected, document.querySelector('#maps .maps')?.dataset.region ?? '']"
_OPENED_JS = "(...values) => [...values.slice(0, -1), Boolean(document.querySelector('#token-count details')?.open)]"
_FOCUS_JS = "() => { window.ask.toComposer(); }"


@dataclass(frozen=True)
class Panels:
    """The parts of the page that events connect."""

    conversation: gr.State
    settings: Settings
    chat: gr.Chatbot
    composer: gr.MultimodalTextbox
    notice: gr.HTML
    making: gr.HTML
    image_strip: gr.HTML
    token_count: gr.HTML
    clear: gr.Button


def build_page(
    models: ModelRegistry | Engine,
    examples: Sequence[Example] | None = None,
    forgetful: bool = False,
    frame_ancestors: str = "",
    api_keys: Sequence[str] = (),
    machine: Machine | None = None,
    operation: Operation | None = None,
) -> Page:
    """Builds the whole page for one loaded engine or for several models; the caller launches it.

    Visitors' browsers keep their conversations, unless the page is `forgetful`. `frame_ancestors` says whose pages may
    show this one in a frame (see `Page`). With `api_keys`, programs must send one of them to `/v1/`. With `machine`,
    for a page that only this machine reaches, whoever started the program sees the models here and can run them.
    `operation` says how much visitors may ask and who watches; by default nobody watches, and nothing is counted.
    """
    models = models if isinstance(models, ModelRegistry) else ModelRegistry(models)
    info = models.first.info
    cards = examples_for(info) if examples is None else tuple(examples)
    title = TITLE if info.multimodal else TEXT_TITLE
    with Page(title=title, fill_height=True, fill_width=True, analytics_enabled=False, operation=operation) as page:
        page.desk = desk = FrontDesk(models, page.operation)
        page.forgetful, page.frame_ancestors = forgetful, frame_ancestors
        conversation = gr.State(Conversation())
        listed = "" if forgetful else conversation_list()
        settings = build_settings(info, models.names, listed, lists_machine=machine is not None)
        with gr.Column(elem_id="main"):
            with gr.Row(elem_id="head"):
                head = gr.HTML(_head(title, badge(info)))
                gr.HTML(share_menu(cards, saves=not forgetful), elem_id="share")
                clear = gr.Button("New chat", elem_id="clear", size="sm", scale=0, min_width=96)
            chat = build_chat(info, cards, models.names)
            notice, making = build_notice(), build_making()
            picker = build_picker()
            composer = build_composer(info, attaches=info.multimodal or len(models.names) > 1 or machine is not None)
            if info.multimodal:
                gr.HTML(SOURCES, elem_id="sources")
                gr.HTML(table_form(MOST_ROWS, forgetful), elem_id="table")
            image_strip, token_count = build_image_strip(), build_token_count()
        inside = build_inside(info, models.names)
        chat_handlers = ChatHandlers(models, cards, page.uploads.caption, desk.on_page, desk.looking)
        panels = Panels(conversation, settings, chat, composer, notice, making, image_strip, token_count, clear)
        keeping = None if forgetful else Keeping(chat_handlers, page.uploads.__contains__, cards)
        changes = _connect_chat(chat_handlers, keeping, panels)
        owners = None if machine is None else ModelsHandlers(models, machine)
        _connect_return(page, chat_handlers, panels, models, None if owners is None else owners.names, cards)
        _connect_fields(settings.fields)
        _connect_examples(cards, panels)
        arrivals = _connect_documents(Documents(models, page.uploads.__contains__, page.store), picker, panels)
        if info.multimodal:
            rows = TableRows(models, page.uploads.__contains__, desk.on_page)
            _connect_table(rows, settings)
            page.unload(rows.leave)
        _connect_image_strip(chat_handlers.previews, panels, changes, arrivals)
        _connect_token_count(chat_handlers.previews, panels, changes)
        inside_handlers = InsideHandlers(models, desk.on_page, desk.looking)
        _connect_inside(inside_handlers, inside, panels, changes)
        _connect_model_choice(ModelChoiceHandlers(models, partial(_head, title)), panels, head, changes)
        if owners is not None:
            _connect_machine(owners, settings)
        page.unload(chat_handlers.leave)
        page.unload(inside_handlers.leave)
        page.periodic_tasks.append(models.evict)
        build_ask_endpoint(desk)
        page.readers["ask"] = read_arguments
        page.programs = Completions(models, api_keys, page.has_login, lambda: page.is_shared, desk)
    return page


def _head(title: str, badge_line: str) -> str:
    return f'<h1>{title}</h1><p class="badge">{badge_line}</p>'


def _connect_chat(chat_handlers: ChatHandlers, keeping: Keeping | None, panels: Panels) -> list[Any]:
    """Connects what starts, changes or stops an answer; returns the events after which the conversation has changed."""
    acts = ("retry", "undo", "edit", "keep", "restore", "continue", "look-closer")
    retry, undo, edit, keep, restore, go_on, closer = (gr.Button(act, elem_id=act, visible="hidden") for act in acts)
    number, looked_at = gr.Number(visible="hidden", precision=0), gr.Textbox(visible="hidden")
    about_it = gr.Textbox(visible="hidden")
    standing = gr.Number(visible="hidden", precision=0)
    state, composer, values = panels.conversation, panels.composer, panels.settings.inputs
    # No limit here: the engine's own queue decides the order. "multiple" lets each click reach the server, even one
    # that comes before the browser knows that the last answer is complete.
    common: dict[str, Any] = {
        "outputs": [panels.chat, composer, state, panels.notice],
        "show_progress": "hidden",
        "concurrency_limit": None,
        "trigger_mode": "multiple",
        "api_visibility": "private",
    }
    _connect_empty_button(composer, panels.token_count)
    composer.stop(chat_handlers.stop, None, composer, queue=False, show_progress="hidden", api_visibility="private")
    changes = [
        composer.submit(chat_handlers.send, [composer, state, standing, *values], js=_SEND_JS, **common),
        panels.chat.example_select(chat_handlers.ask_example, [state, *values], **common),
        retry.click(chat_handlers.retry, [number, state, *values], js=_NUMBER_JS.format("retry"), **common),
        closer.click(chat_handlers.look_closer, [number, looked_at, about_it, state, *values], js=_CLOSER_JS, **common),
        go_on.click(chat_handlers.go_on, [state, *values], **common),
        undo.click(chat_handlers.undo, [number, composer, state], js=_NUMBER_JS.format("undo"), **common),
        edit.click(chat_handlers.edit, [number, composer, state], js=_NUMBER_JS.format("edit"), **common),
        keep.click(chat_handlers.keep, [state], **common),
        restore.click(chat_handlers.restore, [composer, state], **common),
        panels.clear.click(chat_handlers.clear, [composer, state], **common),
    ]
    if keeping is not None:
        changes.append(_connect_keeping(keeping, panels, common))
    for change in changes[5:]:
        change.then(None, js=_FOCUS_JS, api_visibility="private")
    returned = gr.MultimodalTextbox(visible="hidden")
    hand_back: dict[str, Any] = {**common, "fn": chat_handlers.hand_back, "inputs": state}
    hand_back["outputs"] = [composer, state, returned]
    both = [returned, composer]
    join: dict[str, Any] = {"fn": None, "inputs": both, "outputs": both, "api_visibility": "private"}
    join["js"] = "(returned, message) => window.ask.handedBack(returned, message)"
    ended = [change.then(**hand_back).then(**join) for change in changes]
    for place, end in enumerate(ended):
        is_submit = "true" if place == 0 else "false"
        end.then(None, js=f"() => window.ask.answered({is_submit})", api_visibility="private")
    _connect_failures(changes, hand_back, join, panels)
    return ended


def _connect_failures(changes: Sequence[Any], hand_back: dict[str, Any], join: dict[str, Any], panels: Panels) -> None:
    """Where an event fails as a whole, because the server, or what stands before it, refuses, Gradio runs no `then`.

    Send comes back, and the question of the first of these `changes` returns to the composer, even if `hand_back` fails
    as well.
    """
    failures = [change.failure(**hand_back) for change in changes]
    joins = [failure.then(**join) for failure in failures]
    notice = json.dumps(missing(NOT_ARRIVED))
    unsent: dict[str, Any] = {
        "fn": None,
        "inputs": panels.composer,
        "outputs": [panels.composer, panels.notice],
        "js": f"(message) => window.ask.unsent({notice}, message)",
        "api_visibility": "private",
    }
    joins[0].then(**unsent)
    failures[0].failure(**unsent)


def _connect_keeping(keeping: Keeping, panels: Panels, common: dict[str, Any]) -> Any:
    """The browser keeps the conversation after each change; returns the event that brings another one back."""
    text, document = (gr.Textbox(visible="hidden") for _ in range(2))
    give, bring = (gr.Button(act, elem_id=act, visible="hidden") for act in ("give", "bring"))
    given = give.click(
        keeping.given,
        [text, panels.conversation],
        document,
        js="async (_, state) => [await window.ask.conversations.known(), state]",
        show_progress="hidden",
        trigger_mode="always_last",  # a change that comes while another is given is given after it
        queue=False,
        api_visibility="private",
    )
    save = "(document) => { window.ask.conversations.save(document); }"
    given.then(None, document, js=save, api_visibility="private")
    brought = "async (_, ...rest) => [await window.ask.conversations.document(), ...rest]"
    return bring.click(keeping.brought, [text, panels.conversation], js=brought, **common)


def _connect_return(
    page: Page,
    chat_handlers: ChatHandlers,
    panels: Panels,
    models: ModelRegistry,
    names: Callable[[gr.Request], Sequence[str]] | None,
    cards: Sequence[Example],
) -> None:
    """A page that opens again shows the conversation, the draft and the settings that it had, which the browser's tab
    keeps until it is closed. A shared link brings a question and settings."""
    state = panels.conversation
    returning = Returning(
        lambda session: page.left_by(session, state),
        page.uploads.__contains__,
        chat_handlers.messages,
        panels.settings,
        names or (lambda _: models.names),
        cards,
    )
    left, window = (gr.Textbox(elem_id=name, visible="hidden") for name in ("left", "window"))
    common: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    shown = [panels.chat, panels.composer, state, panels.notice, window, *returning.brought.values()]
    back = page.load(returning.open, [left], shown, js="async () => [await window.ask.left()]", **common)
    arrived = "(told, message) => window.ask.opened(told, message)"
    back.then(None, [window, panels.composer], panels.composer, js=arrived, **common)
    back.failure(None, None, js="() => { window.ask.notOpened(); }", **common)
    settings = [one for one in panels.settings.inputs if not isinstance(one, gr.State)]
    offer = json.dumps(json.dumps([*models.names, panels.settings.int4 is not None]))
    model = panels.settings.model
    place = -1 if model is None else settings.index(model)
    told = f"{offer}, {place}, {json.dumps(models.names)}"
    page.load(None, settings, settings, js=f"(...values) => window.ask.settingsBack({told}, values)", **common)
    changes = [one.change for one in settings]  # type: ignore[attr-defined]
    gr.on(changes, None, settings, js=f"(...values) => window.ask.keepSettings({offer}, {place}, values)", **common)


def _connect_fields(form: FieldsForm) -> None:
    """fields.js draws the form from its text, and clicks the hidden button after each change."""
    changed = gr.Button("Fields", elem_id="fields-changed", visible="hidden")
    changed.click(None, None, form.text, js="() => window.ask.fields.text()", api_visibility="private")
    show: dict[str, Any] = {"js": "(text) => window.ask.fields.show(text)", "api_visibility": "private"}
    gr.on([form.text.change, form.fold.expand], None, form.text, **show)


def _connect_examples(cards: Sequence[Example], panels: Panels) -> None:
    """Shows a card's settings in the sidebar once its answer has come; "New chat" restores the visitor's own. In the
    browser, one after the other: the server's answer to a card could come after its answer to "New chat"."""
    brought = json.dumps([[card.pan_and_scan, card.system_prompt] for card in cards])
    shown = panels.settings.set_by_example
    common: dict[str, Any] = {"fn": None, "inputs": shown[:2], "outputs": shown, "api_visibility": "private"}
    panels.chat.example_select(js=f"(...values) => window.ask.useCard({brought}, ...values)", **common)
    panels.clear.click(js="(...values) => window.ask.restoreOwnSettings(...values)", **common)


def _connect_model_choice(handlers: ModelChoiceHandlers, panels: Panels, head: gr.HTML, changes: Sequence[Any]) -> None:
    """The page is updated for a newly chosen model, and after each answer: a model's first answer has loaded it."""
    settings = panels.settings
    if settings.model is None:
        return
    follow = gr.Button("Follow", elem_id="follow", visible="hidden")
    gr.on(
        [settings.model.change, follow.click],
        handlers.follow,
        [*settings.inputs],
        handlers.outputs(settings, head, panels.chat, panels.composer),
        trigger_mode="always_last",  # one at a time: of two, the answer to the first could come last
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    for change in changes:
        change.then(None, js="() => document.querySelector('#follow').click()", api_visibility="private")


def _connect_machine(handlers: ModelsHandlers, settings: Settings) -> None:
    """The models on this machine. The handlers refuse everybody but whoever started the program."""
    parts, number = settings.machine, gr.Number(visible="hidden", precision=0)
    assert parts is not None
    run = gr.Button("Run", elem_id="model-run", visible="hidden")
    common: dict[str, Any] = {
        "outputs": [parts.progress, parts.stop, parts.listed, settings.model],
        "show_progress": "hidden",
        "concurrency_limit": None,
        "api_visibility": "private",
    }
    parts.fold.expand(handlers.open, None, **common)
    parts.again.click(handlers.look_again, None, **common)
    run.click(handlers.run, [number], js=_NUMBER_JS.format("model-run"), trigger_mode="multiple", **common)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    parts.stop.click(handlers.stop, None, None, **quiet)


def _connect_empty_button(composer: gr.MultimodalTextbox, token_count: gr.HTML) -> None:
    """A hidden button that empties the composer, and the count of its tokens, in the browser, without the server."""
    empty = gr.Button("Empty", elem_id="empty", visible="hidden")
    js = "() => [{ text: '', files: [] }, '']"
    empty.click(None, None, [composer, token_count], js=js, api_visibility="private")


def _connect_documents(documents: Documents, picker: gr.HTML, panels: Panels) -> list[Any]:
    """Pages, frames and pictures by address. pictures.js uploads the file, clicks the hidden buttons, and adds what has
    arrived to the composer. Returns the events that do so."""
    composer, settings = panels.composer, panels.settings
    path, chosen, arrived, problem = (gr.Textbox(visible="hidden") for _ in range(4))
    costs = [settings.pan_and_scan, settings.chosen]
    common: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple", "api_visibility": "private"}
    # Two files are read at a time for all visitors, each in a process of its own.
    reads = {**common, "outputs": [picker, arrived], "concurrency_limit": 2, "concurrency_id": "documents"}
    # The picker may be open for a document meanwhile.
    fetches = {**common, "outputs": [problem, arrived], "concurrency_limit": 4}
    look, take, fetch = (gr.Button(act, elem_id=act, visible="hidden") for act in ("look-into", "take-from", "fetch"))
    come = [
        (look.click(documents.look, [path, *costs], js="(_, ...rest) => [ask.document, ...rest]", **reads), []),
        (take.click(documents.take, [path, chosen, *costs],
                    js="(_, __, ...rest) => [ask.document, ask.chosen(), ...rest]", **reads), []),
        (fetch.click(documents.fetch, [path], js="() => [ask.address]", **fetches), [problem]),
    ]  # fmt: skip
    arrivals = []
    for arrival, told in come:
        arrivals.append(arrival.then(None, [composer, arrived, *told], composer,
                                     js="(...values) => ask.arrive(...values)", api_visibility="private"))  # fmt: skip
        arrival.failure(None, js="() => { ask.notArrived(); }", api_visibility="private")
    gr.Button("Close", elem_id="close-picker", visible="hidden").click(
        None, None, picker, js="() => ''", api_visibility="private"
    )
    return arrivals


def _connect_table(rows: TableRows, settings: Settings) -> None:
    """One question about many pictures: table.js clicks the hidden buttons, for each row once."""
    asked, told = (gr.Textbox(visible="hidden") for _ in range(2))
    begin, ask, stop = (gr.Button(act, elem_id=act, visible="hidden") for act in ("begin-table", "ask-row", "stop-row"))
    common: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple", "api_visibility": "private"}
    given: dict[str, Any] = {"inputs": [asked, *settings.inputs], "outputs": told, **common}
    given["js"] = "(_, ...rest) => [ask.table.asked(), ...rest]"
    told.change(None, told, js="(told) => { ask.table.hears(told); }", api_visibility="private")
    for event in (begin.click(rows.begin, queue=False, **given), ask.click(rows.row, concurrency_limit=None, **given)):
        for ends in (event.then, event.failure):
            ends(None, told, js="(told) => { ask.table.hears(told, true); }", api_visibility="private")
    stop.click(rows.stop, None, None, queue=False, **common)


def _connect_image_strip(previews: Previews, panels: Panels, changes: Sequence[Any], arrivals: Sequence[Any]) -> None:
    """Draws the strip when the composer's files, pan & scan or the model change, and after each answer."""
    composer, switch = panels.composer, panels.settings.pan_and_scan
    files = gr.Textbox(elem_id="composer-files", visible="hidden")
    kept: dict[str, Any] = {"inputs": composer, "outputs": files, "js": _FILES_JS, "api_visibility": "private"}
    composer.change(None, **kept)
    for arrival in arrivals:  # which Gradio does not count as a change
        arrival.then(None, **kept)
    draw: dict[str, Any] = {
        "fn": previews.preview,
        "inputs": [composer, switch, panels.conversation, panels.settings.chosen],
        "outputs": panels.image_strip,
        "show_progress": "hidden",
        "concurrency_limit": 2,  # decoding pictures takes processor time
        "api_visibility": "private",
    }
    model = [] if panels.settings.model is None else [panels.settings.model.change]
    gr.on([files.change, switch.change, *model], trigger_mode="always_last", **draw)
    for change in changes:
        change.then(**draw)


def _connect_token_count(previews: Previews, panels: Panels, changes: Sequence[Any]) -> None:
    """Counts the prompt's tokens: page.js clicks the hidden button when typing pauses."""
    settings = panels.settings
    button, opened = gr.Button("Count", elem_id="count-tokens", visible="hidden"), gr.Checkbox(visible="hidden")
    draw: dict[str, Any] = {
        "fn": previews.token_count,
        "inputs": [panels.composer, panels.conversation, *settings.inputs, opened],
        "outputs": panels.token_count,
        "js": _OPENED_JS,
        "show_progress": "hidden",
        "concurrency_limit": 2,
        "api_visibility": "private",
    }
    model = [] if settings.model is None else [settings.model.change]
    gr.on([button.click, settings.pan_and_scan.change, *model], trigger_mode="always_last", **draw)
    for change in changes:
        change.then(**draw)


def _connect_inside(inside_handlers: InsideHandlers, inside: Inside, panels: Panels, changes: Sequence[Any]) -> None:
    """Connects the buttons that open Inside for an answer, and those inside it."""
    selected, number, first = gr.State(None), *(gr.Number(visible="hidden", precision=0) for _ in range(2))
    show, close, look = (
        gr.Button(act, elem_id=act, visible="hidden") for act in ("inside-open", "inside-close", "look")
    )
    common: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 8, "api_visibility": "private"}
    # These wait in the engine's own queue. Each click reaches the server, where it cancels the call before it.
    waits = {**common, "concurrency_limit": None, "trigger_mode": "multiple"}
    looked = [inside.maps, inside.rest]
    stops: dict[str, tuple[Any, list[Any]]] = {
        "look-stop": (inside_handlers.stop_looking, looked),
        "hide-stop": (inside_handlers.stop_hiding, [inside.effect]),
        "compare-stop": (inside_handlers.stop_comparing, [inside.comparison]),
        "card-stop": (inside_handlers.stop_card, [panels.making]),
    }
    for name, (stop, shows) in stops.items():
        gr.Button("Stop", elem_id=name, visible="hidden").click(stop, None, shows, queue=False, **common)
    shown = [*(getattr(inside, name) for name in OPENED), selected]
    choice = [selected, inside.layer, inside.head]
    show.click(
        inside_handlers.open,
        [number, panels.conversation, first],
        shown,
        js=_INSIDE_JS,
        **waits,
    )
    for change in changes:
        change.then(inside_handlers.follow, [selected, panels.conversation], shown, **waits)
        change.then(None, None, panels.making, js="() => ''", api_visibility="private")  # a failure is told once
    if panels.settings.model is not None:
        models = [selected, gr.State("model"), inside.other]
        inside.compare_models.click(inside_handlers.compare, models, inside.comparison, **waits)
    gr.on([close.click, panels.clear.click], inside_handlers.close, None, [inside.title, selected], **common)
    look.click(
        inside_handlers.look,
        [number, *choice, inside.view],
        [inside.words, *looked, inside.effect, inside.hide, selected],
        js=_NUMBER_JS.format("look"),
        **waits,
    )
    again = [inside.layer.input, inside.head.input, inside.view.input]
    gr.on(again, inside_handlers.look_again, [*choice, inside.view], looked, **waits)
    region, hide_region = gr.Textbox(visible="hidden"), gr.Button("hide", elem_id="hide-region", visible="hidden")
    inside.hide.click(inside_handlers.hide, [selected, region], inside.effect, js=_HOTTEST_JS, **waits)
    hide_region.click(inside_handlers.hide, [selected, region], inside.effect, js=_REGION_JS, **waits)
    inside.mask_tab.select(inside_handlers.mask, selected, inside.mask, **common)
    card, make = gr.Textbox(visible="hidden"), gr.Button("Card", elem_id="card", visible="hidden")
    made = make.click(
        inside_handlers.card,
        [number, panels.conversation],
        [panels.making, card],
        js=_NUMBER_JS.format("card"),
        **waits,
    )
    save = "(html) => { if (html) window.ask.download('answer.html', 'text/html', html); }"
    made.then(None, card, js=save, api_visibility="private")
    inside.replay.click(inside_handlers.replay, [selected], inside.comparison, **waits)
    for button, setting in ((inside.compare_pan_and_scan, "pan_and_scan"), (inside.compare_int4, "int4")):
        button.click(inside_handlers.compare, [selected, gr.State(setting)], inside.comparison, **waits)
