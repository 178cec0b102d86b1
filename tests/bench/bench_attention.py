"""Attention on CPU, forward and backward: products in the inputs' dtype, as `models.vit.attend` has them in bf16, beside torch's

plain path, which makes float32 of bf16, and its fused kernel: `python -m tests.bench.bench_attention`.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BATCH, HEADS, WIDTH, REPEATS = 16, 4, 24, 4


def products(q_BhNd: Tensor) -> Tensor:
    return ((q_BhNd * WIDTH**-0.5) @ q_BhNd.transpose(-2, -1)).softmax(-1) @ q_BhNd


def plain(q_BhNd: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q_BhNd, q_BhNd, q_BhNd)


def fused(q_BhNd: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q_BhNd, q_BhNd, q_BhNd)


KINDS = (products, plain, fused)


def main() -> None:
    torch.set_num_threads(1)
    print(f"| tokens | dtype | {' | '.join(f'{kind.__name__}, ms' for kind in KINDS)} |\n|---|---|---|---|---|")
    for num_tokens in (65, 129, 193, 257, 385, 513, 769, 1025):
        for dtype in (torch.float32, torch.bfloat16):
            q_BhNd = torch.randn(BATCH, HEADS, num_tokens, WIDTH, dtype=dtype, requires_grad=True)
            best = dict.fromkeys(KINDS, float("inf"))
            for _ in range(REPEATS):
                for kind in KINDS:
                    begin = time.process_time()
                    kind(q_BhNd).sum().backward()
                    best[kind] = min(best[kind], 1e3 * (time.process_time() - begin))
            print(f"| {num_tokens} | {str(dtype)[6:]} | {' | '.join(f'{best[kind]:.1f}' for kind in KINDS)} |")


if __name__ == "__main__":
    main()
