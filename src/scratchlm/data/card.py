"""The corpus card: what is in the bins, source by source, in plain values; its table; its warnings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scratchlm.data.bins import Bin
from scratchlm.text.documents import Source
from scratchlm.text.tokenizer import Tokenizer

_SHOWN_TOKENS = 12  # at either end of a source, to see with one's own eyes that text came through
_MEMORISED_WINDOWS = 100  # a corpus of fewer is seen again within the first hundred sequences (chosen, not tuned)
_MEMORISED_CHARACTERS = 100_000
_MIXED_STYLE_CHARACTERS = 200_000
_SHARE = 0.05  # of the tokens, that a source may be off before it is told (chosen, not tuned)
_FEW_DOCUMENTS_SHARE = 0.1  # above twice what was asked (chosen, not tuned)


@dataclass
class Tally:
    """What was written of one source."""

    documents: Counter[str] = field(default_factory=Counter)  # by split, each once
    tokens: Counter[str] = field(default_factory=Counter)  # by split, repetitions included
    first_pass_tokens: int = 0  # of train.bin
    once_tokens: int = 0  # of all splits, repetitions and ends of text left out
    passes: int = 1
    n_bytes: int = 0  # of text, each document once
    n_characters: int = 0
    n_words: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # documents, by reason
    cleaning: list[dict[str, Any]] = field(default_factory=list)  # what each step did, as its report says

    def add(self, split: str, n_tokens: int, pass_number: int) -> None:
        """Books a document of `split`."""
        self.tokens[split] += n_tokens
        if pass_number:
            self.passes = max(self.passes, pass_number + 1)
            return
        self.documents[split] += 1
        self.once_tokens += n_tokens - 1
        if split == "train":
            self.first_pass_tokens += n_tokens

    def add_text(self, n_bytes: int, n_characters: int, n_words: int) -> None:
        """Books the text of a document."""
        self.n_bytes += n_bytes
        self.n_characters += n_characters
        self.n_words += n_words

    def to_json(self) -> dict[str, Any]:
        """Plain values from which `from_json` makes the tally again."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Tally":
        """The tally that `to_json` gave."""
        return cls(**values | {name: Counter(values[name]) for name in ("documents", "tokens")})


def card_of(
    folder: Path,
    sources: Sequence[Source],
    facts: Sequence[dict[str, Any]],
    tallies: Sequence[Tally],
    tokenizer: Tokenizer,
    total_tokens: int | None,
    val_fraction: float,
) -> dict[str, Any]:
    """Draws up the card; first and last tokens are read back from train.bin.

    Args:
        folder: Holds the finished bins.
        sources: In the order of their numbers.
        facts: `text.documents.describe` of each.
        tallies: What was written of each.
        tokenizer: Spells the tokens.
        total_tokens: Tokens of train.bin that were asked for, None for all there are.
        val_fraction: Part that was asked for validation.

    Returns:
        Plain values: `sources` (a list; of each: name, uri, revision, licence, documents and tokens by split, bytes,
        characters, words, tokens a word, asked and achieved share, repetitions, passes, what was dropped, what each
        step of cleaning did, first and last tokens), `tokens` by split, `characters`, `asked_tokens`, `val_fraction`.
    """
    weight = sum(source.weight for source in sources)
    tokens = sum((tally.tokens for tally in tallies), Counter[str]())
    entries = []
    for number, (source, fact, tally) in enumerate(zip(sources, facts, tallies, strict=True)):
        first, last = _ends(folder, number, tokenizer)
        entries.append(
            {
                "name": source.name,
                **fact,
                "documents": dict(tally.documents),
                "bytes": tally.n_bytes,
                "characters": tally.n_characters,
                "words": tally.n_words,
                "tokens": dict(tally.tokens),
                "tokens_a_word": round(tally.once_tokens / max(1, tally.n_words), 3),
                "asked_share": source.weight / weight,
                "achieved_share": tally.tokens["train"] / max(1, tokens["train"]),
                "repetitions": tally.tokens["train"] / max(1, tally.first_pass_tokens),
                "passes": tally.passes,
                "dropped": tally.dropped,
                "cleaning": tally.cleaning,
                "first_tokens": first,
                "last_tokens": last,
            }
        )
    characters = sum(tally.n_characters for tally in tallies)
    return {
        "sources": entries,
        "tokens": dict(tokens),
        "characters": characters,
        "asked_tokens": total_tokens,
        "val_fraction": val_fraction,
    }


def _ends(folder: Path, number: int, tokenizer: Tokenizer) -> tuple[str, str]:
    """The first tokens of a source's first document in train.bin, and the last of its last, decoded."""
    train = Bin(folder, "train")
    mine = (train.documents["source"] == number).nonzero()[0]
    if not len(mine):
        return "", ""
    starts = [*train.documents["start"][[mine[0], mine[-1]]].tolist()]
    ends = [
        int(train.documents["start"][i + 1]) if i + 1 < len(train.documents) else train.n_tokens for i in mine[[0, -1]]
    ]
    first = train.tokens[starts[0] : min(ends[0] - 1, starts[0] + _SHOWN_TOKENS)]
    last = train.tokens[max(starts[1], ends[1] - 1 - _SHOWN_TOKENS) : ends[1] - 1]
    return tokenizer.decode(first.tolist()), tokenizer.decode(last.tolist())


def card_table(manifest: dict[str, Any]) -> str:
    """The card as a table for a terminal.

    Args:
        manifest: Of a bins folder.

    Returns:
        Lines without an end of line behind the last.
    """
    card = manifest["card"]
    head = (
        "source",
        "documents",
        "text",
        "tokens/word",
        "train tokens",
        "val",
        "test",
        "asked",
        "achieved",
        "repeated",
    )
    rows = [head, *map(_row, card["sources"])]
    documents = sum(sum(entry["documents"].values()) for entry in card["sources"])
    n_bytes = sum(entry["bytes"] for entry in card["sources"])
    train, val, test = (f"{card['tokens'].get(split, 0):,}" for split in ("train", "val", "test"))
    rows.append(("all", f"{documents:,}", _megabytes(n_bytes), "", train, val, test, "", "", ""))
    if not card["tokens"].get("test"):
        rows = [row[:6] + row[7:] for row in rows]
    lines = [_aligned(row, [max(map(len, column)) for column in zip(*rows, strict=True)]) for row in rows]
    for entry in card["sources"]:
        lines += ["", *_provenance(entry)]
    lines += ["", f"{manifest['vocab_size']:,} ids in the vocabulary, {card['characters']:,} characters of text"]
    return "\n".join(lines)


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    counts = entry["tokens"]
    train, val, test = (f"{counts.get(split, 0):,}" for split in ("train", "val", "test"))
    return (
        entry["name"],
        f"{sum(entry['documents'].values()):,}",
        _megabytes(entry["bytes"]),
        f"{entry['tokens_a_word']:.2f}" if entry["words"] else "",
        train,
        val,
        test,
        f"{entry['asked_share']:.1%}",
        f"{entry['achieved_share']:.1%}",
        f"{entry['repetitions']:.2f} x" if entry["passes"] > 1 else "once",
    )


def _provenance(entry: dict[str, Any]) -> list[str]:
    """Where a source came from, what of it went, and how it begins and ends."""
    revision = f" at {entry['revision']}" if entry["revision"] else ""
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in entry["dropped"].items()) or "none"
    return [
        f"{entry['name']}: {entry['uri']}{revision}; licence: {entry['licence'] or 'not known'}; dropped: {dropped}",
        f"  {entry['first_tokens']!r} ... {entry['last_tokens']!r}",
        *(
            f"  {step['step']} dropped {example['id']}: {example['reason']}: {example['text']!r}"
            for step in entry["cleaning"]
            for example in step["examples"]
        ),
    ]


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *numbers = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(word.rjust(width) for word, width in numbers)])


def warnings_for(manifest: dict[str, Any], context_length: int) -> list[str]:
    """What a reader should know before spending hours on these bins.

    Args:
        manifest: Of a bins folder.
        context_length: Inputs of one window, in tokens.

    Returns:
        One line each; none where all is well.
    """
    card = manifest["card"]
    tokens, characters = card["tokens"].get("train", 0), card["characters"]
    found = []
    if tokens < _MEMORISED_WINDOWS * context_length or characters < _MEMORISED_CHARACTERS:
        found.append(
            f"data.sources: {tokens:,} tokens to train on, out of {characters:,} characters, is little text for "
            f"data.context_length={context_length}: the model will memorise it and repeat it. "
            "Give it 1,000,000 characters or more."
        )
    for entry in card["sources"]:
        share = entry["tokens"].get("val", 0) / max(1, sum(entry["tokens"].values()))
        if share > 2 * card["val_fraction"] + _FEW_DOCUMENTS_SHARE:
            found.append(
                f"data.val_fraction={card['val_fraction']}: validation took {share:.0%} of source "
                f"{entry['name']!r}, for whole documents go there until they fill a window. Set data.split=tail, or "
                "cut the text into documents."
            )
    if len(card["sources"]) > 1 and characters < _MIXED_STYLE_CHARACTERS:
        found.append(
            f"data.sources: {len(card['sources'])} sources with {characters:,} characters together: the model will mix "
            f"their styles in one text. Give it {_MIXED_STYLE_CHARACTERS:,} characters or more, or one source."
        )
    unlike = [entry for entry in card["sources"] if abs(entry["achieved_share"] - entry["asked_share"]) > _SHARE]
    if unlike and not card["asked_tokens"]:
        most = max(unlike, key=lambda entry: float(abs(entry["achieved_share"] - entry["asked_share"])))
        found.append(
            f"data.sources: each is read once, for data.total_tokens is not set, so {most['name']} has "
            f"{most['achieved_share']:.0%} of the tokens and not {most['asked_share']:.0%}. Set data.total_tokens to "
            "hold the ratio."
        )
    if card["asked_tokens"] and tokens < card["asked_tokens"]:
        found.append(
            f"data.total_tokens={card['asked_tokens']}: the sources ran dry at {tokens:,} tokens. "
            "Add text, or raise data.max_repetitions."
        )
    return found
