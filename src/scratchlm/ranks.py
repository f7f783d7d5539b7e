"""Several processes of one run: which of them this is, the first going ahead alone, and one report of what went wrong.

Lightning starts the others from the first one's command when the Trainer runs; torchrun and srun start all of them at
once. Here it comes to the same: the first checks, prepares and opens the run folder while the others wait for its word.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import (  # type: ignore[attr-defined]  # torch's stubs export none of the stores
    DistError,
    PrefixStore,
    Store,
    TCPStore,
)

from scratchlm.cli import report
from scratchlm.errors import BadValue, BrokenState, UserError
from scratchlm.training.loggers import say
from scratchlm.training.sharding import ShardedStrategy
from scratchlm.training.stopping import Stopped

# All chosen, not tuned.
_JOIN_SECONDS = 600  # for the first process of a job to be reachable: nodes do not begin at once
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 3.0  # for a process to end by itself once another has failed, before it is ended
_CLOSING_SECONDS = 60.0  # for the first process to close the run's files and W&B, when all stop together

_PARENT = "SCRATCHLM_PARENT"

_GO, _ENDING, _STATUS = "go", "ending", "status"


class Ranks:
    """This process among those of the run; as a context, it sees to it that they end together and one says why."""

    def __init__(self) -> None:
        """Reads what torchrun, srun or Lightning has put into the environment.

        Raises:
            BadValue: srun was not told how many tasks a node has.
            BrokenState: The port where the processes are to meet is taken.
        """
        self._environment = _environment()
        if isinstance(self._environment, LightningEnvironment):
            # The number in all is known only to the Trainer, which sets this anew.
            rank = self._environment.local_rank() or self._environment.node_rank()
            self.n_started: int | None = None
            several = "LOCAL_RANK" in os.environ or "NODE_RANK" in os.environ
            parent = int(os.environ.pop(_PARENT, os.getpid()))
            if parent != os.getpid():
                threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
        else:
            rank = self._environment.global_rank()
            self.n_started = self._environment.world_size()
            several = self.n_started > 1
        rank_zero_only.rank = rank  # type: ignore[attr-defined]
        self.is_first = rank == 0
        self._store: Store | None = None
        self._trainer: Trainer | None = None
        self._has_gone = False
        self._done = threading.Event()
        if several:
            self._meet()

    def wait_for_first(self) -> None:
        """Returns once the first process has found all in order; ends this one as the first has ended, where it has."""
        while not self.is_first:
            try:
                if self._is_set(_GO):
                    return
                if self._is_set(_STATUS):
                    raise SystemExit(self._status())
            except RuntimeError:  # the first was killed, and its end of the line with it
                raise SystemExit(1) from None
            time.sleep(_POLL_SECONDS)

    def require_one(self) -> None:
        """Refuses a verb that works in one process only.

        Raises:
            BadValue: torchrun or srun has started several.
        """
        if self.n_started is not None and self.n_started > 1:
            raise BadValue(f"predict: works in one process, and {self.n_started} were started. Start it alone.")

    def n_processes(self, trainer: Namespace) -> int:
        """Processes that the settings of the Trainer ask for, or that torchrun or srun has started.

        Args:
            trainer: The Trainer's part of the configuration.

        Raises:
            BadValue: There are no such devices.
        """
        if self.n_started is not None and self.n_started > 1:
            return self.n_started
        asked = {"accelerator": trainer.accelerator, "devices": trainer.devices, "num_nodes": trainer.num_nodes}
        try:
            rehearsal = Trainer(
                **asked, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
            )
        except (MisconfigurationException, RuntimeError, ValueError, TypeError) as error:
            given = ", ".join(f"trainer.{key}={value}" for key, value in asked.items())
            raise BadValue(f"{given}: {str(error).splitlines()[0]}") from error
        return rehearsal.world_size

    def trainer_settings(self, trainer: Namespace) -> dict[str, Any]:
        """What the Trainer needs beside its own settings: as many devices as processes were started, and the strategy.

        Args:
            trainer: The Trainer's part of the configuration.
        """
        n_processes = self.n_processes(trainer)
        if n_processes == 1:
            return {"strategy": "auto"} if trainer.strategy == "fsdp" else {}  # there is nothing to cut
        settings: dict[str, Any] = {}
        if self.n_started is not None:
            devices, num_nodes = self._started_on_each_node(), n_processes // self._started_on_each_node()
            if trainer.devices not in ("auto", devices, str(devices)) or trainer.num_nodes not in (1, num_nodes):
                say(
                    f"scratchlm: trainer.devices={trainer.devices}, trainer.num_nodes={trainer.num_nodes}: "
                    f"{n_processes} processes were started, {devices} on each node; so be it."
                )
            settings = {"devices": devices, "num_nodes": num_nodes}
        if trainer.strategy in ("auto", "ddp"):
            # Gradients live in the buckets that are sent: without it they are held twice. A static graph would spare
            # nothing here (each parameter is used in each step), and is at odds with skipping the exchange of gradients
            # in all micro-batches but the last.
            settings["strategy"] = DDPStrategy(gradient_as_bucket_view=True)
        if trainer.strategy == "fsdp":
            settings["strategy"] = ShardedStrategy(n_processes)
        return settings

    def go(self, trainer: Trainer) -> None:
        """Lets the other processes come after the first, and from here on ends them all where one fails.

        Args:
            trainer: The Trainer about to run.
        """
        self._trainer = trainer
        if trainer.world_size == 1:
            return
        os.environ[_PARENT] = str(os.getpid())  # to be read by those that Lightning starts from here
        if self._store is None:
            self._meet()
        assert self._store is not None
        if self.is_first:
            self._store.set(_GO, "")
        self._has_gone = True
        threading.Thread(target=self._watch, name="scratchlm-ranks", daemon=True).start()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        if self._store is None or error is None:
            return
        if isinstance(error, SystemExit | KeyboardInterrupt):  # it has said what there was to say
            status = 130 if isinstance(error, KeyboardInterrupt) else error.code or 0
            if isinstance(error, Stopped) and not self.is_first:  # which closes what it has open, and tells
                self._wait_while(lambda: not self._is_set(_STATUS), _CLOSING_SECONDS)
            elif status or not self._has_gone:
                if self._is_first_to_end():
                    self._tell(status if isinstance(status, int) else 1)
                else:
                    self._told(1)
                self._end_children()
            if self.is_first or isinstance(error, SystemExit):
                return
            raise SystemExit(status) from None
        if was_lost := _is_of_the_line(error):
            error = BrokenState(
                f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0]}). Look for "
                "its last words in its log, and go on by --ckpt_path last."
            )
        status = 2 if isinstance(error, UserError | PermissionError) else 1
        if self._is_first_to_end():
            report(error)
            self._tell(status)
        else:
            status = self._told(1 if was_lost else status)
        self._end_children()
        raise SystemExit(status) from None

    def _meet(self) -> None:
        """Opens the line between the processes: at the address where torch's process group will meet."""
        environment, is_of_torchrun = self._environment, os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        port = environment.main_port if "MASTER_PORT" in os.environ or self.n_started is not None else 0
        self._is_server = self.is_first and not is_of_torchrun
        try:
            store = TCPStore(
                environment.main_address,
                port,
                None,
                self._is_server,
                timedelta(seconds=_JOIN_SECONDS),
                wait_for_workers=False,
                multi_tenant=True,  # torch's own store will be at the same port
            )
        except RuntimeError as error:
            first_line = str(error).splitlines()[0]
            raise BrokenState(
                f"MASTER_ADDR={environment.main_address}, MASTER_PORT={port}: the processes of the run cannot meet "
                f"there ({first_line}). Set MASTER_PORT to a free port of the first node, the same for all."
            ) from error
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(store.port)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"scratchlm/{attempt}", store)

    def _started_on_each_node(self) -> int:
        if isinstance(self._environment, TorchElasticEnvironment):
            return int(os.environ["LOCAL_WORLD_SIZE"])
        return int(os.environ["SLURM_NTASKS_PER_NODE"])

    def _is_first_to_end(self) -> bool:
        try:
            assert self._store is not None
            return self._store.add(_ENDING, 1) == 1
        except RuntimeError:  # the first process is gone, and has said why
            return False

    def _tell(self, status: int) -> None:
        """Tells the others that this process ends, which has said why; and gives them the time to hear it."""
        with suppress(RuntimeError):
            assert self._store is not None
            self._store.set(_STATUS, str(status))
            if not self.is_first:  # which ends its children, or itself: else Lightning ends both by SIGKILL
                self._wait_while(lambda: self._is_set(_STATUS))
            elif not self._has_gone and self._is_server:
                time.sleep(3 * _POLL_SECONDS)

    def _told(self, otherwise: int) -> int:
        """The status of the process that ended first, once it has said why."""
        self._wait_while(lambda: not self._is_set(_STATUS))
        with suppress(RuntimeError):
            if self._is_set(_STATUS):
                return self._status()
        return otherwise

    def _is_set(self, key: str) -> bool:
        assert self._store is not None
        is_set: bool = self._store.check([key])
        return is_set

    def _status(self) -> int:
        assert self._store is not None
        return int(self._store.get(_STATUS))

    def _wait_while(self, holds: Callable[[], bool], seconds: float = 2 * _GRACE_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        with suppress(RuntimeError):
            while time.monotonic() < deadline and holds():
                time.sleep(_POLL_SECONDS)

    def _watch(self) -> None:
        """Ends this process where another has failed and this one hangs in waiting for it."""
        while not self._done.wait(1.0):
            try:
                if not self._is_set(_STATUS):
                    continue
                status = self._status()
            except RuntimeError:
                status = 1
            if not self._done.wait(_GRACE_SECONDS):
                self._end_children()
                os._exit(status)

    def _end_children(self) -> None:
        """Ends the processes that Lightning has started from this one."""
        children: list[subprocess.Popen[bytes]] = getattr(
            self._trainer and self._trainer.strategy.launcher, "procs", []
        )
        for child in children:
            child.kill()
            child.wait()


def _end_with_parent(pid: int) -> None:
    """Ends this process soon after its parent: it would wait for it where they are to meet."""
    while os.getppid() == pid:
        time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _is_of_the_line(error: BaseException) -> bool:
    """Whether what failed is the exchange with the other processes."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _environment() -> TorchElasticEnvironment | SLURMEnvironment | LightningEnvironment:
    """Who has started this process, looked for in Lightning's order."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not SLURMEnvironment.detect():
        return LightningEnvironment()
    try:
        return SLURMEnvironment()
    except RuntimeError as error:
        raise BadValue(f"SLURM_NTASKS: {error}") from error
