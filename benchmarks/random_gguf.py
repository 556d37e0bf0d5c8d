"""A GGUF file of random weights in Q4_0, for llama.cpp and for ours; its tokens stand for nothing."""

from pathlib import Path

import gguf
import numpy as np
import torch

from gemma3_core.gguf.tensors import DECODER_PARTS
from gemma3_core.models.text import Gemma3ForCausalLM

_UNKNOWN, _CONTROL, _UNUSED, _BYTE = 2, 3, 5, 6  # SentencePiece's types of tokens
_FIRST = ("<pad>", "<eos>", "<bos>", "<unk>")


def write_q4_0(model: Gemma3ForCausalLM, path: Path) -> None:
    """Writes the model's weights: matrices, and the embedding that is the head too, in Q4_0, norms in float32.

    Needs the package `gguf`.
    """
    writer = gguf.GGUFWriter(path, "gemma3")
    _add_metadata(writer, model)
    decoder = model.decoder
    _add(writer, "token_embd.weight", decoder.embed_tokens.weight)
    _add(writer, "output_norm.weight", decoder.norm.weight)
    for number, layer in enumerate(decoder.layers):
        weights = dict(layer.named_parameters())
        for part, name in DECODER_PARTS.items():
            _add(writer, f"blk.{number}.{part}.weight", weights[f"{name}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor) -> None:
    values = weight.detach().float().numpy()
    if name.endswith("norm.weight"):
        writer.add_tensor(name, values + 1)  # as 1 + w
    else:
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add_metadata(writer: gguf.GGUFWriter, model: Gemma3ForCausalLM) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    assert config.sliding_window is not None
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    first, size = [*_FIRST, *(f"<0x{byte:02X}>" for byte in range(256))], config.vocab_size
    tokens = [*first, *(f"<unused{number}>" for number in range(size - len(first)))]
    special = [_CONTROL, _CONTROL, _CONTROL, _UNKNOWN]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(np.zeros(size, np.float32).tolist())
    writer.add_token_types([*special, *[_BYTE] * 256, *[_UNUSED] * (size - len(first))])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
