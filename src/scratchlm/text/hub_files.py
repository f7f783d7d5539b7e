"""What the splits of a repository are made of: on the hub at a commit, or in a folder laid out like it."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from scratchlm.text.hub_outages import Interrupted, set_up_clients

_N_FOOTERS = 3  # read for an estimate (chosen, not tuned)
_LENGTH_BYTES = 4  # that parquet, like Arrow, spends on the length of each text


class Files(NamedTuple):
    """The data files of a split.

    Attributes:
        root: What the names are below: an hf:// address that names the commit, or a folder.
        commit: What the repository stood at; None where that is not known.
        licence: As the repository's card states it.
        format: Name of their loader in `datasets`.
        options: What the repository sets for the loader.
        names: The files, in the order of the hub.
        text_bytes: What the repository's card says of the split, if it has the one column; else None.
    """

    root: str
    commit: str | None
    licence: str | None
    format: str
    options: dict[str, Any]
    names: list[str]
    text_bytes: int | None = None

    def path(self, number: int) -> str:
        """Where a file is."""
        return f"{self.root}/{self.names[number]}"

    def sizes(self, names: Sequence[str] | None = None) -> list[int]:
        """Bytes of the named files, packed as they are; of all of them without names."""
        from datasets.utils.file_utils import xgetsize

        return [xgetsize(f"{self.root}/{name}") for name in (self.names if names is None else names)]


def on_hub(repository: str, configuration: str | None, split: str, revision: str | None) -> Files:
    """Asks the hub for a split.

    Raises:
        ValueError: The configuration has no such split.
        Exception: Whatever the hub's clients raise.
    """
    set_up_clients()
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(repository, revision=revision, expand=["sha", "cardData"], timeout=30)
    assert info.sha, info
    card = _plain(info.card_data)
    root = f"hf://datasets/{repository}@{info.sha}"
    format, options, splits = _loader(repository, configuration, info.sha, root)
    text_bytes = _text_bytes(card.get("dataset_info"), configuration, split)
    names = _named(splits, split)
    return Files(root, info.sha, _licence(card), format, options, names, text_bytes)


def in_folder(root: str, configuration: str | None, split: str) -> Files:
    """Looks for a split in a folder that was filled by other means than `prefetch`.

    Raises:
        ValueError: The configuration has no such split.
        Exception: Whatever `datasets` raises.
    """
    set_up_clients()
    from huggingface_hub import DatasetCard

    readme = os.path.join(root, "README.md")
    card = _plain(DatasetCard.load(readme).data) if os.path.exists(readme) else {}
    format, options, splits = _loader(root, configuration, None, os.path.realpath(root))
    names = _named(splits, split)
    return Files(root, None, _licence(card), format, options, names)


def _named(splits: dict[str, list[str]], split: str) -> list[str]:
    if split not in splits:
        raise ValueError(f"Bad split: {split}. Available splits: {list(splits)}.")
    return splits[split]


@functools.lru_cache
def _loader(
    repository: str, configuration: str | None, commit: str | None, root: str
) -> tuple[str, dict[str, Any], dict[str, list[str]]]:
    """The loader of a configuration in `datasets`, its options, and the names below `root` of each split's files."""
    import datasets

    builder = datasets.load_dataset_builder(repository, configuration, revision=commit)
    format = type(builder).__module__.rsplit(".", 1)[-1]
    if format == "cache":  # what was loaded once on this machine, offered where the hub does not answer
        raise Interrupted("its files could not be listed")
    plain = type(builder.config)()
    options = {
        field.name: value
        for field in dataclasses.fields(builder.config)
        if field.name not in ("name", "version", "data_dir", "data_files", "description")
        and (value := getattr(builder.config, field.name)) != getattr(plain, field.name)
        and isinstance(value, bool | int | float | str | list)
    }
    files = builder.config.data_files or {}
    return format, options, {str(split): [name.removeprefix(f"{root}/") for name in files[split]] for split in files}


def _plain(card: Any) -> dict[str, Any]:
    return card.to_dict() if card else {}


def _licence(card: dict[str, Any]) -> str | None:
    licence = card.get("license")
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence


def _text_bytes(infos: Any, configuration: str | None, split: str) -> int | None:
    """Bytes of a split by the card's `dataset_info`, which counts all columns: no use where there are several."""
    for info in infos if isinstance(infos, list) else [infos]:
        if isinstance(info, dict) and configuration in (None, info.get("config_name", "default")):
            for one in info.get("splits") or []:
                if one.get("name") == split and one.get("num_bytes") and len(info.get("features") or []) == 1:
                    return int(one["num_bytes"]) - _LENGTH_BYTES * int(one.get("num_examples") or 0)
    return None


def estimate_text_bytes(files: Files, column: str) -> int | None:
    """About how many bytes the texts of a split have, from the indices at the end of a few of its parquet files.

    Returns:
        None for other files than parquet of which the card says nothing.
    """
    if files.format != "parquet" or not files.names:
        return files.text_bytes
    import pyarrow.parquet
    from datasets.utils.file_utils import xopen

    n = len(files.names)
    sample = sorted({number * (n - 1) // max(1, _N_FOOTERS - 1) for number in range(_N_FOOTERS)}) if n > 1 else [0]
    n_text = 0
    for number in sample:
        with xopen(files.path(number), "rb") as file:
            metadata = pyarrow.parquet.read_metadata(file)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                if chunk.path_in_schema == column:
                    n_text += chunk.total_uncompressed_size - _LENGTH_BYTES * chunk.num_values
    sizes = files.sizes()
    n_sampled = sum(sizes[number] for number in sample)
    return n_text * sum(sizes) // n_sampled if n_sampled else 0
