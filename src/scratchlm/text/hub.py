"""Rows out of repositories on the Hugging Face hub, streamed by `datasets`, never downloaded whole."""

import atexit
import functools
import gc
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError
from scratchlm.text.local import check_text_type, missing_column

ADDRESS = "hf://owner/name[/configuration][:split]"

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^/:\s]+))?(?::([\w.-]+))?")
_ROWS = 1_000  # made Python strings at once (chosen, not tuned)


@functools.cache
def _settle_before_exit() -> None:
    """Lets Arrow's threads drop the files they read, which takes Python's lock, before the interpreter goes away.

    Otherwise about 1 process in 60 that ends right after reading from the hub ends with "terminate called without an
    active exception" and status 134 (measured on 2 busy cores; https://github.com/apache/arrow/issues/45214).
    """

    def settle() -> None:
        gc.collect()
        time.sleep(0.2)

    atexit.register(settle)


def is_address(uri: str) -> bool:
    """Whether `uri` is written as `ADDRESS` says."""
    return _ADDRESS.fullmatch(uri) is not None


from typing import NamedTuple


class Access(NamedTuple):
    folder: str | None = None
    offline: bool = False
    retry_seconds: float = 600


@dataclass(frozen=True)
class Split:
    """One split of a repository.

    Attributes:
        key: What errors call the source, such as `data.sources.web`.
        repository: `owner/name`.
        configuration: One of the repository's configurations; None is its default.
        split: One of the configuration's splits.
        revision: Branch, tag or commit; None is the main branch.
        column: The text column.
    """

    key: str
    repository: str
    configuration: str | None
    split: str
    revision: str | None
    column: str

    @classmethod
    def at(cls, key: str, uri: str, revision: str | None, column: str, access: Access = Access()) -> "Split":
        """The split at an address; its split is `train` where it names none."""
        found = _ADDRESS.fullmatch(uri)
        assert found, uri
        return cls(key, found[1], found[2], found[3] or "train", revision, column)

    def describe(self) -> dict[str, str | None]:
        """Looks the split and its columns up, so that what is wrong is said before hours of work.

        Returns:
            `revision`, the commit; `licence` as the repository's card states it.

        Raises:
            UserError: The hub cannot be reached, or has no such repository, revision, configuration, split or column.
        """
        with self._one_line():
            from huggingface_hub import HfApi

            # Asked first since it answers at once: `datasets` tries for 23 seconds before it says there is no network.
            info = HfApi().dataset_info(self.repository, revision=self.revision, timeout=30)
            self._check_column(self._open(info.sha))
        licence = info.card_data.get("license") if info.card_data else None
        return {"revision": info.sha, "licence": ", ".join(licence) if isinstance(licence, list) else licence}

    def shards(self) -> list[Callable[[], Iterator[tuple[str, str]]]]:
        """The shards of the split, each as a function that streams its rows as (text, id).

        The id is the row's own `id` column where there is one, else `split-shard:number`, numbers counted from 1.
        """
        with self._one_line():
            dataset = self._open(self.revision)
            columns = self._check_column(dataset)
        wanted = [self.column, "id"] if "id" in columns and self.column != "id" else [self.column]
        stream = dataset.select_columns(wanted).with_format("arrow")

        def reader(index: int) -> Callable[[], Iterator[tuple[str, str]]]:
            return lambda: self._rows(stream.shard(stream.num_shards, index), f"{self.split}-{index}")

        return [reader(index) for index in range(stream.num_shards)]

    def _open(self, revision: str | None) -> Any:
        import datasets

        if "torch" not in sys.modules:
            # Otherwise every stream imports torch, to inherit from its datasets; preparing must not need that.
            datasets.config.TORCH_AVAILABLE = False
        datasets.disable_progress_bars()
        _settle_before_exit()
        return datasets.load_dataset(
            self.repository, self.configuration, split=self.split, revision=revision, streaming=True
        )

    def _check_column(self, dataset: Any) -> list[str]:
        if dataset.features:
            schema = dataset.features.arrow_schema
        else:  # JSON lines and the like do not say before they are read
            schema = next(iter(dataset.with_format("arrow").iter(batch_size=1))).schema
        if self.column not in schema.names:
            raise missing_column(self.key, self.repository, self.column, schema.names)
        check_text_type(self.key, self.repository, self.column, schema.field(self.column).type)
        return list(schema.names)

    def _rows(self, shard: Any, label: str) -> Iterator[tuple[str, str]]:
        n_before = 0
        with self._one_line():
            for table in shard.iter(batch_size=_ROWS):
                numbers = range(n_before + 1, n_before + 1 + len(table))
                try:
                    texts = table.column(self.column).to_pylist()
                except UnicodeDecodeError:
                    where = f"{self.repository}, {label}, rows {numbers[0]:,} to {numbers[-1]:,}"
                    raise BadValue(f"{self.key}: {where}: not UTF-8. Name another source.") from None
                if table.num_columns == 2:
                    ids = [str(id) for id in table.column("id").to_pylist()]
                else:
                    ids = [f"{label}:{number}" for number in numbers]
                n_before += len(texts)
                for text, id in zip(texts, ids, strict=True):
                    yield text or "", id

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """Turns what `datasets` and the hub's client raise into one line for the user."""
        try:
            yield
        except (UserError, ImportError):
            raise
        except Exception as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        import pyarrow
        from datasets.exceptions import DatasetNotFoundError
        from huggingface_hub import errors

        said = " ".join(str(error).split())[:300]
        here = f"{self.key}: {self.repository}"
        if isinstance(error, errors.GatedRepoError):
            return MissingFile(f"{here} is gated on the hub. Ask for access on its page, then run `hf auth login`.")
        if isinstance(error, errors.RevisionNotFoundError):
            return BadValue(f"{here} has no revision {self.revision!r}. Name a branch, tag or commit of it, or none.")
        if isinstance(error, DatasetNotFoundError | errors.RepositoryNotFoundError):
            return MissingFile(
                f"{self.key}: no dataset {self.repository} on the hub. Check owner and name; if it is private, run "
                "`hf auth login`."
            )
        if isinstance(error, pyarrow.ArrowInvalid):
            return BrokenState(f"{here} sent data that cannot be read ({said}). Run again.")
        if isinstance(error, OSError | errors.OfflineModeIsEnabled) or type(error).__module__.startswith("http"):
            return BrokenState(
                f"{self.key}: cannot read {self.repository} from the hub ({said}). Check the network and run again, or "
                "use builtin: sources or local files."
            )
        if isinstance(error, ValueError):  # an unknown configuration or split; the text names those there are
            return BadValue(f"{here} cannot be opened as asked: {said} Write {ADDRESS}.")
        return error
