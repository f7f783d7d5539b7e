from pathlib import Path

import numpy as np
import pytest

from scratchlm.data import batches
from scratchlm.data.batches import TrainBatches
from scratchlm.data.bins import Bin
from scratchlm.data.pretraining import PretrainingData
from scratchlm.data.windows import window_starts


@pytest.fixture
def tokens(tmp_path: Path) -> np.ndarray:
    ids = np.random.default_rng(1).integers(0, 1 << 16, 3_000).astype("<u2")
    ids.tofile(tmp_path / "train.bin")
    return ids


@pytest.mark.parametrize("is_for_cpu", [True, False])
@pytest.mark.parametrize("windows", ["shuffled", "random"])
@pytest.mark.parametrize("ahead", [1, 10, 4096])
def test_batches_are_the_windows_that_a_plain_loop_cuts(tmp_path, tokens, monkeypatch, windows, ahead, is_for_cpu):
    monkeypatch.setattr(batches, "_SEQUENCES_AHEAD", ahead)
    first, apart, rows, context = 5, 6, 3, 8  # of two processes, the second, some way into the run
    found = iter(TrainBatches(Bin(tmp_path, "train"), context, 2, windows, None, first, apart, rows, is_for_cpu))
    for number in range(40):
        batch = PretrainingData.on_after_batch_transfer(None, next(found), 0)
        for row in range(rows):
            sequence = np.array([first + number * apart + row])
            start = int(window_starts(sequence, len(tokens), context, 2, windows)[0])
            window = tokens[start : start + context + 1].tolist()
            assert batch["inputs_BT"][row].tolist() == window[:-1]
            assert batch["targets_BT"][row].tolist() == window[1:]


def test_a_batch_holds_its_ids_and_not_the_bin(tmp_path, tokens):
    batch = next(iter(TrainBatches(Bin(tmp_path, "train"), 8, 2, "shuffled", None, 0, 4, 4, False)))
    before = batch["ids_BT"].tolist()
    (tmp_path / "train.bin").write_bytes(bytes(len(tokens) * 2))
    assert batch["ids_BT"].tolist() == before


def test_the_billionth_sequence_is_placed_by_arithmetic_and_none_before_it_is_looked_at(tmp_path, tokens, monkeypatch):
    asked = []

    def noting(sequences, *arguments):
        asked.append(sequences)
        return window_starts(sequences, *arguments)

    monkeypatch.setattr(batches, "window_starts", noting)
    late, context = 10**9, 8
    found = iter(TrainBatches(Bin(tmp_path, "train"), context, 2, "shuffled", None, late, 2, 2, True))
    [first, second] = window_starts(np.array([late, late + 1]), len(tokens), context, 2, "shuffled", None)
    assert next(found)["ids_BT"].tolist() == [tokens[at : at + context + 1].tolist() for at in (first, second)]
    assert len(asked) == 1
    assert asked[0].min() == late
    assert asked[0].size <= 4096
