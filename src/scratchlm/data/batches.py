"""The batches of each verb, as datasets that a worker process can be given: they hold no tokens."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from scratchlm.data.bins import Bin
from scratchlm.data.windows import window_starts

NOT_SCORED = -100  # target that no loss counts, as in torch's cross-entropy

Batch = dict[str, Any]


# Windows are placed this many at a time: for 8 of them the arithmetic takes 120 microseconds, for 4,096 half a
# millisecond, and gathering 8 takes 5.
_SEQUENCES_AHEAD = 4096


class TrainBatches(IterableDataset[Batch]):
    """Endless micro-batches of one process, each gathered by one strided copy out of the memory map."""

    def __init__(
        self,
        split: Bin,
        context_length: int,
        seed: int,
        windows: Literal["shuffled", "random"],
        stride_tokens: int | None,
        first_sequence: int,
        sequences_apart: int,
        micro_batch_size: int,
        is_for_cpu: bool,
    ) -> None:
        self.is_for_cpu = is_for_cpu
        self.split, self.context_length = split, context_length
        self.seed, self.windows, self.stride_tokens = seed, windows, stride_tokens
        self.first_sequence, self.sequences_apart = first_sequence, sequences_apart
        self.micro_batch_size = micro_batch_size

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, apart = (worker.id, worker.num_workers) if worker else (0, 1)
        tokens = np.asarray(self.split.tokens)  # a memory map's own indexing takes a microsecond more
        cut = sliding_window_view(tokens, self.context_length + 1)
        n_ahead = -(-_SEQUENCES_AHEAD // self.micro_batch_size)
        rows = np.arange(self.micro_batch_size)
        for number in itertools.count(first, apart * n_ahead):
            numbers = number + apart * np.arange(n_ahead)
            starts_of_batches = window_starts(
                self.first_sequence + numbers[:, None] * self.sequences_apart + rows,
                self.split.n_tokens,
                self.context_length,
                self.seed,
                self.windows,
                self.stride_tokens,
            )
            for starts in starts_of_batches:
                yield {"ids_BT": self._tensor(cut[starts])}

    def _tensor(self, ids: NDArray[np.uint16]) -> torch.Tensor:
        if self.is_for_cpu:
            # Widened by numpy, on one thread: torch takes all of them for a few microseconds of work, and where another
            # process has one of the cores, they wait for each other a hundred times as long.
            return torch.from_numpy(ids.astype(np.int64))
        return torch.from_numpy(ids.view(np.int16))  # some devices hold no uint16


class ScoredBatches(Dataset[Batch]):
    """A split from first target to last, each scored once; windows go round the processes, all with as many batches."""

    def __init__(self, split: Bin, context_length: int, micro_batch_size: int, world: int, rank: int) -> None:
        self.split, self.context_length, self.micro_batch_size = split, context_length, micro_batch_size
        self.world, self.rank = world, rank

    @property
    def _n_rows(self) -> int:
        windows = -(-(self.split.n_tokens - 1) // self.context_length)
        return -(-windows // self.world)

    def __len__(self) -> int:
        return -(-self._n_rows // self.micro_batch_size)

    def __getitem__(self, number: int) -> Batch:
        rows = np.arange(number * self.micro_batch_size, min((number + 1) * self.micro_batch_size, self._n_rows))
        starts = (rows * self.world + self.rank) * self.context_length
        positions_BT = starts[:, None] + np.arange(self.context_length)
        last = self.split.n_tokens - 1
        there_BT = positions_BT < last
        targets_at_BT = np.minimum(positions_BT + 1, last)
        ids_BT = self.split.tokens[np.minimum(positions_BT, last)]
        targets_BT = np.where(there_BT, self.split.tokens[targets_at_BT].astype(np.int64), NOT_SCORED)
        return {
            "inputs_BT": torch.from_numpy(ids_BT.astype(np.int64)),
            "targets_BT": torch.from_numpy(targets_BT),
            "source_BT": torch.from_numpy(self.split.source_of(targets_at_BT)),
        }


class ListedBatches(Dataset[Batch]):
    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        return self.batches[number]
