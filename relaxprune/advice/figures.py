"""Published measurements of pruned models and layers, by device: what was measured, where, and what it speaks for.

Nothing here was measured by us. A figure without ``ask`` is a reason to stay dense. ``docs/which-pattern.md`` shows all
of them; a test holds the page to this list.
"""

from __future__ import annotations

from dataclasses import dataclass

DEVICES = {
    "h100": "NVIDIA H100 or H200",
    "a100": "NVIDIA A100",
    "4090": "NVIDIA GeForce RTX 4090",
    "3090": "NVIDIA GeForce RTX 3090",
    "xeon": "Intel Xeon with AMX",
    "epyc": "AMD EPYC",
    "m-series": "Apple M series",
    "jetson": "NVIDIA Jetson Orin",
}

SEMI_STRUCTURED_BITS = 9.0  # 2:4 in 16 bits: half of the values, and 2 bits for each
FP8_BITS = 5.0  # 2:4 in 8 bits
MACKO_BITS = 10.0  # half of the values in 16 bits, and 4 bits for each; fillers are rare at 50 %
SLIDE_BITS = 7.5  # 6:8 as 2:4 of one and a half times as many entries, in 8 bits


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One published measurement, or one reason to stay dense.

    Attributes:
        device: a key of ``DEVICES``.
        tokens: how many tokens, multiplied by a weight at once, it speaks for: from, to (None: any more).
        ask: the options of ``relaxprune prune`` that give the pattern, or None: stay dense.
        runtime: what runs it, or would.
        speed: times the speed of the same model, or layer, dense in the same runtime and precision; the least that was
            measured. None if no speed was.
        measured: what was measured.
        source: its address.
        bits: of a pruned weight in that form, None if nobody says.
    """

    device: str
    tokens: tuple[int, int | None]
    ask: str | None
    runtime: str
    speed: float | None
    measured: str
    source: str
    bits: float | None = None

    def covers(self, tokens: int) -> bool:
        """Return whether the figure speaks for so many tokens at once."""
        least, most = self.tokens
        return least <= tokens and (most is None or tokens <= most)


_TORCH = "torch.sparse.to_sparse_semi_structured, bfloat16 or float16"
_ONE_TOKEN = "4096 x 4096 by one token: 0.022 ms dense, 0.196 ms as 2:4; a GPU is not named"
_ONE_TOKEN_SOURCE = "https://github.com/pytorch/pytorch/issues/111339"
_FEW_TOKENS = "10240 columns, a GPU is not named: 0.59 times dense at 64 tokens, 0.68 at 512, 1.35 at 1280"
_FEW_TOKENS_SOURCE = "https://github.com/pytorch/ao/issues/1460"
_MACKO = "MACKO, float16, one sequence at a time"

FIGURES = (
    Figure(
        device="h100",
        tokens=(64, 1024),
        ask="--pattern 2:4",
        runtime="torchao, FP8 with 2:4",
        speed=1.26,
        measured="two layers of 8192 x 8192, 64 to 512 tokens: 1.26 to 1.39 times FP8 dense",
        source="https://github.com/pytorch/ao/pull/2012",
        bits=FP8_BITS,
    ),
    Figure(
        device="h100",
        tokens=(1025, None),
        ask=None,
        runtime=_TORCH,
        speed=0.41,
        measured="3072 x 10240 by 3072 tokens, float16; 1.15 with the change proposed there, so time your torch",
        source="https://github.com/pytorch/pytorch/pull/177866",
    ),
    Figure(
        device="h100",
        tokens=(1, 63),
        ask=None,
        runtime=_TORCH,
        speed=None,
        measured="the author of these kernels expects nothing from 2:4 where few tokens are multiplied at once",
        source="https://github.com/pytorch/pytorch/issues/153825",
    ),
    Figure(
        device="a100",
        tokens=(1024, None),
        ask="--pattern 2:4",
        runtime=_TORCH,
        speed=1.33,
        measured="one layer of Llama-3-8B, 2048 tokens",
        source="https://arxiv.org/abs/2505.23049",
        bits=SEMI_STRUCTURED_BITS,
    ),
    Figure(
        device="a100",
        tokens=(1024, None),
        ask="--pattern 6:8",
        runtime="SlideSparse, a fork of vLLM",
        speed=1.33,
        measured="Qwen2.5-7B, compute-bound work; among the GPUs of the paper",
        source="https://arxiv.org/abs/2603.05232",
        bits=SLIDE_BITS,
    ),
    Figure(
        device="a100",
        tokens=(1, 63),
        ask=None,
        runtime=_TORCH,
        speed=0.11,
        measured=_ONE_TOKEN,
        source=_ONE_TOKEN_SOURCE,
    ),
    Figure(
        device="a100",
        tokens=(64, 1023),
        ask=None,
        runtime=_TORCH,
        speed=0.59,
        measured=_FEW_TOKENS,
        source=_FEW_TOKENS_SOURCE,
    ),
    Figure(
        device="4090",
        tokens=(1, 1),
        ask="--sparsity 0.5",
        runtime=_MACKO,
        speed=1.48,
        measured="Llama-2-7B, 100 tokens: 66.5 to 98.6 tokens a second, 13.59 to 8.87 GB",
        source="https://github.com/vlejd/macko_spmv/blob/master/media/README.md",
        bits=MACKO_BITS,
    ),
    Figure(
        device="4090",
        tokens=(1, 63),
        ask=None,
        runtime="2:4 kernels",
        speed=0.88,
        measured="decoding Llama-2-7B as 2:4: 12 % slower than dense",
        source="https://forums.developer.nvidia.com/t/why-am-i-2-4-sparse-slower-than-dense-in-the-decode-stage-of-llama2-7b/340931",
    ),
    Figure(
        device="4090",
        tokens=(2, None),
        ask=None,
        runtime="TensorRT-LLM, FP8 with 2:4",
        speed=1.0,
        measured="Llama-3-8B: dense kernels are the faster ones, and are chosen",
        source="https://github.com/NVIDIA/Model-Optimizer/issues/36",
    ),
    Figure(
        device="3090",
        tokens=(1, 1),
        ask="--sparsity 0.5",
        runtime=_MACKO,
        speed=1.3,
        measured="layers of common models at 50 %, RTX 2080, 3090 and 4090: 1.3 to 1.5 times cuBLAS",
        source="https://github.com/vlejd/macko_spmv",
        bits=MACKO_BITS,
    ),
    Figure(
        device="3090",
        tokens=(3072, None),
        ask="--pattern 2:4",
        runtime=_TORCH,
        speed=1.7,
        measured="an RTX 3060, of the same generation: 3072 x 10240 and larger by 3072 tokens and more, 1.70 to 1.97",
        source="https://github.com/pytorch/ao/issues/174",
        bits=SEMI_STRUCTURED_BITS,
    ),
    Figure(
        device="3090",
        tokens=(1, 63),
        ask=None,
        runtime=_TORCH,
        speed=0.11,
        measured=_ONE_TOKEN,
        source=_ONE_TOKEN_SOURCE,
    ),
    Figure(
        device="3090",
        tokens=(64, 3071),
        ask=None,
        runtime=_TORCH,
        speed=0.59,
        measured=_FEW_TOKENS,
        source=_FEW_TOKENS_SOURCE,
    ),
    Figure(
        device="xeon",
        tokens=(1, 1),
        ask="--sparsity 0.5",
        runtime="SparAMX, in place of torch's linear layers",
        speed=1.42,
        measured="generating tokens with unstructured zeros, against torch",
        source="https://arxiv.org/abs/2502.12444",
    ),
    Figure(
        device="xeon",
        tokens=(2, None),
        ask=None,
        runtime="OpenVINO, int8 with sparse weight decompression",
        speed=None,
        measured="it saves the reading of weights, which many tokens at once share; published with 80 % zeros in BERT",
        source="https://blog.openvino.ai/blog-posts/accelerate-inference-of-sparse-transformer-models-with-openvino-tm-and-4th-gen-intel-r-xeon-r-scalable-processors",
    ),
    Figure(
        device="epyc",
        tokens=(1, None),
        ask=None,
        runtime="none",
        speed=None,
        measured="DeepSparse, which had such kernels, came to its end in June 2025, and no other publishes a figure",
        source="https://pypi.org/project/deepsparse/",
    ),
    Figure(
        device="m-series",
        tokens=(1, None),
        ask=None,
        runtime="none",
        speed=None,
        measured="kernels for sparse matrices were asked for in MLX itself, and declined; llama.cpp has none",
        source="https://github.com/ml-explore/mlx/issues/2728",
    ),
    Figure(
        device="jetson",
        tokens=(128, None),
        ask="--pattern 2:4",
        runtime="TensorRT 10.3, float16",
        speed=1.2,
        measured="Orin Nano, the feed-forward part of a ViT-B, three shapes: about 1.2 to 1.3",
        source="https://github.com/onnxsim/onnxsim/pull/1764",
        bits=SEMI_STRUCTURED_BITS,
    ),
    Figure(
        device="jetson",
        tokens=(1, 127),
        ask=None,
        runtime="TensorRT, int8 with 2:4",
        speed=1.0,
        measured="an Orin: no gain on its GPU or its accelerator",
        source="https://github.com/NVIDIA/Deep-Learning-Accelerator-SW/issues/19",
    ),
)
