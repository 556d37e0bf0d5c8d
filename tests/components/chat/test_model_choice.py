"""What follows the choice of a model, without a browser: settings, notes, two models compared by their words."""

import asyncio
import html
import re
from dataclasses import replace

import gradio as gr
import pytest
from window import DEMO as INFO
from window import STATS, Window, choice, run, typed

from components.chat.conversation import Conversation
from components.chat.handlers import ChatHandlers
from components.chat.model_choice import ModelChoiceHandlers
from components.inside.compare import _Side, both_requests, comparison_html, parting
from components.settings import Choices, adapter_note, build_settings, model_note
from gemma3_core.engine import (
    AdapterFacts,
    Int4Choice,
    ModelEntry,
    ModelRegistry,
    PartialSampling,
    Request,
    SamplingSettings,
    Turn,
)
from gemma3_core.errors import CheckpointError

DEMO = replace(INFO, sampling=SamplingSettings(0.0, 0, 1.0))
OTHER = replace(DEMO, name="<b>other", is_demo=False, sampling=SamplingSettings(1.0, 64, 0.95), multimodal=False)
HUB = ModelEntry("gemma-3-4b-it", "google/gemma-3-4b-it", from_hub=True, download_bytes=8_600_158_944)


def choices(*sampling, **fields):
    temperature, top_k, top_p = sampling or (0.0, 0, 1.0)
    return Choices(False, "", temperature, top_k, top_p, "", 8, **{"shown": "demo model", **fields})


def test_settings_left_alone_become_the_models_own_and_those_that_were_set_stay():
    left = choices().following(OTHER, DEMO)
    assert left.own_sampling(None) == PartialSampling(1.0, 64, 0.95)
    assert left.shown == OTHER.name
    assert choices(0.3, 0, 1.0).following(OTHER, DEMO).own_sampling(None) == PartialSampling(0.3, 64, 0.95)
    assert choices(0.3, 0, 1.0).own_sampling(DEMO).settings(OTHER.sampling) == SamplingSettings(0.3, 64, 0.95)
    assert choices(0.3, 0, 1.0).following(DEMO, DEMO) == choices(0.3, 0, 1.0)


@pytest.mark.parametrize(
    ("set_to", "choice_there", "becomes"),
    [
        (True, Int4Choice(False, "", 2, 1), True), (False, Int4Choice(True, "", 2, 1), None),
        (True, Int4Choice(False, "No kernel here.", 2, 1), None), (True, None, None),
    ],
)  # fmt: skip
def test_a_precision_that_was_chosen_stays_where_the_model_has_it(set_to, choice_there, becomes):
    shown, there = replace(DEMO, int4=Int4Choice(False, "", 2, 1)), replace(OTHER, int4=choice_there)
    assert choices(int4=set_to).following(there, shown).int4 is becomes


def test_a_note_says_what_a_choice_means_and_nothing_where_the_model_is_there():
    for word in ("8.6 GB", "downloads", "license", "HF_TOKEN"):
        assert word in model_note(HUB, None, in_memory=False)
    assert "downloads" not in model_note(ModelEntry("a", "/a"), None, in_memory=False)
    assert "Your next question loads this model" in model_note(HUB, DEMO, in_memory=False)  # let go meanwhile
    assert model_note(HUB, DEMO, in_memory=True) == model_note(None, DEMO, in_memory=False) == ""


ADAPTER = AdapterFacts(
    name="<b>mine", base="google/gemma-3-4b-it", ranks=(4, 16), targets=("q_proj", "fc1"),
    layers=(("decoder", 34), ("vision tower", 27)), replaced=("lm_head.weight",), num_parameters=31_680,
    num_bytes=126_720,
)  # fmt: skip


def test_the_note_on_an_adapter_says_name_rank_targets_and_size():
    adapted = replace(DEMO, adapter=ADAPTER)
    note = model_note(None, adapted, in_memory=True)
    words = html.unescape(re.sub("<[^>]*>", "", note.replace("</p>", "\n")))
    assert words.splitlines() == [
        "Adapter <b>mine · rank 4 to 16 · decoder: 34 of its layers · vision tower: 27 of its layers · "
        "weights of its own · 31,680 weights · 127 kB · kept beside the model",
        "q_proj, fc1, lm_head",
    ]
    assert "<b>" not in note
    whole = replace(ADAPTER, ranks=(), layers=(), merged=True)
    assert "rank" not in adapter_note(whole)
    assert "merged into the model" in adapter_note(whole)
    with gr.Blocks():
        settings = build_settings(adapted)
        assert (settings.model, settings.model_note.value) == (None, note)
        assert build_settings(DEMO).model_note is None


class Engine:
    """An engine that is asked nothing but its facts, or refuses."""

    def __init__(self, info):
        self.info, self.requests = info, []

    def stream(self, request, _stop=None):
        self.requests.append(request)
        raise CheckpointError("No answer here.")
        yield


def test_the_page_follows_when_the_model_is_loaded_and_not_before():
    other = Engine(OTHER)
    models = ModelRegistry(Engine(DEMO), [ModelEntry(OTHER.name, "/secret/other")], lambda _offer: other)
    following = ModelChoiceHandlers(models, lambda badge: badge)
    values = (False, "", 0.0, 0, 1.0, "", 8, None, OTHER.name, "demo model")
    shown, note, head, *rest = following.follow(*values)
    assert shown == gr.skip()
    assert "Your next question loads this model" in note
    assert head == "&lt;b&gt;other · not loaded yet"
    assert all(update == gr.skip() for update in rest)
    chat_handlers = ChatHandlers(models, ())
    message, after, _ = run(chat_handlers.send(typed("What?"), Conversation(), Window(), 0, *values))
    assert "No answer here." in str(message[-1]["content"][0].value)
    assert after.returned.text == "What?"
    # Its own, though the page showed another's.
    assert other.requests[0].settings(OTHER.sampling) == OTHER.sampling
    shown, note, head, pan_and_scan, *sampling, first, box = following.follow(*values)
    assert (shown, note, pan_and_scan["visible"]) == (OTHER.name, "", False)
    assert sampling == [1.0, 64, 0.95]
    assert head.startswith('<span title="float32 on cpu">&lt;b&gt;other · ')
    assert "reads text only" in first["placeholder"]
    assert box["placeholder"] == "Ask a question"
    with gr.Blocks():
        settings = build_settings(DEMO, models.names)
        outputs = following.outputs(settings, gr.HTML(), gr.Chatbot(), gr.MultimodalTextbox())
    assert len(outputs) == len(following.follow(*values)) == 9


def test_a_model_that_is_not_offered_is_refused_in_place():
    chat_handlers = ChatHandlers(ModelRegistry(Engine(DEMO)), ())
    values = (False, "", 0.0, 0, 1.0, "", 8, None, "/etc", "demo model")
    message, after, _ = run(chat_handlers.send(typed("What?"), Conversation(), Window(), 0, *values))
    assert "offers no model" in message[-1]["content"][0].value
    assert after.exchanges == ()


def test_two_models_get_the_same_question_and_seed():
    request = Request((Turn("user", "What?"),), sampling=SamplingSettings(1.0))
    one, other = both_requests(request, "model", SamplingSettings())
    assert one == other
    assert one.sampling.seed is not None


def test_texts_part_in_the_tokens_that_write_the_first_other_character():
    one, other = [choice(1, "The "), choice(2, "star")], [choice(7, "Th"), choice(8, "e st"), choice(9, "ep")]
    assert parting(one, other) == (1, 2)
    assert parting(one, [choice(5, "The star")]) == (None, None)
    assert parting(one, [choice(5, "The")]) == (0, None)


def test_tokens_of_different_vocabularies_are_compared_by_text():
    sides = [
        _Side(name, tokens=tokens, stats=STATS, vocabulary=name)
        for name, tokens in (("<a>", (choice(1, "red"),)), ("b", (choice(1, "re"), choice(2, "st"))))
    ]
    html = comparison_html(sides)
    assert html.count("<mark>") == 2
    assert "can't be compared one by one" in html
    assert "&lt;a&gt;" in html
    same = comparison_html([replace(side, vocabulary="v") for side in sides])
    assert "The answers part at token 2." in same


def test_a_model_is_not_compared_with_itself():
    from components.inside.compare import compared
    from gemma3_core.engine import Gemma3Error

    async def first(other):
        return await anext(compared(ModelRegistry(Engine(DEMO)), "demo model", Request(()), "model", other))

    for other in (None, "demo model"):
        with pytest.raises(Gemma3Error, match="Choose another model"):
            asyncio.run(first(other))
