"""The page's pure functions: texts, figures, conversation, strip, examples."""

import asyncio
import gc
import json
import mimetypes
import re
import threading
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from gradio.processing_utils import async_move_files_to_cache
from gradio.state_holder import SessionState
from gradio_client.utils import get_mimetype
from PIL import Image
from running_app import built
from window import DEMO, STATS, Window, choice, exchange_of, run, typed

from components.chat import panel as chat
from components.chat.closer_look import TOO_SMALL, UNSURE, closer_question, reason_to_look_closer
from components.chat.conversation import NOTHING, Conversation, Exchange, joined, question_of
from components.chat.handlers import ChatHandlers, request_for
from components.examples import FOLDER, Example, load_examples
from components.serving.server import Page, declare_pictures, launch_options
from components.settings import (
    Choices,
    build_settings,
    int4_line,
    with_brought,
)
from components.shown import image_strip as strip
from components.shown import markdown
from components.shown.stats import PICTURE_CHANGED_NOTHING, figures_line, short_line
from components.theme import build_theme
from gemma3_core.engine import (
    Answered,
    Box,
    DoneEvent,
    Gemma3Error,
    Int4Choice,
    ModelRegistry,
    PartialSampling,
    PicturePreview,
    PromptView,
    Request,
    StageEvent,
    TokenChoices,
    TokenEvent,
    Turn,
)
from gemma3_core.engine.fair_queue import FairQueue


def changed(value, **fields):
    return type(value)(**{**vars(value), **fields})


def test_figures_line():
    line = "demo model · bfloat16 · 1 picture, 2 crops · 212 tokens · first token 0.21 s · 64 tokens/s"
    assert figures_line(STATS) == line


def test_figures_line_of_a_long_int4_conversation_without_crops():
    stats = changed(
        STATS, model="gemma-3-4b-it", quantization="int4", num_images=2, num_crops=0, prompt_tokens=1064,
        reused_tokens=820, new_tokens=256, tokens_per_s=None, stop_reason="length",
    )  # fmt: skip
    assert figures_line(stats) == (
        "gemma-3-4b-it · int4 · 2 pictures · 1,064 tokens (820 reused) · first token 0.21 s · cut at 256 new tokens"
    )


def test_figures_line_of_text_alone():
    stats = changed(STATS, num_images=0, num_crops=0, time_to_first_token_s=None, tokens_per_s=None)
    assert figures_line(stats) == "demo model · bfloat16 · 212 tokens"


def test_figures_line_of_a_stopped_answer_says_after_how_many_tokens():
    line = "demo model · bfloat16 · 1 picture, 2 crops · 212 tokens · first token 0.21 s · 64 tokens/s · stopped after "
    assert figures_line(replace(STATS, new_tokens=12, stop_reason="cancelled")) == f"{line}12 tokens"
    assert figures_line(replace(STATS, new_tokens=1, stop_reason="cancelled")) == f"{line}1 token"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("How many hearts?", "How many hearts?"),
        ("2 * 3 * 4 = _x_", r"2 \* 3 \* 4 = \_x\_"),
        ("<img src=http://x.example/a.png>", r"\<img src=http\://x.example/a.png>"),
        ("![a](http://x.example)", r"!\[a\](http\://x.example)"),
        ("> www.x.example a@x.example", r"\> www\.x.example a\@x.example"),
        ("# no title\n- no list", "\\# no title\n\\- no list"),
        ("1. one", "1\N{WORD JOINER}. one"),
        ("a\n    b", "a\n\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}b"),
        ("Größe 3,5 €", "Größe 3,5 €"),
    ],
)
def test_questions_are_shown_as_typed(typed, shown):
    assert markdown.literal(typed) == shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("**Two** circles, 1 < 2.", "**Two** circles, 1 < 2."),
        ("<img src='http://x.example/a.png'>", "&lt;img src='http://x.example/a.png'>"),
        ("see ![a](http://x.example/a.png)", "see !\\[a](http://x.example/a.png)"),
        ("use `<br>` or\n```html\n<b>\n", "use `<br>` or\n```html\n<b>\n"),
        ("</div><script>", "&lt;/div>&lt;script>"),
    ],
)
def test_answers_load_nothing_and_hold_no_html(written, shown):
    assert markdown.of_model(written) == shown


def test_indentation_of_an_answer_survives_gradio():
    text = "    four spaces\nthen none"
    processed = chat.gr.Chatbot().postprocess([chat.answering(text)])
    assert processed.root[0].content[0].text == text


def test_a_conversation_keeps_earlier_pictures():
    first = question_of(" What is this? ", ["/cache/a.png"])
    conversation = Conversation().add(exchange_of(first, "A star."))
    turns = conversation.turns(Turn("user", "What color?"))
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[0].text == "What is this?"
    assert turns[0].pictures == first.pictures
    assert conversation.up_to(-1) == Conversation()


def test_each_turn_keeps_the_pan_and_scan_that_it_was_asked_with():
    asked = [exchange_of(question_of("What?", ["/cache/a.png"]), "A star.", pan_and_scan=cut) for cut in (True, False)]
    turns = Conversation(tuple(asked)).turns(Turn("user", "And now?"))
    assert [turn.pan_and_scan for turn in turns] == [True, None, False, None, None]


def test_neither_a_returned_question_nor_what_was_typed_meanwhile_is_lost():
    returned, typed = question_of("What?", ["/cache/a.png"]), question_of("and now", ["/cache/a.png", "/cache/b.png"])
    both = joined(returned, typed)
    assert both.text == "What?\n\nand now"
    assert [path.name for path in both.pictures] == ["a.png", "b.png"]
    assert joined(returned, NOTHING) == joined(NOTHING, returned) == returned
    assert joined(returned, returned) == returned


def two_exchanges() -> Conversation:
    stopped = replace(STATS, new_tokens=3, stop_reason="cancelled")
    first = exchange_of(Turn("user", "What?"), "A star.")
    return Conversation().add(first).add(exchange_of(Turn("user", "Where?"), "Left.", stopped))


def controls(shown: list[dict]) -> list[list[str]]:
    """Of each message, what its buttons do."""
    lines = [[part.value for part in message["content"] if isinstance(part, chat.gr.HTML)] for message in shown]
    return [re.findall(r'data-act="(\w+)"', "".join(line)) for line in lines]


def test_each_question_can_be_edited_and_asked_again_and_only_the_last_one_taken_back():
    two = two_exchanges()
    assert controls(chat.messages(two)) == [
        ["edit"],
        ["code", "copy", "retry"],
        ["edit"],
        ["code", "copy", "retry", "undo"],
    ]
    only_copying = [[], ["code", "copy"], [], ["code", "copy"]]
    assert controls(chat.messages(two, controls=False)) == only_copying
    assert controls(chat.messages(Conversation(two.exchanges, changing=0))) == only_copying


def test_controls_have_names_of_their_own():
    shown = str([part.value for m in chat.messages(two_exchanges()) for part in m["content"] if hasattr(part, "value")])
    names = re.findall(r'aria-label="([^"]+)"', shown)
    assert names[:3] == ["Edit question 1", "Look inside answer 1", "Show answer 1 as a program"]
    assert names[3:5] == ["Copy answer 1", "Retry: ask question 1 again"]
    assert len(set(names)) == len(names) == 11


def test_an_answer_that_was_cut_can_be_continued_where_it_is_the_last():
    cut = exchange_of(Turn("user", "What?"), "There are", replace(STATS, stop_reason="length"))
    (_, answer) = chat.messages(Conversation().add(cut))
    assert "Continue</button>" in answer["content"][1].value
    shown = chat.messages(Conversation().add(cut).add(exchange_of(Turn("user", "And?"), "Three.")))
    assert "Continue</button>" not in str(
        [part.value for m in shown for part in m["content"] if hasattr(part, "value")]
    )


def test_a_tiff_is_named_where_browsers_would_show_a_broken_picture():
    (message,) = chat.asked(question_of("What?", ["/cache/<b>.tiff", "/cache/a.png"]))
    tiff, png, _ = message["content"]
    assert "&lt;b&gt;.tiff: a TIFF" in tiff.value
    assert png == {"path": "/cache/a.png", "alt_text": "a.png"}


def test_a_redraw_prepares_only_the_message_that_is_written_and_as_gradio_would(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)
    with Page() as page:
        chatbot, state = chat.build_chat(DEMO, ()), gr.State()
        gr.Button().click(lambda: None, None, [chatbot, state])
    exchange = exchange_of(Turn("user", "How *many*?", (picture,)), "- two\n- three")
    shown = chat.messages(Conversation((exchange,) * 40))
    prepared: list[list] = []
    postprocess = chatbot.postprocess
    monkeypatch.setattr(chatbot, "postprocess", lambda value: (prepared.append(value), postprocess(value))[1])

    def redraw(text: str) -> tuple[list, list]:
        prepared.clear()
        now = [*shown, chat.answering(text)]
        data = asyncio.run(page.postprocess_data(page.fns[0], (now, gr.skip()), SessionState(page)))[0]
        return now, data

    redraw("It")
    now, data = redraw("It is")
    assert [value for value in prepared if value] == [[now[-1]]]
    whole = asyncio.run(async_move_files_to_cache(postprocess(now), chatbot, postprocess=True))
    assert data == whole
    assert whole[0]["content"][0]["file"]["url"].endswith("/a.png")


def test_a_window_costs_little_and_keeps_no_values_that_only_gradios_links_would_need():
    page = built(Speaking())
    gc.collect()
    tracemalloc.start()
    try:
        windows = [SessionState(page) for _ in range(10)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / len(windows) < 50_000
    chatbot = next(block for block in page.blocks.values() if isinstance(block, gr.Chatbot))
    windows[0]._update_value_in_config(chatbot._id, "a visitor's words")
    assert not list(windows[0].components)
    described = {component["id"]: component for component in page.get_config_file()["components"]}
    assert described[chatbot._id]["props"]["elem_id"] == "chat"  # the page's own description is whole


VALUES = (False, "", 0.0, 0, 1.0, "", 8)


class Speaking:
    """An engine that answers at once with what it is told to, or refuses."""

    def __init__(self, *answers: str | Exception):
        self.info, self.answers, self.requests, self.queue = DEMO, list(answers), [], FairQueue()

    def forget(self, visitor):
        pass

    def stream(self, request, _stop=None):
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield StageEvent("reading", "Reading 9 tokens")
        yield TokenEvent(answer)
        yield DoneEvent(answer, STATS)


def test_an_edited_question_replaces_its_answer_and_what_follows_and_keeps_its_pictures():
    engine = Speaking("A heart.")
    handlers = ChatHandlers(ModelRegistry(engine), ())
    before = Conversation((replace(two_exchanges().exchanges[0], question=question_of("What?", ["/cache/a.png"])),
                           two_exchanges().exchanges[1]))  # fmt: skip
    _, box, changing, notice = handlers.edit(0, typed("half a question"), before, Window())
    assert box["value"] == {"text": "What?", "files": ["/cache/a.png"]}
    assert changing.exchanges == before.exchanges  # nothing is dropped before the new question is sent
    assert "Editing question 1" in notice
    shown, after, notice = run(handlers.send(typed("Which?", "/cache/a.png"), changing, Window(), 0, *VALUES))
    assert [turn.text for turn in engine.requests[0].turns] == ["Which?"]
    assert [(e.question.text, e.answer) for e in after.exchanges] == [("Which?", "A heart.")]
    assert [path.name for path in after.exchanges[0].question.pictures] == ["a.png"]
    assert (after.changing, len(shown)) == (None, 2)
    assert "what came after it" in notice
    assert after.before.exchanges == changing.exchanges
    _, after, returned = handlers.hand_back(after, Window())
    assert returned["value"]["text"] == "half a question"
    assert after.returned == NOTHING
    shown, box, back, notice = handlers.restore(typed("half a question"), after, Window())
    assert (back, notice, len(shown)) == (before, "", 4)
    assert box["value"]["text"] == "half a question"  # once


def test_an_edited_question_keeps_the_region_that_it_asks_about_while_its_picture_stays():
    box = (Box(10, 10, 50, 50),)
    asked = replace(question_of("What is there?", ["/cache/a.png", "/cache/b.png"]), crops=(None, box))
    before = Conversation((replace(two_exchanges().exchanges[0], question=asked),))
    for files, crops in ((["b", "c"], (box, None)), (["a", "b"], (None, box)), (["a"], ())):
        engine = Speaking("A heart.")
        handlers = ChatHandlers(ModelRegistry(engine), ())
        _, _, changing, _ = handlers.edit(0, typed(""), before, Window())
        edited = typed("What shape is it?", *(f"/cache/{name}.png" for name in files))
        _, after, _ = run(handlers.send(edited, changing, Window(), 0, *VALUES))
        assert engine.requests[0].turns[0].crops == after.exchanges[0].question.crops == crops
    engine = Speaking("A heart.")
    run(ChatHandlers(ModelRegistry(engine), ()).send(typed("And now?", "/cache/b.png"), before, Window(), 1, *VALUES))
    assert engine.requests[0].turns[-1].crops == (), "a new question about the same picture asks about all of it"


def region_question(picture):
    return replace(question_of("What is there?", [str(picture)]), crops=((Box(10, 10, 50, 50),),))


def test_a_question_about_an_examples_region_keeps_it_although_the_composer_returns_a_copy_of_the_picture():
    picture = FOLDER / "night.png"
    before = Conversation((replace(two_exchanges().exchanges[0], question=region_question(picture)),))
    for copy, crops in (("night.png", ((Box(10, 10, 50, 50),),)), ("harbor.png", ())):
        engine = Speaking("A heart.")
        handlers = ChatHandlers(ModelRegistry(engine), ())
        _, _, changing, _ = handlers.edit(0, typed(""), before, Window())
        run(handlers.send(typed("What shape is it?", f"/cache/0a1b/{copy}"), changing, Window(), 0, *VALUES))
        assert engine.requests[0].turns[0].crops == crops


def test_pictures_of_one_name_keep_their_own_regions():
    box, other = (Box(10, 10, 50, 50),), (Box(0, 0, 40, 40),)
    asked = replace(question_of("What?", ["/cache/1/image.png", "/cache/2/image.png"]), crops=(box, other))
    conversation = Conversation().composing(asked)
    assert conversation.draft(typed("What?", "/cache/2/image.png", "/cache/3/image.png")).crops == (other, None)
    assert conversation.draft(typed("What?", "/cache/1/image.png", "/cache/1/image.png")).crops == (box, None)
    assert conversation.composing(asked, beside=True) == conversation, "however often it returns"


@pytest.mark.parametrize("way", ["undo", "stop", "refuse", "cancel an edit", "new chat"])
def test_a_question_about_a_region_that_returns_to_the_composer_keeps_the_region(way):
    asked = region_question("/cache/a.png")
    conversation = Conversation((replace(two_exchanges().exchanges[0], question=asked),))
    handlers = ChatHandlers(ModelRegistry(Speaking("A star.")), ())
    if way in ("stop", "refuse"):  # as `_without_answer` leaves it
        conversation = replace(Conversation(), returned=asked)
        _, conversation, returned = handlers.hand_back(conversation, Window())
    else:
        _, returned, conversation, _ = handlers.undo(0, typed(""), conversation, Window())
    if way == "cancel an edit":
        other = Conversation((two_exchanges().exchanges[0],), regions=conversation.regions)
        _, _, changing, _ = handlers.edit(0, returned["value"], other, Window())
        _, returned, conversation, _ = handlers.keep(changing, Window())
    if way == "new chat":
        _, _, conversation, _ = asyncio.run(handlers.clear(returned["value"], conversation, Window()))
        _, returned, conversation, _ = handlers.restore(typed(""), conversation, Window())
    assert conversation.draft(returned["value"]).crops == asked.crops
    _, after, _ = run(handlers.send(returned["value"], conversation, Window(), 0, *VALUES))
    assert after.exchanges[-1].question.crops == asked.crops
    assert after.regions == (), "the next question about this picture asks about all of it"


def test_an_empty_question_ends_no_editing():
    handlers = ChatHandlers(ModelRegistry(Speaking()), ())
    _, _, changing, _ = handlers.edit(0, typed(""), two_exchanges(), Window())
    _, after, notice = run(handlers.send(typed(" "), changing, Window(), 0, *VALUES))
    assert after.changing == 0
    assert "There is no question yet" in notice
    assert "Cancel editing" in notice


def test_an_answer_goes_on_with_the_settings_that_it_had():
    engine = Speaking("There are three.")
    asked = Request((Turn("user", "How many?"),), "Be brief.", True, max_new_tokens=2, visitor="before the reload")
    done = DoneEvent("There are", replace(STATS, stop_reason="length"), (5, 6))
    cut = Exchange(Turn("user", "How many?"), True, Answered(asked, done))
    _, after, notice = run(ChatHandlers(ModelRegistry(engine), ()).go_on(Conversation((cut,)), Window(), *VALUES))
    assert engine.requests == [replace(asked, answer_so_far=(5, 6), max_new_tokens=8, visitor="one")]
    (exchange,) = after.exchanges
    assert (exchange.answer, exchange.pan_and_scan, notice) == ("There are three.", True, "")
    assert exchange.answered.request.answer_so_far == ()
    assert exchange.answered.request.max_new_tokens == 2 + 8, "a replay is as long as both parts"


def test_editing_can_be_given_up():
    handlers = ChatHandlers(ModelRegistry(Speaking()), ())
    _, _, changing, _ = handlers.edit(1, typed("half a question", "/cache/b.png"), two_exchanges(), Window())
    shown, box, kept, notice = handlers.keep(changing, Window())
    assert (kept, notice, len(shown)) == (two_exchanges(), "", 4)
    assert box["value"] == {"text": "half a question", "files": ["/cache/b.png"]}


def test_what_can_be_brought_back_outlasts_an_edit_that_is_given_up():
    handlers = ChatHandlers(ModelRegistry(Speaking("Right.")), ())
    _, retried, _ = run(handlers.retry(1, two_exchanges(), Window(), *VALUES))
    _, _, changing, notice = handlers.edit(0, typed(""), retried, Window())
    assert "Bring it back" not in notice
    assert all(part == gr.skip() for part in handlers.restore(typed(""), changing, Window()))  # a click before the edit
    _, _, kept, notice = handlers.keep(changing, Window())
    assert "Bring it back" in notice
    assert handlers.restore(typed(""), kept, Window())[2] == two_exchanges()


def test_an_edited_question_without_an_answer_leaves_the_conversation_whole():
    handlers = ChatHandlers(ModelRegistry(Speaking(Gemma3Error("The conversation has 9,000 tokens."))), ())
    _, _, changing, _ = handlers.edit(0, typed(""), two_exchanges(), Window())
    shown, after, notice = run(handlers.send(typed("word " * 9000), changing, Window(), 0, *VALUES))
    assert after.exchanges == two_exchanges().exchanges
    assert "9,000 tokens" in shown[-1]["content"][0].value
    assert after.changing == 0
    assert "Editing question 1" in notice
    assert handlers.hand_back(after, Window())[2]["value"]["text"].startswith("word word")


@pytest.mark.parametrize("number", [-1, 2, None])
def test_a_question_that_there_is_not_is_not_edited(number):
    update = ChatHandlers(ModelRegistry(Speaking()), ()).edit(number, typed(""), two_exchanges(), Window())
    assert all(set(part) == {"__type__"} for part in update)


def test_undo_takes_the_last_question_back_before_what_is_typed_already():
    before = two_exchanges().add(exchange_of(question_of("Who?", ["/cache/a.png"]), "I.", pan_and_scan=True))
    handlers = ChatHandlers(ModelRegistry(Speaking()), ())
    shown, box, after, notice = handlers.undo(2, typed("and you"), before, Window())
    assert (after.exchanges, len(shown)) == (two_exchanges().exchanges, 4)
    assert box["value"] == {"text": "Who?\n\nand you", "files": ["/cache/a.png"]}
    assert "Bring it back" in notice
    assert handlers.restore(typed(""), after, Window())[2] == before
    for stale in (2, 0, None):  # the second of two clicks takes nothing more
        assert all(part == gr.skip() for part in handlers.undo(stale, typed("Who?"), after, Window()))


def cleared(handlers, conversation, draft=""):
    return asyncio.run(handlers.clear(typed(draft), conversation, Window()))


def test_a_second_new_chat_leaves_what_the_first_one_replaced():
    handlers = ChatHandlers(ModelRegistry(Speaking()), ())
    _, _, new, notice = cleared(handlers, two_exchanges(), "half a")
    _, _, newer, again = cleared(handlers, new, "question")
    assert "Bring it back" in notice
    assert again == notice
    _, _, same, _ = cleared(handlers, new, "half a")  # it left the browser before the first one emptied the composer
    assert same.before.returned.text == "half a"
    _, box, back, notice = handlers.restore(typed(""), newer, Window())
    assert (back, notice) == (two_exchanges(), "")
    assert box["value"]["text"] == "half a\n\nquestion"


def test_of_a_conversation_that_the_server_has_forgotten_nothing_is_asked():
    """After an hour away, or when 500 windows came since: asked now, the question would be the first of a new one."""
    engine = Speaking("A heart.")
    handlers = ChatHandlers(ModelRegistry(engine), ())
    _, after, notice = run(handlers.send(typed("And this?", "/cache/a.png"), Conversation(), Window(), 1, *VALUES))
    assert (engine.requests, after.exchanges) == ([], ())
    assert after.returned == question_of("And this?", ["/cache/a.png"])
    assert "had forgotten this conversation" in notice
    emptied = two_exchanges().up_to(0)  # by Undo, of which the browser may not know yet
    _, after, _ = run(handlers.send(typed("And this?"), replace(emptied, id="known"), Window(), 2, *VALUES))
    assert [exchange.answer for exchange in after.exchanges] == ["A heart."]


def test_a_question_that_lacks_something_leaves_what_can_be_brought_back():
    handlers = ChatHandlers(ModelRegistry(Speaking(Gemma3Error("no"))), ())
    _, _, new, _ = cleared(handlers, two_exchanges())
    _, after, notice = run(handlers.send(typed(""), new, Window(), 0, *VALUES))
    assert "There is no question yet" in notice
    assert "Bring it back" in notice
    _, _, notice = run(handlers.send(typed("Who?"), after, Window(), 0, *VALUES))
    assert "Bring it back" in notice


class Waiting(Speaking):
    """Says what it does, and then nothing until it may end."""

    def __init__(self):
        super().__init__()
        self.may_end = threading.Event()

    def stream(self, request, _stop=None):
        self.requests.append(request)
        yield StageEvent("reading", "Reading 9 tokens")
        self.may_end.wait(10)
        yield DoneEvent("It is.", STATS)


def while_answering(handlers, begun, does):
    """What `does()` gives while the answer that `begun` asks for is being written."""

    async def go():
        async def asking():
            async for _ in begun:
                pass

        asked = asyncio.create_task(asking())
        while Window().session_hash not in handlers.running:
            await asyncio.sleep(0.01)
        try:
            return await does()
        finally:
            handlers._models.first.may_end.set()
            await asked

    return asyncio.run(go())


@pytest.mark.parametrize("act", ["card", "retry", "look_closer"])
def test_a_second_click_while_an_answer_is_written_changes_nothing(act):
    conversation, engine = Conversation((seen("It is too small."),)), Waiting()
    handlers = ChatHandlers(ModelRegistry(engine), load_examples())
    click = gr.SelectData(None, {"index": 0, "value": None})
    acts = {
        "card": lambda: handlers.ask_example(conversation, Window(), click, *VALUES),
        "retry": lambda: handlers.retry(0, conversation, Window(), *VALUES),
        "look_closer": lambda: handlers.look_closer(0, "", "", conversation, Window(), *VALUES),
    }

    async def second():
        return [update async for update in acts[act]()]

    assert while_answering(handlers, acts[act](), second) == [(gr.skip(),) * 4]
    assert len(engine.requests) == 1


class Reading(Waiting):
    """Reads the sizes of a conversation's pictures, one of 100 by 100 pixels, once it may."""

    def __init__(self):
        super().__init__()
        self.read = 0

    def inspect(self, _request):
        self.read += 1
        self.may_end.wait(10)
        return PromptView((), (SimpleNamespace(box=Box(0, 0, 100, 100), crop=None),))


REGION = "0 0.1 0.1 0.5 0.5"


def test_no_region_is_looked_at_while_an_answer_is_written():
    conversation, engine = Conversation((seen("It is too small."),)), Reading()
    handlers = ChatHandlers(ModelRegistry(engine), ())

    async def second():
        return [update async for update in handlers.look_closer(0, REGION, "", conversation, Window(), *VALUES)]

    assert while_answering(handlers, handlers.retry(0, conversation, Window(), *VALUES), second) == [(gr.skip(),) * 4]
    assert engine.read == 0


def test_of_regions_that_one_window_draws_at_once_the_first_is_looked_at():
    conversation, engine = Conversation((seen("It is too small."),)), Reading()
    handlers = ChatHandlers(ModelRegistry(engine), ())

    async def look():
        return [update async for update in handlers.look_closer(0, REGION, "", conversation, Window(), *VALUES)]

    async def looks():
        first = asyncio.ensure_future(look())
        while not engine.read:
            await asyncio.sleep(0.01)
        others = [await look() for _ in range(3)]
        engine.may_end.set()
        return await first, others

    first, others = asyncio.run(looks())
    assert others == [[(gr.skip(),) * 4]] * 3
    assert engine.read == 1
    assert first[-1][2].exchanges[0].question.crops == ((Box(10, 10, 50, 50),),)


def asked_about(region, text):
    """What the handlers do, and the engine; the conversation has an answer about a picture and one without any."""
    conversation, engine = Conversation((seen("It is too small."), *two_exchanges().exchanges[:1])), Reading()
    engine.may_end.set()
    handlers = ChatHandlers(ModelRegistry(engine), ())

    async def updates():
        return [update async for update in handlers.look_closer(0, region, text, conversation, Window(), *VALUES)]

    return conversation, asyncio.run(updates())[-1], engine


def test_a_text_about_a_region_is_a_new_question_after_all_others_with_the_region_as_a_crop():
    before, (_, _, after, _), engine = asked_about(REGION, "What is this?")
    assert after.exchanges[:-1] == before.exchanges
    question = after.exchanges[-1].question
    assert (question.text, question.crops) == ("What is this?", ((Box(10, 10, 50, 50),),))
    assert question.pictures == before.exchanges[0].question.pictures
    assert after.exchanges[-1].first is None
    assert engine.requests[0].turns[-1] == question


@pytest.mark.parametrize("region", ["", "1 0.1 0.1 0.5 0.5", "0 0.1 0.1 0.1 0.1"])
def test_a_text_about_a_region_that_is_none_is_not_asked_comes_back_and_says_why(region):
    before, (_, _, conversation, notice), engine = asked_about(region, "What is this?")
    assert conversation == replace(before, returned=question_of("What is this?", []))
    assert re.search("Draw a (larger one|box on one of the pictures)", notice)
    assert engine.requests == []


def test_a_text_about_a_region_comes_back_where_another_answer_is_being_written():
    conversation = Conversation((seen("It is too small."),))

    def asked_during(begin):
        handlers = ChatHandlers(ModelRegistry(Reading()), ())

        async def ask():
            about = handlers.look_closer(0, REGION, "What is this?", conversation, Window(), *VALUES)
            return [update async for update in about]

        return while_answering(handlers, begin(handlers), ask)

    [(_, _, after, notice)] = asked_during(
        lambda handlers: handlers.send(typed("And?"), conversation, Window(), 1, *VALUES)
    )
    assert after == replace(conversation, returned=question_of("What is this?", []))
    assert "Another answer is still being written. Your question is back below." in notice
    second_click = asked_during(
        lambda handlers: handlers.look_closer(0, REGION, "What is this?", conversation, Window(), *VALUES)
    )
    assert second_click == [(gr.skip(),) * 4]


def test_a_text_about_a_region_waits_for_an_edit_to_end():
    conversation = replace(two_exchanges(), changing=0, aside=question_of("half a thought", []))
    handlers = ChatHandlers(ModelRegistry(Reading()), ())
    _, waiting, notice = run(handlers.look_closer(1, REGION, "What is this?", conversation, Window(), *VALUES))
    assert "comes back below when the edit ends" in notice
    assert "Cancel editing" in notice
    _, box, _, _ = handlers.keep(waiting, Window())
    assert box["value"]["text"] == "What is this?\n\nhalf a thought"


def test_a_text_about_a_region_of_an_answer_that_is_gone_comes_back():
    handlers = ChatHandlers(ModelRegistry(Reading()), ())
    _, after, notice = run(handlers.look_closer(3, REGION, "What is this?", two_exchanges(), Window(), *VALUES))
    assert after.returned.text == "What is this?"
    assert "The answer with this picture is gone" in notice


@pytest.mark.parametrize("text", ["", "What is this?"])
def test_what_is_cleared_while_its_region_is_looked_at_is_not_asked(text):
    conversation, engine = Conversation((seen("It is too small."),)), Reading()
    handlers = ChatHandlers(ModelRegistry(engine), ())

    async def cleared_meanwhile():  # without waiting for the look
        return await asyncio.wait_for(handlers.clear(typed(""), conversation, Window()), 5)

    begun = handlers.look_closer(0, REGION, text, conversation, Window(), *VALUES)
    cleared = while_answering(handlers, begun, cleared_meanwhile)[2]
    assert cleared.exchanges == ()
    assert cleared.before.returned == question_of(text, [])  # "Bring it back" has it
    assert engine.requests == []


def test_a_question_sent_while_an_answer_is_written_comes_back():
    handlers = ChatHandlers(ModelRegistry(Waiting()), ())

    async def second():
        again = handlers.send(typed("And?"), two_exchanges(), Window(), 0, *VALUES)
        return [update async for update in again]

    begun = handlers.send(typed("Who?"), two_exchanges(), Window(), 0, *VALUES)
    [(_, _, conversation, _)] = while_answering(handlers, begun, second)
    assert conversation.returned.text == "And?"


def test_a_new_chat_while_an_answer_is_written_brings_its_question_back():
    for conversation, retries in ((Conversation(), False), (two_exchanges(), True)):
        handlers = ChatHandlers(ModelRegistry(Waiting()), ())
        begun = (
            handlers.retry(1, conversation, Window(), *VALUES)
            if retries
            else handlers.send(typed("Who?", "/cache/a.png"), conversation, Window(), 0, *VALUES)
        )
        clear = partial(handlers.clear, typed("And"), conversation, Window())
        _, _, new, notice = while_answering(handlers, begun, clear)
        assert "Bring it back" in notice
        draft = {"text": "And", "files": []} if retries else {"text": "Who?\n\nAnd", "files": ["/cache/a.png"]}
        assert handlers.restore(typed(""), new, Window())[1]["value"] == draft


def test_a_conversation_stays_one_entry_of_the_browser():
    handlers = ChatHandlers(ModelRegistry(Speaking("A heart.", "Mine.", "A star.")), ())
    _, one, _ = run(handlers.send(typed("Which?"), Conversation(), Window(), 0, *VALUES))
    _, two, _ = run(handlers.retry(0, one, Window(), *VALUES))
    _, _, changing, _ = handlers.edit(0, typed(""), two, Window())
    _, _, kept, _ = handlers.keep(changing, Window())
    _, _, undone, _ = handlers.undo(0, typed(""), kept, Window())
    _, _, new, _ = cleared(handlers, two)
    _, _, back, _ = handlers.restore(typed(""), new, Window())
    assert {one.id, two.id, changing.id, kept.id, undone.id, back.id} == {one.id}
    _, other, _ = run(handlers.send(typed("What?"), new, Window(), 0, *VALUES))
    assert len({"", one.id, other.id}) == 3


@pytest.mark.parametrize("answer", ["", Gemma3Error("no"), RuntimeError("no")])
def test_a_retry_without_an_answer_keeps_the_earlier_one(answer):
    shown, after, _ = run(
        ChatHandlers(ModelRegistry(Speaking(answer)), ()).retry(1, two_exchanges(), Window(), *VALUES)
    )
    assert after.exchanges == two_exchanges().exchanges
    assert after.returned == NOTHING
    assert "failure" in shown[-1]["content"][0].value


LOOKED = replace(DEMO, is_demo=False)


def seen(answer: str, *probabilities: float) -> Exchange:
    """An answer about a picture, with the probabilities of its tokens."""
    question = question_of("What does it say?", ["/cache/a.png"])
    tokens = TokenChoices(choice(5, "a", probability) for probability in probabilities or (0.9,))
    return replace(exchange_of(question, answer), choices=tokens)


@pytest.mark.parametrize(
    ("exchange", "info", "reason"),
    [
        (seen("The sign says stop."), LOOKED, ""),
        (seen("The sign says stop.", 0.2, 0.9), LOOKED, UNSURE),
        (
            seen("The sign says stop, and much more.", *[0.2] * 33),
            LOOKED,
            "",
        ),  # so long that each word could be another
        (seen("The sign says stop.", 0.2, 0.9), DEMO, ""),  # crops of scenes mislead it
        (seen("The writing is too small to read. Switch pan & scan on."), DEMO, TOO_SMALL),
        (seen("I can’t make out the name."), LOOKED, TOO_SMALL),
        (seen("Die Schrift ist unleserlich."), LOOKED, TOO_SMALL),
        (exchange_of(question_of("Too small?", []), "It is too small to read."), LOOKED, ""),
        (replace(seen("It is too small."), first=seen("It is too small.")), LOOKED, ""),
        (seen("It is too small."), None, ""),
    ],
)
def test_a_closer_look_is_offered_where_it_may_help(exchange, info, reason):
    assert reason_to_look_closer(exchange, info) == reason


def test_whether_pictures_mattered_is_checked_while_nobody_else_asks():
    engine, choices = Speaking(), Choices(*VALUES)
    models, asked = ModelRegistry(engine), question_of("What is it?", ["/cache/a.png"])

    def checks(question, conversation=None):
        return request_for(models, question, conversation or Conversation(), choices, "one").check_pictures

    assert checks(asked)
    assert not checks(question_of("And now?", []), two_exchanges())
    assert not checks(question_of("What is it? " * 500, ["/cache/a.png"]))
    engine.queue.enter("another")
    assert not checks(asked)


@pytest.mark.parametrize(("effect", "told"), [(None, False), (0.01, True), (0.5, False)])
def test_an_answer_says_when_its_picture_changed_nothing(effect, told):
    exchange = seen("There is no sign.")
    done = replace(exchange.answered.done, picture_effect=effect)
    conversation = Conversation((replace(exchange, answered=replace(exchange.answered, done=done)),))
    *_, message = ChatHandlers(ModelRegistry(Speaking()), ()).messages(conversation)
    assert (PICTURE_CHANGED_NOTHING in message["content"][-1].value) is told


def test_a_closer_look_asks_again_with_crops_and_keeps_both_answers():
    engine = Speaking("The sign says 30.", "And that is all.")
    handlers = ChatHandlers(ModelRegistry(engine), ())
    small = seen("The writing is too small to read.")
    shown, after, notice = run(handlers.look_closer(0, "", "", Conversation((small,)), Window(), *VALUES))
    (exchange,) = after.exchanges
    assert (exchange.answer, exchange.first, exchange.question.crops) == ("The sign says 30.", small, ("auto",))
    assert "The next question reads the new answer." in notice
    assert after.before.exchanges == (small,)  # and can be brought back
    words = [str(getattr(part, "value", part)) for part in shown[-1]["content"]]
    assert ["At first sight" in words[0], "too small" in words[1], "2 crops" in words[2], "30" in words[3]] == [
        True
    ] * 4
    follow_up = question_of("Anything else?", [])
    assert after.turns(follow_up)[:2] == (
        replace(small.question, crops=("auto",), pan_and_scan=False),
        Turn("assistant", "The sign says 30."),
    )
    _, again, _ = run(handlers.retry(0, after, Window(), *VALUES))
    assert (again.exchanges[0].first, again.exchanges[0].question.crops) == (small, ("auto",))


def test_a_closer_look_at_a_question_without_pictures_takes_the_latest_ones():
    engine = Speaking("It says 30.")
    looked = exchange_of(question_of("Look", ["/cache/a.png"]), "Yes.")
    conversation = Conversation((looked,))
    asked = Request(conversation.turns(question_of("Read it", [])))
    unread = Exchange(asked.turns[-1], False, Answered(asked, DoneEvent("I cannot read it.", STATS)))
    _, after, _ = run(
        ChatHandlers(ModelRegistry(engine), ()).look_closer(1, "", "", conversation.add(unread), Window(), *VALUES)
    )
    assert after.exchanges[1].question == replace(question_of("Read it", ["/cache/a.png"]), crops=("auto",))


def test_a_region_becomes_a_crop_of_the_picture_that_it_is_on():
    turns = (
        Turn("user", "Look", (Path("a.png"),)),
        Turn("assistant", "Yes."),
        question_of("Read it", ["b.png", "c.png"]),
    )
    asked = Exchange(turns[-1], False, Answered(Request(turns), DoneEvent("I cannot read it.", STATS)))
    box = Box(1, 2, 30, 40)
    assert closer_question(asked, (2, box)) == replace(turns[-1], crops=(None, (box,)))
    timed = replace(turns[-1], captions=("0:12", "0:24"))
    assert closer_question(replace(asked, question=timed), (0, box)).captions == ("", "0:12", "0:24")
    earlier = closer_question(asked, (0, box))
    assert (earlier.pictures, earlier.crops) == ((Path("a.png"), *turns[-1].pictures), ((box,), None, None))


@pytest.mark.parametrize("answer", ["", Gemma3Error("no"), RuntimeError("no")])
def test_a_closer_look_without_an_answer_keeps_the_earlier_one(answer):
    before = Conversation((seen("It is too small."),))
    handlers = ChatHandlers(ModelRegistry(Speaking(answer)), ())
    _, after, _ = run(handlers.look_closer(0, "", "", before, Window(), *VALUES))
    assert after.exchanges == before.exchanges
    assert after.returned == NOTHING


@pytest.mark.parametrize("number", [-1, 7, None])
def test_what_is_not_there_is_not_looked_at_closer(number):
    text = Conversation((exchange_of(question_of("What?", []), "A star."),))
    for place in (number, 0):
        shown, after, _ = run(
            ChatHandlers(ModelRegistry(Speaking("No.")), ()).look_closer(place, "", "", text, Window(), *VALUES)
        )
        assert (shown, after) == (None, None)


def test_a_retry_replaces_the_last_answer():
    engine = Speaking("Right.")
    _, after, _ = run(ChatHandlers(ModelRegistry(engine), ()).retry(1, two_exchanges(), Window(), *VALUES))
    assert [exchange.answer for exchange in after.exchanges] == ["A star.", "Right."]
    assert [turn.text for turn in engine.requests[0].turns] == ["What?", "A star.", "Where?"]


def test_a_question_sent_while_another_is_answered_comes_back():
    handlers = ChatHandlers(ModelRegistry(Speaking("Right.")), ())

    async def both():
        first = handlers.send(typed("One?"), Conversation(), Window(), 0, *VALUES)
        await anext(first)
        await anext(first)  # the engine has begun
        second = [update async for update in handlers.send(typed("Two?"), Conversation(), Window(), 0, *VALUES)]
        other = [update async for update in handlers.send(typed("Three?"), Conversation(), Window("two"), 0, *VALUES)]
        await first.aclose()
        return second, other

    handlers._models.first.answers.append("Left.")
    second, other = asyncio.run(both())
    assert [update[2].returned.text for update in second] == ["Two?"]
    assert other[-1][2].exchanges[0].answer == "Left."


def test_send_comes_back_only_when_nothing_of_the_window_is_running():
    handlers = ChatHandlers(ModelRegistry(Speaking("Right.")), ())

    async def buttons():
        answer = handlers.send(typed("What?"), Conversation(), Window(), 0, *VALUES)
        updates = [await anext(answer)]
        during = [handlers.hand_back(Conversation(), window)[0] for window in (Window(), Window("two"))]
        updates += [update async for update in answer]
        return updates, [*during, handlers.hand_back(Conversation(), Window())[0]]

    updates, handed = asyncio.run(buttons())
    # Gradio repeats the last update of a generator late, and drops what a later one no longer holds.
    assert all((update[1]["submit_btn"], update[1]["stop_btn"]) == (False, True) for update in updates)
    assert [box["stop_btn"] for box in handed] == [True, False, False]
    assert [box["submit_btn"] for box in handed] == [False, True, True]


def test_stop_brings_send_back_where_nothing_runs():
    handlers = ChatHandlers(ModelRegistry(Speaking("Right.")), ())

    async def stopped():
        answer = handlers.send(typed("What?"), Conversation(), Window(), 0, *VALUES)
        await anext(answer)
        during = await handlers.stop(Window())
        await answer.aclose()
        return during, await handlers.stop(Window())

    during, after = asyncio.run(stopped())
    assert set(during) == {"__type__"}
    assert (after["submit_btn"], after["stop_btn"]) == (True, False)


def test_enter_while_the_composer_shows_stop_asks_nothing():
    shown, after, notice = run(
        ChatHandlers(ModelRegistry(Speaking()), ()).send(None, Conversation(), Window(), 0, *VALUES)
    )
    assert (shown, after, notice) == (None, None, None)


def test_a_preview_that_was_overtaken_changes_nothing():
    class Slow(Speaking):
        def preview(self, pictures, _pan_and_scan, _crops):
            if pictures and pictures[0].name == "first.png":
                newer.append(handlers.previews.preview(typed("", "/cache/second.png"), False, Conversation(), Window()))
            raise Gemma3Error(f"Said of {pictures[0].name}.")

    newer, handlers = [], ChatHandlers(ModelRegistry(Slow()), ())
    older = handlers.previews.preview(typed("", "/cache/first.png"), False, Conversation(), Window())
    assert not handlers.previews._newest  # of a window that never opened nobody would say that it has closed
    assert older == gr.skip()
    assert "Said of second.png." in newer[0]


def test_a_broken_picture_is_told_once():
    class Refusing(Speaking):
        def preview(self, _pictures, _pan_and_scan, _crops):
            raise Gemma3Error("The picture is empty.")

    handlers, message = ChatHandlers(ModelRegistry(Refusing()), ()), typed("What?", "/cache/a.png")
    assert "The picture is empty." in handlers.previews.preview(message, False, Conversation(), Window())
    told = Conversation(failure="The picture is empty.")
    assert handlers.previews.preview(message, False, told, Window()) == ""
    other = Conversation(failure="The conversation has 9,000 tokens.")
    assert "The picture is empty." in handlers.previews.preview(message, False, other, Window())


def test_reasons_and_stages_are_text_not_html():
    for message in (chat.failed("<b>no</b> {{x}} ${1}"), chat.working("<b>no</b>")):
        assert "<b>" not in message["content"][0].value


def test_first_sight_says_the_demo_models_world_and_the_way_out():
    text = chat.first_sight(DEMO)
    for word in ("shapes", "signs", "bar charts", "price boards", "eleven colors", "pan & scan"):
        assert word in text
    assert "python app.py --model google/gemma-3-4b-it" in text
    before, after = text.split("<details>")
    assert before.count(".") == 1  # one sentence; the limits are behind a link
    assert "eleven colors" in after
    other = chat.first_sight(changed(DEMO, name="gemma-3-4b-it", is_demo=False))
    assert "gemma\\" not in other
    assert "eleven" not in other
    assert "text only" in chat.first_sight(changed(DEMO, is_demo=False, multimodal=False))


def test_badge():
    shown = "demo model · 4.4M weights · full precision · on the CPU"
    assert chat.badge(DEMO) == f'<span title="float32 on cpu">{shown}</span>'
    assert "on a GPU" in chat.badge(changed(DEMO, device="cuda:0"))
    assert "· 4.3B weights ·" in chat.badge(changed(DEMO, num_parameters=4_300_079_472))


def test_the_badge_holds_both_precisions_where_the_int4_switch_chooses():
    assert "4-bit weights" in chat.badge(changed(DEMO, quantization="int4"))
    full, int4 = re.findall(
        '<span class="(.*?)" title="(.*?)">', chat.badge(changed(DEMO, int4=Int4Choice(False, "", 2, 1)))
    )
    assert (full, int4) == (("if-full", "float32 on cpu"), ("if-int4", "int4 on cpu"))


def test_the_short_line_says_model_and_time_and_how_it_ended():
    assert short_line(STATS) == "demo model · 0.4 s"  # 0.21 s and 14 tokens at 63.7 tokens/s
    assert short_line(replace(STATS, time_to_first_token_s=None, tokens_per_s=None)) == "demo model"
    assert short_line(replace(STATS, new_tokens=256, stop_reason="length")).endswith("cut at 256 tokens")
    assert short_line(replace(STATS, new_tokens=1, tokens_per_s=None, stop_reason="cancelled")).endswith("stopped")


def test_the_int4_switch_says_what_it_saves_or_why_it_is_not_there():
    choice = Int4Choice(False, "", 8_600_158_944, 3_412_000_000)
    line = int4_line(choice)
    assert "3.4 GB of memory instead of 8.6 GB" in line
    assert "can't" not in line
    assert "8.4 MB" in int4_line(changed(choice, int4_bytes=8_373_248))
    assert "2 of its layers can't be int4" in int4_line(changed(choice, left=("a", "b")))
    assert int4_line(changed(choice, obstacle="No kernel here.")) == "No kernel here."


@pytest.mark.parametrize("int4", [None, Int4Choice(True, "", 2, 1), Int4Choice(False, "No kernel here.", 2, 1)])
def test_the_int4_switch_starts_as_the_server_and_is_fixed_where_there_is_no_choice(int4):
    with chat.gr.Blocks():
        settings = build_settings(changed(DEMO, int4=int4))
    names = list(Choices.__annotations__)
    assert len(settings.inputs) == len(names)
    assert settings.inputs[names.index("int4")].value == (int4 and int4.default)
    assert (settings.int4 is None) == (int4 is None)
    if int4 is not None:
        assert settings.int4.interactive == (not int4.obstacle)


def test_settings_become_sampling():
    assert Choices(True, "", 0.7, 40.0, 0.9, " 3 ", 64.0).own_sampling(None) == PartialSampling(0.7, 40, 0.9, 3)
    assert Choices(False, "", 0, 0, 1, "", 64).own_sampling(None).seed is None
    with pytest.raises(Gemma3Error, match="Temperature"):
        Choices(False, "", 3.0, 0, 1, "", 64).own_sampling(None)
    for wrong in ("-1", "1.5", "abc", "9" * 30):
        with pytest.raises(Gemma3Error, match="seed"):
            Choices(False, "", 0.0, 0, 1, wrong, 64).own_sampling(None)


class FakeBox:
    left, top, right, bottom = 100, 0, 200, 100


def preview(**fields):
    picture = Image.new("RGB", (200, 100), "red")
    square = Image.new("RGB", (64, 64), "red")
    basis = {
        "width": 200, "height": 100, "original": picture, "tiles": (square, square), "boxes": (FakeBox(),),
        "tokens": 128, "note": "One crop & no <more>.",
    }  # fmt: skip
    return PicturePreview(**{**basis, **fields})


def test_strip_shows_tiles_tokens_and_boxes():
    html = strip.strip_html([preview()], 1, pan_and_scan=True)
    assert "What the model will see: 2 tiles, 128 tokens" in html
    assert html.count("<img") == 3  # the original with its boxes, the whole, one crop
    assert html.count("64 tokens") == 2
    assert "left:50.00%;top:0.00%;width:50.00%;height:100.00%" in html
    assert "One crop &amp; no &lt;more&gt;." in html
    assert set(re.findall(r'src="(.{5})', html)) == {"data:"}


def test_strip_says_of_several_pictures_which_is_which():
    def names(html: str) -> list[str]:
        return re.findall(r"<figcaption>([^<]*)<", html)

    assert names(strip.strip_html([preview()], 1, True)) == ["original", "whole picture", "crop 1"]
    two = strip.strip_html([preview(tiles=preview().tiles[:1], boxes=(), tokens=64), preview()], 2, True)
    assert names(two) == ["picture 1", "picture 2, original", "picture 2", "picture 2, crop 1"]


def test_strip_without_crops_and_without_pictures():
    html = strip.strip_html([preview(tiles=preview().tiles[:1], boxes=(), tokens=64)], 1, False, answered=True)
    assert "What the model saw: 1 tile, 64 tokens" in html
    assert html.count("<img") == 1
    assert "One crop" not in html  # the switch is off: nothing to explain
    assert strip.strip_html([], 0, True) == ""


def test_examples_are_drawn_by_their_command(tmp_path):
    from training.examples import EXAMPLES, write
    from training.worlds.scenes.scenes import Scene

    write(tmp_path)
    assert json.loads((tmp_path / "examples.json").read_text()) == json.loads((FOLDER / "examples.json").read_text())
    for example in EXAMPLES:
        for file, depiction in zip(example.files, example.depictions, strict=True):
            drawn, kept = (np.asarray(Image.open(folder / file)) for folder in (tmp_path, FOLDER))
            apart = np.abs(drawn.astype(int) - kept.astype(int))
            # The smoothing's last bit may differ between Pillow's builds, and the rims of letters between Freetype's.
            assert apart.max() <= 2 if isinstance(depiction, Scene) else apart.mean() <= 0.5


def test_example_pictures_lie_inside_the_demo_models_worlds():
    from training.drawing.backgrounds import MIN_CONTRAST
    from training.drawing.colors import delta_e, is_clear, to_lab
    from training.examples import EXAMPLES
    from training.worlds.boards.boards import LEAST_IN_CROP, MOST_IN_WHOLE, Board
    from training.worlds.charts.charts import Chart
    from training.worlds.elsewhere import SORTS, Strange
    from training.worlds.registry import ALL_KINDS
    from training.worlds.scenes.scenes import LARGEST, SMALLEST, Scene, is_heldout_pair
    from training.worlds.signs.signs import LEAST_CAP_HEIGHT, MOST_CHARACTERS, Sign, is_heldout_text
    from training.worlds.signs.two_lines import TwoLines

    assert {asked.kind for example in EXAMPLES for asked in example.asked} <= set(ALL_KINDS)
    pictures = [(example.name, depiction) for example in EXAMPLES for depiction in example.depictions]
    assert {type(picture) for _, picture in pictures} == {Scene, Sign, TwoLines, Chart, Board, Strange}
    for name, picture in pictures:
        side = min(picture.width, picture.height)
        for item in picture.objects if isinstance(picture, Scene) else ():
            assert is_clear(item.rgb, item.color), (name, item.shape, item.color)
            assert SMALLEST <= item.size / side <= LARGEST
            assert delta_e(to_lab(item.rgb), to_lab(picture.background.colors[0])) > MIN_CONTRAST
            assert item.radius <= min(item.x, item.y, picture.width - item.x, picture.height - item.y)
            assert not is_heldout_pair(item.shape, item.color)
        for line in picture.lines if isinstance(picture, Sign | TwoLines) else ():
            assert is_clear(line.rgb, line.color)
            assert delta_e(to_lab(line.rgb), to_lab(picture.plated.plate.fill)) > MIN_CONTRAST
            assert line.cap_height / side >= LEAST_CAP_HEIGHT
            assert len(line.text) <= MOST_CHARACTERS
            assert not is_heldout_text(line.text)
        for bar in picture.bars if isinstance(picture, Chart) else ():
            assert is_clear(bar.rgb, bar.color)
            assert bar.label.cap_height / side >= 0.05
            assert not is_heldout_text(bar.name)
        for entry in picture.entries if isinstance(picture, Board) else ():
            left, _, right, _ = entry.outer
            (box,) = [box for box in picture.boxes if box.left < left and right < box.right]
            assert not is_heldout_text(entry.item.text)
            for text in entry.texts:
                assert text.cap_height / (box.right - box.left) >= LEAST_IN_CROP
                assert text.cap_height / picture.width <= MOST_IN_WHOLE
                assert delta_e(to_lab(text.rgb), to_lab(picture.background.colors[0])) > MIN_CONTRAST
        if isinstance(picture, Strange):
            assert picture.sort in SORTS


def test_cards_have_pictures_words_for_them_and_questions():
    cards = load_examples()
    assert 4 <= len(cards) <= 12
    sizes = [Image.open(picture).size for card in cards for picture in card.pictures]
    assert any(max(size) == 2 * min(size) for size in sizes)
    for card in cards:
        assert all(picture.is_file() for picture in card.pictures)
        assert card.alt
        assert all(question.endswith("?") for question in card.questions)
        first, *further = card.turns()
        assert first.pictures == card.pictures
        assert not any(turn.pictures for turn in further)
    assert {len(card.pictures) for card in cards} == {len(card.questions) for card in cards} == {1, 2}


def test_a_card_says_which_settings_it_brings():
    plain = Example((Path("a.png"),), "a", ("What?",))
    cut = replace(plain, pan_and_scan=True)
    told = replace(plain, system_prompt="Be brief.")
    assert [card.text() for card in (plain, cut, told)] == [
        "What?",
        "What? (pan & scan on)",
        "What? (system prompt: Be brief.)",
    ]


def test_a_card_asks_with_what_it_brings_and_what_the_visitor_has_chosen():
    mine = Choices(True, "Mine", 0.0, 64, 0.95, "", 8)
    plain = Example((Path("a.png"),), "a", ("What?",))
    assert with_brought(mine, plain) == mine
    assert with_brought(replace(mine, pan_and_scan=False), replace(plain, pan_and_scan=True)) == mine
    assert with_brought(mine, replace(plain, system_prompt="Be brief.")).system_prompt == "Be brief."


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("body_text_color", "body_background_fill"),
        ("body_text_color_subdued", "body_background_fill"),
        ("body_text_color_subdued", "background_fill_secondary"),
        ("input_placeholder_color", "input_background_fill"),
        ("link_text_color", "body_background_fill"),
        ("button_primary_text_color", "button_primary_background_fill"),
        ("button_secondary_text_color", "button_secondary_background_fill"),
        ("body_text_color", "color_accent_soft"),
    ],
)
@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_aa(text, ground, dark):
    theme = build_theme()

    def color(name: str) -> str:
        value = getattr(theme, f"{name}_dark" if dark else name, None) or getattr(theme, name)
        while value.startswith("*"):
            key = value[1:]
            value = getattr(theme, f"{key}_dark" if dark and hasattr(theme, f"{key}_dark") else key)
        return {"white": "#ffffff", "black": "#000000"}.get(value, value)

    assert contrast(color(text), color(ground)) >= 4.5, (color(text), color(ground))


def test_avif_is_known_as_a_picture_where_the_system_does_not_say_so(monkeypatch):
    monkeypatch.setattr(mimetypes, "_db", mimetypes.MimeTypes())
    declare_pictures()
    assert get_mimetype("a.avif") == "image/avif"


def test_the_page_is_served_with_limits():
    options = launch_options(Page())
    assert options["max_file_size"] == 20_000_000
    assert "allowed_paths" not in options  # nothing of the disk; the gate serves the cards' pictures
    assert options["run_history"] is False
    assert options["strict_cors"] is True


def test_an_update_that_follows_another_is_sent_whole():
    page, three = Page(), SimpleNamespace(outputs=[None] * 3, api_visibility="public")
    shown, skipped = {"__type__": "update", "interactive": True}, {"__type__": "update"}

    def sent(data, final=False):
        return page.handle_streaming_diffs(three, data, "session", 1, final)

    assert sent([dict(shown), "The star", [1]]) == [shown, "The star", [1]]
    whole = [["replace", [], skipped]]
    assert sent([dict(skipped), "The star is", [1, 2]]) == [whole, [["append", [], " is"]], [["add", [1], 2]]]
    assert sent([dict(skipped), dict(skipped), [1, 2]]) == [[], whole, []]
    assert sent([None, None, None], final=True) == [skipped, skipped, [1, 2]]  # as programs are told
