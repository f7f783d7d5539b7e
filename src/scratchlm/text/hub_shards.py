"""The rows of one file of a hub repository, streamed by `datasets`, with states to go on from."""

import functools
import glob
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from scratchlm.errors import BadValue, BrokenState
from scratchlm.text.hub_outages import Patience, close_at_exit, is_bad_data, set_up_clients, told_in_one_line
from scratchlm.text.local import missing_column
from scratchlm.text.parts import Chunk, Row, State

# Of 8 shards read in turn, each takes about 50 MB with these; with 1,000 rows, 32 MiB and 8 MiB it was 150 MB, and no
# faster (FineWeb's rows and groups of rows, 300 MB of text a second on one core).
_ROWS = 250  # made Python strings at once
_BLOCK_BYTES = 8 << 20  # of the columns read: what is kept in memory, and fetched again on reading on, at most
_REQUEST_BYTES = 4 << 20  # of a parquet file, at most
_BLOCK_FOOTERS = 8  # a file's index is fetched for each block; a block is so many times as large (chosen, not tuned)
_HOLE_BYTES = 512 << 10  # between two pieces that are fetched by one request all the same (chosen, not tuned)
_STORAGE = {"hf": {"block_size": 256 << 10}}  # read ahead of a request's end; nothing makes use of more in parquet


@dataclass(frozen=True)
class Shard:
    """One file of a split; a part, as `parts.Part` says.

    Attributes:
        key: What errors call the source, such as `data.sources.web`.
        repository: `owner/name`.
        path: Where the file is: an hf:// address that names the commit, or a path on this machine.
        label: Names the shard in the ids of its rows.
        format: Name of the loader in `datasets`.
        options: What the repository sets for the loader.
        columns: The text column, then the column of ids if there is one; None for all there are.
        retry_seconds: How long an outage may last.
    """

    key: str
    repository: str
    path: str
    label: str
    format: str
    options: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    retry_seconds: float = 600.0

    def schema(self) -> Any:
        """The Arrow schema of its rows."""
        with self._told_of_copy():
            stream = self._stream()
            if stream.features:
                return stream.features.arrow_schema
            return next(iter(stream.iter(batch_size=1))).schema  # JSON lines do not say before they are read

    def read(self, state: State | None = None) -> Iterator[Chunk]:
        """Its rows in chunks, from `state` on; outages are waited for and then read on from where they began.

        Raises:
            UserError: The outage is for good, or the file is not what it should be.
        """
        with told_in_one_line(self.key, self.repository, None):
            patience = Patience(self.key, self.repository, self.retry_seconds)
            while True:
                chunks = self._chunks(state)
                close_at_exit(chunks)
                try:
                    for chunk in chunks:
                        patience.renew()
                        state = chunk.state
                        yield chunk
                    return
                except Exception as error:
                    patience.wait(error)

    @contextmanager
    def _told_of_copy(self) -> Iterator[None]:
        """A copy that cannot be read is not better the next time, as what the hub sends may be."""
        try:
            yield
        except Exception as error:
            if self.path.startswith("hf://") or not is_bad_data(error):
                raise
            said = str(error).splitlines()[0]
            raise BrokenState(
                f"{self.key}: {self.path} cannot be read ({said}). Run `scratchlm prefetch` again: which mends it."
            ) from error

    def _chunks(self, state: State | None) -> Generator[Chunk, None, None]:
        with self._told_of_copy():
            yield from self._read_on(state)

    def _read_on(self, state: State | None) -> Generator[Chunk, None, None]:
        stream = self._stream().reshard()
        cut = [stream.num_shards, _ROWS]  # what a state of `datasets` holds for
        n_rows = 0
        if state is not None:
            if state["cut"] != cut:
                raise BrokenState(
                    f"{self.key}: {self.repository}, {self.label} is cut into blocks and rows {cut} now, and was into "
                    f"{state['cut']} when it was left. Prepare again from the start."
                )
            stream.load_state_dict(state["stream"])
            n_rows = state["rows"]
        for table in stream.iter(batch_size=_ROWS):
            rows = self._rows(table, n_rows)
            n_rows += len(rows)
            yield Chunk(rows, {"rows": n_rows, "cut": cut, "stream": stream.state_dict()})

    def _stream(self) -> Any:
        import datasets
        import pyarrow
        import pyarrow.dataset

        set_up_clients()
        options = dict(self.options)
        if self.format == "parquet":
            cache = pyarrow.CacheOptions(
                hole_size_limit=_HOLE_BYTES, range_size_limit=_REQUEST_BYTES, lazy=True, prefetch_limit=1
            )
            options |= {
                "columns": list(self.columns) if self.columns else None,
                "batch_size": _ROWS,
                "fragment_scan_options": pyarrow.dataset.ParquetFragmentScanOptions(cache_options=cache),
                "storage_options": _STORAGE,
            }
        builder = datasets.load_dataset_builder(self.format, data_files={"rows": [glob.escape(self.path)]}, **options)
        if self.format == "parquet":
            builder._generate_more_gen_kwargs = functools.partial(_blocks, self.columns)
        return builder.as_streaming_dataset("rows").with_format("arrow")

    def _rows(self, table: Any, n_before: int) -> list[Row]:
        text_column, *id_column = self.columns or ("text",)
        numbers = range(n_before + 1, n_before + 1 + len(table))
        where = f"{self.repository}, {self.label}, rows {numbers[0]:,} to {numbers[-1]:,}"
        if text_column not in table.column_names:
            raise missing_column(self.key, where, text_column, table.column_names)
        try:
            texts = table.column(text_column).to_pylist()
        except UnicodeDecodeError:
            raise BadValue(f"{self.key}: {where}: not UTF-8. Name another source.") from None
        if id_column and id_column[0] in table.column_names:
            ids = [str(id) for id in table.column(id_column[0]).to_pylist()]
        else:
            ids = [f"{self.label}:{number}" for number in numbers]
        return [(text or "", id) for text, id in zip(texts, ids, strict=True)]


def _blocks(columns: tuple[str, ...] | None, files: list[str], row_groups_list: list[Any]) -> Iterator[dict[str, Any]]:
    """The row groups of parquet files in runs, for `IterableDataset.reshard`.

    Its own way makes a shard of each row group, and reads a file's index again for each. One shard for a file, however
    large, would be read from its start on each resumption, and kept in memory as far as it was read.
    """
    import datasets
    import pyarrow.parquet
    from datasets.utils.file_utils import xopen

    for path in files:
        with xopen(path, "rb", download_config=datasets.DownloadConfig(storage_options=_STORAGE)) as file:
            metadata = pyarrow.parquet.read_metadata(file)
        at_least = max(_BLOCK_BYTES, _BLOCK_FOOTERS * metadata.serialized_size)
        blocks: list[tuple[int, ...] | None] = []
        begin, n_bytes = 0, 0
        for end in range(1, metadata.num_row_groups + 1):
            group = metadata.row_group(end - 1)
            chunks = [group.column(number) for number in range(group.num_columns)]
            n_bytes += sum(
                chunk.total_compressed_size
                for chunk in chunks
                if columns is None or chunk.path_in_schema.split(".")[0] in columns
            )
            if n_bytes >= at_least or end == metadata.num_row_groups:
                blocks.append(tuple(range(begin, end)))
                begin, n_bytes = end, 0
        blocks = blocks or [None]  # a file without rows
        yield {"files": [path] * len(blocks), "row_groups_list": blocks}
