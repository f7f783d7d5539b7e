"""Text that every machine with this package has, so that a first run needs no network and no file.

What is installed differs between machines, and so do `python-docs` and `package-readmes`; on one machine they come in
the same order each time. Nothing is imported to read its docstrings: the files are parsed, once in a process.
"""

import ast
import functools
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from scratchlm.text.parts import Chunk, Row, State
from scratchlm.text.tales import tales

LICENCES: dict[str, str] = {
    "python-docs": "PSF-2.0",
    "package-readmes": "those of the installed packages",
    "tiny-tales": "Apache-2.0",
}
# Counted with Python 3.11 and this package's own dependencies; the first two differ between machines.
ABOUT_BYTES: dict[str, int] = {"python-docs": 2_500_000, "package-readmes": 5_000_000, "tiny-tales": 11_300_000}

_CHUNK_DOCUMENTS = 1_000  # chosen, not tuned
_DOCUMENT_CHARACTERS = 8_000  # a module's docstrings are cut into documents of about this size (chosen, not tuned)
_LARGEST_FILE_BYTES = 400_000  # Python files above this are tables or generated code
# Of a package's Python files, in the order of their names, the first so many bytes are read: 4 MB/s are parsed, and one
# large package is not to outweigh the rest.
_PACKAGE_BYTES = 600_000
_NOT_DOCUMENTATION = {
    "test",
    "tests",
    "idle_test",
    "testing",
    "site-packages",
    "lib2to3",
    "pydoc_data",
    "_vendor",
    "vendor",
}
_FOREIGN_FRACTION = 0.1  # text with a larger part outside ASCII is most likely not English

_UNDERLINES = re.compile(r"^[ \t]*([=\-~^\"'#*+`.:_])\1{3,}[ \t]*\n", re.M)
_ROLE = re.compile(r":[a-z][a-z:+-]*:`~?([^`<]+?)(?: ?<[^`]*>)?`")
_LITERAL = re.compile(r"``([^`\n]+)``")
_MARKDOWN_LINK = re.compile(r"(?<!!)\[([^\[\]\n]+)\]\((?:https?:|mailto:|[#./])[^()\s]*(?: \"[^\"]*\")?\)")
_REST_LINK = re.compile(r"`([^`<\n]+?) ?<[^>`\n]+>`__?")
# Badges, images, comments, HTML blocks and link targets: nothing that reads as text.
_NOISE_LINE = re.compile(
    r"^[ \t]*(?:\[?!\[|\[!|\[[^\]\n]+\]: ?\S|https?://\S+[ \t]*$"
    r"|\.\. (?:image|figure|raw|\||_|contents|toctree|highlight)|:(?:target|alt|width|height|align)"
    r"|<!--|</?(?:p|a|img|div|br|h\d|picture|source|table|tr|td|details|summary|center|b|sup)\b).*\n?",
    re.M | re.I,
)


class Part(NamedTuple):
    """All of a built-in source.

    Attributes:
        label: Its name.
    """

    label: str

    def read(self, state: State | None = None) -> Iterator[Chunk]:
        """The state is the number of documents read."""
        n = state or 0
        rest = islice(documents(self.label), n, None)
        while rows := list(islice(rest, _CHUNK_DOCUMENTS)):
            n += len(rows)
            yield Chunk(rows, n)


def documents(name: str) -> Iterator[Row]:
    """The documents of a built-in source, in the same order each time.

    Args:
        name: `python-docs` (the language reference and the standard library's docstrings), `package-readmes` (READMEs
            and docstrings of installed packages) or `tiny-tales` (stories made for this package).

    Yields:
        (text, id).
    """
    if name == "tiny-tales":
        return tales()
    assert name in ("python-docs", "package-readmes"), name
    return iter(_python_docs() if name == "python-docs" else _package_readmes())


def made_of(name: str) -> list[str]:
    """What a built-in source is made of, beside this package; the text is the same as long as this is."""
    installed = [f"{package.name} {package.version}" for package in metadata.distributions()]
    return {"python-docs": [sys.version], "package-readmes": [sys.version, *sorted(installed)]}.get(name, [])


@functools.cache
def _python_docs() -> tuple[Row, ...]:
    from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]

    found = [(readable(topic), name) for name, topic in sorted(topics.items())]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        found.extend(_docstrings(root, path))
    return tuple(found)


@functools.cache
def _package_readmes() -> tuple[Row, ...]:
    found = []
    packages = {package.name.lower(): package for package in metadata.distributions() if package.name}
    for name, package in sorted(packages.items()):
        readme = package.metadata.get_payload()  # type: ignore[attr-defined]
        if isinstance(readme, str) and len(readme) > 200 and _is_english(readme):
            found.append((f"{package.name}\n\n{readable(readme)}", f"{name}/README"))
        n_bytes = 0
        for file in sorted(package.files or [], key=str):
            path = Path(str(package.locate_file(file)))
            if file.suffix == ".py" and ".." not in file.parts and path.is_file():
                n_bytes += path.stat().st_size
                if n_bytes > _PACKAGE_BYTES:
                    break
                found.extend(_docstrings(Path(str(package.locate_file(""))), path))
    return tuple(found)


def _docstrings(root: Path, path: Path) -> Iterator[Row]:
    """The docstrings of one Python file, each under its signature, in documents of a handy size."""
    parts = path.relative_to(root).with_suffix("").parts
    if _NOT_DOCUMENTATION.intersection(parts) or path.stat().st_size > _LARGEST_FILE_BYTES:
        return
    data = path.read_bytes()
    if b'"""' not in data and b"'''" not in data:
        return
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # a template, or written for another Python
    module = ".".join(parts).removesuffix(".__init__")
    pieces: list[str] = []
    n_characters = number = 0
    for piece in _entries(tree, module):
        if n_characters + len(piece) > _DOCUMENT_CHARACTERS and pieces:
            number += 1
            yield "\n\n".join(pieces), f"{module}#{number}"
            pieces, n_characters = [f"{module}, continued"], 0
        pieces.append(piece)
        n_characters += len(piece)
    if n_characters:
        yield "\n\n".join(pieces), f"{module}#{number + 1}"


def _entries(tree: ast.Module, module: str) -> Iterator[str]:
    if (text := ast.get_docstring(tree)) and _is_english(text):
        yield f"{module}\n\n{readable(text)}"
    waiting: list[tuple[str, ast.AST]] = [("", node) for node in reversed(tree.body)]
    while waiting:
        prefix, node = waiting.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{node.name}"
            if (text := ast.get_docstring(node)) and _is_english(text):
                head = f"class {name}" if isinstance(node, ast.ClassDef) else f"{name}({ast.unparse(node.args)})"
                yield f"{head}\n\n{readable(text)}"
            if isinstance(node, ast.ClassDef):
                waiting.extend((f"{name}.", child) for child in reversed(node.body))


def _is_english(text: str) -> bool:
    return text.isascii() or sum(character > "\x7f" for character in text) < _FOREIGN_FRACTION * len(text)


def readable(text: str) -> str:
    """Documentation with the marks of reST and Markdown taken out where they only hinder reading."""
    if "`" in text:
        text = _LITERAL.sub(r"\1", _REST_LINK.sub(r"\1", _ROLE.sub(r"\1", text)))
    text = _NOISE_LINE.sub("", _UNDERLINES.sub("", text))
    return _MARKDOWN_LINK.sub(r"\1", text) if "](" in text else text
