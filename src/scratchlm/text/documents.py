"""Documents out of hub streams, local files and the built-in sources, by one path from row to document."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from scratchlm.errors import BadValue, UserError
from scratchlm.text import builtin, hub, ids, local, wikitext
from scratchlm.text.hub_outages import ADDRESS
from scratchlm.text.parts import Part
from scratchlm.text.prefetch import prefetch
from scratchlm.text.tokenizer import Tokenizer

MAX_SOURCES = 255  # a source's number is one byte in the bins
_MAX_WEIGHT = 1e6  # beyond it a sum of weights or a share of bytes may overflow (chosen, not tuned)
_WAYS = ("auto", "row", "wikitext", "file", "line", "separator")
_BYTES_AN_ID = 4  # of text, about: English in a vocabulary of 16,000 to 50,000
_TEXT_FILE_WAYS = ("file", "line", "separator")


@dataclass(frozen=True)
class Source:
    """One line of `data.sources`, checked by `parse_sources`.

    Attributes:
        name: What the source is called in reports and metrics.
        uri: Where the text is: `builtin:NAME`, `hf://owner/name[/configuration][:split]`, or a path or glob.
        weight: Its part in the mixture, in tokens, relative to the other sources' weights.
        text_column: Column of the text in hub rows, JSON lines and parquet; None is `text`.
        documents: How rows become documents: `row`; `wikitext` (rows are lines of WikiText, joined to articles); for
            text files `file` (all of it is one), `line`, or `separator`; `auto` chooses.
        separator: Text between the documents of a text file.
        revision: Branch, tag or commit of a hub repository; None is its main branch.
    """

    name: str
    uri: str
    weight: float = 1.0
    text_column: str | None = None
    documents: str = "auto"
    separator: str | None = None
    revision: str | None = None

    @property
    def key(self) -> str:
        """What errors call it."""
        return f"data.sources.{self.name}"

    @property
    def column(self) -> str:
        """Column of the text."""
        return self.text_column or "text"

    @property
    def is_ids(self) -> bool:
        """Whether the text comes as ids already."""
        return self.uri.endswith(ids.KINDS) and not self.uri.startswith(("builtin:", "hf://"))

    @property
    def is_whole_files(self) -> bool:
        """Whether each document is all of a text file."""
        is_local = not self.uri.startswith(("builtin:", "hf://"))
        is_text = is_local and local.kind_of(self.uri) not in (".jsonl", ".parquet")
        return is_text and self.separator is None and self.documents in ("auto", "file")

    @property
    def is_wikitext(self) -> bool:
        """Whether rows are lines of WikiText, to be joined to articles."""
        if self.documents == "auto" and self.uri.startswith("hf://"):
            return hub.Split.at(self.key, self.uri, None, "").repository.lower().endswith("/wikitext")
        return self.documents == "wikitext"


def parse_sources(sources: dict[str, str | dict[str, Any]]) -> list[Source]:
    """Reads and checks `data.sources`, opening nothing.

    Args:
        sources: Name to address, or name to a mapping with the attributes of `Source`.

    Returns:
        The sources in the order given; a source's place in it is its number.

    Raises:
        BadValue: Something cannot work; one line for each fault of each source.
    """
    faults: list[str] = []
    if len(sources) > MAX_SOURCES:
        faults.append(f"data.sources: {len(sources)} sources, and at most {MAX_SOURCES} can be told apart. Join some.")
    if len({str(name) for name in sources}) < len(sources):
        faults.append(f"data.sources: two have the same name ({', '.join(map(repr, sources))}). Give each its own.")
    parsed = []
    for name, value in sources.items():
        settings = {"uri": value} if isinstance(value, str) else value
        found = list(_faults(settings))
        if not str(name):
            found.append("a source without a name. Give it one, such as web.")
        faults.extend(f"data.sources.{name}: {fault}" for fault in found)
        if not found:
            parsed.append(Source(name=str(name), **settings | {"weight": float(settings.get("weight", 1.0))}))
    if faults:
        raise BadValue("\n".join(faults))
    return parsed


def _faults(settings: Any) -> Iterator[str]:
    known = [field.name for field in fields(Source) if field.name != "name"]
    if not isinstance(settings, dict) or not isinstance(settings.get("uri"), str):
        yield f"{settings!r} names no text. Give an address, or a mapping with uri and any of: {', '.join(known[1:])}."
        return
    if unknown := [str(key) for key in settings if key not in known]:
        yield f"unknown key {unknown[0]!r}. The keys are: {', '.join(known)}."
    for key in ("text_column", "separator", "revision"):
        if not isinstance(value := settings.get(key), str | None) or value == "":
            yield f"{key}={value!r} is no text. Give some, or leave the key out."
    weight = settings.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        yield f"weight={weight!r} is no positive number. Give one, or leave the source out."
    elif weight > _MAX_WEIGHT:
        yield f"weight={weight!r} is too large; only its ratio to the others' counts. Give at most {_MAX_WEIGHT:,.0f}."
    yield from _address_faults(settings["uri"])
    yield from _way_faults(settings)


def _address_faults(uri: str) -> Iterator[str]:
    if uri.startswith("builtin:"):
        if uri.removeprefix("builtin:") not in builtin.LICENCES:
            yield f"no source {uri!r}. There are: {', '.join(f'builtin:{name}' for name in builtin.LICENCES)}."
    elif uri.startswith("hf:"):
        if not hub.is_address(uri):
            yield f"{uri!r} is no hub address. Write {ADDRESS}."
    elif "://" in uri:
        yield f"{uri!r} cannot be opened. Use builtin:NAME, {ADDRESS}, or a local file."
    elif not (local.is_pattern(uri) or local.kind_of(uri) or uri.endswith(("/", *ids.KINDS))):
        yield f"{uri!r} cannot be read as text. Name a file that ends in {local.ALLOWED}, or ids in .bin or .npy."


def _way_faults(settings: dict[str, Any]) -> Iterator[str]:
    uri, way, separator = settings["uri"], settings.get("documents", "auto"), settings.get("separator")
    is_text_file = "://" not in uri and not uri.startswith("builtin:") and local.kind_of(uri) in (".txt", None)
    if uri.endswith(ids.KINDS) and not uri.startswith("hf:"):
        for key in ("documents", "separator", "text_column"):
            if settings.get(key) is not None:
                yield f"{key}={settings[key]!r} is for text, and {uri} holds ids. Leave it out."
        return
    if way not in _WAYS:
        yield f"documents={way!r} is no way to make documents. The ways are: {', '.join(_WAYS)}."
        return
    if (way in _TEXT_FILE_WAYS or separator is not None) and not is_text_file:
        yield f"documents={way!r}, separator={separator!r} are for .txt files. Leave them out: a row is a document."
    if way == "row" and local.kind_of(uri) == ".txt":
        yield "documents='row' is not for .txt files. Use file, line or separator."
    if way == "separator" and separator is None:
        yield "documents='separator' needs a separator. Set it, for instance separator: \"\\n\\n\\n\"."
    if separator is not None and way not in ("auto", "separator"):
        yield f"separator={separator!r} is not used by documents={way!r}. Leave one of them out."
    if settings.get("revision") is not None and not uri.startswith("hf:"):
        yield f"revision={settings['revision']!r} is for hub repositories. Leave it out."
    if settings.get("text_column") is not None and (uri.startswith("builtin:") or local.kind_of(uri) == ".txt"):
        yield f"text_column={settings['text_column']!r} is for rows with columns. Leave it out."


def parts(source: Source, access: hub.Access, tokenizer: Tokenizer | None = None) -> list[Part]:
    """What the source is read in, in its own order.

    Args:
        source: The source. Pin its `revision` (`describe` gives the commit) where every reading must see the same text.
        access: How the hub may be reached.
        tokenizer: The one that made the ids, where the source has ids.

    Raises:
        UserError: The source cannot be opened.
    """
    if source.uri.startswith("builtin:"):
        return [builtin.Part(source.uri.removeprefix("builtin:"))]
    found: list[Part]
    if source.is_ids:
        assert tokenizer
        at = (tokenizer.end_of_text_id, tokenizer.vocab_size)
        return [ids.IdFile(source.key, path, label, *at) for path, label in files_of(source)]
    if source.uri.startswith("hf://"):
        found = [*_split(source, access).parts()]
    else:
        by_line = source.documents in ("line", "wikitext")
        found = local.parts(source.key, source.uri, source.column, source.separator, by_line)
    return [wikitext.Articles(found)] if source.is_wikitext else found


def bring(sources: list[Source], access: hub.Access, folder: str) -> None:
    """Brings the files of those sources that are on the hub; see `text.prefetch`.

    Raises:
        UserError: As `prefetch`, or no source is on the hub.
    """
    splits = [_split(source, access) for source in sources if source.uri.startswith("hf://")]
    if not splits:
        raise BadValue("data.sources: none of them is on the hub, so there is nothing to bring. Run scratchlm prepare.")
    prefetch(splits, folder)


def text_bytes(source: Source, access: hub.Access) -> int | None:
    """About how many bytes of text a source holds, from a look at its files; None where that does not tell."""
    if source.uri.startswith("builtin:"):
        return builtin.ABOUT_BYTES[source.uri.removeprefix("builtin:")]
    if source.uri.startswith("hf://"):
        return _split(source, access).estimate_bytes()
    if source.is_ids:
        return sum(_BYTES_AN_ID * len(ids.open_ids(source.key, path)) for path, _ in files_of(source))
    return local.text_bytes(source.key, source.uri, source.column)


def files_of(source: Source) -> list[tuple[str, str]]:
    """Path and label of each local file of a source; see `local.find_files`."""
    return local.find_files(source.key, source.uri, ids.KINDS if source.is_ids else local.KINDS)


def _split(source: Source, access: hub.Access) -> hub.Split:
    return hub.Split.at(source.key, source.uri, source.revision, source.column, access)


def describe(source: Source, access: hub.Access) -> dict[str, str | None]:
    """Opens a source as far as needed to know that it can be read, and says what it is.

    Returns:
        `uri`; `revision`, the commit that a hub repository stands at now; `licence` where it is known.

    Raises:
        UserError: A file, repository, configuration, split or column is not there, or the hub cannot be reached.
    """
    if source.uri.startswith("builtin:"):
        licence = builtin.LICENCES[source.uri.removeprefix("builtin:")]
        return {"uri": source.uri, "revision": None, "licence": licence}
    if source.uri.startswith("hf://"):
        return {"uri": source.uri, **_split(source, access).describe()}
    for path, _ in files_of(source):
        if source.is_ids:
            ids.open_ids(source.key, path)
        else:
            local.check_file(source.key, path, source.column)
    return {"uri": source.uri, "revision": None, "licence": None}


def describe_all(sources: list[Source], access: hub.Access) -> list[dict[str, str | None]]:
    """`describe` for every source; all that cannot be opened are reported at once.

    Raises:
        UserError: One line for each source that cannot be opened.
    """
    facts, faults = [], []
    for source in sources:
        try:
            facts.append(describe(source, access))
        except UserError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise UserError("\n".join(map(str, faults)))
    return facts
