"""The tensors of GGUF files, under the names that the Hub's checkpoints give them."""

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch

from gemma3_core.errors import CheckpointError
from gemma3_core.gguf.blocks import PLAIN_TYPES, dequantize, q4_0_steps
from gemma3_core.gguf.header import Header, TensorInfo, read_header

Q4_0, Q4_0_GROUP_SIZE = "Q4_0", 32
VISION_ARCHITECTURE = "clip"
_DECODER, _ENCODER, _PROJECTOR = "language_model.model.", "vision_tower.vision_model.", "multi_modal_projector."
DECODER_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_VISION_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
}
_WHOLE = {
    "token_embd.weight": f"{_DECODER}embed_tokens.weight",
    "output_norm.weight": f"{_DECODER}norm.weight",
    "output.weight": "language_model.lm_head.weight",
    "v.patch_embd.weight": f"{_ENCODER}embeddings.patch_embedding.weight",
    "v.patch_embd.bias": f"{_ENCODER}embeddings.patch_embedding.bias",
    "v.position_embd.weight": f"{_ENCODER}embeddings.position_embedding.weight",
    "v.post_ln.weight": f"{_ENCODER}post_layernorm.weight",
    "v.post_ln.bias": f"{_ENCODER}post_layernorm.bias",
    "mm.input_projection.weight": f"{_PROJECTOR}mm_input_projection_weight",
    "mm.soft_emb_norm.weight": f"{_PROJECTOR}mm_soft_emb_norm.weight",
}
_BLOCK = re.compile(r"(v\.)?blk\.(\d{1,9})\.(\w+)\.(weight|bias)")
_LEFT_OUT = re.compile(r"rope_freqs\.weight|v\.head\..*")


class GgufTensor:
    """A tensor of a file, with those parts of torch.Tensor's interface that loading needs. It is dequantised by `to`.

    `shape` and `dtype` are those of the result: float32 for F32, else bfloat16.
    """

    def __init__(self, header: Header, info: TensorInfo):
        self._header, self._info = header, info
        self.shape = info.shape
        self.dtype = torch.float32 if info.kind.name == "F32" else torch.bfloat16

    def is_floating_point(self) -> bool:
        return True

    @property
    def is_q4_0(self) -> bool:
        return self._info.kind.name == Q4_0

    @property
    def loaded_bytes(self) -> int:
        """What it takes in memory: as int4 weights, or dequantised."""
        return self._info.num_bytes if self.is_q4_0 else prod(self.shape) * self.dtype.itemsize

    def is_mapped_as(self, dtype: torch.dtype) -> bool:
        """Whether the weights of this type are a view of the file, on a CPU."""
        return PLAIN_TYPES.get(self._info.kind.name) == dtype and not _is_shifted(self._info.name)

    def to(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """The weights. In the file's own type and on a CPU they stay mapped."""
        data, kind = self._header.data(self._info), self._info.kind
        if not _is_shifted(self._info.name):
            return dequantize(data, kind, dtype).view(self.shape).to(device)
        # Norms are stored as 1 + w.
        return (dequantize(data, kind) - 1).view(self.shape).to(device, dtype)

    def q4_0(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The steps of a Q4_0 tensor [N, K] and their scales; see `q4_0_steps`."""
        assert self.is_q4_0
        return q4_0_steps(self._header.data(self._info))


def _is_shifted(name: str) -> bool:
    """Whether a tensor holds 1 + w: the norms of the decoder and of the projector, not the encoder's."""
    return name.endswith("norm.weight")


def hub_tensors(path: Path) -> Iterator[tuple[str, GgufTensor]]:
    """The tensors of one file with the Hub's names. Raises CheckpointError for one that Gemma 3 does not have."""
    header = read_header(path, lists_of_texts=False)
    for name, info in header.tensors.items():
        if not _LEFT_OUT.fullmatch(name):
            yield _hub_name(header, info), GgufTensor(header, info)


def _hub_name(header: Header, info: TensorInfo) -> str:
    name = info.name
    if name in _WHOLE:
        return _WHOLE[name]
    if block := _BLOCK.fullmatch(name):
        vision, layer, part, kind = block.groups()
        if vision and part in ("ffn_up", "ffn_down"):
            return f"{_ENCODER}encoder.layers.{layer}.mlp.{_fully_connected(header, info)}.{kind}"
        if vision and part in _VISION_PARTS:
            return f"{_ENCODER}encoder.layers.{layer}.{_VISION_PARTS[part]}.{kind}"
        if not vision and part in DECODER_PARTS:
            return f"{_DECODER}layers.{layer}.{DECODER_PARTS[part]}.{kind}"
    raise CheckpointError(f"{header.path.name} holds {name}, which Gemma 3 does not have. Give a file of Gemma 3.")


def _fully_connected(header: Header, info: TensorInfo) -> str:
    """fc1 widens and fc2 narrows. Older converters called them the other way round, so the shape decides."""
    width, inner = (header.metadata.get(f"clip.vision.{key}") for key in ("embedding_length", "feed_forward_length"))
    if width == inner:
        return "fc1" if ".ffn_up." in info.name else "fc2"
    return "fc1" if info.shape[0] == inner else "fc2"
