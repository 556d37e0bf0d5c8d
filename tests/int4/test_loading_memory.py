"""What int4 takes while it is made from a checkpoint in full precision: no more than its result and a few rows."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from warm import ran

from gemma3_core.config.gemma3 import Gemma3Config, Gemma3TextConfig
from gemma3_core.int4 import linear
from gemma3_core.int4.quantize import TorchAoConfig, plan_int4, weight_bytes
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.models.weights import build_on_meta, hub_name

SLACK = 24 * 2048 * 512 + 2**25 + 30_000_000
"""Bytes: what a layer's weights take while they are quantised, in float32 and packed (of a larger layer, 16.8 million
are quantised at a time), half of the last mapping of 64 MB that packed weights lie in, and torch's own."""
SHAPE = {
    "model_type": "gemma3_text",
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 2048,
}

LOAD = """
import ctypes, sys, threading
from gemma3_core import Gemma3ForCausalLM, TorchAoConfig
ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed goes back to the system

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

folder, dtype, int4 = sys.argv[1:]
most, done = before, _ = anonymous(), threading.Event()
def watch():
    global most
    while not done.wait(0.002):
        most = max(most, anonymous())
watching = threading.Thread(target=watch)
watching.start()
config = TorchAoConfig() if int4 == "1" else None
model = Gemma3ForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config)
done.set()
watching.join()
print(most - before)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A text model of 105 million weights in bfloat16."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps({**SHAPE, "architectures": ["Gemma3ForCausalLM"]}))
    model = build_on_meta(lambda: Gemma3ForCausalLM(Gemma3TextConfig.from_dict(SHAPE)))
    weights = {
        hub_name(name, False): tuple(p.shape) for name, p in model.named_parameters() if name != "lm_head.weight"
    }
    generator = torch.Generator().manual_seed(0)
    save_file(
        {name: (torch.randn(shape, generator=generator) * 0.02).bfloat16() for name, shape in weights.items()},
        folder / "model.safetensors",
    )
    return folder, model


def most_while_loading(folder: Path, dtype: str, int4: bool, into: Path) -> int:
    """Bytes of memory that no file stands for, in a process of its own."""
    program, own = into / "load.py", into / f"{dtype} {int4}"
    program.write_text(LOAD)
    own.mkdir()
    status, printed, errors = ran(program, [str(folder), dtype, str(int(int4))], os.environ, own)
    assert status == 0, errors
    return int(printed)


@pytest.mark.skipif(sys.platform != "linux", reason="what a process takes is read from Linux's /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_int4_is_made_without_holding_the_weights_in_full_precision(checkpoint, dtype, tmp_path):
    folder, model = checkpoint
    full, int4 = weight_bytes(model.to(getattr(torch, dtype)), plan_int4(model, TorchAoConfig()))
    assert int4 + SLACK < full, "otherwise this shows nothing"
    assert int4 / 2 < most_while_loading(folder, dtype, True, tmp_path) < int4 + SLACK
    if dtype == "float32":  # bfloat16 stays in the file
        assert most_while_loading(folder, dtype, False, tmp_path) > full / 2


def test_27b_fits_into_21_gib_while_it_is_made(shared_data):
    """Its result, one layer's weights in bfloat16 on their way to a GPU (the largest are the tied head's), and the rows
    that are quantised at a time."""
    data = json.loads((shared_data / "configs" / "gemma-3-27b-it.config.json").read_text())
    model = build_on_meta(lambda: Gemma3ForConditionalGeneration(Gemma3Config.from_dict(data)).bfloat16())
    plan = plan_int4(model, TorchAoConfig())
    _, int4 = weight_bytes(model, plan)
    largest = max(model.get_submodule(name).weight.nbytes for name in plan.layers)
    assert int4 + largest + 24 * linear._ELEMENTS_AT_A_TIME < 21 * 2**30
