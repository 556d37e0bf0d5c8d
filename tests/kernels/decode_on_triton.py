"""Compares the Triton kernels with torch's operations, in Triton's interpreter where there is no CUDA. Run by
test_decode.py in a process of its own, since Triton chooses its interpreter when it is imported."""

import torch

from gemma3_core.kernels import cuda, decode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Numbers in bfloat16 have steps of 2^-8 at most, and are rounded several times; the interpreter cuts off instead.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7 if DEVICE == "cuda" else 2.0**-5}
KV_HEADS, EPS = 2, 1e-6


def compare(name: str, one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.shape == other.shape, name
    assert one.dtype == other.dtype, name
    difference = float((one.float() - other.float()).abs().max() / other.float().abs().max())
    assert difference <= BOUNDS[one.dtype], f"{name}, {one.dtype}: {difference}"
    print(f"{name} {one.dtype}: {difference:.1e}")


def check(dtype: torch.dtype, heads: int, width: int, columns: int) -> None:
    torch.manual_seed(0)
    rows, hidden = 3, 100

    def drawn(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE).to(kind)

    x, residual = drawn(rows, hidden), 10 * drawn(rows, hidden)
    weight, next_weight = (1 + drawn(hidden, kind=torch.float32) for _ in range(2))
    compare("rms_norm", cuda.rms_norm(x, weight, EPS), decode.rms_norm._init_fn(x, weight, EPS))
    given = (x, residual, weight, next_weight, EPS)
    for mine, theirs in zip(cuda.add_norms(*given), decode.add_norms._init_fn(*given), strict=True):
        compare("add_norms", mine, theirs)
    gate_up = 3 * drawn(rows, 2 * 1500)
    compare("gelu_multiply", cuda.gelu_multiply(gate_up), decode.gelu_multiply._init_fn(gate_up))

    lengths = torch.tensor([0, columns // 2, 3 * columns + 1], device=DEVICE)
    qkv = drawn(rows, (heads + 2 * KV_HEADS) * width)
    query_weight, key_weight = (1 + drawn(width, kind=torch.float32) for _ in range(2))
    angles = drawn(rows, width, kind=torch.float32)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    stores = [[drawn(rows + 1, KV_HEADS, columns, width) for _ in range(2)]]
    stores.append([store.clone() for store in stores[0]])
    mine, theirs = (
        function(qkv, query_weight, key_weight, cos, sin, lengths, *store, EPS)
        for function, store in zip((cuda.rotate_and_store, decode.rotate_and_store._init_fn), stores, strict=True)
    )
    compare("queries", mine, theirs)
    for name, one, other in zip(("keys", "values"), *stores, strict=True):
        compare(name, one, other)
    asked = (theirs, *stores[1], lengths, 0.1)
    compare("attend_slots", cuda.attend_slots(*asked), decode.attend_slots._init_fn(*asked))


for dtype in BOUNDS:
    check(dtype, heads=4, width=32, columns=50)
    check(dtype, heads=6, width=48, columns=300)
    check(dtype, heads=2, width=64, columns=9)
