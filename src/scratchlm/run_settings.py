"""The settings of a run: what cannot work is refused before a file is written, text is read or a device is touched."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from packaging.version import InvalidVersion, Version
from torch import Tensor

from scratchlm.data.pretraining import PretrainingData
from scratchlm.errors import BadValue, BrokenState
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.model.gpt import GPT
from scratchlm.training.checkpoints import Checkpoints
from scratchlm.training.task import NextTokenTask

_SECTIONS = ("data", "model", "trainer", "checkpoint")
_RUN_FOLDER = "trainer.default_root_dir"
_ONLY = {  # Trainer settings that would break the order of training, and the values that do not
    "limit_train_batches": (None, 1.0),
    "overfit_batches": (0, 0.0),
    "reload_dataloaders_every_n_epochs": (0,),
}


def check_trainer_keys(config: Namespace, subcommand: str) -> None:
    """Refuses Trainer settings that are decided elsewhere or would break the order of training.

    Args:
        config: The configuration of the verb.
        subcommand: The verb.

    Raises:
        BadValue: The first such key.
    """
    trainer = config.trainer
    if trainer.accumulate_grad_batches != 1:
        raise BadValue(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: follows from the batch sizes and "
            "cannot be set. Set data.global_batch_size and data.micro_batch_size, both in sequences."
        )
    for key, allowed in _ONLY.items():
        if trainer[key] not in allowed:
            raise BadValue(
                f"trainer.{key}={trainer[key]}: would train on the same sequences again, or cut steps short. "
                "Leave it out; trainer.max_steps makes a run short."
            )
    if isinstance(trainer.strategy, str) and trainer.strategy not in ("auto", "fsdp") and trainer.strategy[:3] != "ddp":
        raise BadValue(
            f"trainer.strategy={trainer.strategy}: not known to keep the weights, groups of the optimizer and one-file "
            "checkpoints of a single device. Choose auto, ddp (a copy of the network on each device) or fsdp (cut over "
            "the devices)."
        )
    if (trainer.gradient_clip_val or 0) < 0:
        raise BadValue(f"trainer.gradient_clip_val={trainer.gradient_clip_val}: is a norm. Give 0 or more, or null.")
    if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 1:
        raise BadValue(f"trainer.log_every_n_steps={trainer.log_every_n_steps}: give a whole number from 1.")
    every = trainer.val_check_interval
    if not isinstance(every, int) or every < 1:
        raise BadValue(f"trainer.val_check_interval={every}: counts optimizer steps here. Give a whole number from 1.")
    if subcommand != "fit" or trainer.fast_dev_run:
        return
    lengths = {
        "trainer.max_steps": None if trainer.max_steps == -1 else trainer.max_steps,
        "trainer.max_epochs": trainer.max_epochs,
        "data.train_tokens": config.data.train_tokens,
    }
    given = {key: value for key, value in lengths.items() if value is not None}
    if len(given) != 1:
        said = " and ".join(f"{key}={value}" for key, value in given.items()) or "none of " + ", ".join(lengths)
        raise BadValue(f"{said}: exactly one sets the length of a run. {'Remove the others' if given else 'Give one'}.")
    for key, value in given.items():
        if value < 1:
            raise BadValue(f"{key}={value}: a run has at least one step. Give a whole number from 1.")


def check_values(config: Namespace, n_processes: int) -> None:
    """Builds data and model on paper: a value that cannot work is refused before a file is written or text is read.

    Args:
        config: The configuration of the verb.
        n_processes: Processes that will share each batch.

    Raises:
        BadValue: The first such value.
    """
    data = PretrainingData(**config.data.as_dict())
    if data.micro_batch_size == "auto":
        data.micro_batch_sizes(n_processes)
    else:
        data.accumulation(n_processes)
    model = config.model.as_dict()
    with torch.device("meta"):
        gpt = GPT(**model.pop("gpt"), vocab_size=config.data.vocab_size)
    NextTokenTask(gpt, **model)


def require_resumable(config: Namespace, path: Path) -> None:
    """Refuses a checkpoint out of which training cannot go on, before Lightning stumbles over it.

    Args:
        config: The configuration of fit.
        path: The checkpoint, verified, and of the shape and order of this run.

    Raises:
        BrokenState: The state of the optimizer or of the loops is missing, or of another form than this run's.
    """
    content = checkpoint_file.load(path, mmap=True, is_verified=True)
    form = {
        "global_step": 0,
        "epoch": 0,
        "pytorch-lightning_version": "",
        "callbacks": _Partial(Checkpoints=Checkpoints().state_dict()),
        "lr_schedulers": [],
        "PretrainingData": {},
        "loops": {"fit_loop": _FitLoop(Trainer, max_epochs=-1).state_dict()},  # type: ignore[arg-type]  # needs none
        "optimizer_states": [_form_of_optimizer(config, content[checkpoint_file.KEY]["gpt_settings"])],
    }
    for fault in chain(_faults(content, form, ""), _faults_of_version(content)):
        raise BrokenState(f"{path}: cannot be gone on from: {fault}. Use another checkpoint.")
    optimizing = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    steps = {
        "its 'scratchlm' block": content[checkpoint_file.KEY]["step"],
        "global_step": content["global_step"],
        "its loops": optimizing["optimizer"]["step"]["total"]["completed"],
    }
    if len(set(steps.values())) > 1:
        said = ", ".join(f"{step} in {place}" for place, step in steps.items())
        raise BrokenState(f"{path}: cannot be gone on from: it names several steps: {said}. Use another checkpoint.")


def _faults_of_version(content: dict[str, Any]) -> Iterator[str]:
    try:
        Version(content["pytorch-lightning_version"])
    except InvalidVersion:
        yield f"pytorch-lightning_version={content['pytorch-lightning_version']} is no version"


def _form_of_optimizer(config: Namespace, gpt_settings: dict[str, Any]) -> dict[str, Any]:
    """What the optimizer's part of a checkpoint looks like: the groups' parameters, and the shapes of their moments."""
    model = config.model.as_dict()
    del model["gpt"]
    with torch.device("meta"):
        optimizer = NextTokenTask(GPT(**gpt_settings), **model).configure_optimizers()
    groups, defaults = optimizer.param_groups, optimizer.defaults
    flags = {key for key, value in defaults.items() if isinstance(value, bool | None)}  # torch fills in what is missing
    shapes = [parameter.shape for group in groups for parameter in group["params"]]
    numbers = iter(range(len(shapes)))
    return {
        "state": _Partial({number: _Moments(shape) for number, shape in enumerate(shapes)}),
        "param_groups": [
            {key: [next(numbers) for _ in group[key]] if key == "params" else None for key in group.keys() - flags}
            for group in groups
        ],
    }


class _Partial(dict[Any, Any]):
    """A form of which keys may be missing."""


class _Moments(NamedTuple):
    """Whatever an optimizer keeps of a parameter: numbers, and tensors of its shape."""

    shape: torch.Size


def _faults(found: Any, form: Any, where: str) -> Iterator[str]:
    """Where a plain value is not of a form: its keys missing, lists of another length, other types, other shapes."""
    if isinstance(form, _Moments):
        tensors = [value for value in found.values() if isinstance(value, Tensor)] if isinstance(found, dict) else None
        if tensors is None or any(tensor.ndim and tensor.shape != form.shape for tensor in tensors):
            yield f"{where} is not of the shape {tuple(form.shape)}"
    elif isinstance(form, dict) and isinstance(found, dict):
        for key, inner in form.items():
            place = f"{where}.{key}" if where else str(key)
            if key in found:
                yield from _faults(found[key], inner, place)
            elif not isinstance(form, _Partial):
                yield f"{place} is missing"
    elif isinstance(form, list) and isinstance(found, list):
        if form and len(found) != len(form):
            yield f"{where} has {len(found)} entries, not {len(form)}"
        for number, (value, inner) in enumerate(zip(found, form, strict=False)):
            yield from _faults(value, inner, f"{where}[{number}]")
    elif form is not None and type(found) is not (kind := dict if isinstance(form, dict) else type(form)):
        yield f"{where} is {type(found).__name__}, not {kind.__name__}"


def without_classes(configuration: dict[str, Any], path: str | Path, argv: list[str]) -> dict[str, Any]:
    """The configuration that a checkpoint file brings along, once it is sure that it names no code to run.

    A run's own config.yaml may name classes: it is the user's. A checkpoint may come from anywhere.

    Args:
        configuration: As the file has it.
        path: The file.
        argv: The command line; a key that it gives is its own, whatever the file says.

    Returns:
        The configuration, without the keys of the command line that name a class in the file.

    Raises:
        BadValue: It names a class, or has parts that no run has.
    """
    kept: dict[str, Any] = {}
    for part, values in configuration.items():
        is_section = part in _SECTIONS
        if not ((is_section and isinstance(values, dict)) or part == "seed_everything"):
            raise BadValue(
                f"--ckpt_path={path}: the configuration in it has a part {part!r} that no run has. Name the run's YAML "
                "with -c, if you trust it."
            )
        kept[part] = dict(values) if is_section else values
        for key in list(values) if is_section else ():
            name = f"{part}.{key}"
            if not _names_code(name, {key: values[key]}):
                continue
            if not any(word == f"--{name}" or word.startswith(f"--{name}=") for word in argv):
                raise BadValue(
                    f"--ckpt_path={path}: the configuration in it names code to run, in {name}, and a checkpoint may "
                    f"come from anywhere. Name the run's YAML with -c, if you trust it, or give --{name} yourself."
                )
            del kept[part][key]
    return kept


def _names_code(name: str, part: dict[str, Any]) -> bool:
    if checkpoint_file.names_class(part):
        return True
    [value] = part.values()
    if name == "model.gpt":
        return not isinstance(value, dict)  # else the path of a file that holds them
    if name == "data.cleaning":
        return any("." in text for text in _texts(value))
    # A class may be named without `class_path` too, and a path may stand for a file that names it.
    return name.startswith("trainer.") and name != _RUN_FOLDER and any(set(text) & set("./") for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value:
            yield from _texts(inner)
            if isinstance(value, dict):
                yield from _texts(value[inner])


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """What a run goes on with otherwise than before.

    Args:
        before: The configuration that the checkpoint was made with; what it does not know is not compared.
        now: That of this process.

    Returns:
        Dotted key -> the value before and now.
    """
    old, new = _dotted(before), _dotted(now)
    return {key: [old[key], new[key]] for key in new if key in old and old[key] != new[key] and key != _RUN_FOLDER}


def _dotted(configuration: dict[str, Any]) -> dict[str, Any]:
    """Keys as the command line has them."""
    parts = {key: value for key, value in configuration.items() if key in _SECTIONS and isinstance(value, dict)}
    dotted = {key: value for key, value in configuration.items() if key not in parts}
    dotted |= {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    if isinstance(gpt := dotted.get("model.gpt"), dict):
        del dotted["model.gpt"]
        dotted |= {f"model.gpt.{key}": value for key, value in gpt.items()}
    return dotted
