"""The one command: which verb runs what, and the face of every error. A verb imports the libraries it needs itself."""

import ast
import difflib
import importlib
import importlib.util
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli, get_loader

from scratchlm import __version__
from scratchlm.errors import BadValue, MissingFile, UserError
from scratchlm.files.whole import temporary_folder
from scratchlm.process import have_a_name, require_compiler_cache, wait_briefly

VERBS = {
    "prepare": "text -> tokenizer -> bins, as the data: part of a YAML says",
    "prefetch": "bring the hub's files that prepare will read, so that it can do without a network",
    "fit": "train; prepares too, where the bins are missing",
    "validate": "score a checkpoint on val.bin",
    "test": "score a checkpoint on test.bin",
    "predict": "complete a file of prompts, to JSONL",
    "generate": "text out of a checkpoint; nothing else is needed",
    "report": "a run folder -> one HTML page: curves, samples, corpus, and what happened to the run",
    "corpus": "check that bins are as they were written; show what stands in them",
    "trace": "which documents were in the batch of a step",
}
CORPUS_VERBS = {
    "check": "read bins from end to end; exit status 1 where one bit is not as it was written",
    "show": "the card, or a document, or what stands at a position",
}
_FUNCTIONS = {
    "generate": "scratchlm.inference.completion:generate",
    "report": "scratchlm.training.report:report",
    "corpus check": "scratchlm.data.inspection:check",
    "corpus show": "scratchlm.data.inspection:show",
    "trace": "scratchlm.data.tracing:trace",
}
_SHOWN_CHARACTERS = 100  # of a value that cannot be read; more of it hides what is said (chosen, not tuned)
_WORDS_FOR_TYPES = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
    "list": "list",
    "dict": "mapping",
    "NoneType": "null",
}
_HELP = ("-h", "--help", "help")
_TRAINER_VERBS = ("fit", "validate", "test", "predict")


def main() -> None:
    """Runs the verb on the command line; exits with 0 when done, 2 after a user's mistake, 1 after ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show must not end a run
    wait_briefly()
    try:
        _run(sys.argv[1:])
    except (UserError, PermissionError) as error:
        report(error)
        sys.exit(2)
    except BrokenPipeError:  # whoever read our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("scratchlm: interrupted", file=sys.stderr)
        sys.exit(130)


def report(error: BaseException) -> None:
    """Says on stderr what went wrong: a user's mistake in one line, ours with its traceback."""
    if isinstance(error, UserError):
        print(f"scratchlm: error: {one_line(str(error))}", file=sys.stderr, flush=True)
    elif isinstance(error, PermissionError):
        print(
            f"scratchlm: error: {error.filename}: may not be read or written (permission denied). Change its "
            "permissions, or name another.",
            file=sys.stderr,
            flush=True,
        )
    else:
        traceback.print_exception(error)


def _run(argv: list[str]) -> None:
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in _HELP:
        _list_verbs("scratchlm", VERBS)
    elif verb == "--version":
        print(f"scratchlm {__version__}")
    elif verb == "prepare":
        _prepare(rest)
    elif verb == "prefetch":
        _prefetch(rest)
    elif verb in _TRAINER_VERBS:
        have_a_name()
        require_compiler_cache()
        importlib.import_module("scratchlm.run").run(argv)
    elif verb == "corpus":
        what, rest = (rest[0], rest[1:]) if rest else ("--help", [])
        if what in _HELP:
            _list_verbs("scratchlm corpus", CORPUS_VERBS)
        else:
            _call(f"corpus {_known(what, CORPUS_VERBS)}", rest)
    else:
        _call(_known(verb, VERBS), rest)


def _list_verbs(command: str, verbs: dict[str, str]) -> None:
    print(f"usage: {command} VERB [options]\n")
    print("\n".join(f"  {name:<10}{meaning}" for name, meaning in verbs.items()))
    version = "; scratchlm --version" if verbs is VERBS else ""
    print(f"\n  {command} VERB --help lists a verb's options{version}.")


def _known(verb: str, verbs: dict[str, str]) -> str:
    if verb in verbs:
        return verb
    near = difflib.get_close_matches(verb, verbs, n=1)
    raise BadValue(
        f"{verb}: no such verb. " + (f"Did you mean {near[0]}?" if near else f"The verbs: {', '.join(verbs)}.")
    )


def _call(verb: str, argv: list[str]) -> None:
    function = _load(_FUNCTIONS[verb])
    auto_cli(function, args=argv, as_positional=False, parser_class=OneLineParser, prog=f"scratchlm {verb}")


def _load(target: str) -> Callable[..., Any]:
    module, name = target.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _prepare(argv: list[str]) -> None:
    from scratchlm.data.card import card_table
    from scratchlm.data.preparation import Corpus

    parser = _corpus_parser("prepare")
    parser.add_argument(
        "--fresh", type=bool, default=False, help="Prepare anew although data.folder holds finished bins."
    )
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="Where text is read, cleaned and encoded: on this machine, or on the Ray cluster that RAY_ADDRESS names "
        "(none: one is started here). The bins are the same.",
    )
    given = _parsed(parser, argv)
    print(card_table(Corpus(**given.data.as_dict()).prepare(fresh=given.fresh, executor=given.executor)))


def _prefetch(argv: list[str]) -> None:
    from scratchlm.data.preparation import Corpus

    parser = _corpus_parser("prefetch")
    parser.add_argument(
        "--folder", type=str | None, default=None, help="Where to; None is data.hub_folder, which prepare then reads."
    )
    given = _parsed(parser, argv)
    Corpus(**given.data.as_dict()).prefetch(given.folder)


def _corpus_parser(verb: str) -> "OneLineParser":
    from scratchlm.data.preparation import Corpus

    parser = OneLineParser(prog=f"scratchlm {verb}", description=VERBS[verb])
    parser.add_argument(
        "-c", "--config", action="config", help="YAML of a run; only its data: part is read. Later files win."
    )
    parser.add_class_arguments(Corpus, "data")
    return parser


def _parsed(parser: "OneLineParser", argv: list[str]) -> Any:
    from scratchlm.data.preparation import Corpus

    corpus_keys = set(inspect.signature(Corpus).parameters)

    def corpus_part(path: str) -> dict[str, Any]:
        data = read_yaml(path).get("data", {})
        for key in data.keys() - corpus_keys - _keys_of_training_data():
            near = difflib.get_close_matches(str(key), corpus_keys, n=1)
            raise BadValue(
                f"--config={path}: no key data.{key}. " + (f"Did you mean data.{near[0]}?" if near else "Drop it.")
            )
        return {"data": {key: value for key, value in data.items() if key in corpus_keys}}

    with rewritten_configs(argv, corpus_part) as rewritten:
        return parser.parse_args(rewritten)


def _keys_of_training_data() -> set[str]:
    """The keys of data: that only training reads, off the source of their class: importing it would bring torch."""
    spec = importlib.util.find_spec("scratchlm.data.pretraining")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    data = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PretrainingData")
    init = next(node for node in data.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return {argument.arg for argument in init.args.args} - {"self"}


def config_files(argv: list[str]) -> list[str]:
    """The YAML files that a command line names with `-c` or `--config`, in order."""
    return [argv[i].removeprefix(flag) for i, flag in _config_positions(argv)]


@contextmanager
def rewritten_configs(argv: list[str], rewrite: Callable[[str], dict[str, Any]]) -> Iterator[list[str]]:
    """A command line whose YAML files are replaced by what `rewrite` makes of each, for as long as the block lasts.

    Args:
        argv: Arguments after the verb.
        rewrite: Path of a YAML file -> the mapping to parse in its place.
    """
    rewritten = list(argv)
    with temporary_folder() as folder:
        for number, (i, flag) in enumerate(_config_positions(argv)):
            path = folder / f"{number}.yaml"
            write_yaml(path, rewrite(argv[i].removeprefix(flag)))
            rewritten[i] = f"{flag}{path}"
        yield rewritten


def _config_positions(argv: list[str]) -> list[tuple[int, str]]:
    """Where each configuration's path stands in a command line, and the flag glued to its front."""
    found = []
    for i, word in enumerate(argv):
        if word in ("-c", "--config") and i + 1 < len(argv):
            found.append((i + 1, ""))
        elif word.startswith("--config="):
            found.append((i, "--config="))
        elif word.startswith("-c") and len(word) > 2:
            found.append((i, "-c=" if word.startswith("-c=") else "-c"))
    return found


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A configuration file as a dict, read as jsonargparse reads it.

    Raises:
        MissingFile: There is no such file.
        BadValue: It is not YAML, or not a mapping.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        value = get_loader("yaml")(text)
        _refuse_keys_given_twice(path, yaml.compose(text, Loader=yaml.SafeLoader))
    except OSError as error:
        raise MissingFile(
            f"--config={path}: {error.strerror}. Name a YAML file; the project's own are in configs/."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadValue(f"--config={path}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise BadValue(f"--config={path}: holds no mapping. Write keys such as data:, model: and trainer:.")
    for part in ("data", "model", "trainer", "checkpoint"):
        if part in value and not isinstance(value[part], dict):
            raise BadValue(
                f"--config={path}: {part}: is {value[part]!r} and must hold keys. Write some, or leave it out."
            )
    return value


def _refuse_keys_given_twice(path: str | Path, node: Any) -> None:
    """YAML's loader keeps the last of two equal keys and says nothing."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise BadValue(f"--config={path}: the key {key} is given twice in one place. Keep one of them.")
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                _refuse_keys_given_twice(path, part)


def write_yaml(path: str | Path, value: dict[str, Any]) -> None:
    """Writes a configuration so that `read_yaml` gives it back."""
    import yaml

    Path(path).write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")


def one_line(message: str) -> str:
    """A message with its line breaks and runs of blanks folded."""
    return " ".join(message.split())


class OneLineErrors:
    """Mixin for parsers: a mistake is answered by one line that names the nearest key, not by the usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False  # half a key is a mistake, not a key

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the line and exits with status 2."""
        print(f"scratchlm: error: {one_line(_plain(message))}{self._suggestion(message)}", file=sys.stderr)
        sys.exit(2)

    def _suggestion(self, message: str) -> str:
        asked = re.search(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", message)
        if asked is None:
            return ""
        known = [option.removeprefix("--") for option in _options(self)]
        near = difflib.get_close_matches(asked[1] or asked[2], known, n=1, cutoff=0.5)
        return f". Did you mean {near[0]}?" if near else ". --help lists the keys."


def _options(parser: Any) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):  # subcommands
            for child in action.choices.values():
                yield from _options(child)


def _plain(message: str) -> str:
    """jsonargparse's reports as key, value, why and cure."""
    if required := re.search(r"arguments are required: (?:(?:fit|validate|test|predict)\.)?(\S+)", message):
        key = required[1]
        cure = ", or a YAML that holds it: -c configs/quickstart.yaml" if "." in key else ""
        return f"{key}: needed, and not given. Give --{key}{cure}."
    if wrong := re.search(
        r'Parser key "([^"]+)":\s*Expected an? <class \'(\w+)\'>\.\s+Got value:\s+(.*)', message, re.DOTALL
    ):
        return f"{wrong[1]}={wrong[3].strip()}: is no {wrong[2]}. Give one."
    union = re.search(
        r'Parser key "(?P<key>[^"]+)":.*?union subtypes.*?Subtypes: [\[(](?P<types>.*?)[\])]\s'
        r".*?Given value: (?P<value>.*)",
        message,
        re.DOTALL | re.IGNORECASE,
    )
    if union is None:
        return message
    value = one_line(re.split(r"Given value: | - Expected ", union["value"])[-1])  # the whole of a nested one
    shown = value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}..."
    return f"{union['key']}={shown}: is no {_in_words(union['types'])}.{_example(union['key'], union['types'], value)}"


def _in_words(types: str) -> str:
    """Types as jsonargparse prints them, in plain words."""
    found = []
    for begins, words in _WORDS_FOR_TYPES.items():
        if re.search(rf"(?:^|, |'){begins}", types):
            found.append(words)
    if literal := re.search(r"Literal\[([^\]]*)\]", types):
        found += [word.strip(" '\"") for word in literal[1].split(",")]
    return " or ".join(found) or types


def _example(key: str, types: str, value: str) -> str:
    with suppress(ValueError, OverflowError):
        if "int" in types and float(value) == int(float(value)):
            return f" Write {int(float(value))}."
    if key.endswith("cleaning"):
        return " A list is written as YAML: '[unicode, whitespace, {length: {min_characters: 200}}]'."
    if "dict" in types:
        return " A mapping is written as YAML, with a blank after the colon: '{text: input.txt}'."
    if "list" in types:
        return ' A list is written as YAML: \'["one", "two"]\'.'
    return ""


class OneLineParser(OneLineErrors, ArgumentParser):
    """A parser whose errors are one line."""
