"""Laws of generation."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from scratchlm.errors import BadValue, BrokenState
from scratchlm.model.generate import generate, sample
from scratchlm.model.gpt import GPT


@pytest.fixture
def gpt() -> GPT:
    gpt = GPT(30, context_length=12, d_model=16, n_layers=2, n_heads=2, d_ff=24, dropout=0.5)
    with torch.no_grad():
        for parameter in gpt.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.7)
    return gpt


def slow_greedy(gpt: GPT, prompt_ids: list[int], n: int) -> list[int]:
    """Reads everything anew for each token, with the window that the documented rule leaves in view."""
    ids, first = list(prompt_ids), max(0, len(prompt_ids) - 12)
    gpt.eval()
    for _ in range(n):
        ids.append(int(gpt(torch.tensor([ids[first:]]))[0, -1].argmax()))
        if len(ids) - 1 - first == 12:
            first = len(ids) - 6
    return ids[len(prompt_ids) :]


@pytest.mark.parametrize("prompt_length", [1, 5, 11, 12, 13, 40])
def test_cached_generation_gives_what_reading_everything_anew_gives(gpt: GPT, prompt_length: int) -> None:
    prompt_ids = torch.randint(30, (prompt_length,)).tolist()
    fast = list(generate(gpt, prompt_ids, 40, temperature=0))
    assert fast == slow_greedy(gpt, prompt_ids, 40)
    assert len(set(fast)) > 3  # a network that repeats itself would prove little


def test_a_context_of_one_token_still_goes_on() -> None:
    gpt = GPT(30, context_length=1, d_model=16, n_layers=1, n_heads=1, d_ff=16)
    assert len(list(generate(gpt, [1, 2], 5))) == 5


def test_the_same_seed_gives_the_same_ids_and_leaves_the_global_generator_alone(gpt: GPT) -> None:
    before = torch.get_rng_state()
    first = list(generate(gpt, [1, 2], 20, seed=3))
    assert first == list(generate(gpt, [1, 2], 20, seed=3))
    assert first != list(generate(gpt, [1, 2], 20, seed=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_keeps_its_mode_even_when_generation_is_left_half_way(gpt: GPT, training: bool) -> None:
    gpt.train(training)
    ids = generate(gpt, [1], 5)
    next(ids)
    assert all(module.training == training for module in gpt.modules())
    assert torch.is_grad_enabled()


def test_a_stop_id_ends_the_text_and_is_not_part_of_it(gpt: GPT) -> None:
    ids = list(generate(gpt, [1], 30, temperature=0))
    stop = ids[7]
    assert list(generate(gpt, [1], 30, temperature=0, stop_ids={stop})) == ids[: ids.index(stop)]


@pytest.mark.parametrize("temperature", [0, 1.0, 100.0])
def test_a_banned_id_is_never_drawn(gpt: GPT, temperature: float) -> None:
    usual = list(generate(gpt, [1], 60, temperature))
    banned = {usual[0], usual[20]}
    drawn = list(generate(gpt, [1], 60, temperature, banned_ids=banned))
    assert len(drawn) == 60
    assert not banned & set(drawn)
    last = {3}
    assert set(generate(gpt, [1], 5, temperature, banned_ids=set(range(30)) - last)) == last


def test_no_tokens_may_be_asked_for(gpt: GPT) -> None:
    assert list(generate(gpt, [1], 0)) == []


def draws(logits: list[float], temperature: float, top_k: int | None, n: int = 4000) -> Counter[int]:
    generator = torch.Generator().manual_seed(0)
    logits_V: Tensor = torch.tensor(logits)
    return Counter(sample(logits_V, temperature, top_k, generator) for _ in range(n))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    counts = draws(logits, temperature, None)
    for token, probability in enumerate((torch.tensor(logits) / temperature).softmax(0).tolist()):
        spread = math.sqrt(4000 * probability * (1 - probability))
        assert abs(counts[token] - 4000 * probability) < 4 * spread


def test_top_k_draws_among_the_likeliest_k_alone() -> None:
    logits = [0.1, 0.4, 0.2, 0.3]
    assert set(draws(logits, 1.0, 2)) == {1, 3}
    assert set(draws(logits, 1.0, 1)) == {1}
    assert draws(logits, 1.0, 4) == draws(logits, 1.0, 1000) == draws(logits, 1.0, None)


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e30])
def test_extreme_temperatures_neither_overflow_nor_fail(temperature: float) -> None:
    counts = draws([5.0, 4.0, -math.inf], temperature, None, 200)
    assert counts[2] == 0
    assert counts[0] == 200 if temperature < 1 else 50 < counts[0] < 150


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt_ids": []}, "prompt_ids=\\[\\]: .*end-of-text"),
        ({"prompt_ids": [1, 30]}, "prompt_ids holds 30: .*0 to 29"),
        ({"prompt_ids": [-1]}, "prompt_ids holds -1"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1: "),
        ({"temperature": -0.1}, "temperature=-0.1: "),
        ({"temperature": math.nan}, "temperature=nan: "),
        ({"temperature": math.inf}, "temperature=inf: "),
        ({"top_k": 0}, "top_k=0: "),
        ({"top_k": -3}, "top_k=-3: "),
        ({"seed": -1}, "seed=-1: "),
        ({"seed": 2**64}, "seed=18446744073709551616: "),
        ({"banned_ids": [30]}, "banned_ids holds 30"),
        ({"banned_ids": range(30)}, "banned_ids holds the whole vocabulary"),
    ],
)
def test_a_value_that_cannot_work_is_named_by_the_call_itself(gpt: GPT, arguments: dict, words: str) -> None:
    with pytest.raises(BadValue, match=f"^{words}"):
        generate(gpt, **({"prompt_ids": [1], "max_new_tokens": 1} | arguments))


def test_a_diverged_network_is_reported_and_not_sampled(gpt: GPT) -> None:
    with torch.no_grad():
        gpt.norm.weight[0] = torch.nan
    with pytest.raises(BrokenState, match="not finite"):
        next(generate(gpt, [1], 1))
