#!/usr/bin/env python3
"""What `scratchlm prepare` costs at any size, computed from rates that were measured; the table of docs/corpus.md.

The rates are what `scripts/bench.py pass` prints. Every row is a product or quotient of them and of the sizes on disk.
"""

import argparse
from dataclasses import dataclass

from benchmarks.report import table

TOKEN_BYTES, INDEX_BYTES = 2, 17  # of a bin and of its index, for each token and document (data.bins)
BLOCK_BYTES = 32  # of a document beside its ids, in a block: offset, hash, three sizes (data.blocks)
LANES = 8  # of a source, read side by side (text.lanes)
EXT4_BYTES = 16 << 40  # the largest file of ext4 with its usual blocks of 4 KiB


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        worker_megabytes: Text that one core reads, cleans and encodes in a second.
        pass_microseconds: Of the one pass, for each document.
        pass_nanoseconds: Of the one pass, for each token.
        sha256_megabytes: That one core hashes in a second.
        bytes_a_token: Of text.
        tokens_a_document: The end of text included.
    """

    worker_megabytes: float
    pass_microseconds: float
    pass_nanoseconds: float
    sha256_megabytes: float
    bytes_a_token: float
    tokens_a_document: float


@dataclass(frozen=True)
class Cost:
    """Of a corpus of so many tokens; nothing is repeated, and little is dropped."""

    rates: Rates
    n_tokens: float

    @property
    def n_documents(self) -> float:
        return self.n_tokens / self.rates.tokens_a_document

    @property
    def text_bytes(self) -> float:
        return self.n_tokens * self.rates.bytes_a_token

    @property
    def worker_hours(self) -> float:
        """Of one core, for all that workers do."""
        return self.text_bytes / 1e6 / self.rates.worker_megabytes / 3600

    @property
    def pass_hours(self) -> float:
        """Of the one pass."""
        rates = self.rates
        return (self.n_documents * rates.pass_microseconds / 1e6 + self.n_tokens * rates.pass_nanoseconds / 1e9) / 3600

    def hours(self, n_cores: int, n_sources: int) -> float:
        """From beginning to end on so many cores, one of which has the pass to do besides."""
        at_once = min(n_cores, LANES * n_sources)
        return max(self.pass_hours, self.worker_hours / at_once, (self.worker_hours + self.pass_hours) / n_cores)

    @property
    def bins_bytes(self) -> float:
        return self.n_tokens * TOKEN_BYTES + self.n_documents * INDEX_BYTES

    @property
    def block_bytes(self) -> float:
        return self.n_tokens * TOKEN_BYTES + self.n_documents * BLOCK_BYTES

    @property
    def resuming_hours(self) -> float:
        """To make sure, at the very end, that the bins of a killed `prepare` are as they were left."""
        return self.bins_bytes / 1e6 / self.rates.sha256_megabytes / 3600


def rows(costs: list[Cost], cores: list[int], n_sources: int, near_keys: int) -> list[list[str]]:
    """The table, without its header."""

    def row(name: str, values: list[str]) -> list[str]:
        return [name, *values]

    def memory(n_documents: float, keys: int) -> str:
        return f"{size(10 * n_documents * keys)} to {size(15 * n_documents * keys)}"

    return [
        row("documents", [number(cost.n_documents) for cost in costs]),
        row("text to read", [size(cost.text_bytes) for cost in costs]),
        row("core-hours of workers", [short(cost.worker_hours) for cost in costs]),
        row("hours of the one pass", [short(cost.pass_hours) for cost in costs]),
        *(row(f"wall hours on {n} cores", [short(cost.hours(n, n_sources)) for cost in costs]) for n in cores),
        row("bins and indexes on disk", [size(cost.bins_bytes) for cost in costs]),
        row("blocks over the network, on Ray", [size(cost.block_bytes) for cost in costs]),
        row("memory of the table of copies", [memory(cost.n_documents, 1) for cost in costs]),
        *(
            [row(f"and of near copies, by {near_keys} keys", [memory(cost.n_documents, near_keys) for cost in costs])]
            if near_keys
            else []
        ),
        row("hours to check the bins after a kill at the end", [short(cost.resuming_hours) for cost in costs]),
        row("train.bin fits a file of ext4", ["yes" if cost.bins_bytes < EXT4_BYTES else "no" for cost in costs]),
    ]


def size(n_bytes: float) -> str:
    """Bytes in the unit that suits."""
    return f"{number(n_bytes, ('', 'kB', 'MB', 'GB', 'TB', 'PB'))}"


def number(value: float, units: tuple[str, ...] = ("", "thousand", "million", "billion", "trillion")) -> str:
    """Three digits and a unit of a thousand."""
    place = 0
    while value >= 999.5 and place + 1 < len(units):
        value, place = value / 1000, place + 1
    return f"{short(value)} {units[place]}".strip()


def short(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, meaning in (
        ("--worker-megabytes", "text that one core reads, cleans and encodes in a second, in MB"),
        ("--pass-microseconds", "of the one pass for each document"),
        ("--pass-nanoseconds", "of the one pass for each token"),
        ("--sha256-megabytes", "that one core hashes in a second, in MB"),
        ("--bytes-a-token", "of text"),
        ("--tokens-a-document", "the end of text included"),
    ):
        parser.add_argument(flag, type=float, required=True, help=meaning)
    parser.add_argument("--tokens", type=float, nargs="+", default=[10e9, 1e12, 15e12], help="default: 10e9 1e12 15e12")
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 8, 32], help="default: 2 8 32")
    parser.add_argument("--sources", type=int, default=3, help="each is read by up to 8 cores (default: 3)")
    parser.add_argument("--near-keys", type=int, default=0, help="of a document; 0 looks for whole copies alone")
    given = vars(parser.parse_args())
    tokens, cores, n_sources, near_keys = (given.pop(name) for name in ("tokens", "cores", "sources", "near_keys"))
    costs = [Cost(Rates(**given), n) for n in tokens]
    header = ["tokens", *(number(n) for n in tokens)]
    print(table(header, rows(costs, cores, n_sources, near_keys)))
    where = costs[0].worker_hours / costs[0].pass_hours
    print(f"\nOne pass keeps up with {short(where)} cores of workers; more make nothing faster.")


if __name__ == "__main__":
    main()
