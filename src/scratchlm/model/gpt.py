"""The network, top to bottom: token ids in, logits out.

A tensor's name ends in its shape, one letter a dimension:

    B  sequences                    H  heads
    T  positions of this call       E  channels in one head (d_head)
    S  positions attended to,       F  feed-forward channels (d_ff)
       the cached ones included     V  vocabulary
    D  model channels (d_model)     L  layers

    ids_BT -> token + position embedding
           -> n_layers times: x + attention(norm(x)), then x + feed_forward(norm(x))
           -> norm -> hidden_BTD -> head -> logits_BTV
"""

import math
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # called as F.name, so that a probe's test can plant a wrong kernel
from torch.utils.checkpoint import checkpoint

from scratchlm.errors import BadValue
from scratchlm.model.attention import attend_causally
from scratchlm.model.loss import chunk_tokens_on

FeedForwardKind = Literal["swiglu", "gelu", "silu"]
AttentionKind = Literal["auto", "fused", "masked"]

_INIT_STD = 0.02  # Radford et al., GPT-2, and every GPT since


@final
class GPT(nn.Module):
    """Pre-LN GPT: learned positions, causal attention from one QKV projection, SwiGLU, tied embedding and head."""

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 1024,
        d_model: int = 1024,
        n_layers: int = 16,
        n_heads: int = 16,
        d_head: int | None = None,
        d_ff: int = 2752,
        feed_forward: FeedForwardKind = "swiglu",
        linear_biases: bool = False,
        tied_head: bool = True,
        dropout: float = 0.0,
        attention: AttentionKind = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        """Builds the network with fresh weights drawn from torch's global generator.

        Args:
            vocab_size: Token ids the network knows; set by the data.
            context_length: Positions it can see at once, in tokens; set by the data.
            d_model: Channels of the residual stream.
            n_layers: Blocks of attention and feed-forward.
            n_heads: Attention heads in a block.
            d_head: Channels in one head; by default d_model / n_heads. The heads together need not be d_model wide.
            d_ff: Channels inside the feed-forward. The default is 8/3 of d_model to the next multiple of 64, so that
                SwiGLU's three matrices weigh what two of 4 d_model would.
            feed_forward: swiglu (gated: three matrices), gelu (the exact one, not GPT-2's approximation by tanh) or
                silu (two matrices each).
            linear_biases: Whether linear layers have biases, as GPT-2's do; the head never has one, LayerNorm always.
            tied_head: Whether the head is the token embedding itself.
            dropout: Fraction dropped in training: attention weights, both branches before they join the residual
                stream and, as in GPT-2, the sum of the embeddings.
            attention: fused lets the kernel apply causality; masked hands it an explicit mask; auto is masked on
                Metal, where some kernels leak later tokens, and fused elsewhere.
            activation_checkpointing: Keep of each block only its input, and compute the block once more in the
                backward pass: the same gradients, for less memory and more time. Measured on a CPU in bf16: 3.8
                instead of 4.8 GB of tensors with one sequence at 220M, 0.55 instead of 1.35 with 16 at 16M, for 13 to
                23% more time forward and backward.

        Raises:
            BadValue: A size below 1, a dropout outside [0, 1), an unknown kind, or heads that do not divide d_model
                while d_head is not given.

        Source:
            Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2), section 2.3: pre-LN, initial
            scale of residual projections. Shazeer, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202:
            SwiGLU and its 2/3 of the width.
        """
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check(settings)
        super().__init__()
        self.settings: dict[str, Any] = settings  # what a checkpoint must hold to build this network again
        self.context_length = context_length
        self.attention = attention
        if d_head is None:
            d_head = d_model // n_heads

        self.token_embedding = _undrawn_embedding(vocab_size, d_model)
        self.position_embedding = _undrawn_embedding(context_length, d_model)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(layer, d_model, n_heads, d_head, d_ff, feed_forward, linear_biases, dropout)
            for layer in range(n_layers)
        )
        self.compile_blocks(False)
        self.norm = nn.LayerNorm(d_model)
        self.head = None if tied_head else nn.Linear(d_model, vocab_size, bias=False)
        if not self.norm.weight.is_meta:  # there, normal_ does nothing but import torch's compiler, for a second or two
            self._initialise(n_layers)

    def hidden(self, ids_BT: Tensor, cache: "Cache | None" = None) -> Tensor:
        """What the head reads: the residual stream after the last block, normalised.

        Args:
            ids_BT: Token ids; with a cache they follow what it holds.
            cache: Keys and values of earlier positions; these positions are added to it.

        Returns:
            (B, T, D).
        """
        n_positions, start = ids_BT.shape[1], cache.length if cache else 0
        assert start + n_positions <= self.context_length, "more positions than context_length"
        mask_TS = self._mask(n_positions, start, ids_BT.device)

        position_TD = self.position_embedding.weight[start : start + n_positions]
        x_BTD: Tensor = self.dropout(self.token_embedding(ids_BT) + position_TD)
        learns = torch.is_grad_enabled() and cache is None
        run = self._run_learning_block if learns else _run_block
        for block in self.blocks:
            if learns and self.settings["activation_checkpointing"]:
                drops = self.settings["dropout"] > 0  # only then are there random numbers to draw again
                x_BTD = checkpoint(run, block, x_BTD, mask_TS, cache, use_reentrant=False, preserve_rng_state=drops)
            else:
                x_BTD = run(block, x_BTD, mask_TS, cache)
        if cache:
            cache.length += n_positions
        hidden_BTD: Tensor = self.norm(x_BTD)
        return hidden_BTD

    def forward(self, ids_BT: Tensor, cache: "Cache | None" = None) -> Tensor:
        """Logits of the next token at every position, (B, T, V); training never calls it, see `model.loss`."""
        return F.linear(self.hidden(ids_BT, cache), self.head_VD)

    def compile_blocks(self, wanted: bool = True) -> None:
        """Has the blocks compiled when they next learn: one of them for all, so that depth costs no time.

        Validation and generation go on as they were: their shapes change, and each would be compiled anew.

        Args:
            wanted: False takes it back.
        """
        self._run_learning_block = torch.compile(_run_block, dynamic=False) if wanted else _run_block

    @property
    def head_VD(self) -> Tensor:
        """The matrix that turns hidden states into logits: the token embedding itself where the head is tied."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    @property
    def n_parameters(self) -> int:
        """Trained numbers; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, n_positions: int) -> int:
        """Floating-point operations to train on one token: forward, and backward at twice that.

        Args:
            n_positions: Tokens in a sequence.

        Returns:
            6 for each weight of a matrix (head included, embedding look-ups not), and attention's two products counted
            whole though causality leaves half of them out: the convention behind published MFU figures.

        Source:
            Chowdhery et al., PaLM, appendix B, https://arxiv.org/abs/2204.02311.
        """
        linears = (module for module in self.blocks.modules() if isinstance(module, nn.Linear))
        in_matrices = self.head_VD.numel() + sum(linear.weight.numel() for linear in linears)
        return 6 * in_matrices + 12 * len(self.blocks) * self._d_heads * n_positions

    def training_bytes(self, micro_batch_size: int, autocast: bool = False, device: torch.device | None = None) -> int:
        """Memory that training's tensors take at their peak, computed from the sizes.

        Args:
            micro_batch_size: Sequences of full length in one forward pass.
            autocast: Whether matrices multiply in 16 bits while weights stay float32.
            device: Where it trains; by default where the weights lie.

        Returns:
            Weights, gradients and AdamW's two moments in float32, what the forward pass keeps for the backward pass,
            and the buffers of the loss. Within 15% of peaks measured on a CPU for shapes of 5M to 220M parameters. The
            allocator's own waste is not in it: glibc's heap was seen to take 1.1 to 1.6 times as much, with activation
            checkpointing up to 2.5 times.
        """
        device = device or self.head_VD.device
        n_bytes = 2 if autocast else 4
        d_model, n_layers, n_heads = (int(self.settings[name]) for name in ("d_model", "n_layers", "n_heads"))
        d_ff, is_gated = int(self.settings["d_ff"]), self.settings["feed_forward"] == "swiglu"
        tokens = micro_batch_size * self.context_length

        # For each token a block keeps what both norms read (float32) and what its matrices read, rounded once for each
        # of them under autocast; queries, keys, values and what attention gives; the feed-forward's wide tensors.
        n_read = 3 if is_gated and autocast else 2
        n_wide = 4 if is_gated else 2  # gate, up, act(gate), product; or up, act(up)
        kept = 2 * 4 * d_model + n_bytes * (n_read * d_model + 4 * self._d_heads + n_wide * d_ff)
        in_passing = n_bytes * 3 * max(d_ff, d_model)  # gradients of the wide tensors, one block at a time
        if self.settings["dropout"] > 0:
            kept += 2 * n_bytes * d_model  # what was dropped
            if device.type == "cpu":  # whose attention then holds T x S weights: before, after and what was dropped
                kept += 3 * 4 * n_heads * self.context_length
                in_passing = max(in_passing, 2 * 4 * n_heads * self.context_length)
        block_parameters = sum(parameter.numel() for parameter in self.blocks[0].parameters())
        kept_by_block = tokens * kept + (n_bytes * block_parameters if autocast else 0)
        if self.settings["activation_checkpointing"]:
            kept_by_blocks = n_layers * tokens * 4 * d_model + kept_by_block
        else:
            kept_by_blocks = n_layers * kept_by_block
        # The last norm's two tensors and the gradient of one of them; the head's gradient, then also the embedding's.
        loss = 3 * 4 * tokens * d_model + 2 * 4 * self.head_VD.numel()
        logits = min(tokens, chunk_tokens_on(device)) * self.head_VD.shape[0] * (2 if autocast else 4)
        if device.type != "cpu":  # which widens a few rows at a time
            logits += 2 * logits if autocast else logits
        return 16 * self.n_parameters + kept_by_blocks + loss + max(tokens * in_passing, logits)

    @property
    def _d_heads(self) -> int:
        block = self.blocks[0]
        assert isinstance(block, Block)
        return block.attention.out.in_features

    def _mask(self, n_positions: int, start: int, device: torch.device) -> Tensor | None:
        """True where a position may look; None where the kernel's causality, or a lone last position, needs none."""
        masked = self.attention == "masked" or (self.attention == "auto" and device.type == "mps")
        if n_positions == 1 or (start == 0 and not masked):
            return None
        everywhere_TS = torch.ones(n_positions, start + n_positions, dtype=torch.bool, device=device)
        return everywhere_TS.tril(diagonal=start)

    @torch.no_grad()
    def _initialise(self, n_layers: int) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                # 2 n_layers branches add up in the residual stream: this keeps its variance that of one.
                parameter.normal_(0, _INIT_STD / math.sqrt(2 * n_layers))
            elif parameter.ndim == 2:
                parameter.normal_(0, _INIT_STD)


class Block(nn.Module):
    """Attention, then feed-forward; each reads a normalised copy of the residual stream and adds to it."""

    def __init__(
        self,
        layer: int,
        d_model: int,
        n_heads: int,
        d_head: int,
        d_ff: int,
        feed_forward: FeedForwardKind,
        biases: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = Attention(layer, d_model, n_heads, d_head, biases, dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff, feed_forward, biases)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask_TS: Tensor | None, cache: "Cache | None") -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), mask_TS, cache))
        x_BTD = x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
        return x_BTD


def _run_block(block: nn.Module, x_BTD: Tensor, mask_TS: Tensor | None, cache: "Cache | None") -> Tensor:
    out_BTD: Tensor = block(x_BTD, mask_TS, cache)
    return out_BTD


class Attention(nn.Module):
    """Each position gathers values from itself and earlier ones, weighted by how its query meets their keys."""

    def __init__(self, layer: int, d_model: int, n_heads: int, d_head: int, biases: bool, dropout: float) -> None:
        super().__init__()
        self.layer, self.n_heads, self.dropout = layer, n_heads, dropout
        self.qkv = nn.Linear(d_model, 3 * n_heads * d_head, bias=biases)
        self.out = nn.Linear(n_heads * d_head, d_model, bias=biases)

    def forward(self, x_BTD: Tensor, mask_TS: Tensor | None, cache: "Cache | None") -> Tensor:
        query_BHTE, key_BHSE, value_BHSE = (
            projected.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for projected in self.qkv(x_BTD).chunk(3, -1)
        )
        if cache:
            key_BHSE, value_BHSE = cache.add(self.layer, key_BHSE, value_BHSE)
        if mask_TS is not None:  # Metal's kernels have been wrong on strided input, pytorch#181133
            query_BHTE, key_BHSE, value_BHSE = query_BHTE.contiguous(), key_BHSE.contiguous(), value_BHSE.contiguous()
        dropout = self.dropout if self.training else 0.0
        if mask_TS is None and x_BTD.shape[1] > 1:
            mixed_BHTE = attend_causally(query_BHTE, key_BHSE, value_BHSE, dropout)
        else:
            mixed_BHTE = F.scaled_dot_product_attention(
                query_BHTE, key_BHSE, value_BHSE, attn_mask=mask_TS, dropout_p=dropout
            )
        out_BTD: Tensor = self.out(mixed_BHTE.transpose(1, 2).flatten(2))
        return out_BTD


class FeedForward(nn.Module):
    """Each position on its own: out to d_ff channels, through the activation, and back."""

    def __init__(self, d_model: int, d_ff: int, kind: FeedForwardKind, biases: bool) -> None:
        super().__init__()
        self.activation = F.gelu if kind == "gelu" else F.silu
        self.gate = nn.Linear(d_model, d_ff, bias=biases) if kind == "swiglu" else None
        self.up = nn.Linear(d_model, d_ff, bias=biases)
        self.down = nn.Linear(d_ff, d_model, bias=biases)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF: Tensor = self.up(x_BTD)
        wide_BTF = self.activation(up_BTF) if self.gate is None else self.activation(self.gate(x_BTD)) * up_BTF
        out_BTD: Tensor = self.down(wide_BTF)
        return out_BTD


class Cache:
    """Keys and values of the positions already read, so that decoding reads each token once.

    Room for `context_length` positions is taken at the first write, in the type the network computes in.
    """

    def __init__(self, gpt: GPT) -> None:
        """Starts empty.

        Args:
            gpt: The network that will fill it.
        """
        self.length = 0  # positions held, by every layer alike between two calls of the network
        self._capacity = gpt.context_length
        self._keys_and_values_LBHSE: list[tuple[Tensor, Tensor] | None] = [None] * len(gpt.blocks)

    def __bool__(self) -> bool:
        return True  # an empty cache is still a cache

    def add(self, layer: int, key_BHTE: Tensor, value_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one layer's keys and values behind those held, and gives all of them, (B, H, S, E) each."""
        held = self._keys_and_values_LBHSE[layer]
        if held is None:
            n_sequences, n_heads, _, d_head = key_BHTE.shape
            empty = key_BHTE.new_empty(n_sequences, n_heads, self._capacity, d_head)
            held = self._keys_and_values_LBHSE[layer] = (empty, torch.empty_like(empty))
        end = self.length + key_BHTE.shape[2]
        for room, new in zip(held, (key_BHTE, value_BHTE), strict=True):
            room[:, :, self.length : end] = new
        return held[0][:, :, :end], held[1][:, :, :end]


def _undrawn_embedding(n_rows: int, d_model: int) -> nn.Embedding:
    embedding: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
        torch.empty(n_rows, d_model), freeze=False
    )
    return embedding


def _check(settings: dict[str, Any]) -> None:
    """Raises for the first value that cannot work, before a tensor is made."""
    for name, value in settings.items():
        sized = name.startswith(("n_", "d_")) or name in ("vocab_size", "context_length")
        if sized and value is not None and value < 1:
            raise BadValue(f"model.gpt.{name}={value}: a size counts from 1.")
    for name, kinds in (("feed_forward", get_args(FeedForwardKind)), ("attention", get_args(AttentionKind))):
        if settings[name] not in kinds:
            raise BadValue(f"model.gpt.{name}={settings[name]}: not a kind known here. Choose from {', '.join(kinds)}.")
    if not 0 <= settings["dropout"] < 1:
        raise BadValue(f"model.gpt.dropout={settings['dropout']}: a fraction dropped lies in [0, 1).")
    if settings["d_head"] is None and settings["d_model"] % settings["n_heads"]:
        raise BadValue(
            f"model.gpt.n_heads={settings['n_heads']}: does not divide model.gpt.d_model={settings['d_model']}. "
            "Choose a divisor, or give model.gpt.d_head."
        )
