"""The networks that `bench.py` trains. Imports nothing: the peers' environments read it too."""

from typing import NamedTuple


class Shape(NamedTuple):
    """A network, what it is trained on, and how fast that should be."""

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    vocab_size: int
    context_length: int
    sequences: int  # of one optimizer step, all at once
    goal: float | None = None  # times the best peer named in `goal_against`
    goal_against: tuple[str, ...] = ("litgpt", "transformers")
    goal_mfu: float | None = None


SHAPES = {
    "tiny": Shape(64, 2, 2, 128, 1_024, 32, 4),  # to see that all works
    "5m": Shape(256, 4, 4, 704, 8_000, 256, 8, 1.3, goal_mfu=0.55),
    "16m": Shape(384, 7, 6, 1_024, 8_000, 512, 4, 1.3, goal_mfu=0.55),
    "218m": Shape(1_024, 16, 16, 2_752, 16_000, 256, 2, 1.4, ("litgpt",), 0.65),
    "220m": Shape(1_024, 16, 16, 2_752, 16_000, 1_024, 32, 1.2, goal_mfu=0.55),  # the default, for a GPU
}
