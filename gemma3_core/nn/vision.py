"""The SigLIP encoder, and the projector that turns its patches into soft tokens."""

import torch
from torch import nn
from torch.nn import functional as F

from gemma3_core.config.gemma3 import Gemma3Config, SiglipVisionConfig
from gemma3_core.nn.checkpointing import CheckpointedLayer, run_layer
from gemma3_core.nn.layers import Linear, RMSNorm, attend


class VisionEmbeddings(nn.Module):
    """Pixels [N, 3, S, S] in -1 to 1 -> one embedding a patch [N, patches, width], rows first."""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        weight = self.patch_embedding.weight
        # With a stride as large as the kernel, one matrix product over patches is the same and runs faster.
        side = weight.shape[-1]
        patches = pixel_values.to(weight.dtype).unfold(2, side, side).unfold(3, side, side)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # [N, patches, 3 * side * side]
        embedded = F.linear(patches, weight.flatten(1), self.patch_embedding.bias)
        return embedded + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Multi-head attention of every patch to every patch."""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (*x.shape[:-1], -1, self.head_dim)
        queries, keys, values = (p(x).view(heads).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        out, _ = attend(queries, keys, values, None, self.head_dim**-0.5, with_weights=False)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(CheckpointedLayer):
    """Pre-norm transformer layer."""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEncoder(nn.Module):
    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList([VisionLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = run_layer(layer, x)
        return x


class SiglipVisionModel(nn.Module):
    """Pixels [N, 3, S, S] -> patch features [N, patches, width]."""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values)))


class MultiModalProjector(nn.Module):
    """Patch features [N, patches, width] -> soft tokens [N, mm_tokens_per_image, E] in the decoder's width."""

    def __init__(self, config: Gemma3Config):
        super().__init__()
        self.config, vision = config, config.vision_config
        self.mm_input_projection_weight = nn.Parameter(torch.zeros(vision.hidden_size, config.text_config.hidden_size))
        self.mm_soft_emb_norm = RMSNorm(vision.hidden_size, vision.layer_norm_eps)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.project(self.pooled(features)).type_as(features)

    def pooled(self, features: torch.Tensor) -> torch.Tensor:
        """Patch features [N, patches, width] -> their normalised means [N, mm_tokens_per_image, width]."""
        side = self.config.vision_config.patches_per_side
        grid = features.transpose(1, 2).unflatten(2, (side, side))  # [N, width, side, side]
        pooled = F.avg_pool2d(grid, side // self.config.tokens_per_side).flatten(2).transpose(1, 2)
        return self.mm_soft_emb_norm(pooled)

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """[..., width] -> [..., E]"""
        return pooled @ self.mm_input_projection_weight
