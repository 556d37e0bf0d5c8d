"""Training batches say what the app would send, and each question of a fan is asked as if alone."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference import assert_equal
from torch.nn import functional as F

from gemma3_core.config.gemma3 import Gemma3Config, read_config
from gemma3_core.int4.linear import quantize_weight
from gemma3_core.int4.quantize import TorchAoConfig, quantized
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.processor import Gemma3Processor
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer
from training.drawing.colors import COLORS
from training.drawing.geometry import SHAPES
from training.learning.batches import NO_PICTURE, Batch, Conversations, ConversationWriter, Mix, Share, _alike, collate
from training.learning.dense_heads import DENSE_HEADS, IGNORED, DenseHeads
from training.learning.model import DEMO_MODEL, TOKENIZER_FILES, VISION_WIDTH, demo_config, initialise
from training.learning.trainer import Settings, Trainer, answer_masks, decoder_weights, in_int4, rounded
from training.ship import MOST_BYTES, ship
from training.train import dense_mix_of, mix_of, parse
from training.worlds.boards.questions import TOO_SMALL
from training.worlds.scenes.scenes import HELDOUT_PAIRS

pytestmark = pytest.mark.long

ONE_PICTURE = Mix(questions=4, second_picture=0.0, pan_and_scan=0.0, no_picture=0.0, question_first=0.0, unnamed=0.0)
FAN, CHAIN = replace(ONE_PICTURE, apart=1.0), replace(ONE_PICTURE, apart=0.0)


@pytest.fixture(scope="module")
def writer() -> ConversationWriter:
    return ConversationWriter(Gemma3Tokenizer.from_pretrained(DEMO_MODEL))


@pytest.fixture(scope="module")
def model() -> Gemma3ForConditionalGeneration:
    model = Gemma3ForConditionalGeneration(demo_config(Gemma3Tokenizer.from_pretrained(DEMO_MODEL)))
    initialise(model, seed=0)
    return model.eval()


def test_a_chained_conversation_is_what_the_chat_template_renders(writer: ConversationWriter) -> None:
    conversation = writer.write(random.Random(1), CHAIN)
    processor = Gemma3Processor.from_pretrained(DEMO_MODEL)
    text = processor.decode(conversation.ids)
    turns = [part.removeprefix("user\n").removeprefix("model\n") for part in text.split("<start_of_turn>")[1:]]
    turns = [turn.removesuffix("<end_of_turn>\n") for turn in turns]
    messages = []
    for number, turn in enumerate(turns):
        question = turn.replace(processor.full_image_sequence, "")
        images = [{"type": "image"}] * (turn != question)
        content = [*images, {"type": "text", "text": question}]
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    rendered = processor.apply_chat_template(messages)
    assert processor.expand_images([rendered], [0])[0] == text
    assert processor.tokenizer.encode(text, add_special_tokens=False) == conversation.ids


def test_labels_are_the_answers_and_their_end(writer: ConversationWriter) -> None:
    for mix in (FAN, CHAIN):
        conversation = writer.write(random.Random(2), mix)
        kept = [i for i, label in zip(conversation.ids, conversation.labels, strict=True) if label != IGNORED]
        assert kept == [label for label in conversation.labels if label != IGNORED]
        answers = writer._tokenizer.decode(kept).split("<end_of_turn>")
        assert len(answers) == 4 + 1
        assert answers[-1] == ""
        assert all(answer.endswith(".") for answer in answers[:-1])


def test_a_question_in_a_fan_gets_the_hidden_states_it_would_get_alone(
    writer: ConversationWriter, model: Gemma3ForConditionalGeneration
) -> None:
    rng = random.Random(3)
    fan = writer.write(rng, FAN)
    batch = collate([fan, writer.write(rng, FAN)])
    pixels = batch.pixels.float() / 127.5 - 1.0
    with torch.no_grad():
        soft = model.get_image_features(pixels).pooler_output
        together = model.decoder(
            inputs_embeds=model.model.embed(batch.input_ids, soft),
            attention_mask=answer_masks(batch, model.config),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        for segment in range(1, 5):
            places = [i for i, s in enumerate(fan.segments) if s == segment]
            ids = torch.tensor([[fan.ids[i] for i, s in enumerate(fan.segments) if s in (0, segment)]])
            types = (ids == model.config.image_token_index).long()
            alone = model(
                input_ids=ids, token_type_ids=types, pixel_values=pixels[:1], output_hidden_states=True, use_cache=False
            ).hidden_states[-1]
            assert_equal(together[0, places], alone[0, -len(places) :])


def test_training_pixels_are_the_image_processors(writer: ConversationWriter) -> None:
    conversation = writer.write(random.Random(4), FAN)
    from PIL import Image

    square = Image.fromarray(conversation.squares[0].transpose(1, 2, 0))
    expected = Gemma3Processor.from_pretrained(DEMO_MODEL).image_processor.pixel_values([square])
    assert_equal(collate([conversation]).pixels.float() / 127.5 - 1.0, expected)


def test_crops_join_the_picture_and_have_no_dense_labels(writer: ConversationWriter) -> None:
    mix = Mix(questions=2, second_picture=0.0, pan_and_scan=1.0, no_picture=0.0)
    rng = random.Random(5)
    cropped = next(c for c in (writer.write(rng, mix) for _ in range(50)) if len(c.squares) > 1)
    batch = collate([cropped])
    assert (batch.input_ids == writer._tokenizer.image_token_id).sum() == 64 * len(cropped.squares)
    assert (batch.dense.token_shape[0] != IGNORED).all()
    assert (batch.dense.token_shape[1:] == IGNORED).all()
    assert "here are some crops" in writer._tokenizer.decode(cropped.ids)


def test_a_closer_look_shows_crops_and_tells_what_the_picture_says(writer: ConversationWriter) -> None:
    worlds = (Share("scenes", 0.5), Share("boards", 0.5))
    mix, size = _alike(replace(FAN, worlds=worlds, closer=1.0), 24, rng := random.Random(12))
    assert (mix.closer, mix.worlds, size) == (1.0, worlds, 8)
    seen = [writer.write(rng, mix) for _ in range(8)]
    texts = [writer._tokenizer.decode(one.ids) for one in seen]
    assert all(len(one.squares) > 1 and "here are some crops" in text for one, text in zip(seen, texts, strict=True))
    assert any(len(one.squares) in (5, 7, 10) for one in seen)  # 2 x 2, 3 x 2 or 3 x 3 beside the whole
    assert any(" costs " in text or "The first is" in text for text in texts)
    assert not any(TOO_SMALL in text for text in texts)


def test_batches_of_closer_looks_come_in_their_share() -> None:
    mix, rng = replace(FAN, worlds=(Share("scenes", 0.5), Share("pairs", 0.5)), closer=0.4), random.Random(13)
    drawn = [_alike(mix, 24, rng)[0] for _ in range(400)]
    closer = [one for one in drawn if one.closer]
    assert 0.33 < len(closer) / len(drawn) < 0.47
    assert {share.world for one in closer for share in one.worlds} == {"scenes"}  # two pictures in crops are too long


def test_without_a_picture_the_answer_asks_for_one(writer: ConversationWriter) -> None:
    conversation = writer.write(random.Random(6), Mix(no_picture=1.0))
    assert NO_PICTURE in writer._tokenizer.decode(conversation.ids)
    assert not conversation.squares


def test_dense_labels_name_each_object_at_its_centre(writer: ConversationWriter) -> None:
    batch = collate([writer.write(random.Random(n), Mix(questions=0)) for n in range(30)])
    assert batch.dense.patch_shape.max() <= len(SHAPES)
    assert batch.dense.token_color.max() <= len(COLORS)
    objects = (batch.dense.token_shape > 0).sum(dim=1)
    assert ((objects >= 1) & (objects <= 6)).all()
    assert (batch.dense.patch_centre.sum(dim=1) >= objects).all()


def test_ignored_cells_leave_the_dense_loss_unchanged(writer: ConversationWriter) -> None:
    torch.manual_seed(0)
    heads = DenseHeads()
    batch = collate([writer.write(random.Random(7), Mix(questions=0))])
    patches, tokens = torch.randn(2, 256, VISION_WIDTH), torch.randn(2, 64, 256)
    one = heads(patches[:1], tokens[:1], batch.dense)
    padded = {name: torch.cat([value, torch.full_like(value, IGNORED)]) for name, value in vars(batch.dense).items()}
    two = heads(patches, tokens, type(batch.dense)(**padded))
    assert_equal(two, one)


def test_soft_tokens_learn_their_places(writer: ConversationWriter) -> None:
    """The loss is gone where each token tells its own column and row, and there where it tells another's."""
    heads = DenseHeads()
    labels = collate([writer.write(random.Random(7), Mix(questions=0))]).dense
    number = torch.arange(64)
    told = F.one_hot(torch.stack([number % 8, 8 + number // 8]), 16).sum(dim=0).float()[None]
    heads.token_place = torch.nn.Linear(16, 16)
    with torch.no_grad():
        heads.token_place.weight.copy_(40 * torch.eye(16))
        heads.token_place.bias.zero_()
    assert heads._place_loss(told, labels) < 1e-6
    assert heads._place_loss(told.roll(1, dims=1), labels) > 10


def test_what_would_make_a_heldout_pair_is_not_compared_with(writer: ConversationWriter) -> None:
    """Neither in answers nor in the dense labels may training say that no blue thing is a heart."""
    rng = random.Random(8)
    for mix in (FAN, CHAIN):
        conversation = next(c for c in (writer.write(rng, mix) for _ in range(200)) if c.excluded)
        for place, token in conversation.excluded:
            told = writer._tokenizer.decode([conversation.labels[place]]).strip()
            spared = writer._tokenizer.decode([token]).strip()
            assert told != spared
            start = max(i for i in range(place) if conversation.labels[i] == IGNORED)
            before = writer._tokenizer.decode(conversation.ids[start + 1 : place])
            after = writer._tokenizer.decode([conversation.ids[place + 1]])
            sentence = f"{before} {spared}{after}"
            if told in COLORS:
                assert spared in COLORS
            else:
                assert {told.removesuffix("s"), spared.removesuffix("s")} <= set(SHAPES)
            assert any(is_said(pair, sentence) for pair in HELDOUT_PAIRS), sentence
    heads = DenseHeads()
    color, heart = 1 + COLORS.index("blue"), 1 + SHAPES.index("heart")
    shape_logits, color_logits = heads._spared(
        torch.zeros(1, 1, 7), torch.zeros(1, 1, 12), torch.tensor([[heart]]), torch.tensor([[color]])
    )
    assert (shape_logits[0, 0] < 0).nonzero().flatten().tolist() == [heart]
    never = {COLORS[i - 1] for i in (color_logits[0, 0] < 0).nonzero().flatten().tolist()}
    assert never == {c for s, c in HELDOUT_PAIRS if s == "heart"}


@pytest.fixture
def few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new model has one decoder layer of each kind and one of the encoder, in the widths of the demo model."""

    def config(tokenizer: Gemma3Tokenizer) -> Gemma3Config:
        whole = demo_config(tokenizer)
        text = whole.text_config.replace(num_hidden_layers=2, layer_types=("sliding_attention", "full_attention"))
        return whole.replace(text_config=text, vision_config=whole.vision_config.replace(num_hidden_layers=1))

    monkeypatch.setattr("training.learning.trainer.demo_config", config)


@pytest.mark.usefixtures("few_layers")
def test_the_loss_does_not_depend_on_excluded_logits(tmp_path: Path) -> None:
    trainer = Trainer(Settings(tmp_path))
    rng = random.Random(9)
    conversation = next(
        c for c in (ConversationWriter(trainer.tokenizer).write(rng, FAN) for _ in range(200)) if c.excluded
    )
    place, token = conversation.excluded[0]
    conversation.labels = [label if i == place else IGNORED for i, label in enumerate(conversation.labels)]
    conversation.excluded = [(place, token)]
    batch = collate([conversation])
    everything = replace(batch, excluded=batch.excluded[:0])

    def louder(_module: torch.nn.Module, _inputs: tuple, logits: torch.Tensor) -> torch.Tensor:
        return logits + 5.0 * torch.nn.functional.one_hot(torch.tensor(token), logits.shape[-1])

    with torch.no_grad():
        spared, compared = trainer.losses(batch)[1], trainer.losses(everything)[1]
        trainer.model.lm_head.register_forward_hook(louder)
        assert torch.equal(trainer.losses(batch)[1], spared)
        assert trainer.losses(everything)[1] > compared


def is_said(pair: tuple[str, str], sentence: str) -> bool:
    return all(word in sentence for word in pair)


def test_the_shipped_model_has_the_shape_that_training_builds(model: Gemma3ForConditionalGeneration) -> None:
    shipped = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL)
    assert shipped.config.vision_config.replace(extra={}) == model.config.vision_config
    assert shipped.config.text_config.replace(extra={}) == model.config.text_config


@pytest.mark.usefixtures("few_layers")
def test_training_lowers_the_loss_and_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(Settings(tmp_path))
    batch = collate([ConversationWriter(trainer.tokenizer).write(random.Random(0), FAN)])
    losses = [trainer.train_step(batch)["answer"] for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]
    trainer.step = 6
    trainer.save("last")
    again = Trainer(Settings(tmp_path, resume=tmp_path / "last"))
    for name, value in trainer.average.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


@pytest.mark.usefixtures("few_layers")
def test_the_decoder_stage_answers_the_same_and_leaves_the_encoder_alone(tmp_path: Path) -> None:
    trainer = Trainer(Settings(tmp_path, batch=2))
    batch = collate([ConversationWriter(trainer.tokenizer).write(random.Random(n), FAN) for n in range(2)])
    with torch.no_grad():
        whole, encoded = trainer.losses(batch), trainer.losses(trainer._encoded(batch))
    assert encoded[0] == 0
    torch.testing.assert_close(encoded[1], whole[1], rtol=1e-2, atol=0)  # soft tokens are kept in bfloat16
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run_decoder_stage(0.02, Mix(questions=3), pictures=4)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not {name for name in changed if "language_model" not in name and "lm_head" not in name}


@pytest.mark.parametrize("pictures", [4, pytest.param(0, id="new ones in each step")])
def test_frozen_layers_answer_the_same_and_do_not_learn(tmp_path: Path, pictures: int) -> None:
    trainer = Trainer(Settings(tmp_path, resume=DEMO_MODEL, batch=2, frozen_layers=8))
    batch = collate([ConversationWriter(trainer.tokenizer).write(random.Random(n), FAN) for n in range(2)])
    with torch.no_grad():
        whole = trainer.losses(batch)
        trainer._freeze(8)
        told = trainer.losses(trainer._encoded(batch))
    torch.testing.assert_close(told[1], whole[1], rtol=5e-2, atol=1e-3)  # states are kept in bfloat16
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run_decoder_stage(0.02, Mix(questions=3), pictures=pictures)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    learnt = tuple(f"language_model.layers.{number}." for number in range(8, 12))
    assert not {name for name in changed if not any(part in name for part in (*learnt, "language_model.norm."))}
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.mark.usefixtures("few_layers")
def test_answers_may_be_learnt_as_int4_gives_them(tmp_path: Path) -> None:
    """The loss is that of int4 weights, the head's aside; what is kept and trained are the whole weights."""
    trainer = Trainer(Settings(tmp_path))
    batch = collate([ConversationWriter(trainer.tokenizer).write(random.Random(n), FAN) for n in range(2)])
    weights = decoder_weights(trainer.model)
    assert len(weights) == 7 * trainer.model.text_config.num_hidden_layers
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        whole = trainer.losses(batch)[1]
        with in_int4(weights):
            in_steps = trainer.losses(batch)[1]
        config = TorchAoConfig(modules_to_not_convert=["lm_head"])
        by_app = quantized(trainer.model, config)
        trainer.model, trained = by_app, trainer.model
        asked = trainer.losses(batch)[1]
    torch.testing.assert_close(in_steps, asked, rtol=2e-2, atol=1e-4)
    assert abs(in_steps - whole) > 1e-5
    assert all(torch.equal(weight, kept) for weight, kept in zip(weights, before, strict=True))
    trainer.model, trainer.rounded = trained, weights
    trainer.train_step(batch)
    for weight, kept in zip(weights, before, strict=True):
        by_app = quantize_weight(kept, TorchAoConfig().group_size).dequantize()
        assert torch.equal(rounded(kept), by_app)
        learnt, rounding = weight - kept, by_app - kept
        assert 0 < learnt.norm() < 0.5 * rounding.norm()


@pytest.mark.usefixtures("few_layers")
@pytest.mark.parametrize(("stage", "share", "in_steps"), [("joint", 0.5, 15), ("joint", 0.0, 0), ("dense", 0.5, 0)])
def test_the_end_of_a_stage_with_answers_is_in_int4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, share: float, in_steps: int
) -> None:
    """A minute in which a batch is waited for half a second and learnt from in one and a half: 30 steps."""
    trainer = Trainer(Settings(tmp_path, int4=share))
    batch = collate([ConversationWriter(trainer.tokenizer).write(random.Random(1), FAN)])
    now, steps = [100.0], []
    monkeypatch.setattr("training.learning.trainer.time", SimpleNamespace(monotonic=lambda: now[0]))

    def batches() -> Iterator[Batch]:
        while True:
            now[0] += 0.5
            yield batch

    def train_step(_batch: Batch) -> dict[str, torch.Tensor]:
        now[0] += 1.5
        steps.append(len(trainer.rounded))
        return {"answer": torch.tensor(float(len(steps))), "pictures": torch.tensor(3)}

    monkeypatch.setattr(trainer, "train_step", train_step)
    trainer.run_stage(stage, 1.0, batches())
    weights = len(decoder_weights(trainer.model))
    assert steps == [0] * (30 - in_steps) + [weights] * in_steps
    _, line = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line == {"stage": stage, "step": 25, "minutes": 0.83, "answer": 13.0, "pictures": 3.0, "waited_s": 0.5}
    assert isinstance(line["pictures"], float)


SIGNS = replace(FAN, worlds=(Share("signs", 1.0),), questions=8)


def test_a_fan_about_a_sign_asks_each_kind_in_other_words(writer: ConversationWriter) -> None:
    conversation = writer.write(random.Random(10), replace(SIGNS, questions=20))
    text = writer._tokenizer.decode(conversation.ids)
    assert text.count('The sign says "') == 3
    assert text.count("The text is ") == 2
    assert max(conversation.segments) == text.count("<start_of_turn>model")
    batch = collate([conversation])
    assert batch.pixels.shape == (1, 3, 224, 224)
    assert (batch.dense.patch_character > 0).any()
    assert (batch.dense.token_characters > 0).any()


def test_batches_mix_the_worlds_in_their_shares() -> None:
    mix = Mix(worlds=(Share("scenes", 0.5), Share("signs", 0.5)), questions=0)
    data = iter(Conversations(str(DEMO_MODEL), 24, mix, seed=1))
    batches = [next(data) for _ in range(5)]
    written = torch.cat([(batch.dense.token_characters > 0).any(dim=1) for batch in batches])
    shaped = torch.cat([(batch.dense.token_shape > 0).any(dim=1) for batch in batches])
    assert (written ^ shaped).all()
    assert 0.3 < written.float().mean() < 0.7


def test_the_arguments_name_the_mix() -> None:
    assert mix_of(parse(["--out", "x"])) == Mix()
    assert mix_of(parse(["--out", "x", "--easiest", "0.2"])) == Mix(worlds=(Share("scenes", 1.0, 0.2),))
    both = mix_of(parse(["--out", "x", "--signs", "0.25", "--easiest-sign", "0", "--crowds", "0.25"]))
    assert both.worlds == (Share("scenes", 0.75), Share("signs", 0.25, 0.0))
    assert both.crowded == 0.25
    assert dense_mix_of(parse(["--out", "x", "--signs", "0.3", "--crowds", "0.25"])).crowded == 0.0
    assert mix_of(parse(["--out", "x", "--signs", "1"])).worlds == (Share("signs", 1.0),)
    for wrong in (["--signs", "2"], ["--easiest-sign", "-0.1"], ["--decoder-questions", "0"], ["--int4", "1.5"]):
        with pytest.raises(SystemExit):
            parse(["--out", "x", *wrong])


def test_crowded_batches_come_in_their_share_and_have_no_answers(writer: ConversationWriter) -> None:
    mix, rng = replace(FAN, crowded=0.25), random.Random(4)
    drawn = [_alike(mix, 24, rng) for _ in range(400)]
    crowded = [(one, size) for one, size in drawn if one.worlds[0].world == "crowds"]
    assert 0.18 < len(crowded) / len(drawn) < 0.32
    assert {size for _, size in crowded} == {16}
    batch = collate([writer.write(rng, crowded[0][0]) for _ in range(2)])
    assert batch.input_ids.shape == (2, 1)
    assert (batch.labels == IGNORED).all()
    assert (batch.dense.patch_shape != 0).any() or (batch.dense.patch_character > 0).any()


def test_every_dense_head_learns(writer: ConversationWriter) -> None:
    batch = collate([writer.write(random.Random(n), SIGNS) for n in range(3)])
    heads = DenseHeads()
    heads(torch.randn(3, 256, VISION_WIDTH), torch.randn(3, 64, 256), batch.dense).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dense_heads_beside_a_checkpoint_are_resumed(tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "old")
    heads = DenseHeads()
    torch.save(heads.state_dict(), tmp_path / "old" / DENSE_HEADS)
    trainer = Trainer(Settings(tmp_path / "new", resume=tmp_path / "old"))
    assert torch.equal(trainer.heads.patch.weight, heads.patch.weight)
    (line,) = [json.loads(line) for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines()]
    assert "DejaVuSans" in line["fonts"]
    torch.save({"patch.weight": heads.patch.weight}, tmp_path / "old" / DENSE_HEADS)
    with pytest.raises(RuntimeError, match="Missing key"):
        Trainer(Settings(tmp_path / "new", resume=tmp_path / "old"))


def test_the_mean_of_checkpoints_may_be_shipped(tmp_path: Path) -> None:
    """Each counts as often as it is given."""
    weights = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype="float32").state_dict()
    for name, factor in (("one", 0.0), ("two", 3.0)):
        shutil.copytree(DEMO_MODEL, tmp_path / name)
        model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype="float32")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= factor
        model.save_pretrained(tmp_path / name)
    ship([tmp_path / "two", tmp_path / "two", tmp_path / "one"], tmp_path / "mean")
    mean = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "mean", dtype="float32").state_dict()
    assert mean.keys() == weights.keys()
    assert all(torch.equal(mean[key], 2 * weights[key]) for key in weights)
    config = model.config.replace(text_config=model.config.text_config.replace(num_hidden_layers=1, layer_types=None))
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="other tensors"):
        ship([tmp_path / "one", tmp_path / "two"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_shipping_rounds_the_weights_to_bfloat16_and_changes_nothing_else(tmp_path: Path) -> None:
    for name in TOKENIZER_FILES:
        (tmp_path / name).write_bytes((DEMO_MODEL / name).read_bytes())
    ship([DEMO_MODEL], tmp_path)
    for name in ("generation_config.json", "preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / name).read_text() == (DEMO_MODEL / name).read_text(), name
    assert read_config(tmp_path) == read_config(DEMO_MODEL)  # a newer program writes more of its defaults
    before, after = (Gemma3ForConditionalGeneration.from_pretrained(folder) for folder in (DEMO_MODEL, tmp_path))
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name


@pytest.mark.parametrize("earlier", ["50GB", "10MB"])
def test_what_is_shipped_lies_in_files_that_git_takes_and_all_can_read(
    tmp_path: Path, model: Gemma3ForConditionalGeneration, earlier: str
) -> None:
    """The demo model at its full size, in place of an earlier one in a single file or in larger ones."""
    trained, shipped = tmp_path / "trained", tmp_path / "shipped"
    model.save_pretrained(trained)
    for name in TOKENIZER_FILES:
        shutil.copy(DEMO_MODEL / name, trained / name)
    model.save_pretrained(shipped, max_shard_size=earlier)
    ship([trained], shipped)
    files = sorted(shipped.glob("*.safetensors"))
    assert len(files) > 2
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}
    assert max(file.stat().st_size for file in shipped.iterdir()) <= MOST_BYTES
    after = Gemma3ForConditionalGeneration.from_pretrained(shipped).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value.bfloat16(), after[name]), name


def test_a_checkpoint_that_is_too_large_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.ship.MOST_IN_ALL", 1_000_000)
    with pytest.raises(ValueError, match="more than 1,000,000"):
        ship([DEMO_MODEL], tmp_path)
    assert not list(tmp_path.iterdir())
