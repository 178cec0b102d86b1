"""Attention on CPU: plain products beside the fused kernel, forward and backward, `python -m tests.bench.bench_attention`."""

import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BATCH, HEADS, WIDTH, REPEATS = 16, 4, 24, 4
BACKENDS = {"plain": SDPBackend.MATH, "fused": SDPBackend.FLASH_ATTENTION}


def seconds(q_BhNd: torch.Tensor, backend: SDPBackend) -> float:
    begin = time.process_time()
    with sdpa_kernel(backend):
        F.scaled_dot_product_attention(q_BhNd, q_BhNd, q_BhNd).sum().backward()
    return time.process_time() - begin


def main() -> None:
    torch.set_num_threads(1)
    print("| tokens | dtype | plain ms | fused ms | plain / fused |\n|---|---|---|---|---|")
    for num_tokens in (65, 129, 193, 257, 385, 513):
        for dtype in (torch.float32, torch.bfloat16):
            q_BhNd = torch.randn(BATCH, HEADS, num_tokens, WIDTH, dtype=dtype, requires_grad=True)
            times = {name: [] for name in BACKENDS}
            for _ in range(REPEATS):
                for name, backend in BACKENDS.items():
                    times[name].append(seconds(q_BhNd, backend) * 1e3)
            plain, fused = (min(times[name]) for name in BACKENDS)
            print(f"| {num_tokens} | {str(dtype)[6:]} | {plain:.1f} | {fused:.1f} | {plain / fused:.2f} |")


if __name__ == "__main__":
    main()
