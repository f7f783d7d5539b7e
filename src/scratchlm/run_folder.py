"""A run's folder: whose it is, which checkpoint goes on, and what the machine chose when the run began."""

import json
import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scratchlm.data.tracing import ORDER_FILE
from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.files.journal import read_marked
from scratchlm.files.lock import folder_lock
from scratchlm.files.whole import remove_leftovers, whole_file, write_json
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.training.checkpoints import newest_whole, step_checkpoints, step_path
from scratchlm.training.events import Events

GIVEN_UP = "given-up"  # in the checkpoints folder: those of later steps than the one a run went back to
_CHOICES = {"device": str, "precision": str, "reason": str, "wandb_id": str, "compile": bool, "compile_reason": str}


class RunFolder:
    """config.yaml, order.json, choices.json, checkpoints/, metrics.jsonl, samples.jsonl and run.lock of one run."""

    def __init__(self, path: str | Path) -> None:
        """Names the folder; touches nothing.

        Args:
            path: The run folder, `trainer.default_root_dir`.
        """
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._passed_over: dict[str, str] = {}
        self._went_on_from = 0
        self._seen: int | None = None  # step of the newest checkpoint when it was decided where to begin

    def claim(self, stack: ExitStack, fresh: bool) -> None:
        """Takes the folder for a fit of this process, and removes what killed writers left in it.

        Args:
            stack: Holds the folder's lock until it is closed.
            fresh: Move an old run aside.

        Raises:
            BrokenState: Another process owns the folder, or has gone on with the run since it was looked at.
        """
        stack.enter_context(folder_lock(self.path, "run.lock"))
        if not fresh and self._seen is not None and (now := self._newest()) != self._seen:
            raise BrokenState(
                f"trainer.default_root_dir={self.path}: another process has brought this run to step {now:,} in the "
                "meantime. Go on from there by --ckpt_path last."
            )
        if fresh:
            self._move_aside()
        remove_leftovers(self.path)
        remove_leftovers(self.checkpoints)
        for file, why in self._passed_over.items():
            Events(self.path).add("passed_over", self._went_on_from, file=file, why=why)

    def holds(self, checkpoint: str | None) -> bool:
        """Whether a path is that of a checkpoint of this run, or of one that it has given up."""
        return checkpoint is not None and self.checkpoints.resolve() in Path(checkpoint).resolve().parents

    def stand_at(self, checkpoint: Path, step: int) -> None:
        """Makes a checkpoint that was asked for by name the newest of the run, which is what `last` means from now on.

        Args:
            checkpoint: The file, of this run or another; it stays where it is.
            step: Of the file. The run's own checkpoints of later steps are set aside.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        later = {at: path for at, path in step_checkpoints(self.checkpoints).items() if at > step}
        if later:
            aside = self.checkpoints / GIVEN_UP
            aside.mkdir(exist_ok=True)
            for path in later.values():
                path.replace(aside / path.name)
            names = ", ".join(path.name for _, path in sorted(later.items()))
            print(
                f"scratchlm: steps {step + 1:,} to {max(later):,} are given up; {names}: now in {aside}",
                file=sys.stderr,
            )
        here = step_path(self.checkpoints, step)
        if not here.exists():
            try:
                os.link(checkpoint, here)
            except OSError:  # on another disk, or one that knows no links
                with checkpoint.open("rb") as source, whole_file(here) as copy:
                    shutil.copyfileobj(source, copy)

    def refuse_second_run(self) -> None:
        """Refuses to begin a run in a folder that holds one.

        Raises:
            BadValue: It holds checkpoints.
        """
        self._seen = self._newest()
        if any(self.checkpoints.glob("*.ckpt")):
            raise BadValue(
                f"trainer.default_root_dir={self.path}: holds the checkpoints of a run. Go on with it by "
                "--ckpt_path last, move it aside by --fresh true, or name another folder."
            )

    def find_checkpoint(self, asked: str) -> Path | None:
        """The whole file behind `last`, `best` or a path.

        Args:
            asked: What `--ckpt_path` says.

        Returns:
            The file, its checksums verified; None where `last` or `best` is asked for and the run has saved none yet.

        Raises:
            BrokenState: The file, or every file that `last` could mean, is damaged.
            MissingFile: A path leads nowhere.
        """
        if asked == "last":
            self._seen = self._newest()
            self._passed_over = {}
            path = newest_whole(self.checkpoints, self._passed_over)
            self._went_on_from = checkpoint_file.read(path, is_verified=True).step if self._passed_over and path else 0
            return path
        path = self.checkpoints / "best.ckpt" if asked == "best" else Path(asked)
        if asked == "best" and not path.exists():
            return None
        if not path.exists():
            raise MissingFile(f"--ckpt_path={asked}: no such file. Name a checkpoint, or say last or best.")
        checkpoint_file.verify(path)
        return path

    def _newest(self) -> int:
        return max(step_checkpoints(self.checkpoints), default=0)

    def read_choices(self) -> dict[str, Any]:
        """What the machine chose when the run began; empty for a new run."""
        path = self.path / "choices.json"
        try:
            choices = json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            choices = None
        if not isinstance(choices, dict) or not _are_choices(choices):
            raise BrokenState(f"{path}: damaged. Remove it; the machine then chooses anew.")
        return choices

    def check_journals(self) -> None:
        """Refuses to write on in journals that cannot be read.

        Raises:
            BrokenState: A line is damaged.
        """
        read_marked(self.path / "metrics.jsonl", attempt=int, step=int)
        read_marked(self.path / "events.jsonl", kind=str, step=int)

    def write_choices(self, choices: dict[str, Any]) -> None:
        """Records what the machine chose, before it is used."""
        write_json(self.path / "choices.json", choices)

    def write_order(self, order: dict[str, Any]) -> None:
        """Records what decides which sequences a step sees, for those who look without opening a checkpoint."""
        write_json(self.path / ORDER_FILE, order)

    def _move_aside(self) -> None:
        """Moves all but the lock, which this process holds, to the first free `<folder>.old-N`."""
        files = [path for path in self.path.iterdir() if path.name != "run.lock"]
        if not files:
            return
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        aside.mkdir()
        for path in files:
            path.rename(aside / path.name)
        print(f"scratchlm: the old run is in {aside}", file=sys.stderr)


def _are_choices(choices: dict[str, Any]) -> bool:
    """Whether what is there is of the types that the machine writes."""
    found = choices.get("micro_batch_size")
    is_device_whole = "device" not in choices or {"precision", "reason"} <= choices.keys()
    are_of_their_types = all(type(choices.get(key, kind())) is kind for key, kind in _CHOICES.items())
    return are_of_their_types and is_device_whole and (found is None or _is_found(found))


def _is_found(micro_batch_size: Any) -> bool:
    """Whether a choice is as `training.fitting` writes it."""
    return (
        isinstance(micro_batch_size, dict)
        and isinstance(micro_batch_size.get("sequences"), int)
        and micro_batch_size["sequences"] > 0
        and isinstance(micro_batch_size.get("found_for"), dict)
    )
