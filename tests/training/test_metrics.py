import math

import pytest
import torch

from scratchlm.training.metrics import Nats


def filled(batches, sources=("a", "b")):
    metric = Nats(sources, bytes_of_ids=[0, 1, 2, 3])
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def random_batch(seed=0, n=8):
    generator = torch.Generator().manual_seed(seed)
    nats = torch.rand(n, 5, generator=generator)
    targets = torch.randint(0, 4, (n, 5), generator=generator)
    sources = torch.randint(0, 2, (n, 5), generator=generator, dtype=torch.uint8)
    return nats, targets, sources


def test_loss_perplexity_and_bits_per_byte_are_those_of_the_plain_sums():
    nats, targets, sources = random_batch()
    scores = filled([(nats, targets, sources)])
    loss = nats.double().mean().item()
    assert scores["loss"] == pytest.approx(loss, rel=1e-14)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-14)
    assert scores["bits_per_byte"] == pytest.approx(nats.double().sum().item() / math.log(2) / targets.sum().item())
    assert scores["b/loss"] == pytest.approx(nats[sources == 1].double().mean().item(), rel=1e-14)


def test_batches_and_their_order_do_not_show():
    nats, targets, sources = random_batch()
    whole = filled([(nats, targets, sources)])
    rows = [(nats[i : i + 1], targets[i : i + 1], sources[i : i + 1]) for i in reversed(range(8))]
    assert filled(rows) == pytest.approx(whole, rel=1e-14)


def test_a_target_that_is_not_scored_counts_nowhere():
    nats, targets, sources = random_batch()
    ignored = targets.clone()
    ignored[:4] = -100
    scores = filled([(nats, ignored, sources)])
    assert scores == pytest.approx(filled([(nats[4:], targets[4:], sources[4:])]), rel=1e-14)


def test_a_token_still_counts_after_two_to_the_twenty_fifth():
    metric = Nats(["a"], bytes_of_ids=[1])
    metric.tokens += 2**25
    metric.nats += 2.0**25
    metric.update(torch.tensor([[1.0 + 2**20]]), torch.tensor([[0]]), torch.tensor([[0]], dtype=torch.uint8))
    assert metric.tokens.item() == 2**25 + 1
    assert metric.compute()["loss"] == (2**25 + 1 + 2**20) / (2**25 + 1)


def test_a_byte_guessed_blindly_costs_eight_bits():
    nats = torch.full((1, 10), math.log(256))
    scores = Nats(["a"], bytes_of_ids=[1])
    scores.update(nats, torch.zeros(1, 10, dtype=torch.long), torch.zeros(1, 10, dtype=torch.uint8))
    assert scores.compute()["bits_per_byte"] == pytest.approx(8)


def test_a_source_without_a_scored_target_has_no_score():
    nats, targets, sources = random_batch()
    assert "b/loss" not in filled([(nats, targets, torch.zeros_like(sources))])


def test_a_hopeless_loss_overflows_nothing():
    hopeless = torch.full((1, 1), 4000.0)
    scores = filled([(hopeless, torch.ones(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.uint8))])
    assert scores["loss"] == 4000
    assert math.isfinite(scores["perplexity"])
