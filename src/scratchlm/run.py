"""fit, validate, test and predict: one YAML, one run folder, the Trainer. Links what data knows to what the model needs."""

import inspect
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from scratchlm.cli import OneLineErrors, config_files, write_yaml
from scratchlm.data.preparation import Corpus, card_table, warnings_for
from scratchlm.data.pretraining import PretrainingData
from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError
from scratchlm.files.lock import folder_lock
from scratchlm.files.whole import remove_leftovers, write_json, write_text
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.model.gpt import GPT
from scratchlm.model.probe import choose
from scratchlm.training.callbacks import DivergenceGuard, Progress, Samples, Summary, Throughput
from scratchlm.training.checkpoints import Checkpoints, WholeCheckpointIO, newest_whole
from scratchlm.training.loggers import MetricsLogger, WandbRun, wandb_mode
from scratchlm.training.task import NextTokenTask

_NOT_SAVED = (
    "ckpt_path",
    "fresh",
    "weights_only",
    "return_predictions",
    "output",
)  # what one call asked for, not what the run is


def run(argv: list[str]) -> None:
    """Runs a Trainer verb.

    Args:
        argv: The command line from the verb on.

    Raises:
        UserError: Anything that the user can mend; the text is one line.
    """
    _quiet()
    with ExitStack() as stack:
        RunCLI(argv, stack)  # LightningCLI runs the verb in its constructor


class RunParser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser, with errors of one line."""


class RunCLI(LightningCLI):
    """LightningCLI with the run folder, the corpus, the machine's choices and the loggers filled in before classes are built."""

    def __init__(self, argv: list[str], stack: ExitStack) -> None:
        """Parses, builds and runs.

        Args:
            argv: The command line from the verb on.
            stack: Closes what the run holds open: its lock and temporary files.
        """
        self.stack = stack
        self.config_names = [Path(path).stem for path in config_files(argv)]
        super().__init__(
            NextTokenTask,
            PretrainingData,
            args=_with_configuration_of_checkpoint(argv, stack),
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
        parser.link_arguments("data.facts", "model.corpus", apply_on="instantiate")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, prog=f"scratchlm {subcommand}", **kwargs)
        if subcommand == "fit":
            parser.add_argument(
                "--fresh", type=bool, default=False, help="Move the run folder's old run aside and start anew."
            )
        if subcommand == "predict":
            parser.add_argument(
                "--output",
                type=str | None,
                default=None,
                help="JSONL to write; default completions.jsonl in the run folder.",
            )
        return parser

    def _parse_ckpt_path(self) -> None:
        """Keeps Lightning from laying a checkpoint's hyper-parameters over the flags: we lay its configuration under them."""

    def before_instantiate_classes(self) -> None:
        """Everything that must be known, checked or made before the data, the model and the Trainer are built."""
        config = self.config[self.subcommand]
        _check_trainer_keys(config, self.subcommand)
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = str(Path("runs") / (self.config_names[0] if self.config_names else "run"))
        self.folder = Path(config.trainer.default_root_dir)
        if self.subcommand == "fit":
            self._open_run_folder(config)
            self._prepare_corpus(config)
        else:
            config.ckpt_path = str(self._checkpoint_to_score(config))
            config.trainer.logger = False
        if self.subcommand == "predict":
            config.data.checkpoint = config.ckpt_path
        self._choose_machine(config)

    def instantiate_classes(self) -> None:
        """Builds data, model and Trainer."""
        with _memory_advice(self.config[self.subcommand]):
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        with _memory_advice(self.config[subcommand]):
            super()._run_subcommand(subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer with our loggers, callbacks and checkpoint writer beside whatever the YAML names."""
        config = self._get(self.config_init, "trainer")
        config["plugins"] = [*(config.get("plugins") or []), WholeCheckpointIO()]
        callbacks = [Progress()]
        if self.subcommand == "fit":
            kwargs["logger"] = self._loggers(config["logger"])
            config["max_steps"], config["max_epochs"] = self._max_steps(), -1
            callbacks += [Summary(), Throughput(), Samples(), DivergenceGuard()]
        config["callbacks"] = [*(config.get("callbacks") or []), *callbacks]
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Turns the batch sizes in sequences into accumulation, and steps into the micro-batches that Lightning counts."""
        data, trainer = self.datamodule, self.trainer
        at_once = data.micro_batch_size * trainer.world_size
        if data.global_batch_size % at_once:
            near = max(at_once, round(data.global_batch_size / at_once) * at_once)
            raise BadValue(
                f"data.global_batch_size={data.global_batch_size}: not a multiple of data.micro_batch_size={data.micro_batch_size} "
                f"times {trainer.world_size} processes. The nearest that works is {near}."
            )
        if self.subcommand == "fit":
            self.model.configuration = self.configuration
            trainer.accumulate_grad_batches = data.global_batch_size // at_once
            if not trainer.fast_dev_run:
                trainer.val_check_interval *= trainer.accumulate_grad_batches

    def predict(self, **kwargs: Any) -> None:
        """Completes the prompts and writes one JSON object a line."""
        output = Path(self.config.predict.output or self.folder / "completions.jsonl")
        completions = [row for batch in self.trainer.predict(**kwargs) or [] for row in batch]
        write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in completions))
        _say(f"{len(completions)} completions in {output}")

    def _open_run_folder(self, config: Namespace) -> None:
        """Takes the folder, refuses to mix two runs, resolves `--ckpt_path last | best`, and writes config.yaml."""
        saved = {k: v for k, v in config.items() if k not in _NOT_SAVED and "." not in k}
        dumped = self._parser(self.subcommand).dump(Namespace(**saved), skip_none=False, skip_validation=True)
        self.configuration = yaml.safe_load(dumped)
        checkpoints = self.folder / "checkpoints"
        if rank_zero_only.rank == 0:
            self.stack.enter_context(folder_lock(self.folder, "run.lock"))
            if config.fresh:
                _move_aside(self.folder)
            remove_leftovers(checkpoints)
            if config.ckpt_path is None and any(checkpoints.glob("*.ckpt")):
                raise BadValue(
                    f"trainer.default_root_dir={self.folder}: holds the checkpoints of a run. Go on with it by --ckpt_path last, "
                    "or give --fresh true to move it aside, or name another folder."
                )
        if config.ckpt_path is not None:
            config.ckpt_path = self._checkpoint_to_resume(config)
        if rank_zero_only.rank == 0:
            write_text(self.folder / "config.yaml", dumped)
        self.choices = _read_choices(self.folder) if config.ckpt_path else {}

    def _checkpoint_to_resume(self, config: Namespace) -> str | None:
        path = _find_checkpoint(self.folder, config.ckpt_path)
        if path is None:
            _say(f"no checkpoint in {self.folder / 'checkpoints'}: starting at step 0")
            return None
        settings, asked = checkpoint_file.read(path).gpt_settings, config.model.gpt
        for key, value in settings.items():
            if key in asked and key not in ("dropout", "attention") and asked[key] != value:
                raise BadValue(
                    f"model.gpt.{key}={asked[key]}: the checkpoint {path} was made with {value}. "
                    f"Leave the key at {value}, or start a run in another trainer.default_root_dir."
                )
        return str(path)

    def _checkpoint_to_score(self, config: Namespace) -> Path:
        if config.ckpt_path is None:
            raise BadValue(
                f"--ckpt_path: {self.subcommand} scores a trained model. Name a checkpoint file, or last or best with -c."
            )
        path = _find_checkpoint(self.folder, config.ckpt_path)
        if path is None:
            raise MissingFile(
                f"--ckpt_path={config.ckpt_path}: no checkpoint in {self.folder / 'checkpoints'}. Make one with scratchlm fit."
            )
        return path

    def _prepare_corpus(self, config: Namespace) -> None:
        keys = inspect.signature(Corpus).parameters
        corpus = Corpus(**{key: config.data[key] for key in keys})
        manifest_path = Path(config.data.folder) / "manifest.json"
        while rank_zero_only.rank and not manifest_path.exists():
            time.sleep(0.5)  # global rank 0 is writing it; where that fails, the launcher ends every rank
        was_there = manifest_path.exists()
        manifest = corpus.prepare()
        if rank_zero_only.rank == 0:
            if was_there:
                for warning in warnings_for(manifest, config.data.context_length):
                    _say(f"warning: {warning}")
            else:
                print(card_table(manifest))

    def _choose_machine(self, config: Namespace) -> None:
        """Device, precision and attention: as asked, else as recorded when the run began, else what the machine does best."""
        kind = {"gpu": "cuda"}.get(config.trainer.accelerator, config.trainer.accelerator)
        precision = config.trainer.precision or "auto"
        if kind not in ("auto", "cuda", "mps", "cpu") or precision not in ("auto", "bf16-mixed", "32-true"):
            return  # another device or number format of Lightning's: the user's own choice, unprobed
        recorded = getattr(self, "choices", {})
        gpt = config.model.gpt
        vocab_size = _vocab_size(config)
        choice = choose(
            kind,
            precision,
            vocab_size=vocab_size,
            d_model=gpt.d_model,
            n_heads=gpt.n_heads,
            d_head=gpt.d_head,
            attention=gpt.attention,
        )
        if precision == "auto" and recorded.get("device") == choice.device_type:
            choice.precision, choice.reason = recorded["precision"], "as when this run began"
        config.trainer.accelerator, config.trainer.precision = choice.device_type, choice.precision
        config.model.gpt.attention = choice.attention
        _say(f"{choice.device_type}, {choice.precision}: {choice.reason}")
        if self.subcommand == "fit":
            self.choices = recorded | {
                "device": choice.device_type,
                "precision": choice.precision,
                "attention": choice.attention,
                "reason": choice.reason,
            }
            self.choices.setdefault("wandb_id", os.urandom(4).hex())
            if rank_zero_only.rank == 0:
                write_json(self.folder / "choices.json", self.choices)

    def _loggers(self, asked: Any) -> list[Logger]:
        data = self.config[self.subcommand].data
        tokens_per_step = data.global_batch_size * data.context_length
        loggers: list[Logger] = [MetricsLogger(self.folder, tokens_per_step)]
        if asked in (None, True):
            mode = wandb_mode()
            if mode != "disabled":
                loggers.append(
                    WandbRun(self.folder, self.choices["wandb_id"], tokens_per_step, mode, self.configuration)
                )
        elif asked:
            loggers += asked if isinstance(asked, list) else [asked]
        return loggers

    def _max_steps(self) -> int:
        config = self.config[self.subcommand]
        data: PretrainingData = self.datamodule
        if config.data.train_tokens is not None:
            return max(1, config.data.train_tokens // (data.global_batch_size * data.context_length))
        if config.trainer.max_epochs is not None:
            return max(1, config.trainer.max_epochs * data.sequences_per_epoch // data.global_batch_size)
        return int(config.trainer.max_steps)


def _check_trainer_keys(config: Namespace, subcommand: str) -> None:
    trainer = config.trainer
    if trainer.accumulate_grad_batches != 1:
        raise BadValue(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: follows from the batch sizes and cannot be set. "
            "Set data.global_batch_size and data.micro_batch_size, both in sequences."
        )
    if not isinstance(trainer.val_check_interval, int) or trainer.val_check_interval < 1:
        raise BadValue(
            f"trainer.val_check_interval={trainer.val_check_interval}: here it counts optimizer steps. Give a whole number, 1 or more."
        )
    lengths = {
        "trainer.max_steps": None if trainer.max_steps == -1 else trainer.max_steps,
        "trainer.max_epochs": trainer.max_epochs,
        "data.train_tokens": config.data.train_tokens,
    }
    given = {key: value for key, value in lengths.items() if value is not None}
    if subcommand == "fit" and not trainer.fast_dev_run:
        if len(given) != 1:
            said = " and ".join(f"{key}={value}" for key, value in given.items()) or "none of " + ", ".join(lengths)
            raise BadValue(
                f"{said}: exactly one sets the length of the run. " + ("Remove the others." if given else "Give one.")
            )
        ((key, value),) = given.items()
        if value < 1:
            raise BadValue(f"{key}={value}: a run has an end. Give a number of at least 1.")


def _with_configuration_of_checkpoint(argv: list[str], stack: ExitStack) -> list[str]:
    """Lays the configuration in a checkpoint under the command line, where a file is named and fit is not given its own."""
    path = _flag(argv, "--ckpt_path")
    if path in (None, "last", "best") or (argv[0] == "fit" and config_files(argv)):
        return argv
    configuration = checkpoint_file.read(path).configuration
    if not configuration:
        raise BadValue(f"--ckpt_path={path}: holds no configuration. Name the run's YAML with -c.")
    laid_under = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scratchlm-"))) / "configuration.yaml"
    write_yaml(laid_under, configuration)
    return [argv[0], "--config", str(laid_under), *argv[1:]]


def _flag(argv: list[str], name: str) -> str | None:
    for i, word in enumerate(argv):
        if word == name and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return None


def _find_checkpoint(folder: Path, asked: str) -> Path | None:
    """The file behind `last`, `best` or a path; None where a run has not saved one yet."""
    if asked == "last":
        return newest_whole(folder / "checkpoints")
    path = folder / "checkpoints" / "best.ckpt" if asked == "best" else Path(asked)
    if asked == "best" and not path.exists():
        return None
    checkpoint_file.verify(path)
    return path


def _vocab_size(config: Namespace) -> int:
    if config.data.checkpoint:
        return int(checkpoint_file.read(config.data.checkpoint).gpt_settings["vocab_size"])
    try:
        manifest = json.loads((Path(config.data.folder) / "manifest.json").read_text())
    except FileNotFoundError as error:
        raise MissingFile(
            f"data.folder={config.data.folder}: no bins there. Make them with scratchlm prepare."
        ) from error
    return int(manifest["vocab_size"])


def _read_choices(folder: Path) -> dict[str, Any]:
    path = folder / "choices.json"
    choices: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return choices


def _move_aside(folder: Path) -> None:
    """Moves a run's files, all but the lock this process holds, to the first free `<folder>.old-N`."""
    files = [path for path in folder.iterdir() if path.name != "run.lock"]
    if not files:
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    aside.mkdir()
    for path in files:
        path.rename(aside / path.name)
    _say(f"the old run is in {aside}")


@contextmanager
def _memory_advice(config: Namespace) -> Iterator[None]:
    """Turns running out of memory into the computed need and what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        words = ("can't allocate memory", "out of memory", "Cannot allocate memory")
        if isinstance(error, UserError) or not (isinstance(error, MemoryError) or any(w in str(error) for w in words)):
            raise
        data, gpt = config.data, config.model.gpt
        with torch.device("meta"):
            need = GPT(vocab_size=_vocab_size(config), **gpt).training_bytes(data.micro_batch_size)
        raise BrokenState(
            f"out of memory: this step needs about {need / 1e9:.1f} GB. In this order, lower "
            f"data.micro_batch_size={data.micro_batch_size}, data.context_length={data.context_length}, "
            f"model.gpt.d_model={gpt.d_model} or model.gpt.n_layers={gpt.n_layers}."
        ) from error


def _say(text: str) -> None:
    if rank_zero_only.rank == 0:
        print(f"scratchlm: {text}", flush=True)


def _quiet() -> None:
    """Turns off Lightning's advice about things that are decided here, each named."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter",  # argv is rewritten on purpose where a checkpoint brings its configuration
        ".*does not have many workers.*",  # one strided gather a batch is faster than workers
        "Trying to infer the `batch_size`.*",
    ):
        warnings.filterwarnings("ignore", message=message)
