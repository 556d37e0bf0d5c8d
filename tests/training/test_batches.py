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
from safetensors.torch import save_file
from torch.nn import functional as F

from gemma3_core.config import read_config
from gemma3_core.int4_linear import quantize_weight
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.processor import Gemma3Processor
from gemma3_core.quantization import TorchAoConfig, quantized
from gemma3_core.tokenizer import Gemma3Tokenizer
from gemma3_core.weight_files import INDEX_FILE, SINGLE_FILE, weight_files
from tests.reference import assert_equal
from training.learning.average import average
from training.learning.batches import NO_PICTURE, Batch, Conversations, ConversationWriter, Mix, Share, _alike, collate
from training.learning.model import IGNORED, VISION_WIDTH, DenseHeads, demo_config, initialise
from training.learning.trainer import (
    Trainer,
    answer_masks,
    decoder_weights,
    dense_mix_of,
    in_int4,
    mix_of,
    parse,
    patches_near_objects,
)
from training.ship import MOST_BYTES, ship
from training.tokenizer import TOKENIZER_FILES, build, carry
from training.worlds.scenes.scenes import COLORS, HELDOUT_PAIRS, SHAPES

DEMO_MODEL = Path(__file__).resolve().parents[2] / "assets" / "demo_model"
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


def test_the_loss_does_not_depend_on_excluded_logits(tmp_path: Path) -> None:
    trainer = Trainer(parse(["--out", str(tmp_path), "--batch", "2", "--workers", "0", "--device", "cpu", "--plain"]))
    rng = random.Random(9)
    conversation = next(c for c in (trainer.writer().write(rng, FAN) for _ in range(200)) if c.excluded)
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


def test_training_lowers_the_loss_and_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    arguments = parse(["--out", str(tmp_path), "--batch", "4", "--workers", "0", "--device", "cpu", "--plain"])
    trainer = Trainer(arguments)
    batch = collate([trainer.writer().write(random.Random(n), FAN) for n in range(4)])
    losses = [trainer.train_step(batch)["answer"] for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    trainer.step = 12
    trainer.save("last")
    again = Trainer(parse(["--out", str(tmp_path), "--resume", str(tmp_path / "last"), "--plain"]))
    for name, value in trainer.average.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_the_decoder_stage_answers_the_same_and_leaves_the_encoder_alone(tmp_path: Path) -> None:
    asked_of_each = ["--decoder-questions", "3"]
    arguments = parse(["--out", str(tmp_path), "--workers", "0", "--device", "cpu", "--plain", *asked_of_each])
    trainer = Trainer(arguments)
    batch = collate([trainer.writer().write(random.Random(n), FAN) for n in range(2)])
    with torch.no_grad():
        whole, encoded = trainer.losses(batch), trainer.losses(trainer._encoded(batch))
    assert encoded[0] == 0
    torch.testing.assert_close(encoded[1], whole[1], rtol=1e-2, atol=0)  # soft tokens are kept in bfloat16
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    asked = []
    trainer.batches = lambda mix, size, batches=trainer.batches: asked.append(mix.questions) or batches(mix, size)
    trainer.run_decoder_stage(0.02, mix_of(arguments), size=2, pictures=4)
    assert asked == [3]
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not {name for name in changed if "language_model" not in name and "lm_head" not in name}


def test_the_encoder_may_learn_at_a_rate_of_its_own(tmp_path: Path) -> None:
    """Its parameters, all of them and no others, are in the groups whose rate is scaled."""
    trainer = Trainer(parse(["--out", str(tmp_path), "--device", "cpu", "--plain"]))
    trainer.encoder_rate = 0.25
    trainer._set_rate(0.1)
    rates = {
        id(p): group["lr"] / group["base_lr"]
        for o in trainer.optimisers
        for group in o.param_groups
        for p in group["params"]
    }
    for name, parameter in trainer.model.named_parameters():
        encodes = "vision_tower" in name or "projector" in name
        assert rates.pop(id(parameter)) == (0.25 if encodes else 1.0), name
    assert set(rates.values()) == {1.0}  # of the dense heads


def test_answers_may_be_learnt_as_int4_gives_them(tmp_path: Path) -> None:
    """The loss is that of int4 weights, the head's aside; what is kept and trained are the whole weights."""
    trainer = Trainer(parse(["--out", str(tmp_path), "--resume", str(DEMO_MODEL), "--device", "cpu", "--plain"]))
    batch = collate([trainer.writer().write(random.Random(n), FAN) for n in range(2)])
    weights = decoder_weights(trainer.model)
    assert len(weights) == 7 * trainer.model.text_config.num_hidden_layers
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        whole = trainer.losses(batch)[1]
        with in_int4(weights):
            rounded = trainer.losses(batch)[1]
        config = TorchAoConfig(modules_to_not_convert=["lm_head"])
        by_app = quantized(trainer.model, config)
        trainer.model, trained = by_app, trainer.model
        asked = trainer.losses(batch)[1]
    torch.testing.assert_close(rounded, asked, rtol=2e-2, atol=1e-4)
    assert abs(rounded - whole) > 1e-5
    assert all(torch.equal(weight, kept) for weight, kept in zip(weights, before, strict=True))
    trainer.model, trainer.rounded = trained, weights
    trainer.train_step(batch)
    for weight, kept in zip(weights, before, strict=True):
        learnt, rounding = weight - kept, quantize_weight(kept, 128).dequantize() - kept
        assert 0 < learnt.norm() < 0.5 * rounding.norm()


@pytest.mark.parametrize(("stage", "share", "rounded"), [("joint", 0.5, 15), ("joint", 0.0, 0), ("dense", 0.5, 0)])
def test_the_end_of_a_stage_with_answers_is_in_int4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, share: float, rounded: int
) -> None:
    """A minute in which a batch is waited for half a second and learnt from in one and a half: 30 steps."""
    arguments = ["--out", str(tmp_path), "--int4", str(share), "--device", "cpu", "--plain"]
    trainer = Trainer(parse(arguments))
    batch = collate([trainer.writer().write(random.Random(1), FAN)])
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
    assert steps == [0] * (30 - rounded) + [weights] * rounded
    (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line == {"stage": stage, "step": 25, "minutes": 0.83, "answer": 13.0, "pictures": 3.0, "waited_s": 0.5}
    assert isinstance(line["pictures"], float)


SIGNS = replace(FAN, worlds=(Share("signs", 1.0),), questions=8)


def test_a_fan_about_a_sign_asks_each_kind_in_other_words(writer: ConversationWriter) -> None:
    read = replace(SIGNS, worlds=(Share("signs", 1.0, kinds=("read", "text_color")),))
    conversation = writer.write(random.Random(10), read)
    text = writer._tokenizer.decode(conversation.ids)
    assert text.count('The sign says "') == 3
    assert text.count("The text is ") == 2
    assert max(conversation.segments) == 5
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
    both = mix_of(parse(["--out", "x", "--signs", "0.25", "--easiest-sign", "0", "--hardest-sign", "0.5"]))
    assert both.worlds == (Share("scenes", 0.75), Share("signs", 0.25, 0.0, 0.5))
    assert mix_of(parse(["--out", "x", "--signs", "1"])).worlds == (Share("signs", 1.0),)
    refused = (
        ["--signs", "2"],
        ["--easiest-sign", "0.6", "--hardest-sign", "0.4"],
        ["--decoder-questions", "0"],
        ["--encoder-rate", "-1"],
        ["--int4", "1.5"],
    )
    for wrong in refused:
        with pytest.raises(SystemExit):
            parse(["--out", "x", *wrong])


def test_the_arguments_name_the_kinds_and_the_crowded_batches() -> None:
    arguments = ["--out", "x", "--signs", "0.3", "--elsewhere", "0.1", "--crowds", "0.25"]
    mix = mix_of(parse([*arguments, "--kinds", "where,read,strange_picture"]))
    assert {share.world: share.kinds for share in mix.worlds} == {
        "scenes": ("where",), "signs": ("read",), "elsewhere": ("strange_picture",),
    }  # fmt: skip
    assert mix.crowded == 0.25
    assert dense_mix_of(parse(arguments)).crowded == 0.0
    assert {share.kinds for share in mix_of(parse(arguments)).worlds} == {None}
    for wrong in ("where,read,strange", "where,read", ""):  # no such kind; none about what is elsewhere; none at all
        with pytest.raises(SystemExit):
            parse([*arguments, f"--kinds={wrong}"])


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
    kinds = replace(FAN, worlds=(Share("scenes", 1.0, kinds=("where",)),))
    text = writer._tokenizer.decode(writer.write(rng, kinds).ids)
    assert " is in the " in text
    assert "There" not in text


def test_character_heads_learn_and_without_them_the_loss_is_the_old_one(writer: ConversationWriter) -> None:
    batch = collate([writer.write(random.Random(n), SIGNS) for n in range(3)])
    torch.manual_seed(0)
    plain, reading = DenseHeads(), DenseHeads(characters=True)
    reading.load_state_dict(plain.state_dict())
    patches, tokens = torch.randn(3, 256, VISION_WIDTH), torch.randn(3, 64, 256)
    assert reading(patches, tokens, batch.dense) > plain(patches, tokens, batch.dense)
    plain(patches, tokens, batch.dense).backward()
    assert plain.patch_character.weight.grad is None
    reading(patches, tokens, batch.dense).backward()
    assert reading.token_characters.weight.grad is not None
    kept = patches_near_objects(batch.dense, 96)
    written = (batch.dense.patch_character.unflatten(1, (256, 2)) > 0).any(-1)
    assert all(set(w.nonzero().flatten().tolist()) <= set(k.tolist()) for w, k in zip(written, kept, strict=True))


def test_older_dense_heads_load_and_the_log_names_the_fresh_ones(tmp_path: Path) -> None:
    shutil.copytree(DEMO_MODEL, tmp_path / "old")
    heads = DenseHeads()
    state = {name: value for name, value in heads.state_dict().items() if "character" not in name}
    torch.save(state, tmp_path / "old" / "dense_heads.pt")
    arguments = ["--out", str(tmp_path / "new"), "--resume", str(tmp_path / "old"), "--plain", "--device", "cpu"]
    trainer = Trainer(parse([*arguments, "--signs", "0.5"]))
    assert torch.equal(trainer.heads.patch.weight, heads.patch.weight)
    log = [json.loads(line) for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines()]
    assert log[0] == {"fresh_heads": ["patch_character", "token_characters"]}
    assert "DejaVuSans" in log[1]["fonts"]
    with pytest.raises(RuntimeError, match="patch"):
        DenseHeads().load({name: value for name, value in state.items() if not name.startswith("patch")})


def test_a_checkpoint_is_carried_to_another_tokenizer_by_the_text_of_its_tokens(tmp_path: Path) -> None:
    plain, tokenizer = tmp_path / "plain", build(spelling=True)
    carry(DEMO_MODEL, build(), plain)
    new = carry(plain, tokenizer, tmp_path)
    before, after = (
        Gemma3ForConditionalGeneration.from_pretrained(folder, dtype="float32") for folder in (plain, tmp_path)
    )
    old = Gemma3Tokenizer.from_pretrained(plain)
    carried = Gemma3Tokenizer.from_pretrained(tmp_path)
    one, two = before.decoder.embed_tokens.weight, after.decoder.embed_tokens.weight
    assert torch.equal(two[carried.token_id("▁circle")], one[old.token_id("▁circle")])
    assert old.token_id('"S') is None
    pieces = old.encode('"S', add_special_tokens=False)
    assert torch.equal(two[carried.token_id('"S')], one[pieces].mean(0))
    assert new > 100
    assert new == sum(old.token_id(token) is None for token in tokenizer.get_vocab())
    for name, value in before.state_dict().items():
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(value, after.state_dict()[name]), name
    trainer = Trainer(parse(["--out", str(tmp_path / "run"), "--resume", str(tmp_path), "--plain", "--device", "cpu"]))
    assert len(trainer.tokenizer.encode('"STOP"', add_special_tokens=False)) == 5
    trainer.save("last")
    assert (tmp_path / "run" / "last" / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()


@pytest.mark.parametrize("largest_file", ["50GB", "5MB"])
def test_the_mean_of_checkpoints_is_a_checkpoint(tmp_path: Path, largest_file: str) -> None:
    weights = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype="float32").state_dict()
    for name, factor in (("one", 1.0), ("two", 3.0)):
        shutil.copytree(DEMO_MODEL, tmp_path / name)
        model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype="float32")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= factor
        model.save_pretrained(tmp_path / name, max_shard_size=largest_file if name == "one" else "50GB")
    average([tmp_path / "one", tmp_path / "two"], tmp_path / "mean")
    assert not (tmp_path / "mean" / INDEX_FILE).exists()
    assert [file.name for file in (tmp_path / "mean").glob("*.safetensors")] == [SINGLE_FILE]
    mean = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "mean").state_dict()
    assert mean.keys() == weights.keys()
    assert all(torch.equal(mean[key], 2 * weights[key]) for key in weights)
    save_file({"other": torch.zeros(1)}, tmp_path / "two" / SINGLE_FILE)
    with pytest.raises(ValueError, match="other tensors"):
        average([tmp_path / "one", tmp_path / "two"], tmp_path / "mean")
    with pytest.raises(ValueError, match="two"):
        average([tmp_path / "one"], tmp_path / "mean")
    with pytest.raises(ValueError, match="beside"):
        average([tmp_path / "one", tmp_path / "two"], tmp_path / "two")


def test_shipping_rounds_the_weights_to_bfloat16_and_changes_nothing_else(tmp_path: Path) -> None:
    for name in TOKENIZER_FILES:
        (tmp_path / name).write_bytes((DEMO_MODEL / name).read_bytes())
    ship(DEMO_MODEL, tmp_path)
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
    ship(trained, shipped)
    files = weight_files(shipped)
    assert len(files) > 2
    assert sorted(shipped.glob("*.safetensors")) == files
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}
    assert max(file.stat().st_size for file in shipped.iterdir()) <= MOST_BYTES
    after = Gemma3ForConditionalGeneration.from_pretrained(shipped).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value.bfloat16(), after[name]), name


def test_a_checkpoint_that_is_too_large_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.ship.MOST_IN_ALL", 1_000_000)
    with pytest.raises(ValueError, match="more than 1,000,000"):
        ship(DEMO_MODEL, tmp_path)
    assert not list(tmp_path.iterdir())
