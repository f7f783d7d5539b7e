"""Rows out of repositories on the Hugging Face hub, streamed by `datasets`, never downloaded whole."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scratchlm.errors import BadValue, BrokenState, MissingFile, UserError
from scratchlm.text.local import check_text_type, missing_column

_ROWS = 1_000  # made Python strings at once (chosen, not tuned)


def describe(
    key: str, repository: str, configuration: str | None, split: str, revision: str | None, column: str
) -> dict[str, str | None]:
    """Looks a repository up, and its columns, so that what is wrong is said before hours of work.

    Args:
        key: What errors call the source, such as `data.sources.web`.
        repository: `owner/name`.
        configuration: One of the repository's configurations; None is its default.
        split: One of the configuration's splits.
        revision: Branch, tag or commit; None is the main branch.
        column: The text column.

    Returns:
        `revision`, the commit; `licence` as the repository's card states it.

    Raises:
        UserError: The hub cannot be reached, or it has no such repository, revision, configuration, split or column.
    """
    with _one_line(key, repository):
        from huggingface_hub import HfApi

        # Asked first since it answers at once: `datasets` tries for 23 seconds before it says that there is no network.
        info = HfApi().dataset_info(repository, revision=revision, timeout=30)
        dataset = _open(repository, configuration, split, info.sha)
        _check_column(key, repository, dataset, column)
    licence = info.card_data.get("license") if info.card_data else None
    return {"revision": info.sha, "licence": ", ".join(licence) if isinstance(licence, list) else licence}


def shards(
    key: str, repository: str, configuration: str | None, split: str, revision: str | None, column: str
) -> list[Callable[[], Iterator[tuple[str, str]]]]:
    """The shards of a split, each as a function that streams its rows as (text, id).

    The id is the row's own `id` column where there is one, else `split-shard:number`, numbers counted from 1.
    """
    with _one_line(key, repository):
        dataset = _open(repository, configuration, split, revision)
        columns = _check_column(key, repository, dataset, column)
        n_shards = dataset.num_shards
    wanted = [column, "id"] if "id" in columns and column != "id" else [column]

    def reader(index: int) -> Callable[[], Iterator[tuple[str, str]]]:
        return lambda: _rows(key, repository, dataset.shard(n_shards, index), wanted, f"{split}-{index}")

    return [reader(index) for index in range(n_shards)]


def _open(repository: str, configuration: str | None, split: str, revision: str | None) -> Any:
    import datasets

    if "torch" not in sys.modules:
        # Otherwise every stream imports torch, to inherit from its datasets; preparing must not need that.
        datasets.config.TORCH_AVAILABLE = False
    datasets.disable_progress_bars()
    return datasets.load_dataset(repository, configuration, split=split, revision=revision, streaming=True)


def _check_column(key: str, repository: str, dataset: Any, column: str) -> list[str]:
    schema = dataset.features.arrow_schema if dataset.features else _first_table(dataset).schema
    if column not in schema.names:
        raise missing_column(key, repository, column, schema.names)
    check_text_type(key, repository, column, schema.field(column).type)
    return list(schema.names)


def _first_table(dataset: Any) -> Any:
    return next(iter(dataset.with_format("arrow").iter(batch_size=1)))


def _rows(key: str, repository: str, shard: Any, columns: list[str], label: str) -> Iterator[tuple[str, str]]:
    number = 0
    with _one_line(key, repository):
        for table in shard.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS):
            try:
                texts = table.column(columns[0]).to_pylist()
            except UnicodeDecodeError:
                last = number + len(table)
                raise BadValue(
                    f"{key}: {repository} is not UTF-8 in {label}, rows {number + 1:,} to {last:,}."
                ) from None
            if len(columns) == 2:
                ids = [str(id) for id in table.column("id").to_pylist()]
            else:
                ids = [f"{label}:{n}" for n in range(number + 1, number + 1 + len(texts))]
            number += len(texts)
            for text, id in zip(texts, ids, strict=True):
                yield text or "", id


@contextmanager
def _one_line(key: str, repository: str) -> Iterator[None]:
    """Turns what `datasets` and the hub client raise into one line for the user."""
    try:
        yield
    except UserError:
        raise
    except ImportError:
        raise
    except Exception as error:
        raise _explained(key, repository, error) from error


def _explained(key: str, repository: str, error: Exception) -> UserError | Exception:
    import pyarrow
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    said = " ".join(str(error).split())
    if isinstance(error, errors.GatedRepoError):
        return MissingFile(f"{key}: {repository} is gated. Ask for access on its page, then run `hf auth login`.")
    if isinstance(error, errors.RevisionNotFoundError):
        return BadValue(f"{key}: {repository} has no such revision. Name a branch, tag or commit of it, or none.")
    if isinstance(error, DatasetNotFoundError | errors.RepositoryNotFoundError):
        return MissingFile(f"{key}: no dataset {repository} on the hub. Check owner and name, or run `hf auth login`.")
    if isinstance(error, ValueError) and "available" in said.lower():  # configuration or split; both lists are named
        return BadValue(f"{key}: {repository}: {said[:300]} Write hf://owner/name[/configuration][:split].")
    if isinstance(error, pyarrow.ArrowInvalid):
        return BrokenState(f"{key}: {repository} sent data that cannot be read ({said[:200]}). Run again.")
    if isinstance(error, OSError | errors.OfflineModeIsEnabled) or type(error).__module__.startswith("http"):
        return BrokenState(
            f"{key}: cannot read {repository} from the hub ({said[:200]}). Check the network and run again, "
            "or use builtin: sources or local files."
        )
    if isinstance(error, ValueError):
        return BadValue(f"{key}: {repository} cannot be opened ({said[:300]}). Check its page on the hub.")
    return error
