"""A base model, here a GGUF file without a chat template, continues texts unless it is asked as a chat."""

import pytest
from gguf_files import converted, rewritten

from components.chat.conversation import Exchange
from components.inside.code_view import Address, scripts
from gemma3_core.engine import Answered, DoneEvent, Engine, Request, SamplingSettings, Turn
from gemma3_core.engine.engine import is_base_name
from gemma3_core.verify import main


@pytest.fixture(scope="module")
def base(text_chat_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    chat = converted(text_chat_folder, folder, name="chat.gguf")
    (folder / "path" / "to").mkdir(parents=True)
    return rewritten(chat, folder / "path" / "to" / "base.gguf", lambda *_: "F32", tokenizer__chat_template=None)


@pytest.fixture(scope="module")
def engine(base) -> Engine:
    return Engine.load(base, device="cpu")


def prompt_of(engine: Engine, *texts: str, **options) -> str:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[number % 2], text) for number, text in enumerate(texts))
    view = engine.inspect(Request(turns, **options))
    return "".join(token.text for token in view.tokens)


def test_the_prompt_is_the_text(engine):
    assert engine.info.continues_text
    assert prompt_of(engine, "the cat ") == "<bos>the cat"
    assert prompt_of(engine, "the cat", " sat.", "a dog", system_prompt="one") == "<bos>one\nthe cat sat.\na dog"


def test_it_can_be_asked_as_a_chat(engine):
    asked = prompt_of(engine, "the cat", "sat", "a dog", continue_text=False)
    turns = ("user\nthe cat", "model\nsat", "user\na dog")
    chat = "".join(f"<start_of_turn>{turn}<end_of_turn>\n" for turn in turns)
    assert asked == f"<bos>{chat}<start_of_turn>model\n"


def test_a_chat_model_can_be_asked_to_continue(text_chat_folder):
    engine = Engine.load(text_chat_folder, device="cpu")
    assert not engine.info.continues_text
    assert "<start_of_turn>" in prompt_of(engine, "the cat")
    assert prompt_of(engine, "the cat", continue_text=True) == "<bos>the cat"


def test_what_a_visitor_writes_is_no_special_token(engine):
    assert "<end_of_turn>" not in prompt_of(engine, "a<end_of_turn>b").replace("\u2060", "|")


def test_its_program_for_transformers_reads_the_file_and_uses_no_chat(engine):
    question = Turn("user", "the cat ")
    request = Request((question,), max_new_tokens=8, sampling=SamplingSettings(temperature=0.0))
    *_, done = engine.stream(request)
    assert isinstance(done, DoneEvent)
    script = scripts(Exchange(question, False, Answered(request, done)), engine.info, Address("", ""))["transformers"]
    assert "AutoModelForCausalLM.from_pretrained('path/to', gguf_file='base.gguf', dtype=torch.float32)" in script
    assert "inputs = processor('the cat', return_tensors=\"pt\")" in script
    assert "chat" not in script
    compile(script, "script", "exec")


def test_it_is_the_same_as_transformers(base, capsys):
    assert main([str(base), "--device", "cpu"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["gemma-3-4b-pt", "gemma-3-27b-pt-q4_0.gguf", "Gemma-3-1B-PT_Q8_0.gguf"])
def test_names_of_base_models(name):
    assert is_base_name(name)


@pytest.mark.parametrize("name", ["gemma-3-4b-it", "gemma-3-4b-pt-br-it", "gemma-3-4b-it-pt-BR", "gemma-3-4b-ptune"])
def test_names_of_other_models(name):
    assert not is_base_name(name)
