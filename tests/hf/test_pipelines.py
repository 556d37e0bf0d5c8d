"""The two pipelines against transformers' own, on small random checkpoints: what goes in, and what comes out."""

import base64
import io
from typing import Any

import pytest
import torch
from PIL import Image

from gemma3_core import AutoProcessor, GenerationConfig, pipeline
from gemma3_core.errors import ImageError, PromptError, UnsupportedOptionError
from gemma3_core.hf.pipelines import ImageTextToTextPipeline, TextGenerationPipeline, joined

FEW = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def pipes(chat_folder):
    """Ours and the reference's for pictures and text, both with the image processor that works on Pillow pictures."""
    import transformers

    processor = AutoProcessor.from_pretrained(chat_folder, backend="pil")
    ours = pipeline("image-text-to-text", chat_folder, processor=processor, device="cpu")
    return ours, transformers.pipeline("image-text-to-text", str(chat_folder), device="cpu")


@pytest.fixture(scope="module")
def text_pipes(text_chat_folder):
    import transformers

    ours = pipeline("text-generation", model=text_chat_folder, device="cpu", do_sample=False)
    theirs = transformers.pipeline("text-generation", model=str(text_chat_folder), device="cpu", do_sample=False)
    return ours, theirs


@pytest.fixture(scope="module")
def pictures(gradient_picture):
    return [gradient_picture, gradient_picture.transpose(Image.Transpose.ROTATE_90)]


def plain(result: Any) -> Any:
    """Tensors as lists, so that results can be compared."""
    if isinstance(result, torch.Tensor):
        return result.tolist()
    if isinstance(result, list):
        return [plain(item) for item in result]
    return {k: plain(v) for k, v in result.items()} if isinstance(result, dict) else result


def user(text: str, *shown: Any) -> dict[str, Any]:
    parts = [{"type": "image", "image": picture} for picture in shown]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def model_says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def unequal_chats(pictures: list[Any]) -> list[Any]:
    return [[user("a", pictures[0])], [user("what is it", *pictures)], [user("b")]]


PLACE = "<start_of_image>"
CROPS = {"pan_and_scan_min_crop_size": 16}
THREE = {"max_new_tokens": 3, "min_new_tokens": 3}
ASKED = {"role": "user", "content": "how"}
SAID = {"role": "assistant", "content": "so"}
IMAGE_CALLS = {
    "a picture and a text": lambda p: ((p[0],), {"text": "<start_of_image> what is it"}),
    "several pictures in a text": lambda p: ((p,), {"text": "<start_of_image> or <start_of_image>"}),
    "texts with pictures each": lambda p: (([[p[0]], p],), {"text": [f"{PLACE} a", f"{PLACE}{PLACE} it"]}),
    "only new text": lambda p: ((p[0],), {"text": "<start_of_image> what", "return_full_text": False}),
    "ids": lambda p: ((p[0],), {"text": "<start_of_image> what", "return_tensors": True}),
    "special tokens shown": lambda p: ((p[0],), {"text": "<start_of_image> what", "skip_special_tokens": False}),
    "pan and scan": lambda p: ((p[0],), {"text": f"{PLACE} it", "do_pan_and_scan": True, **CROPS}),
    "a conversation": lambda p: ((), {"text": [user("what is it", p[0])]}),
    "a conversation as the first argument": lambda p: (([user("what is it", p[0])],), {"return_full_text": False}),
    "earlier turns": lambda p: ((), {"text": [user("a", p[0]), model_says("b"), user("c", p[1])]}),
    "an answer to go on with": lambda p: ((), {"text": [user("what", p[0]), model_says("it is ")]}),
    "conversations in a batch": lambda p: ((), {"text": unequal_chats(p), "batch_size": 2}),
    "a text alone": lambda _: ((), {"text": "what is it"}),
    "texts alone": lambda _: ((), {"text": ["what", "how is it"], "batch_size": 2, "return_full_text": False}),
    "options of generate": lambda p: ((p[0],), {"text": f"{PLACE} a", "generate_kwargs": THREE}),
}  # fmt: skip


@pytest.mark.parametrize("call", IMAGE_CALLS)
def test_pictures_and_text_give_what_transformers_gives(pipes, pictures, call):
    given, options = IMAGE_CALLS[call](pictures)
    few = {} if "generate_kwargs" in options else FEW
    ours, theirs = (pipe(*given, **options, **few) for pipe in pipes)
    assert plain(ours) == plain(theirs)


def test_rows_of_a_batch_are_what_they_are_alone(pipes, pictures):
    ours, _ = pipes
    chats = unequal_chats(pictures)
    together = ours(text=chats, batch_size=3, **FEW)
    assert together == [ours(text=chat, **FEW) for chat in chats]


def test_a_generator_is_read_as_its_results_are_asked_for(pipes, pictures):
    ours, _ = pipes
    taken = []

    def chats():
        for number in range(4):
            taken.append(number)
            yield [user("a" * number + "b", pictures[0])]

    results = ours(chats(), batch_size=2, return_full_text=False, **FEW)
    assert taken == []
    assert isinstance(next(results)[0]["generated_text"], str)
    assert taken == [0, 1]
    assert len(list(results)) == 3


@pytest.mark.parametrize("form", ["path", "text path", "bytes", "base64", "data url", "array"])
def test_a_picture_may_come_in_any_form(pipes, pictures, tmp_path, form):
    ours, _ = pipes
    pictures[0].save(tmp_path / "it.png")
    content = (tmp_path / "it.png").read_bytes()
    code = base64.b64encode(content).decode()
    forms = {"path": tmp_path / "it.png", "text path": str(tmp_path / "it.png"), "bytes": content, "base64": code}
    forms |= {"data url": f"data:image/png;base64,{code}", "array": torch.tensor([]).numpy()}
    if form == "array":
        import numpy as np

        forms["array"] = np.asarray(Image.open(io.BytesIO(content)))
    call = {"text": "<start_of_image> what", "return_full_text": False, **FEW}
    (ours_, expected) = ours(forms[form], **call), ours(pictures[0], **call)
    assert ours_[0]["generated_text"] == expected[0]["generated_text"]


def test_pictures_and_text_may_come_as_one_argument(pipes, pictures):
    ours, theirs = pipes
    pair = {"images": pictures[0], "text": "<start_of_image> what"}
    assert ours(pair, **FEW) == theirs(pair, **FEW)
    assert ours([pair, pair], **FEW) == [ours(pair, **FEW)] * 2


TEXT_CALLS = {
    "a text": ("how is it", {}),
    "texts": (["how", "what is it"], {"batch_size": 2}),
    "only new text": ("how", {"return_full_text": False}),
    "ids": ("how", {"return_tensors": True}),
    "a conversation": ([ASKED], {}),
    "conversations": ([[ASKED], [{**ASKED, "content": "what is"}]], {"batch_size": 2}),
    "an answer to go on with": ([ASKED, SAID], {}),
    "an answer that is over": ([ASKED, SAID, ASKED], {"return_full_text": False}),
    "cut": ("how is it", {"tokenizer_encode_kwargs": {"truncation": True, "max_length": 4}}),
    "all in all": ("how", {"max_length": 12, "max_new_tokens": None}),
}  # fmt: skip


@pytest.mark.parametrize("call", TEXT_CALLS)
def test_text_gives_what_transformers_gives(text_pipes, call):
    given, options = TEXT_CALLS[call]
    ours, theirs = (pipe(given, **{**FEW, **options}) for pipe in text_pipes)
    assert plain(ours) == plain(theirs)


@pytest.mark.parametrize("kinds", ["pipes", "text_pipes"])
@pytest.mark.parametrize(
    "given",
    [{}, {"max_new_tokens": 3}, {"max_length": 30}, {"do_sample": True}, {"do_sample": True, "temperature": 0.2}],
)
def test_what_is_left_open_is_what_transformers_pipelines_choose(request, kinds, given):
    """256 new tokens; for text alone sampling at temperature 0.7, which the fixture's do_sample=False takes out."""
    ours, theirs = request.getfixturevalue(kinds)
    mine = ours._generate_options({**ours._options.generate, **given})
    expected = theirs._prepare_generate_kwargs(dict(given))
    mine.setdefault("pad_token_id", 0)
    expected.setdefault("pad_token_id", 0)
    assert mine == expected


def test_a_generation_config_takes_the_place_of_the_pipelines_own_options(text_pipes):
    ours, theirs = text_pipes
    import transformers

    mine = ours("how", generation_config=GenerationConfig(max_new_tokens=4, do_sample=False))
    assert mine == theirs("how", generation_config=transformers.GenerationConfig(max_new_tokens=4, do_sample=False))


def test_a_stop_sequence_ends_the_answer(text_pipes):
    ours, theirs = text_pipes
    whole = ours("how", return_full_text=False, max_new_tokens=30)[0]["generated_text"]
    stop = next(character for character in whole[4:] if character.isascii())
    results = [pipe("how", return_full_text=False, max_new_tokens=30, stop_sequence=stop) for pipe in (ours, theirs)]
    assert results[0] == results[1]
    assert results[0][0]["generated_text"] == whole[: whole.index(stop) + 1] != whole


def test_the_task_follows_from_the_checkpoint_and_a_folder_holds_the_whole_pipeline(pipes, text_chat_folder, tmp_path):
    ours, _ = pipes
    ours.save_pretrained(tmp_path)
    again = pipeline(model=tmp_path, device=-1, dtype="bfloat16")
    assert isinstance(again, ImageTextToTextPipeline)
    assert (again.dtype, again.device.type, again.task) == (torch.bfloat16, "cpu", "image-text-to-text")
    assert again.image_processor is again.processor.image_processor
    text = pipeline(model=text_chat_folder, device_map="cpu", model_kwargs={"attn_implementation": "eager"})
    assert isinstance(text, TextGenerationPipeline)
    assert text.model.eager


def test_a_model_and_its_processor_may_be_given_as_objects(pipes, pictures):
    ours, _ = pipes
    again = pipeline("image-text-to-text", ours.model, processor=ours.processor)
    parts = {"tokenizer": ours.tokenizer, "image_processor": ours.image_processor}
    third = pipeline(model=ours.model, **parts)
    text_alone = pipeline("text-generation", ours.model, tokenizer=ours.tokenizer, do_sample=False)
    call = {"text": "<start_of_image> a", **FEW}
    assert again(pictures[0], **call) == third(pictures[0], **call) == ours(pictures[0], **call)
    assert text_alone("a", **FEW)[0]["generated_text"] == ours(text="a", **FEW)[0]["generated_text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "translation"}, ["'translation'", "image-text-to-text and text-generation"]),
        ({"model": None}, ["model="]),
        ({"config": object()}, ["config"]),
        ({"trust_remote_code": True}, ["trust_remote_code"]),
        ({"device": "cpu", "device_map": "auto"}, ["device and device_map"]),
        ({"dtype": "float32", "model_kwargs": {"dtype": "bfloat16"}}, ["dtype is given twice"]),
        ({"task": "text-generation", "no_such_option": 1}, ["no_such_option"]),
        ({"tokenizer": "somewhere"}, ["processor="]),
        ({"return_full_text": True, "return_tensors": True}, ["return_full_text", "return_tensors"]),
        ({"output_scores": True}, ["output_scores"]),
    ],
)
def test_a_pipeline_that_can_not_be_made_says_why(chat_folder, arguments, words):
    with pytest.raises(UnsupportedOptionError) as error:
        pipeline(**{"model": chat_folder, **arguments})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_text_only_checkpoint_is_refused_for_pictures(text_chat_folder, pipes):
    with pytest.raises(UnsupportedOptionError, match="AutoModelForCausalLM"):
        pipeline("image-text-to-text", text_chat_folder)
    with pytest.raises(UnsupportedOptionError, match="needs processor= beside it"):
        pipeline("image-text-to-text", pipes[0].model)


@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        ((), {}, PromptError, ["neither a text nor a picture"]),
        (("PICTURE",), {}, PromptError, ["need a text", "<start_of_image>"]),
        (("PICTURE",), {"text": "no place"}, PromptError, ["0 places", "1 pictures"]),
        (("PICTURE",), {"text": [user("a")]}, PromptError, ["into its messages"]),
        ((), {"text": "a", "batch_size": 0}, UnsupportedOptionError, ["batch_size", "0"]),
        ((), {"text": "a", "num_workers": 2}, UnsupportedOptionError, ["num_workers"]),
        ((), {"text": "a", "no_such_option": 2}, UnsupportedOptionError, ["no_such_option"]),
        ((), {"text": "a", "num_beams": 2}, UnsupportedOptionError, ["num_beams"]),
        ((), {"text": "a", "top_k": 2, "generate_kwargs": {"top_k": 3}}, UnsupportedOptionError, ["top_k", "twice"]),
        ((), {"text": [user("a")], "timeout": 2}, UnsupportedOptionError, ["timeout"]),
        (("http://127.0.0.1/it.png",), {"text": "<start_of_image>", "timeout": 2}, ImageError, ["127.0.0.1"]),
        (([1, 2],), {}, PromptError, ["need a text"]),
    ],
)
def test_what_can_not_be_asked_says_what_to_do(pipes, pictures, given, options, error, words):
    given = [pictures[0] if item == "PICTURE" else item for item in given]
    with pytest.raises(error) as raised:
        pipes[0](*given, **{**FEW, **options})
    assert all(word in str(raised.value) for word in words), str(raised.value)


@pytest.mark.parametrize(("given", "options"), [(3, {}), ("a", {"tools": [{}]}), ("a", {"prefix": "b"})])
def test_text_generation_refuses_what_it_does_not_do(text_pipes, given, options):
    with pytest.raises((PromptError, UnsupportedOptionError)):
        text_pipes[0](given, **options)


def test_an_answer_is_joined_to_texts_strings_and_parts():
    assert joined("a", "b", None) == "ab"
    asked = [{"role": "user", "content": "a"}]
    assert joined(asked, "b", None) == [*asked, {"role": "assistant", "content": "b"}]
    begun = [*asked, {"role": "assistant", "content": "b"}]
    assert joined(begun, "c", None)[-1]["content"] == "bc"
    assert joined(begun, "c", False)[-1] == {"role": "assistant", "content": "c"}
    parts = [*asked, model_says("b")]
    assert joined(parts, "c", None)[-1] == model_says("bc")
    assert parts[-1] == model_says("b")
