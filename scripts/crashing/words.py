"""The runs that are killed: a network of 290,000 weights, so that each phase of a training lasts some milliseconds."""

import json
import random
from pathlib import Path
from typing import NamedTuple

STEPS, VALIDATE_EVERY, SAVE_EVERY = 20, 5, 4

OPTIMIZERS: dict[str, list[str]] = {"adamw": []}  # what `fit` is told, to train by each
PRECISIONS = ("32-true", "bf16-mixed")
WORKERS = (0, 2)

# Of the tolerance on a device that sums in another order at each call. Two short runs may be alike by chance, so there
# is a least; both chosen, not tuned.
LEAST_TOLERANCE, TIMES_THE_SPREAD = 1e-3, 10

_NOUNS = ["bird", "boat", "cloud", "door", "garden", "king", "lamp", "moon", "road", "stone", "tree", "water"]
_DEEDS = ["saw", "found", "lost", "sang", "to", "went", "under", "came", "over"]


class Settings(NamedTuple):
    """One kind of run."""

    precision: str
    optimizer: str
    workers: int  # that load batches

    def __str__(self) -> str:
        return f"{self.precision}, {self.optimizer}, {self.workers} workers"


def write_text(path: Path) -> None:
    """Writes some thousand lines to learn from."""
    draw = random.Random(1)
    lines = (
        f"On day {day} " + " ".join(f"a {draw.choice(_NOUNS)} {draw.choice(_DEEDS)}" for _ in range(8)) + " all else."
        for day in range(2000)
    )
    path.write_text("\n".join(lines), encoding="utf-8")


def corpus_words() -> list[str]:
    """Bins from days.txt."""
    return [
        "--data.sources={days: {uri: days.txt, documents: line}}",
        "--data.folder=bins",
        "--data.vocab_size=400",
        "--data.val_fraction=0.05",
        "--data.context_length=64",
    ]


def fit_words(settings: Settings, run: str, device: str, place: Path) -> list[str]:
    """`fit` as begun and as gone on with: dropout, two micro-batches a step, validations and saves amid the run."""
    phases = {"class_path": "crashing.phases.Phases", "init_args": {"place": str(place)}}
    return [
        "fit",
        *corpus_words(),
        *OPTIMIZERS[settings.optimizer],
        f"--data.num_workers={settings.workers}",
        "--data.micro_batch_size=2",
        "--data.global_batch_size=4",
        "--model.gpt.d_model=64",
        "--model.gpt.n_layers=4",
        "--model.gpt.n_heads=4",
        "--model.gpt.d_ff=256",
        "--model.gpt.dropout=0.1",
        "--model.warmup_steps=5",
        "--model.sample_tokens=4",
        f"--trainer.max_steps={STEPS}",
        f"--trainer.val_check_interval={VALIDATE_EVERY}",
        "--trainer.limit_val_batches=4",
        "--trainer.log_every_n_steps=1",
        f"--trainer.accelerator={device}",
        f"--trainer.precision={settings.precision}",
        f"--trainer.callbacks={json.dumps([phases])}",
        f"--trainer.default_root_dir={run}",
        f"--checkpoint.every_steps={SAVE_EVERY}",
        "--ckpt_path=last",
    ]
