"""Adapters in the engine: answers with and without them side by side, in both precisions, out of one set of weights."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import DECODER, save_adapter
from gguf_files import converted, rewritten
from lending import Lender
from PIL import Image

from gemma3_core.engine import DoneEvent, Engine, ModelRegistry, Request, SamplingSettings, StageEvent, TokenEvent, Turn
from gemma3_core.engine.adapted import AdaptedVariants
from gemma3_core.errors import AttentionError, CheckpointError, UnsupportedOptionError
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration

GREEDY = SamplingSettings(temperature=0.0)
NAME, ADAPTED = "small-model", "small-model + mine"


@pytest.fixture(scope="module")
def adapter(chat_folder, tmp_path_factory) -> Path:
    model = Gemma3ForConditionalGeneration.from_pretrained(chat_folder)
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    return save_adapter(model, folder, target_modules=[*DECODER, "fc1"], r=4, rank_pattern={"fc1": 2}, size=0.15)


@pytest.fixture(scope="module")
def other_adapter(chat_folder, tmp_path_factory) -> Path:
    model = Gemma3ForConditionalGeneration.from_pretrained(chat_folder)
    folder = tmp_path_factory.mktemp("adapters") / "other"
    options = {"modules_to_save": ["lm_head"], "r": 4}
    return save_adapter(model, folder, target_modules=["v_proj"], seed=5, size=0.2, **options)


def offered(folder: Path, *adapters: Path, **options: Any) -> ModelRegistry:
    """As ModelRegistry.load, with int4 of a group size that fits such a small model."""
    base = Engine.load(folder, device="cpu", int4_group_size=32, **options)
    first, *beside = [*(base.adapted(adapter) for adapter in adapters), base]
    return ModelRegistry(first, beside=beside)


@pytest.fixture(scope="module")
def models(chat_folder, adapter, other_adapter) -> ModelRegistry:
    return offered(chat_folder, adapter, other_adapter)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    noise = torch.randint(0, 256, (80, 200, 3), generator=torch.Generator().manual_seed(0))
    file = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(noise.to(torch.uint8).numpy()).save(file)
    return file


def ask(question: str, *pictures: Path, **options: Any) -> Request:
    return Request((Turn("user", question, pictures),), **{"max_new_tokens": 24, "sampling": GREEDY, **options})


def answered(models: ModelRegistry, name: str | None, request: Request) -> DoneEvent:
    *_, done = models.stream(name, request)
    assert isinstance(done, DoneEvent)
    return done


def test_the_first_adapter_answers_unless_another_or_the_base_is_chosen(models, picture):
    assert models.names == (ADAPTED, "small-model + other", NAME)
    request = ask("what is a color", picture)
    done = answered(models, None, request)
    assert done.stats.model == ADAPTED
    assert done == replace(answered(models, ADAPTED, request), stats=done.stats)
    different = {answered(models, name, request).token_ids for name in models.names}
    assert len(different) == 3
    revisions = {name: models.info(name).revision for name in models.names}
    assert revisions[ADAPTED].startswith(f"{revisions[NAME]}+")
    assert len(set(revisions.values())) == 3


@pytest.mark.parametrize("name", [ADAPTED, "small-model + other"])
def test_its_tokens_are_those_of_the_model_with_the_adapter(name, models, chat_folder, adapter, other_adapter, picture):
    folder = adapter if name == ADAPTED else other_adapter
    request = ask("what is a color", picture)
    alone = Engine.load(chat_folder, device="cpu", adapter=folder, merge_adapter=True)
    assert alone.info.name == name
    *_, done = alone.stream(request)
    assert answered(models, name, request).token_ids == done.token_ids


def test_base_and_adapter_answer_at_once_each_as_alone(models, picture):
    names = [ADAPTED, NAME, "small-model + other", ADAPTED, NAME]
    questions = [ask(f"question number {number}", picture, visitor=str(number)) for number in range(len(names))]
    alone = [answered(models, name, question) for name, question in zip(names, questions, strict=True)]
    together: dict[int, DoneEvent] = {}
    begin = threading.Barrier(len(names))

    def run(number: int) -> None:
        begin.wait()
        together[number] = answered(models, names[number], replace(questions[number], reuse=False))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, done in enumerate(alone):
        assert (together[number].token_ids, together[number].stats.model) == (done.token_ids, names[number])
    assert all(_engine(models, name).queue is models.first.queue for name in names)


def _engine(models: ModelRegistry, name: str) -> Engine:
    with models.held(name) as engine:
        assert engine is not None
        return engine


def test_the_weights_are_held_once_in_both_precisions(chat_folder, adapter):
    models = offered(chat_folder, adapter)
    base, adapted = _engine(models, NAME), _engine(models, ADAPTED)
    request = ask("what is a color", int4=True)
    for name in (ADAPTED, NAME):  # the adapter's first, which makes the base's too
        stages = [event.text for event in models.stream(name, request) if isinstance(event, StageEvent)]
        assert any("int4" in text for text in stages) == (name == ADAPTED)
    for int4 in (False, True):
        ours, theirs = adapted._precisions.model(int4), base._precisions.model(int4)
        assert ours is not theirs
        held = {tensor.data_ptr() for tensor in (*theirs.parameters(), *theirs.buffers())}
        own = [tensor for tensor in (*ours.parameters(), *ours.buffers()) if tensor.data_ptr() not in held]
        assert sum(tensor.nbytes for tensor in own) == adapted.info.adapter.num_bytes
    assert adapted.info.int4.full_bytes - base.info.int4.full_bytes == adapted.info.adapter.num_bytes
    assert adapted.info.num_parameters - base.info.num_parameters == adapted.info.adapter.num_parameters
    assert {answered(models, name, request).stats.quantization for name in models.names} == {"int4"}


def test_int4_from_the_start_takes_an_adapter_and_full_precision_too(chat_folder, adapter, models):
    int4 = offered(chat_folder, adapter, int4=True)
    request = ask("what is a color")
    full = answered(int4, None, replace(request, int4=False))
    assert full.token_ids == answered(models, None, replace(request, int4=False)).token_ids
    assert answered(int4, None, request).token_ids == answered(models, None, replace(request, int4=True)).token_ids


def test_caches_are_not_shared_between_base_and_adapter(models, picture):
    request = ask("what is a color", picture, visitor="me")
    cut = answered(models, ADAPTED, replace(request, max_new_tokens=5))
    rest = replace(request, answer_so_far=cut.token_ids)
    assert answered(models, NAME, rest).stats.reused_tokens == 0
    again = answered(models, ADAPTED, rest)
    assert again.stats.reused_tokens > 0
    assert again.token_ids == answered(models, ADAPTED, replace(rest, reuse=False)).token_ids


def test_inside_looks_with_the_model_that_answered(models, picture):
    from gemma3_core.engine import Answered

    request = ask("what is a color", picture)
    done = answered(models, ADAPTED, request)
    with models.that_answered(ADAPTED) as engine:
        assert engine.attention(Answered(request, done), [0]).tiles
    with models.that_answered(NAME) as engine, pytest.raises(AttentionError, match=r"is by small-model \+ mine"):
        engine.attention(Answered(request, done), [0])


def test_what_is_known_of_an_adapter(models, adapter, chat_folder):
    info = models.first.info
    assert (info.base_name, info.is_demo, info.hub_id) == (NAME, False, "")
    assert (info.adapter.name, info.adapter.ranks, info.adapter.base) == ("mine", (2, 4), NAME)
    assert dict(info.adapter.layers) == {"decoder": 49, "vision tower": 8}
    assert models.info(NAME).adapter is None
    merged = ModelRegistry.load(chat_folder, device="cpu", adapters=[adapter], merge_adapter=True)
    assert merged.names == (ADAPTED,)
    assert merged.first.info.adapter == replace(info.adapter, merged=True)
    assert merged.first.info.num_parameters == models.info(NAME).num_parameters
    demo = Engine.load(device="cpu")
    assert demo.info.is_demo


def test_a_merged_adapter_is_in_the_int4_weights(chat_folder, adapter):
    late = offered(chat_folder, adapter=adapter, merge_adapter=True)
    early = offered(chat_folder, adapter=adapter, merge_adapter=True, int4=True)
    request = ask("what is a color")
    for int4 in (True, False):
        asked = replace(request, int4=int4)
        assert answered(late, None, asked).token_ids == answered(early, None, asked).token_ids


def test_further_models_are_offered_beside(chat_folder, text_chat_folder, adapter):
    models = ModelRegistry.load(chat_folder, [str(text_chat_folder)], device="cpu", adapters=[adapter])
    assert models.names == (ADAPTED, NAME, "small-text-model")
    assert answered(models, "small-text-model", ask("hello")).stats.model == "small-text-model"
    models.forget("me")
    models.evict()
    assert answered(models, NAME, ask("hello")).stats.model == NAME


def test_what_can_not_be_started(chat_folder, text_chat_folder, adapter, other_adapter, tmp_path):
    for options, says in [
        ({"adapters": [tmp_path]}, "holds no adapter_config.json"),
        ({"adapters": [adapter, adapter]}, r"Two adapters are small-model \+ mine"),
        ({"adapters": [adapter, other_adapter], "merge_adapter": True}, "merges one adapter, got 2"),
        ({"merge_adapter": True}, "merges one adapter, got 0"),
    ]:
        with pytest.raises((CheckpointError, UnsupportedOptionError), match=says):
            ModelRegistry.load(chat_folder, device="cpu", **options)
    with pytest.raises(CheckpointError, match=r"mine is an adapter for small-model. Name that as the model, and this"):
        ModelRegistry.load(adapter, device="cpu")
    with pytest.raises(CheckpointError, match=r"mine does not fit .* this model is small-text-model"):
        ModelRegistry.load(text_chat_folder, device="cpu", adapters=[adapter])
    engine = Engine.load(chat_folder, device="cpu", adapter=adapter)
    with pytest.raises(UnsupportedOptionError, match="has an adapter already"):
        engine.adapted(other_adapter)


@pytest.fixture(scope="module")
def gguf(chat_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    shutil.copytree(chat_folder, folder / "checkpoint")
    images = json.loads((chat_folder / "preprocessor_config.json").read_text())
    images |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "checkpoint" / "preprocessor_config.json").write_text(json.dumps(images))
    return converted(folder / "checkpoint", folder)


def test_a_gguf_file_takes_an_adapter(gguf, adapter, picture):
    request = ask("what is a color", picture)
    loaded = ModelRegistry.load(gguf, device="cpu", dtype="float32", adapters=[adapter])
    assert loaded.names == ("model.gguf + mine", "model.gguf")
    merged = Engine.load(gguf, device="cpu", dtype="float32", adapter=adapter, merge_adapter=True)
    *_, done = merged.stream(request)
    assert answered(loaded, None, request).token_ids == done.token_ids
    assert answered(loaded, "model.gguf", request).token_ids != done.token_ids


def test_int4_weights_of_a_file_take_one_beside_them_and_none_into_them(gguf, adapter, tmp_path):
    def kind(name: str, weights: Any) -> str:
        return "Q4_0" if name.startswith("blk.") and weights.ndim == 2 and weights.shape[1] % 32 == 0 else "F32"

    file = rewritten(gguf, tmp_path / "q4.gguf", kind)
    (tmp_path / "mmproj-q4.gguf").symlink_to(gguf.with_name("mmproj-model.gguf"))
    models = ModelRegistry.load(file, device="cpu", adapters=[adapter])
    request = ask("what is a color")
    assert answered(models, None, request).stats.quantization == "int4"
    assert len({answered(models, name, request).token_ids for name in models.names}) == 2
    assert answered(models, None, replace(request, int4=False)).stats.quantization == "none"
    with pytest.raises(UnsupportedOptionError, match=r"holds int4 weights.*Leave out --merge-adapter"):
        ModelRegistry.load(file, device="cpu", adapters=[adapter], merge_adapter=True)


def test_where_a_gpu_is_lent_the_child_answers_with_the_adapter(chat_folder, adapter, models, picture):
    lender = Lender()
    lent = ModelRegistry.load(chat_folder, device="cpu", lend=lender, adapters=[adapter])
    request = ask("what is a color", picture)
    for name in (ADAPTED, NAME):
        assert lent.info(name).borrowed
        assert answered(lent, name, request).token_ids == answered(models, name, request).token_ids
    assert len(lender.seconds) == 2


def test_a_precision_is_made_once_for_all_who_wait(chat_folder, adapter):
    engine = Engine.load(chat_folder, device="cpu", adapter=adapter, int4_group_size=32)
    variants = engine._precisions
    assert isinstance(variants, AdaptedVariants)
    threads = [threading.Thread(target=lambda: list(variants.prepare(True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = variants.model(True)
    list(variants.prepare(True))
    assert variants.model(True) is made
    assert any(isinstance(event, TokenEvent) for event in engine.stream(ask("hello", int4=True)))
