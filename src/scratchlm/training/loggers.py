"""Where metrics go: metrics.jsonl, which is the truth, and Weights & Biases, which mirrors it."""

import math
import netrc
import os
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse
from urllib.request import getproxies

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from scratchlm.files.journal import Journal, read_journal
from scratchlm.process import lost_worker
from scratchlm.training.run_log import MARKS, METRICS_FILE, read_metrics, read_samples

_UPLOAD_SECONDS = 300  # that W&B may lag behind a run when its process is killed (chosen, not tuned)

_SAMPLE_COLUMNS = ("step", "tokens", "prompt", "completion")

# How long W&B may hold up the start of a run; its own 90 s are far longer than where it works. Chosen, not tuned.
_CONNECT_SECONDS, _WANDB_SECONDS = 5.0, 30.0

WandbMode = Literal["online", "offline", "disabled"]


@rank_zero_only
def say(text: str) -> None:
    """Prints a line for the user on stderr, above the progress bar where there is one; only on the first rank."""
    tqdm.write(text, file=sys.stderr)


def log_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Hands metrics of the step just made to every logger; what is no finite number is left out: JSON has none."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    for logger in trainer.loggers:
        logger.log_metrics(finite, step=trainer.global_step)


class MetricsLogger(Logger):
    """Appends every metric to metrics.jsonl, marked with the attempt, the step, the tokens seen and the time."""

    def __init__(self, folder: str | Path, tokens_per_step: int, resumed_step: int | None = None) -> None:
        """Remembers where the lines go; nothing is opened before the first.

        Args:
            folder: The run folder.
            tokens_per_step: Tokens that one optimizer step learns from, over all processes.
            resumed_step: Steps done before this process, which its first line will say: what an earlier attempt wrote
                of later steps is given up. None where the first line's own step is to tell.
        """
        super().__init__()
        self.folder = Path(folder)
        self.tokens_per_step = tokens_per_step
        self._resumed_step = resumed_step
        self._journal = Journal(self.folder / METRICS_FILE)
        self._attempt: int | None = None

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Always empty: a run folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.folder)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml in the run folder has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one line; it survives a kill of this process."""
        step = step or 0
        marks: dict[str, Any] = {"attempt": self._attempt, "step": step, "tokens": step * self.tokens_per_step}
        marks["time"] = time.time()
        if self._attempt is None:
            earlier = max((line["attempt"] for line in read_journal(self._journal.path)), default=0)
            marks["attempt"] = self._attempt = 1 + earlier
            if earlier and self._resumed_step is not None:
                marks["resumed_step"] = self._resumed_step
        self._journal.append(marks | dict(metrics))

    @rank_zero_only
    def save(self) -> None:
        """Waits until every line is on the disk: before a checkpoint is written, which is then never ahead of them."""
        self._journal.sync()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the file; a later line opens it again, as the same attempt."""
        self._journal.close()


def wandb_mode() -> WandbMode:
    """How W&B should run: what WANDB_MODE says, else online where there is a key for its host, else offline."""
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("online", "offline", "disabled"):
        return asked  # type: ignore[return-value]  # mypy does not narrow a str by `in`
    if asked == "dryrun":  # wandb's older word
        return "offline"
    return "online" if _has_wandb_key() else "offline"


class WandbRun(WandbLogger):
    """A W&B run with tokens seen as the axis of every curve; never prompts, and never stops a training.

    Metrics of one source go to a section of their own: `val/<source>/loss` is `val_per_source/<source>/loss` there.
    """

    def __init__(
        self,
        folder: str | Path,
        run_id: str,
        tokens_per_step: int,
        mode: WandbMode,
        configuration: dict[str, Any],
        resumed_step: int = 0,
    ) -> None:
        """Remembers the settings; the run is opened by the Trainer, on its first rank.

        Args:
            folder: The run folder; W&B's files go to `wandb` in it, and its name is the run's.
            run_id: W&B's id of the run; the same one after a resume goes on with the same run.
            tokens_per_step: Tokens that one optimizer step learns from, over all processes.
            mode: As `wandb_mode` says.
            configuration: The resolved configuration, shown with the run.
            resumed_step: Steps that the run has done before: what metrics.jsonl has of them and W&B may lack is
                written again when the run is opened.
        """
        super().__init__(
            name=Path(folder).resolve().name,
            save_dir=str(folder),
            id=run_id,
            project=os.environ.get("WANDB_PROJECT", "scratchlm"),
            mode=mode,
            config=configuration,
        )
        self.folder = Path(folder)
        self.tokens_per_step = tokens_per_step
        self.resumed_step = resumed_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; a disabled one, which swallows everything, where none could be opened."""
        if self._experiment is None:
            self._experiment = self._open()
            if self.resumed_step and not self._experiment.disabled:
                self._catch_up(is_offline=self._experiment.offline)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs scalars or tables over tokens seen."""
        named = {_section(name): value for name, value in metrics.items()}
        try:
            self.experiment.log(named | {"tokens": (step or 0) * self.tokens_per_step})
        except Exception as error:  # W&B is a mirror: whatever breaks there is no reason to stop
            self._give_up(error)

    @rank_zero_only
    def log_rows(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Logs a table."""
        try:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        except Exception as error:
            self._give_up(error)
        else:
            self.log_metrics({key: table}, step)

    @rank_zero_only
    def log_samples(self, rows: Sequence[Sequence[Any]], step: int) -> None:
        """Logs the samples of one validation: of each the step, the tokens, the prompt and the completion."""
        self.log_rows("samples/completions", _SAMPLE_COLUMNS, rows, step)

    @rank_zero_only
    def replay(self, last_step: int, since: float = 0.0) -> None:
        """Writes again what the run folder has.

        Args:
            last_step: Step to end with.
            since: Time of the first line to write, in seconds as `time.time` counts.
        """
        lines = [line for line in read_metrics(self.folder) if line["step"] <= last_step and line["time"] >= since]
        samples: dict[int, list[list[Any]]] = {line["step"]: [] for line in lines}
        for row in read_samples(self.folder):
            if row["step"] in samples:
                samples[row["step"]].append([row[name] for name in _SAMPLE_COLUMNS])
        for line in lines:
            metrics = {name: value for name, value in line.items() if name not in MARKS and value is not None}
            self.log_metrics(metrics | {"_timestamp": line["time"]}, line["step"])
            if rows := samples[line["step"]]:
                self.log_samples(rows, line["step"])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes the run, so that W&B shows how it ended; logging again opens it again."""
        if self._experiment is not None:
            run, self._experiment = self._experiment, None
            try:
                run.finish(exit_code=0 if status == "success" else 1)
            except Exception as error:
                say(f"W&B: {_first_line(error)}")

    def _catch_up(self, is_offline: bool) -> None:
        """Offline, this process has a folder of its own: all of the run. Online, what a killed process had not sent."""
        try:
            self.replay(self.resumed_step, 0.0 if is_offline else since_last_upload(self.folder))
        except Exception as error:
            self._give_up(error)

    def _open(self) -> Any:
        mode = self._wandb_init["mode"]
        if mode == "online" and not _has_wandb_key():
            say("W&B: no key, so offline. Set WANDB_API_KEY to be online.")
            mode = "offline"
        if mode == "online" and (why := _unreachable()):
            say(f"W&B: {why}. Going on offline.")
            mode = "offline"
        try:
            return self._init(mode)
        except Exception as error:
            if mode != "online":
                self._give_up(error)
                return self._experiment
            say(f"W&B: {_first_line(error)}. Going on offline.")
            with suppress(Exception):
                import wandb

                wandb.teardown()  # it would hold the run's id for taken
        try:
            return self._init("offline")
        except Exception as error:
            self._give_up(error)
            return self._experiment

    def _init(self, mode: str) -> Any:
        import wandb

        settings = wandb.Settings(
            console="off", silent=True, init_timeout=_WANDB_SECONDS
        )  # the bar and the lines stay ours
        arguments = {key: value for key, value in self._wandb_init.items() if key not in ("mode", "anonymous")}
        run = wandb.init(**arguments, mode=mode, settings=settings)  # type: ignore[arg-type]
        if mode == "online":
            say(f"W&B: {run.url}")
        else:
            goes_on = self.resumed_step and (self.folder / METRICS_FILE).exists()
            whole = ": alone, for it holds the run from its first step" if goes_on else ""
            say(f"W&B: offline; upload with `wandb sync {Path(run.dir).parent}`{whole}")
        run.define_metric("tokens", hidden=True)
        run.define_metric("*", step_metric="tokens", step_sync=True)
        return run

    def _give_up(self, error: Exception) -> None:
        if lost_worker(error):  # which torch tells wherever the process happens to be
            raise error
        import wandb

        say(f"W&B: {_first_line(error)}. Going on without it; {METRICS_FILE} has every number.")
        self._experiment = wandb.init(mode="disabled")


def since_last_upload(run_folder: str | Path) -> float:
    """From when on W&B may lack lines of a process that was killed; seconds as `time.time` counts."""
    lines = read_journal(Path(run_folder) / METRICS_FILE)
    return lines[-1]["time"] - _UPLOAD_SECONDS if lines else 0.0


def _section(name: str) -> str:
    first, *rest = name.split("/")
    return "/".join([f"{first}_per_source", *rest]) if len(rest) == 2 else name


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _unreachable() -> str | None:
    """Why W&B's host cannot be reached, found out sooner than W&B does; None where it can, or is behind a proxy."""
    if getproxies():
        return None
    address = urlparse(_wandb_host())
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return f"{_wandb_host()} cannot be reached ({error.strerror or error})"
    return None


def _wandb_host() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = os.path.expanduser(os.environ.get("NETRC", "~/.netrc"))  # Path's own raises where nobody has a home
    host = urlparse(_wandb_host()).hostname or ""
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
