"""fit, validate, test and predict: one YAML, one run folder, the Trainer."""

import json
import logging
import os
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from scratchlm.cli import OneLineErrors, config_files, read_yaml
from scratchlm.data.pretraining import PretrainingData
from scratchlm.errors import BadValue, MissingFile, UserError
from scratchlm.files.whole import write_text
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.model.probe import choose
from scratchlm.process import keep_freed_memory
from scratchlm.ranks import Ranks
from scratchlm.run_configuration import changes, run_folder_of, with_configuration_of_checkpoint
from scratchlm.run_corpus import prepare_corpus
from scratchlm.run_faults import fault_advice
from scratchlm.run_folder import RunFolder
from scratchlm.run_memory import choose_micro_batch_size, memory_advice, vocab_size
from scratchlm.run_settings import check_trainer_keys, check_values, require_resumable
from scratchlm.training.checkpoints import Checkpoints, WholeCheckpointIO
from scratchlm.training.compilation import Compilation
from scratchlm.training.divergence import DivergenceGuard
from scratchlm.training.environment import environment
from scratchlm.training.events import Events
from scratchlm.training.loggers import MetricsLogger, WandbRun, wandb_mode
from scratchlm.training.progress import Progress
from scratchlm.training.samples import Samples
from scratchlm.training.stopping import Stopped, Stopping
from scratchlm.training.summary import Summary
from scratchlm.training.task import NextTokenTask
from scratchlm.training.throughput import Throughput

# What one call asks for, not what the run is: left out of config.yaml and of the checkpoint.
_OF_THE_CALL = ("ckpt_path", "fresh", "weights_only", "return_predictions", "output", "verbose")

_SCORED_AT_ONCE = 8  # sequences, where data.micro_batch_size is auto and no run has found it; the default of that key


def run(argv: list[str]) -> None:
    """Runs a Trainer verb.

    Args:
        argv: The command line from the verb on.

    Raises:
        UserError: Anything that the user can mend; the text is one line.
    """
    _quiet()
    with Ranks() as ranks, ExitStack() as stack:
        ranks.wait_for_first()
        RunCLI(argv, stack, ranks)  # LightningCLI runs the verb in its constructor


class RunParser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser, with errors of one line."""


class RunCLI(LightningCLI):
    """LightningCLI; what it adds is filled in before the classes are built: run folder, corpus, device, loggers."""

    def __init__(self, argv: list[str], stack: ExitStack, ranks: Ranks) -> None:
        """Parses, builds and runs.

        Args:
            argv: The command line from the verb on.
            stack: Closes what the run holds open: its lock and temporary files.
            ranks: The processes of the run.
        """
        self.stack = stack
        self.ranks = ranks
        for path in config_files(argv):
            read_yaml(path)  # the parser's own complaints do not name the file
        self.argv = argv
        self.choices: dict[str, Any] = {}
        self.steps_done = 0
        self.begun_with: dict[str, Any] = {}  # order, configuration and how to bring files back: of the checkpoint
        self.changed: dict[str, list[Any]] = {}  # dotted key -> its value in the checkpoint and now
        super().__init__(
            NextTokenTask,
            PretrainingData,
            args=with_configuration_of_checkpoint(argv, stack),
            parser_class=RunParser,
            save_config_callback=None,
            seed_everything_default=1,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "max_steps": -1,
                "log_every_n_steps": 10,
                "val_check_interval": 250,
                "check_val_every_n_epoch": None,
                "gradient_clip_val": 1.0,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links each fact to the one place that states it."""
        parser.link_arguments("data.context_length", "model.gpt.context_length")
        parser.link_arguments("data.vocab_size", "model.gpt.vocab_size", apply_on="instantiate")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument("--fresh", type=bool, default=False, help="Move an old run in the run folder aside.")
        if subcommand == "predict":
            help_output = "JSONL file to write; by default completions.jsonl in the run folder."
            parser.add_argument("--output", type=str | None, default=None, help=help_output)
        return parser

    def _set_seed(self) -> None:
        seed = self.config[self.config.subcommand].seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise BadValue(f"seed_everything={seed}: give a whole number from 0 to 2**32 - 1.")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would lay a checkpoint's hyper-parameters over the user's flags."""

    def before_instantiate_classes(self) -> None:
        """Checks, finds and makes all that the data, the model and the Trainer are built from."""
        config = self.config[self.subcommand]
        check_trainer_keys(config, str(self.subcommand))
        if self.subcommand == "predict":  # on several devices each would write its own share of the completions
            config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy = 1, 1, "auto"
            self.ranks.require_one()
        n_processes = self.ranks.n_processes(config.trainer)
        check_values(config, n_processes if self.subcommand == "fit" else 1)
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = str(run_folder_of(self.argv))
        self.folder = RunFolder(config.trainer.default_root_dir)
        if self.subcommand == "fit":
            self._find_start(config)
            self.order = prepare_corpus(config, _is_first_rank(), self.begun_with, self._yaml_of_run())
            self._choose_machine(config)
            if config.data.micro_batch_size == "auto" and _is_first_rank():
                n_processes = self.ranks.n_processes(config.trainer)
                self.choices["micro_batch_size"] = choose_micro_batch_size(config, self.choices, n_processes)
            self._open_run_folder(config)
            if config.data.micro_batch_size == "auto":  # which is what config.yaml and the checkpoint say
                config.data.micro_batch_size = self.choices["micro_batch_size"]["sequences"]
            return
        config.trainer.logger = False
        config.ckpt_path = str(self._checkpoint_to_score(config))
        if self.subcommand == "predict":
            config.data.checkpoint = config.ckpt_path
        self._choose_machine(config)
        if config.data.micro_batch_size == "auto":  # scoring takes less than the training it was found for
            found = self.folder.read_choices().get("micro_batch_size", {"sequences": _SCORED_AT_ONCE})
            sizes = PretrainingData(**config.data.as_dict()).micro_batch_sizes(1)
            config.data.micro_batch_size = max(size for size in sizes if size <= found["sequences"])

    def instantiate_classes(self) -> None:
        """Builds data, model and Trainer."""
        with memory_advice(self.config[self.subcommand]):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer with our loggers, callbacks and checkpoint writer beside whatever the YAML names."""
        trainer = self._get(self.config_init, "trainer")
        throughput = Throughput() if self.subcommand == "fit" else None
        callbacks: list[Callback] = [throughput] if throughput else []
        if trainer["enable_progress_bar"] is not False:
            callbacks.append(Progress(throughput))
        if self.subcommand == "fit":
            kwargs["logger"] = self._loggers(trainer["logger"])
            kwargs["max_steps"], kwargs["max_epochs"] = self._max_steps(), -1
            compilation = Compilation(self.choices, self._record_choices)
            callbacks = [
                Stopping(),
                *callbacks,
                Summary(),
                compilation,
                Samples(),
                DivergenceGuard(self.datamodule.tracer()),
            ]
        kwargs |= self.ranks.trainer_settings(self.config[self.subcommand].trainer)
        kwargs["callbacks"] = [*(trainer.get("callbacks") or []), *callbacks]
        kwargs["plugins"] = [*(trainer.get("plugins") or []), WholeCheckpointIO()]
        for key in ("limit_val_batches", "limit_test_batches", "limit_predict_batches"):
            if trainer[key] == 1:
                kwargs[key] = 1  # one batch; the parser makes it 1.0, which Lightning reads as all of them
        try:
            return super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            raise BadValue(f"trainer: {str(error).splitlines()[0]}") from error

    def after_instantiate_classes(self) -> None:
        """Links the corpus's facts to the model, and turns steps into the micro-batches that Lightning counts."""
        self.model.corpus = self.datamodule.facts  # no parser link: it would read the tokenizer's JSON as a mapping
        if self.subcommand == "fit":
            self._settle_training()
        self.ranks.go(self.trainer)

    def _settle_training(self) -> None:
        data, trainer = self.datamodule, self.trainer
        self.model.configuration = self.configuration
        rehearses = self._get(self.config_init, "trainer")["fast_dev_run"]
        if self.steps_done < trainer.max_steps and not rehearses:
            path = self.config.fit.ckpt_path
            start = {"checkpoint": path and Path(path).name, "changed": self.changed, "environment": environment()}
            Events(self.folder.path).add("start", self.steps_done, **start)
        if self.model.warmup_steps >= trainer.max_steps:
            _say(
                f"warning: model.warmup_steps={self.model.warmup_steps}: the run ends at step {trainer.max_steps:,}, "
                "before the rate has reached model.learning_rate. Give fewer."
            )
        trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)
        if not rehearses:
            trainer.val_check_interval *= trainer.accumulate_grad_batches

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "fit" and self.config.fit.trainer.accelerator == "cpu":
            keep_freed_memory()
        with memory_advice(self.config[subcommand]), fault_advice(self.config[subcommand]):
            try:
                super()._run_subcommand(subcommand)
            except Stopped as stop:
                step, name = self.trainer.global_step, stop.signal.name
                if stop.saved:
                    _say(f"stopped by {name}, saved after step {step:,}; --ckpt_path last goes on with the run")
                else:
                    Events(self.folder.path).add("stop", step, signal=name, saved=False)
                    _say(f"stopped by {name} before the first step of this process: there was nothing to save")
                raise
            except SystemExit as stop:  # how Lightning 2.6 ends at SIGTERM and Ctrl-C, with status 0 and 1
                if not self.trainer.interrupted:
                    raise
                raise SystemExit(143 if isinstance(stop, SIGTERMException) else 130) from None

    def predict(self, **kwargs: Any) -> None:
        """Completes the prompts and writes one JSON object a line."""
        output = Path(self.config.predict.output or self.folder.path / "completions.jsonl")
        kwargs["return_predictions"] = True
        completions = [row for batch in self.trainer.predict(**kwargs) or [] for row in batch]
        write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in completions))
        _say(f"completions written to {output}: {len(completions):,}")

    def _find_start(self, config: Namespace) -> None:
        """Resolves `--ckpt_path`, and refuses to mix two runs or two networks; writes nothing."""
        is_inside = config.ckpt_path in ("last", "best") or self.folder.holds(config.ckpt_path)
        if config.ckpt_path is not None and is_inside and config.fresh:
            raise BadValue(
                f"--fresh true: moves aside the run that --ckpt_path={config.ckpt_path} is to go on with. "
                "Drop one of them."
            )
        self.goes_on = config.ckpt_path == "last"
        if config.ckpt_path and not is_inside and not Path(config.ckpt_path).exists():
            self.folder.find_checkpoint(config.ckpt_path)  # which says so
        if not (is_inside or config.fresh) and _is_first_rank():
            self.folder.refuse_second_run()
        if not _is_first_rank():
            self.choices = self.folder.read_choices()
        if config.ckpt_path is None:
            return
        path = self.folder.find_checkpoint(config.ckpt_path)
        if path is None:
            _say(f"--ckpt_path={config.ckpt_path}: none in {self.folder.checkpoints} yet; starting at step 0")
        else:
            found = checkpoint_file.read(path, is_verified=True)
            checkpoint_file.require_same_shape(config.model.gpt.as_dict(), found.gpt_settings)
            settings = {key: config.data[key] for key in checkpoint_file.ORDER_SETTINGS}  # before text is read
            checkpoint_file.require_same_order(settings, found.order, config.data.folder)
            require_resumable(config, path)
            self.begun_with = {"order": found.order, "configuration": found.configuration, "checkpoint": path}
            self.steps_done = found.step
            self.choices = self.folder.read_choices()
            self.folder.check_journals()
        config.ckpt_path = str(path) if path else None

    def _yaml_of_run(self) -> str:
        """What to give to `-c` for the run that goes on, or else for the one that begins."""
        path = self.begun_with and self.begun_with["checkpoint"].parent.parent / "config.yaml"
        return str(path) if path and path.exists() else " -c ".join(config_files(self.argv)) or "YOUR.yaml"

    def _open_run_folder(self, config: Namespace) -> None:
        """Takes the folder and writes config.yaml, order.json and choices.json."""
        of_the_run = config.clone()
        for key in _OF_THE_CALL:
            of_the_run.pop(key, None)
        resolved = self._parser(self.subcommand).dump(of_the_run, skip_unset=False, skip_validation=True)
        self.configuration = yaml.safe_load(resolved)
        self.changed = changes(self.begun_with.get("configuration", {}), self.configuration)
        for key, (before, now) in self.changed.items():
            _say(f"{key}: {_as_yaml(now)} from here on, {_as_yaml(before)} before")
        if _is_first_rank():
            self.folder.claim(self.stack, config.fresh)
            if config.trainer.fast_dev_run:  # a rehearsal leaves nothing behind
                return
            if config.ckpt_path and not self.goes_on:
                self.folder.stand_at(Path(config.ckpt_path), self.steps_done)
            write_text(self.folder.path / "config.yaml", resolved)
            self.folder.write_order(self.order)
            self._record_choices()

    def _record_choices(self) -> None:
        if _is_first_rank():
            self.folder.write_choices(self.choices)

    def _checkpoint_to_score(self, config: Namespace) -> Path:
        asked = config.ckpt_path
        if asked is None:
            raise BadValue(
                f"--ckpt_path: {self.subcommand} needs a trained model. Name a file, or last or best with -c."
            )
        path = self.folder.find_checkpoint(asked)
        if path is None:
            raise MissingFile(f"--ckpt_path={asked}: none in {self.folder.checkpoints}. Make one with scratchlm fit.")
        if self.subcommand != "predict":
            now = PretrainingData(**config.data.as_dict()).order
            before = checkpoint_file.read(path, is_verified=True).order
            of_ids = {"tokenizer.json": now["tokenizer.json"]}  # other bins are warned of, when they are scored
            checkpoint_file.require_same_order(of_ids, before, config.data.folder)
        return path

    def _choose_machine(self, config: Namespace) -> None:
        """Device, precision and attention: as asked, else as when the run began, else what the machine does best."""
        kind = {"gpu": "cuda"}.get(config.trainer.accelerator, config.trainer.accelerator)
        precision: Any = config.trainer.precision or "auto"
        if kind not in ("auto", "cuda", "mps", "cpu") or precision not in ("auto", "bf16-mixed", "32-true"):
            return  # another of Lightning's devices or number formats: the user's own choice, not probed
        gpt = config.model.gpt
        shape = {
            "vocab_size": vocab_size(config),
            "d_model": gpt.d_model,
            "n_heads": gpt.n_heads,
            "d_head": gpt.d_head,
        }
        with memory_advice(config):
            choice = choose(kind, precision, attention=gpt.attention, **shape)
        if precision == "auto" and self.choices.get("device") == choice.device_type:
            choice.precision, choice.reason = self.choices["precision"], self.choices["reason"]
        config.trainer.accelerator, config.trainer.precision = choice.device_type, choice.precision
        config.model.gpt.attention = choice.attention
        _say(f"{choice.device_type}, {choice.precision}: {choice.reason}")
        if self.subcommand == "fit":
            self.choices.setdefault("wandb_id", os.urandom(4).hex())
            self.choices |= {"device": choice.device_type, "precision": choice.precision, "reason": choice.reason}

    def _loggers(self, asked: Any) -> list[Logger]:
        data, folder = self.datamodule, self.folder.path
        tokens_per_step = data.global_batch_size * data.context_length
        loggers: list[Logger] = [MetricsLogger(folder, tokens_per_step, self.steps_done)]
        if asked not in (None, True, False):
            return loggers + (asked if isinstance(asked, list) else [asked])
        mode = wandb_mode()
        if asked is not False and mode != "disabled" and self.steps_done < self._max_steps():
            run_id, done = self.choices["wandb_id"], self.steps_done
            loggers.append(WandbRun(folder, run_id, tokens_per_step, mode, self.configuration, done))
        return loggers

    def _max_steps(self) -> Any:
        config, data = self.config[self.subcommand], self.datamodule
        if config.data.train_tokens is not None:
            return max(1, config.data.train_tokens // (data.global_batch_size * data.context_length))
        if config.trainer.max_epochs is not None:
            return max(1, config.trainer.max_epochs * data.sequences_per_epoch // data.global_batch_size)
        return config.trainer.max_steps


def _is_first_rank() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _say(text: str) -> None:
    if _is_first_rank():
        print(f"scratchlm: {text}", file=sys.stderr, flush=True)


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _quiet() -> None:
    """Turns off Lightning's advice about things that are decided here, each named."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter",  # argv is rewritten on purpose where a checkpoint brings its configuration
        ".*does not have many workers.*",  # one strided gather a batch is faster than workers
        "The .grad attribute of a Tensor that is not a leaf",  # torch 2.13, when it compiles a part of a network
        ".*LeafSpec.*deprecated.*",  # Lightning 2.6 calls it, torch 2.13 means to drop it
    ):
        warnings.filterwarnings("ignore", message=message)
