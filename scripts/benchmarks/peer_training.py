"""What `bench.py train` measures scratchlm against, each in the environment of its own library.

python -m benchmarks.peer_training NAME ORDERS ANSWERS BEGAN '{"shape": {...}, "device": "cpu", ...}'

A step is zero_grad, forward, loss, backward, clip to norm 1, AdamW (fused). Batches are made beforehand and lie on the
device, and nothing is logged: that favours the peers.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from benchmarks.shapes import Shape
from benchmarks.turns import Orders
from torch import Tensor, nn
from torch.nn import functional as F

_N_BATCHES = 512  # that a peer sees in turn: more than a run has, or it would learn them by heart
_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192)}  # of square matrices

Loss = Callable[[Tensor, Tensor], Tensor]  # of a network on inputs and targets


def litgpt(shape: Shape, whole: bool) -> tuple[nn.Module, Loss]:
    """litgpt's GPT with LayerNorm, LLaMAMLP and a tied head; rotary positions, for it has no learned ones.

    Args:
        shape: Sizes.
        whole: Cross-entropy of all tokens at once, else in its default chunks of 128, as its pretrain.py does: on a CPU
            in eager mode those are 1.2 times as fast (5m, one core), compiled and on a GPU they are not.

    Source:
        litgpt 0.5, pretrain.py. It compiles the network without the loss; here the loss is compiled too, which is
        faster again (5m, one core: 7,800 for 7,200 tokens/s).
    """
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=shape.context_length,
        n_layer=shape.n_layers,
        n_embd=shape.d_model,
        n_head=shape.n_heads,
        intermediate_size=shape.d_ff,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        norm_class_name="LayerNorm",
        mlp_class_name="LLaMAMLP",
        bias=False,
        parallel_residual=False,
        rotary_percentage=1.0,
    )
    gpt = GPT(config)
    gpt.apply(gpt._init_weights)
    gpt.transformer.wte.weight = gpt.lm_head.weight
    chunk = 0 if whole else 128
    return gpt, lambda inputs, targets: chunked_cross_entropy(gpt(inputs), targets, chunk_size=chunk)


def transformers(shape: Shape, whole: bool) -> tuple[nn.Module, Loss]:
    """LlamaForCausalLM of the same widths with its own loss: RMSNorm and rotary positions are what differs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        max_position_embeddings=shape.context_length,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )

    network = LlamaForCausalLM(config)
    # shift_labels: the targets are shifted already, so all T of a sequence count, as for the others.
    return network, lambda inputs, targets: network(input_ids=inputs, labels=targets, shift_labels=targets).loss


class Plain(nn.Module):
    """torch's own encoder layers under a causal mask."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            shape.d_model,
            shape.n_heads,
            dim_feedforward=shape.d_ff * 3 // 2,  # two matrices in place of SwiGLU's three
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
            bias=False,
        )
        self.tokens = nn.Embedding(shape.vocab_size, shape.d_model)
        self.positions = nn.Embedding(shape.context_length, shape.d_model)
        self.blocks = nn.TransformerEncoder(layer, shape.n_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(shape.d_model)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(shape.context_length))
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.blocks(self.tokens(inputs) + self.positions.weight, mask=self.mask, is_causal=True)
        return F.linear(self.norm(hidden), self.tokens.weight)


def plain(shape: Shape, whole: bool) -> tuple[nn.Module, Loss]:
    """What torch alone brings, so that there is something to measure against where no peer is installed."""
    network = Plain(shape)
    return network, lambda inputs, targets: F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())


PEERS = {"litgpt": litgpt, "transformers": transformers, "plain": plain}


def train(name: str, orders: Orders, began: float, given: dict[str, Any]) -> None:
    """Builds a peer and makes the steps that are ordered."""
    shape, device = Shape(**given["shape"]), torch.device(given["device"])
    library, _, mode = name.partition("-")
    torch.manual_seed(given["seed"])
    compiled = mode == "compiled"
    network, loss_of = PEERS[library](shape, compiled or device.type == "cuda")
    network.to(device).train()
    if compiled:
        loss_of = torch.compile(loss_of)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    size = (_N_BATCHES, shape.sequences, shape.context_length + 1)
    ids = torch.randint(shape.vocab_size, size, generator=torch.Generator().manual_seed(given["seed"])).to(device)
    batches = [(window[:, :-1].contiguous(), window[:, 1:].contiguous()) for window in ids]
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    if given["precision"] == "bf16":
        autocast = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731
    embeddings = {id(p) for m in network.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    orders.answer(
        parameters=sum(p.numel() for p in parameters),
        beyond_embeddings=sum(p.numel() for p in parameters if id(p) not in embeddings),
        precision=given["precision"],
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )
    n_done = 0
    while order := orders.next():
        started = time.perf_counter()
        for _ in range(order["steps"]):
            inputs, targets = batches[n_done % _N_BATCHES]
            n_done += 1
            optimizer.zero_grad()
            with autocast():
                loss = loss_of(inputs, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        last = loss.item()  # waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        orders.answer(seconds=seconds, paused=0.0, loss=last, since_start=time.time() - began, peak_bytes=peak)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()


def matmul(orders: Orders, given: dict[str, Any]) -> None:
    """Measures, at each order, the FLOP/s of square matrix products, and answers with the best."""
    device = torch.device(given["device"])
    dtype = torch.bfloat16 if given["precision"] == "bf16" else torch.float32
    orders.answer(device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    matrices = {}
    for size in given.get("sizes") or _SIZES[device.type]:
        matrices[size] = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]
    while orders.next():
        best: dict[str, Any] = {"flops": 0.0}
        for size, (left, right) in matrices.items():
            for layout, other in (("nn", right), ("nt", right.T)):
                seconds = _fastest(lambda left=left, other=other: left @ other, device)
                if 2 * size**3 / seconds > best["flops"]:
                    best = {"flops": 2 * size**3 / seconds, "which": f"{size:,} {layout}"}
        orders.answer(**best)


def _fastest(product: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of a product: the fastest of some groups, after one to warm up."""
    n, fastest = 1, float("inf")
    for number in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(n):
            product()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if number:
            fastest = min(fastest, seconds / n)
        else:
            n = max(1, min(50, round(0.05 / seconds)))  # groups of about 50 ms
    return fastest


if __name__ == "__main__":
    name, orders, answers, began, given = sys.argv[1:]
    channel, facts = Orders(int(orders), int(answers)), json.loads(given)
    if name == "matmul":
        matmul(channel, facts)
    else:
        train(name, channel, float(began), facts)
