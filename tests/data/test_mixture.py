import numpy as np
import pytest

from scratchlm.data.mixture import Mixture


@pytest.mark.parametrize("weights", [[4, 4, 2], [1], [1, 1], [0.7, 0.2, 0.05, 0.05], [1e-3, 1000, 1], [3] * 12])
@pytest.mark.parametrize("seed", range(3))
def test_at_every_boundary_each_source_is_off_its_share_by_at_most_the_longest_document_of_each_other(weights, seed):
    lengths = np.random.default_rng(seed).pareto(1.1, 3000).astype(int) % 20_000 + 1
    mixture, tokens = Mixture(weights), np.zeros(len(weights))
    for n in lengths:
        source = mixture.next()
        mixture.add(source, int(n))
        tokens[source] += n
        off = np.abs(tokens - tokens.sum() * np.array(weights) / sum(weights))
        assert off.max() <= (len(weights) - 1) * lengths.max() + 1e-6


def test_the_first_among_equals_goes_first():
    assert Mixture([1, 1, 1]).next() == 0


def test_when_a_source_runs_dry_the_others_share_the_rest_in_their_ratio():
    mixture, tokens = Mixture([4, 4, 2]), [0, 0, 0]
    for step in range(4000):
        if step == 1000:
            mixture.close(0)
            at_close = list(tokens)
        source = mixture.next()
        mixture.add(source, 10)
        tokens[source] += 10
    assert at_close == [4000, 4000, 2000]
    assert tokens[0] == at_close[0]
    assert tokens[1] - at_close[1] == pytest.approx(2 * (tokens[2] - at_close[2]), abs=10)


def test_when_all_are_dry_there_is_no_next():
    mixture = Mixture([1, 2])
    mixture.close(1)
    mixture.close(0)
    assert mixture.next() is None
    assert mixture.open_sources == []
