"""The checkpoint file: what of it is ours, reading it back, and telling a damaged or foreign one in one line.

The file is a Lightning checkpoint (a zip written by `torch.save`): the network's weights lie in its "state_dict" under
"gpt.", and under `KEY` lies a block of plain values with which the file is enough to build the network and speak to it.
"""

import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError
from scratchlm.model.gpt import GPT

KEY = "scratchlm"
FORMAT_VERSION = 1
ORDER_SETTINGS = ("seed", "context_length", "windows", "stride_tokens", "global_batch_size")
ORDER_FILES = ("train.bin", "val.bin", "tokenizer.json")
REMAKE = "scratchlm prepare --fresh true -c YOUR.yaml"
_PREFIX = "gpt."  # the name that training's module gives the network
_REQUIRED = {"gpt_settings": dict, "tokenizer_json": str, "card": dict, "step": int, "sequences": int}  # in our block
_HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters", "hparams", "module_arguments")
_CLASS_KEYS = {"class_path", "_class_path", "_instantiator", "_target_"}
_NO_SHAPE = ("dropout", "attention", "activation_checkpointing")  # arguments of GPT that a run may change on its way


@dataclass
class Checkpoint:
    """What a checkpoint says of the network; the optimizer's and the loops' state stay in the file.

    Attributes:
        gpt_settings: Arguments of `GPT`.
        weights: State dict of the network.
        tokenizer_json: The tokenizer, as its own JSON.
        card: Where the corpus came from.
        configuration: The configuration that the run was started with; empty where none was stored.
        step: Optimizer steps taken.
        sequences: Sequences trained on.
        order: What decided which sequences a step saw and what their ids mean: settings of the data, and the SHA-256
            of the files that ids come from.
        extra: Whatever else the writer put in its block.
    """

    gpt_settings: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer_json: str
    card: dict[str, Any]
    configuration: dict[str, Any]
    step: int
    sequences: int
    order: dict[str, Any]
    extra: dict[str, Any]

    def build(self) -> GPT:
        """The network with these weights, in evaluation mode, on the device they were read to.

        Raises:
            BrokenState: Weights and sizes do not belong together.
        """
        try:
            with torch.device("meta"):  # weights are not drawn only to be thrown away
                gpt = GPT(**self.gpt_settings)
            gpt.load_state_dict(self.weights, assign=True)
        except (TypeError, RuntimeError, UserError) as error:
            raise BrokenState(
                f"checkpoint of step {self.step}: its weights and its model.gpt settings do not fit each other "
                f"({_first_line(error)}). Use another checkpoint."
            ) from error
        return gpt.eval()


def block(
    gpt: GPT, tokenizer_json: str, card: dict[str, Any], step: int, sequences: int, **extra: Any
) -> dict[str, Any]:
    """What goes under `KEY` in the file.

    Args:
        gpt: The network whose weights the file holds.
        tokenizer_json: The tokenizer, as its own JSON.
        card: Where the corpus came from.
        step: Optimizer steps taken.
        sequences: Sequences trained on.
        extra: More to keep, such as the configuration.

    Returns:
        Plain values only (str, int, float, bool, None, lists and dicts of them).

    Raises:
        TypeError: A value is not plain, and the file would not load with `weights_only=True`.
    """
    values = {
        "format_version": FORMAT_VERSION,
        "gpt_settings": gpt.settings,
        "tokenizer_json": tokenizer_json,
        "card": card,
        "step": step,
        "sequences": sequences,
        **extra,
    }
    _require_plain(values, KEY)
    return values


def verify(path: str | Path) -> None:
    """Checks every byte of a checkpoint's contents against the CRCs stored with them, and reads no pickle.

    Args:
        path: The file.

    Raises:
        MissingFile: There is none.
        BadValue: It is a folder.
        BrokenState: It is cut short or damaged, or no checkpoint at all.
    """
    path = Path(path)
    if path.is_dir():
        raise BadValue(f"{path}: a folder. Name a checkpoint file, such as {path}/checkpoints/best.ckpt.")
    if not path.is_file():
        raise MissingFile(
            f"{path}: no such checkpoint. `scratchlm fit` writes them to the run's folder, checkpoints/*.ckpt."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except PermissionError as error:
        raise BrokenState(f"{path}: cannot be read ({error.strerror}).") from error
    # zipfile trusts headers it has not checked, so a flipped bit there surfaces as any of these.
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError, OverflowError) as error:
        raise BrokenState(
            f"{path}: no whole checkpoint ({_first_line(error)}): cut short, damaged or another kind of file. "
            "Use another one."
        ) from error
    if damaged is not None:
        raise BrokenState(f"{path}: damaged on disk ({damaged} fails its CRC). Use another checkpoint.")


def read(path: str | Path, device: str | torch.device = "cpu", is_verified: bool = False) -> Checkpoint:
    """Reads what the network needs out of a checkpoint, and none of the optimizer's state.

    Args:
        path: The file.
        device: Where the weights go.
        is_verified: Whether `verify` has just read it through, which takes the time of reading it.

    Returns:
        The checkpoint; its weights are copies, so the file may be replaced afterwards.

    Raises:
        MissingFile: There is no such file.
        BadValue: It is a folder, was not written by scratchlm, or by a later version of it.
        BrokenState: It is cut short or damaged.
    """
    content = load(path, mmap=True, is_verified=is_verified)
    ours = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(ours, dict) or not isinstance(content.get("state_dict"), dict):
        raise BadValue(
            f"{path}: has no '{KEY}' block, so it was not written by scratchlm. Name a file that `scratchlm fit` wrote."
        )
    if (version := ours.get("format_version")) != FORMAT_VERSION:
        raise BadValue(
            f"{path}: its format is version {version}, and this scratchlm reads version {FORMAT_VERSION}. "
            "Use the scratchlm that wrote it."
        )
    if missing := [name for name in _REQUIRED if ours.get(name) is None]:
        raise BrokenState(f"{path}: its '{KEY}' block lacks {', '.join(missing)}. Use another checkpoint.")
    known = {name: ours.pop(name, {}) for name in (*_REQUIRED, "configuration")}
    order = ours.pop("order", None)
    known["order"] = _order_of_older(content, known) if order is None else order
    for name, value in known.items():
        if type(value) is not (kind := _REQUIRED.get(name, dict)):
            raise BrokenState(
                f"{path}: its '{KEY}' block has a {type(value).__name__} as {name}, where a {kind.__name__} belongs. "
                "Use another checkpoint."
            )
    now, before = text_sha256(known["tokenizer_json"]), known["order"].get("tokenizer.json")
    if before is not None and now != before:
        raise BrokenState(
            f"{path}: the tokenizer in it (SHA-256 {now[:12]}) is not the one that it was trained with "
            f"({str(before)[:12]}). Use another checkpoint."
        )
    try:
        signature(GPT).bind(**known["gpt_settings"])
    except TypeError as error:
        raise BrokenState(
            f"{path}: its model.gpt settings are no network's ({error}). Use another checkpoint."
        ) from error
    del ours["format_version"]
    weights = {name: tensor for name, tensor in content["state_dict"].items() if str(name).startswith(_PREFIX)}
    if wrong := [name for name, tensor in weights.items() if not isinstance(tensor, Tensor)]:
        raise BrokenState(f"{path}: {wrong[0]} in its state_dict is no tensor. Use another checkpoint.")
    n_layers = known["gpt_settings"].get("n_layers")
    if isinstance(n_layers, int) and n_layers > len(weights):  # else it would be built, whatever its size
        raise BrokenState(f"{path}: holds {len(weights):,} weights, too few for its n_layers. Use another checkpoint.")
    copies = {name.removeprefix(_PREFIX): tensor.to(device, copy=True) for name, tensor in weights.items()}
    return Checkpoint(weights=copies, extra=ours, **known)


def load(path: str | Path, device: str | torch.device = "cpu", mmap: bool = False, is_verified: bool = False) -> Any:
    """All that a checkpoint holds, as tensors and plain values; code in it is never run.

    Args:
        path: The file.
        device: Where tensors go.
        mmap: Leave tensors in the file until they are used.
        is_verified: As in `read`.

    Raises:
        MissingFile: There is no such file.
        BadValue: It is a folder, holds code or names a class to be made, or is no checkpoint.
        BrokenState: It is cut short or damaged.
    """
    if not is_verified:
        verify(path)
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise BadValue(
            f"{path}: holds more than tensors and plain values, so it was not written by scratchlm; it is not opened, "
            "since that could run code. Name a file that `scratchlm fit` wrote."
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadValue(
            f"{path}: not a checkpoint ({_first_line(error)}). Name a file that `scratchlm fit` wrote."
        ) from error
    # Lightning's own loaders import what these name and call it.
    for key in _HYPER_PARAMETERS if isinstance(content, dict) else ():
        if key in content and names_class(content[key]):
            raise BadValue(
                f"{path}: names a class to be made, in {key}, which no checkpoint of scratchlm does; it is not opened, "
                "since that could run code. Name a file that `scratchlm fit` wrote."
            )
    return content


def names_class(value: Any) -> bool:
    """Whether a plain value has a key, at any depth, by which Lightning or its command line would import a class."""
    if isinstance(value, dict):
        return not _CLASS_KEYS.isdisjoint(value) or any(map(names_class, value.values()))
    return isinstance(value, list | tuple) and any(map(names_class, value))


def text_sha256(text: str) -> str:
    """SHA-256 of a text as a file of UTF-8 holds it."""
    return hashlib.sha256(text.encode()).hexdigest()


def order_of_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The order in the data module's part of a checkpoint; before it had that name, it lay there in pieces."""
    if isinstance(order := state.get("order"), dict):
        return order
    names = {key: key for key in ORDER_SETTINGS} | {"train_sha256": "train.bin"}
    return {name: state[key] for key, name in names.items() if key in state}


def require_same_order(now: Mapping[str, Any], before: Mapping[str, Any], folder: str, cure: str = "") -> None:
    """Refuses to go on where a step would see other sequences, or ids would mean other text.

    Args:
        now: As `Checkpoint.order`; keys that are not yet known may be missing.
        before: That of the checkpoint; a key that it lacks is taken to be the same.
        folder: The bins folder, `data.folder`.
        cure: What brings files back; by default how to make them again.

    Raises:
        BadValue: The first that differs, with both values.
    """
    cure = cure or f"Name the folder that holds that one, or make it again: {REMAKE}"
    for key in (*ORDER_SETTINGS, *ORDER_FILES):
        if key not in now or key not in before or now[key] == before[key]:
            continue
        if key in ORDER_FILES:
            what = "would mean other text" if key == "tokenizer.json" else "would be other text"
            raise BadValue(
                f"data.folder={folder}: its {key} (SHA-256 {now[key][:12]}) is not the one that the checkpoint was "
                f"trained with ({str(before[key])[:12]}), so ids {what}. {cure}"
            )
        raise BadValue(
            f"data.{key}={now[key]}: the checkpoint was trained with {before[key]}, so the run would not go on in the "
            "same order. Give that value, or start a run in another trainer.default_root_dir."
        )


def _order_of_older(content: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The order as far as a file tells that was written before it had a place in our block."""
    state, configured = content.get("PretrainingData"), known["configuration"]
    data = configured.get("data") if isinstance(configured, dict) else None
    order = {key: data[key] for key in ORDER_SETTINGS if key in data} if isinstance(data, dict) else {}
    order |= order_of_state(state) if isinstance(state, dict) else {}
    return order | {"tokenizer.json": text_sha256(str(known["tokenizer_json"]))}


def require_same_shape(asked: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint whose network is another one.

    Args:
        asked: Arguments of `GPT` for the run; those not yet known may be missing.
        made_with: Those of the checkpoint.

    Raises:
        BadValue: The first that differs, with both values. Dropout, the way attention is computed and whether
            activations are kept may differ.
    """
    for name, value in made_with.items():
        if name in asked and name not in _NO_SHAPE and asked[name] != value:
            raise BadValue(
                f"model.gpt.{name}={asked[name]}: the checkpoint was trained with {value}. "
                "Give that value, or start a new run in another trainer.default_root_dir."
            )


def _require_plain(value: Any, where: str) -> None:
    if type(value) is dict:
        for key, inner in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(inner, f"{where}.{key}")
    elif type(value) is list:
        for index, inner in enumerate(value):
            _require_plain(inner, f"{where}[{index}]")
    elif type(value) not in (str, int, float, bool, type(None)):  # isinstance would let numpy.float64 pass
        raise TypeError(f"{where} is a {type(value).__name__}, and a checkpoint holds plain values only")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":. ") if lines else type(error).__name__
