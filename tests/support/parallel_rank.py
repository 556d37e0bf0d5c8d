"""One of several processes that share a model's layers out over gloo: RANK SIZE CHECKPOINT STORE RESULT."""

import sys

import torch
from torch import distributed

from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.parallel.layers import tensor_parallel

rank, size, checkpoint, store, result = sys.argv[1:]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(size))
model = Gemma3ForConditionalGeneration.from_pretrained(checkpoint)
before = sum(weight.numel() for weight in model.parameters())
tensor_parallel(model, int(rank), int(size), distributed.all_reduce)
given = before - sum(weight.numel() for weight in model.parameters())
ids = torch.arange(3, 43)[None]
with torch.inference_mode():
    logits = model(input_ids=ids).logits
    written = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
torch.save({"logits": logits, "written": written, "given": given}, result)
distributed.destroy_process_group()
