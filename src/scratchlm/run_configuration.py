"""What a command line means over the configuration of the run or checkpoint it names, and what it changes of that."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scratchlm.cli import config_files, read_yaml, write_yaml
from scratchlm.errors import BadValue
from scratchlm.model import checkpoint as checkpoint_file
from scratchlm.training.loggers import say

_SECTIONS = ("data", "model", "trainer", "checkpoint")
_RUN_FOLDER = "trainer.default_root_dir"


def with_configuration_of_checkpoint(argv: list[str], stack: ExitStack) -> list[str]:
    """Lays a configuration under the command line: the checkpoint's where a file is named, the run's for last and best.

    Where fit has a YAML of its own, the configuration of a file it starts from is left out: that run may be another.
    Where the one in a file names code to run, YAMLs take its place.
    """
    path = _flag(argv, "--ckpt_path")
    if path in (None, "null") or (path not in ("last", "best") and argv[0] == "fit" and config_files(argv)):
        return argv
    if path in ("last", "best"):
        of_the_run = run_folder_of(argv) / "config.yaml"
        if not of_the_run.exists():
            return argv
        read_yaml(of_the_run)  # the parser's own complaints do not name the file
        return [argv[0], "--config", str(of_the_run), *argv[1:]]
    configuration = checkpoint_file.read(path).configuration
    if not configuration:
        raise BadValue(f"--ckpt_path={path}: holds no configuration. Name the run's YAML with -c.")
    try:
        configuration = without_classes(configuration, path, argv)
    except BadValue as error:
        if not config_files(argv):
            raise
        say(f"scratchlm: {error} The -c files alone count.")
        return argv
    laid_under = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scratchlm-")), "configuration.yaml")
    write_yaml(laid_under, configuration)
    return [argv[0], "--config", str(laid_under), *argv[1:]]


def run_folder_of(argv: list[str]) -> Path:
    """The run folder that a command line means: as a flag says, else a YAML, else named after the first YAML."""
    folder = _flag(argv, "--trainer.default_root_dir")
    for path in reversed(config_files(argv)):
        folder = folder or (read_yaml(path).get("trainer") or {}).get("default_root_dir")
    return Path(folder) if folder else Path("runs", *([Path(path).stem for path in config_files(argv)][:1] or ["run"]))


def _flag(argv: list[str], name: str) -> str | None:
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return None


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
