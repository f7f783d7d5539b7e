import numpy as np
import pytest

from scratchlm.data.windows import n_windows, window_starts

SIZES = [
    (9, 8, None),
    (17, 8, None),
    (100, 8, None),
    (1000, 8, None),
    (1000, 8, 3),
    (1003, 8, 20),
    (5000, 16, 16),
    (24, 8, None),
]


@pytest.mark.parametrize(("n_tokens", "context_length", "stride"), SIZES)
def test_every_window_comes_once_an_epoch(n_tokens, context_length, stride):
    n = n_windows(n_tokens, context_length, stride)
    for epoch in range(5):
        starts = window_starts(
            np.arange(epoch * n, (epoch + 1) * n), n_tokens, context_length, seed=3, stride_tokens=stride
        )
        ordered = np.sort(starts)
        assert (np.diff(ordered) == (stride or context_length)).all()
        assert 0 <= ordered[0] < (stride or context_length)
        assert ordered[-1] + context_length < n_tokens


@pytest.mark.parametrize(("n_tokens", "context_length", "stride"), SIZES)
def test_an_epoch_leaves_out_less_than_two_strides(n_tokens, context_length, stride):
    step = stride or context_length
    visited = (n_windows(n_tokens, context_length, stride) - 1) * step + context_length + 1
    assert n_tokens - visited < 2 * step


@pytest.mark.parametrize("mode", ["shuffled", "random"])
def test_the_window_depends_on_seed_and_number_alone(mode):
    numbers = np.arange(1000)
    together = window_starts(numbers, 3000, 8, seed=5, mode=mode)
    apart = np.concatenate([window_starts(numbers[i : i + 7], 3000, 8, seed=5, mode=mode) for i in range(0, 1000, 7)])
    backwards = window_starts(numbers[::-1], 3000, 8, seed=5, mode=mode)[::-1]
    assert together.tolist() == apart.tolist() == backwards.tolist()


def test_epochs_differ_in_order_and_in_cut():
    n = n_windows(10_000, 8)
    epochs = [window_starts(np.arange(e * n, (e + 1) * n), 10_000, 8, seed=1) for e in range(20)]
    assert len({epoch.tobytes() for epoch in epochs}) == 20
    assert len({int(epoch.min()) for epoch in epochs}) >= 5  # phases: 20 draws of 8


@pytest.mark.parametrize("mode", ["shuffled", "random"])
def test_seeds_differ_in_order(mode):
    orders = {window_starts(np.arange(100), 10_000, 8, seed=seed, mode=mode).tobytes() for seed in (-1, 0, 1, 2, 2**63)}
    assert len(orders) == 5


def test_a_shuffled_epoch_looks_shuffled():
    n = n_windows(800_001, 8)
    starts = window_starts(np.arange(n), 800_001, 8, seed=1)
    places = (starts - starts.min()) // 8
    correlation = np.corrcoef(np.arange(n), places)[0, 1]
    assert abs(correlation) < 0.02  # 100,000 windows: 0.003 expected of a random order
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.02
    assert (np.abs(np.diff(places)) == 1).mean() < 0.001


def test_random_starts_reach_every_place_evenly_and_repeat():
    starts = window_starts(np.arange(60_000), 68, 8, seed=2, mode="random")
    counts = np.bincount(starts, minlength=60)
    assert len(counts) == 60
    assert counts.min() > 800  # 1,000 expected, standard deviation 32
    assert counts.max() < 1200


def test_a_bin_of_one_window_gives_that_window():
    assert n_windows(9, 8) == 1
    for mode in ("shuffled", "random"):
        assert window_starts(np.arange(50), 9, 8, seed=1, mode=mode).tolist() == [0] * 50
