"""Batches for the Trainer: which sequences a step sees is a function of the seed and their numbers alone."""

import atexit
import signal
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from scratchlm.data.batches import Batch, ListedBatches, ScoredBatches, TrainBatches
from scratchlm.data.bins import CURE, Bin, check_files, read_manifest
from scratchlm.data.inspection import require_whole
from scratchlm.data.preparation import Corpus
from scratchlm.data.prompts import read_prompts
from scratchlm.data.tracing import Tracer
from scratchlm.data.windows import n_windows
from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.model.checkpoint import ORDER_FILES, ORDER_SETTINGS
from scratchlm.process import end_loader_workers
from scratchlm.text import tokenizer


class PretrainingData(LightningDataModule):
    """Windows of the bins as batches, and the plain facts about the corpus that the model and the task need."""

    def __init__(
        self,
        folder: str,
        context_length: int = 1024,
        micro_batch_size: int | Literal["auto"] = 8,
        global_batch_size: int = 8,
        train_tokens: int | None = None,
        windows: Literal["shuffled", "random"] = "shuffled",
        stride_tokens: int | None = None,
        num_workers: int = 0,
        prompts: list[str] | None = None,
        prompts_file: str | None = None,
        checkpoint: str | None = None,
        verify: bool = False,
        **corpus: Any,
    ) -> None:
        """Checks the values; opens nothing.

        Args:
            folder: Folder of the bins; made if missing. Its name is free.
            context_length: Inputs of one window, in tokens; each source must fill one in validation.
            micro_batch_size: Sequences that one process works on at a time; with auto, `scratchlm fit` finds the
                largest that fits in memory and divides the share of one process in global_batch_size.
            global_batch_size: Sequences of one optimizer step, over all processes and micro-batches.
            train_tokens: Length of the run in tokens; None where the Trainer says it in steps or epochs.
            windows: `shuffled` sees every window once an epoch, cut elsewhere each time; `random` draws any start.
            stride_tokens: Distance between neighbouring windows of `shuffled`; None is the context length.
            num_workers: Processes that gather batches; 0 is fast enough for a memory map on a local disk.
            prompts: Texts to complete, for predict.
            prompts_file: A file of them instead: .txt, one a line, or .jsonl with a column `prompt`.
            checkpoint: For predict, set by the command: vocabulary, tokenizer and card come from it, not from bins.
            verify: Read all of the bins before the model is built, and refuse them where one bit is not as it was
                written, as `scratchlm corpus check` does; else sizes and the tokenizer's hash are compared.
            **corpus: What `prepare` takes; see there.

        Raises:
            BadValue: A value that cannot work.
        """
        super().__init__()
        self.corpus = Corpus(folder=folder, context_length=context_length, **corpus)
        self.folder = folder
        self.context_length = context_length
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.train_tokens = train_tokens
        self.windows = windows
        self.stride_tokens = stride_tokens
        self.num_workers = num_workers
        self.prompts = prompts
        self.prompts_file = prompts_file
        self.checkpoint = checkpoint
        self.verify = verify
        self._is_of_other_bins = False  # the checkpoint that is scored
        least = {"micro_batch_size": 1, "global_batch_size": 1, "train_tokens": 1, "stride_tokens": 1, "num_workers": 0}
        for key, n in least.items():
            value = getattr(self, key)
            if value not in (None, "auto") and value < n:
                raise BadValue(f"data.{key}={value}: too small. Give a whole number, {n} or more.")
        if windows not in ("shuffled", "random"):
            raise BadValue(f"data.windows={windows}: no such order. Give shuffled or random.")
        if micro_batch_size != "auto":
            self.accumulation(1)

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer as it came out of training."""
        return int(
            self._from_checkpoint.gpt_settings["vocab_size"] if self.checkpoint else self._manifest["vocab_size"]
        )

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Plain values about the corpus.

        `vocab_size`, `tokenizer` (its JSON), `bytes_of_ids`, `sources` (names; a name's place is its number), `card`,
        `context_length`, `global_batch_size`, `order`.
        """
        if self.checkpoint:
            spelling, card = self._from_checkpoint.tokenizer_json, self._from_checkpoint.card
            order = self._from_checkpoint.order
        else:
            card, order = self._manifest["card"], self.order
            spelling = (Path(self.folder) / "tokenizer.json").read_bytes().decode()
        loaded = tokenizer.from_json(spelling)
        if loaded.vocab_size != self.vocab_size:
            raise BrokenState(
                f"data.folder={self.folder}: its tokenizer has {loaded.vocab_size:,} ids, and the bins were made with "
                f"{self.vocab_size:,}. Make them anew with scratchlm prepare --fresh true -c YOUR.yaml."
            )
        return {
            "vocab_size": self.vocab_size,
            "tokenizer": spelling,
            "bytes_of_ids": loaded.bytes_of_ids(),
            "sources": [source["name"] for source in card.get("sources", [])],
            "card": card,
            "context_length": self.context_length,
            "global_batch_size": self.global_batch_size,
            "order": order,
        }

    @property
    def order(self) -> dict[str, Any]:
        """What decides which sequences a step sees and what their ids mean: settings, and the SHA-256 of files."""
        files = {name: entry["sha256"] for name, entry in self._manifest["files"].items()}
        files["tokenizer.json"] = self._manifest["tokenizer_sha256"]
        settings = {"seed": self.corpus.seed} | {key: getattr(self, key) for key in ORDER_SETTINGS if key != "seed"}
        return settings | {name: files[name] for name in ORDER_FILES if name in files}

    def tracer(self) -> Tracer:
        """Says which documents any step sees."""
        return Tracer(
            self.folder,
            self.context_length,
            self.corpus.seed,
            self.windows,
            self.stride_tokens,
            self.global_batch_size,
        )

    @property
    def sequences_per_epoch(self) -> int:
        """Windows that one epoch visits."""
        return n_windows(self._n_tokens("train"), self.context_length, self.stride_tokens)

    def accumulation(self, n_processes: int) -> int:
        """Micro-batches in a row that make an optimizer step.

        Args:
            n_processes: Processes that work side by side.

        Raises:
            BadValue: The batch sizes do not divide; the line names the nearest that does.
        """
        at_once = self._micro_batch_size * n_processes
        if self.global_batch_size % at_once:
            near = max(1, round(self.global_batch_size / at_once)) * at_once
            share, rest = divmod(self.global_batch_size, n_processes)
            smaller = next((n for n in range(min(self._micro_batch_size, share), 0, -1) if share % n == 0), 1)
            raise BadValue(
                f"data.global_batch_size={self.global_batch_size}: not a multiple of "
                f"data.micro_batch_size={self.micro_batch_size} times {n_processes} "
                f"process{'es' if n_processes > 1 else ''}. The nearest that works is {near}"
                + (f"; or keep it, with data.micro_batch_size={smaller}." if not rest and share else ".")
            )
        return self.global_batch_size // at_once

    def micro_batch_sizes(self, n_processes: int) -> list[int]:
        """The micro-batch sizes that accumulate to `global_batch_size`, rising.

        Args:
            n_processes: Processes that work side by side.

        Raises:
            BadValue: There is none; the line names the nearest global batch size that works.
        """
        share, rest = divmod(self.global_batch_size, n_processes)
        if rest:
            near = max(1, round(self.global_batch_size / n_processes)) * n_processes
            raise BadValue(
                f"data.global_batch_size={self.global_batch_size}: cannot be shared by {n_processes} processes. "
                f"The nearest that works is {near}."
            )
        return [size for size in range(1, share + 1) if share % size == 0]

    @property
    def sequences(self) -> int:
        """Sequences that the optimizer steps so far have consumed, over all processes."""
        return self._step * self.global_batch_size

    def state_dict(self) -> dict[str, Any]:
        """The place in the order of training, and what that order depends on."""
        return {"sequences": self.sequences, "order": self.order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to go on from a checkpoint in another order, or to score it with another tokenizer.

        Raises:
            BadValue: What the order depends on is not what it was.
        """
        if self.checkpoint:  # predict, which takes all from that file
            return
        now, before = self.order, checkpoint_file.order_of_state(state_dict)
        if self.trainer and self.trainer.state.fn != "fit":
            self._is_of_other_bins = before.get("train.bin") not in (None, now.get("train.bin"))
            now = {"tokenizer.json": now["tokenizer.json"]}
        checkpoint_file.require_same_order(now, before, self.folder)

    def setup(self, stage: str) -> None:
        """Opens what the stage reads, and refuses what cannot work before a device is touched.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            MissingFile: No bins, or no test.bin, or no prompts.
            BrokenState: The bins are not as they were written.
            BadValue: A split is shorter than one window of some source.
        """
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            self._check_split(split)
        if stage == "predict":
            self._read_prompts()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless micro-batches from where the run stands.

        Raises:
            BadValue: Batch sizes do not divide.
        """
        world, rank = self._place
        accumulated = self.accumulation(world)
        if self.trainer and self.trainer.accumulate_grad_batches != accumulated:
            raise BadValue(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches}: {accumulated} micro-batches "
                f"make a step of data.global_batch_size={self.global_batch_size}. Give the Trainer that number."
            )
        batches = TrainBatches(
            Bin(self.folder, "train"),
            self.context_length,
            self.corpus.seed,
            self.windows,
            self.stride_tokens,
            self.sequences + rank * self._micro_batch_size,
            world * self._micro_batch_size,
            self._micro_batch_size,
            self._device == "cpu",
        )
        return self._loader(batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """val.bin from first target to last."""
        self._warn_of_other_bins()
        return self._loader(self._scored("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        """test.bin from first target to last."""
        self._warn_of_other_bins()
        return self._loader(self._scored("test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """One prompt a batch."""
        world, rank = self._place
        return self._loader(ListedBatches([{"prompts": [prompt]} for prompt in self._read_prompts()[rank::world]]))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Widens ids on the device, where there is another than the CPU: they travel in 16 bits."""
        if "ids_BT" not in batch:
            return batch
        ids_BT = batch["ids_BT"]
        if ids_BT.dtype == torch.int16:
            ids_BT = ids_BT.long() & 0xFFFF
        return {"inputs_BT": ids_BT[:, :-1], "targets_BT": ids_BT[:, 1:]}

    @property
    def _micro_batch_size(self) -> int:
        if self.micro_batch_size == "auto":
            raise BadValue(
                "data.micro_batch_size=auto: is found by the command scratchlm fit. To a PretrainingData of your own "
                "give a whole number."
            )
        return self.micro_batch_size

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        manifest = read_manifest(self.folder)
        check_files(self.folder, manifest)
        if self.verify and not getattr(rank_zero_only, "rank", 0):
            require_whole(self.folder, manifest)
        return manifest

    @cached_property
    def _from_checkpoint(self) -> checkpoint_file.Checkpoint:
        assert self.checkpoint
        return checkpoint_file.read(self.checkpoint)

    @property
    def _step(self) -> int:
        return int(self.trainer.global_step) if self.trainer else 0

    @property
    def _device(self) -> str:
        """Kind of the device that batches are for."""
        return str(self.trainer.strategy.root_device.type) if self.trainer else "cpu"

    @property
    def _place(self) -> tuple[int, int]:
        """Number of processes, and which of them this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _warn_of_other_bins(self) -> None:
        if self._is_of_other_bins and not getattr(rank_zero_only, "rank", 0):
            print(
                f"scratchlm: warning: data.folder={self.folder}: not the bins that the checkpoint was trained on. "
                "Where they hold text of its training, the scores are too good.",
                file=sys.stderr,
            )

    def _n_tokens(self, split: str) -> int:
        return int(self._manifest["files"][f"{split}.bin"]["tokens"])

    def _check_split(self, split: str) -> None:
        if split == "test" and "test.bin" not in self._manifest["files"]:
            raise MissingFile(
                f"data.folder={self.folder}: holds no test.bin. Set data.test_fraction, for instance to 0.005, "
                "make the bins anew with scratchlm prepare --fresh true -c YOUR.yaml, and train anew."
            )
        if f"{split}.bin" not in self._manifest["files"]:
            raise BrokenState(f"data.folder={self.folder}: its manifest.json names no {split}.bin. {CURE}")
        window = self.context_length + 1
        held = {"": self._n_tokens(split)}
        if split != "train":
            for source in self._manifest["card"]["sources"]:
                held[f" of source {source['name']!r}"] = source["tokens"].get(split, 0)
        for whose, n_tokens in held.items():
            if n_tokens < window:
                raise BadValue(
                    f"data.folder={self.folder}: {split}.bin holds {n_tokens:,} tokens{whose}, and one window takes "
                    f"{window:,} (data.context_length={self.context_length} and the target of the last). Add text "
                    "to the source and prepare anew, or lower data.context_length."
                )

    def _read_prompts(self) -> list[str]:
        if self.prompts and self.prompts_file:
            raise BadValue("data.prompts, data.prompts_file: both are given. Keep one.")
        found = self.prompts or (read_prompts(self.prompts_file) if self.prompts_file else [])
        if not found:
            raise MissingFile(
                "data.prompts: there is nothing to complete. Give --data.prompts '[\"Once upon a time\"]', or "
                "--data.prompts_file with a .txt (one prompt a line) or a .jsonl (column prompt)."
            )
        return found

    def _scored(self, split: str) -> "ScoredBatches":
        world, rank = self._place
        return ScoredBatches(Bin(self.folder, split), self.context_length, self._micro_batch_size, world, rank)

    def _loader(self, batches: Dataset[Batch]) -> DataLoader[Batch]:
        if self.num_workers:
            atexit.unregister(end_loader_workers)
            atexit.register(end_loader_workers)  # they hear no signal
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_they_are,
            worker_init_fn=_leave_signals_to_the_run,
            pin_memory=self._device == "cuda",
            generator=torch.Generator(),  # the global one is the model's: drawing from it here would move its dropout
        )


def _as_they_are(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_run(worker: int) -> None:
    """In a worker process: Ctrl-C and a scheduler's signals come to all processes, and the run still needs its batches.

    Where the run itself is killed, torch has them see it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
