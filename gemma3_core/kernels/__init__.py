"""Operations that torch is slow at on a CPU. They know tensors, and nothing of Gemma."""
