"""One training whose saves are made over and over, killed each time elsewhere: a script for tests.

python -m tests.training.dying_saves FOLDER. Prints a line of JSON for each kill: where it came, the step of the newest
whole checkpoint after it, that of best.ckpt, and what stays in the folder once the next start has cleared it.
"""

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from tests.forks import die_at
from tests.training import tiny_run

from scratchlm.files.whole import remove_leftovers
from scratchlm.model.checkpoint import read
from scratchlm.training.checkpoints import BEST, FOLDER, newest_whole, step_checkpoints

SAVED, SAVES, ENDS = 4, 6, 7  # steps: the newest that is there, the one whose save is killed, the last


class ForkBeforeSaves(Callback):
    """Forks where step SAVES is about to be saved: each child goes on until it is killed, the parent looks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.kept, self.noted = folder / "kept", folder / "call"

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step != SAVES or self.kept.exists():
            return
        shutil.copytree(self.folder, self.kept)
        for number in range(1, sys.maxsize):
            child = os.fork()
            if not child:
                die_at(number, str(self.folder), self.noted)
                return
            if not self.look(child):
                break
        size = (self.kept / f"step-{SAVED:08d}.ckpt").stat().st_size
        for n_bytes in (0, 1, 64, 4096, size // 2, size - 4096, size - 1):
            self.noted.write_text(f"byte {n_bytes}")
            child = os.fork()
            if not child:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
                return
            self.look(child)
        os._exit(0)

    def look(self, child: int) -> bool:
        """Whether the child was killed."""
        _, status = os.waitpid(child, 0)
        if status and not os.WIFSIGNALED(status):
            sys.exit(f"status {status}")
        newest = newest_whole(self.folder)
        told = {
            "where": self.noted.read_text() if status else "none",
            "newest": newest and read(newest).step,
            "best": read(self.folder / BEST).step,
            "half": [path.name for path in self.folder.iterdir() if path.name.startswith(".")],
        }
        remove_leftovers(self.folder)
        told["left"] = sorted(path.name for path in self.folder.iterdir())
        told["whole"] = [read(path).step for path in step_checkpoints(self.folder).values()]
        print(json.dumps(told), flush=True)
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder)
        return bool(status)


def main() -> None:
    """Takes one argument, the run folder."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    trainer = tiny_run.tiny_trainer(folder, max_steps=ENDS, every_steps=2, val_every_steps=3)
    trainer.callbacks.insert(0, ForkBeforeSaves(folder))  # before Checkpoints
    trainer.fit(tiny_run.tiny_task(), tiny_run.TinyData())


if __name__ == "__main__":
    main()
