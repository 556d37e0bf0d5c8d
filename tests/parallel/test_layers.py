"""A model whose layers two processes share, over gloo."""

import os

import pytest
import torch
from places import REPOSITORY
from warm import Program

from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.nn.layers import DecoderLayer
from gemma3_core.parallel.layers import check_shares

RANK = REPOSITORY / "tests" / "support" / "parallel_rank.py"


def test_two_processes_give_the_logits_and_tokens_of_one_and_hold_half_of_the_layers_each(sharp_weights, tmp_path):
    results = [tmp_path / f"result{rank}" for rank in range(2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    programs = []
    for rank, result in enumerate(results):
        into = tmp_path / f"said{rank}"
        into.mkdir()
        arguments = [str(rank), "2", str(sharp_weights.both), str(tmp_path / "store"), str(result)]
        programs.append((Program(RANK, arguments, environment, into), into))
    for program, into in programs:
        assert program.wait(timeout=120) == 0, (into / "stderr").read_text()

    model = Gemma3ForConditionalGeneration.from_pretrained(sharp_weights.both)
    ids = torch.arange(3, 43)[None]
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        written = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    shared = sum(
        module.weight.numel()
        for layer in model.modules()
        if isinstance(layer, DecoderLayer)
        for module in (*layer.self_attn.children(), *layer.mlp.children())
        if isinstance(module, torch.nn.Linear)
    )
    for result in map(torch.load, results):
        assert (result["logits"] - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert torch.equal(result["written"], written)
        assert result["given"] == shared // 2


def test_what_cannot_be_shared_out_evenly_is_refused(sharp_weights):
    model = Gemma3ForConditionalGeneration.from_pretrained(sharp_weights.both)
    with pytest.raises(UnsupportedOptionError, match="4 attention heads can't be shared out evenly over 3 devices"):
        check_shares(model, 3)
    with pytest.raises(UnsupportedOptionError, match="2 key and value heads"):
        check_shares(model, 4)
    layer = next(module for module in model.modules() if isinstance(module, DecoderLayer))
    layer.mlp.down_proj = torch.nn.Identity()
    with pytest.raises(UnsupportedOptionError, match="Only plain weights are shared out over devices, got Identity"):
        check_shares(model, 2)
