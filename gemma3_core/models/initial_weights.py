"""The weights that a model made from a config begins with: those of transformers.

Source: `_init_weights` of transformers' Gemma3PreTrainedModel and SiglipPreTrainedModel.
"""

import math

from torch import nn

from gemma3_core.nn.vision import SiglipVisionModel, VisionAttention, VisionEmbeddings, VisionMLP

_TRUNCATED_STD = 0.87962566103423978
"""transformers divides by it, for a distribution that it cuts off so far out that nothing is cut off."""


def initialise_decoder(model: nn.Module, std: float) -> None:
    """Normal weights of this standard deviation, biases and the padding token's embedding 0; norms are 0 already."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx].zero_()
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise_encoder(encoder: SiglipVisionModel) -> None:
    """SigLIP's own distributions; layer norms are 1 and 0 already."""
    for module in encoder.modules():
        if isinstance(module, VisionEmbeddings):
            patch, positions = module.patch_embedding, module.position_embedding
            nn.init.normal_(patch.weight, std=math.sqrt(1 / patch.weight[0].numel()) / _TRUNCATED_STD)
            assert patch.bias is not None
            nn.init.zeros_(patch.bias)
            nn.init.normal_(positions.weight, std=positions.embedding_dim**-0.5)
        elif isinstance(module, VisionAttention | VisionMLP):
            bias_std = 1e-6 if isinstance(module, VisionMLP) else 0.0
            for layer in module.children():
                assert isinstance(layer, nn.Linear)
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=bias_std)
