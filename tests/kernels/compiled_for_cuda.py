"""Compiles every Triton kernel for NVIDIA GPUs, which needs none: the interpreter does not check types. Run by
test_decode.py in a process of its own."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gemma3_core.kernels import cuda

FLOAT, INT = "fp32", "i32"
POINTERS = {"float32": "*fp32", "bfloat16": "*bf16"}
CAPABILITIES = (80, 90)
# Arguments that are neither of the model's type nor whole numbers.
KINDS = {
    **dict.fromkeys(("weight", "next_weight", "query_weight", "key_weight", "sums", "highest", "totals"), "*fp32"),
    **dict.fromkeys(("eps", "scale"), FLOAT),
    "lengths": "*i64",
}
NUMBERS = {"width", "heads", "kv_heads", "columns", "split", "parts"}
KERNELS = {
    cuda._rms_norm_kernel: [{"BLOCK": 4096}],
    cuda._add_norms_kernel: [{"BLOCK": 4096}],
    cuda._gelu_multiply_kernel: [{"BLOCK": 1024}],
    # Triton compiles numbers that are 1 as constants: one KV head, as in the 270M and 1B checkpoints; a single part.
    cuda._rotate_and_store_kernel: [{"BLOCK": 256}, {"BLOCK": 256, "kv_heads": 1}],
    cuda._attend_kernel: [
        {"GROUP": 2, "GROUP_BLOCK": 2, "COLUMNS": 16, "BLOCK": 256},
        {"GROUP": 4, "GROUP_BLOCK": 4, "COLUMNS": 16, "BLOCK": 256, "kv_heads": 1},
    ],
    cuda._join_kernel: [
        {"GROUP": 2, "GROUP_BLOCK": 2, "PARTS": 8, "BLOCK": 256},
        {"GROUP": 1, "GROUP_BLOCK": 1, "PARTS": 1, "BLOCK": 32, "parts": 1},
    ],
}

for kernel, versions in KERNELS.items():
    for constants in versions:
        for dtype, pointer in POINTERS.items():
            names = kernel.arg_names
            kinds = {name: KINDS.get(name, INT if name in NUMBERS else pointer) for name in names}
            signature = {name: "constexpr" if name in constants else kind for name, kind in kinds.items()}
            values = {(names.index(name),): value for name, value in constants.items()}
            for capability in CAPABILITIES:
                source = ASTSource(fn=kernel, signature=signature, constexprs=values)
                made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
                assert "ptx" in made.asm
                print(f"{kernel.fn.__name__} {dtype} {capability}")
