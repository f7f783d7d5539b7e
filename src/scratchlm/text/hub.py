"""Splits of repositories on the Hugging Face hub: what they are made of, streamed by `datasets`, never downloaded whole."""

import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from scratchlm.errors import BadValue
from scratchlm.text.hub_outages import ADDRESS, Interrupted, outlast, set_up_clients, told_in_one_line
from scratchlm.text.hub_shards import Shard
from scratchlm.text.local import check_text_type, missing_column

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^/:\s]+))?(?::([\w.-]+))?")


def is_address(uri: str) -> bool:
    """Whether `uri` is written as `ADDRESS` says."""
    return _ADDRESS.fullmatch(uri) is not None


class Access(NamedTuple):
    """How repositories are reached.

    Attributes:
        folder: Where copies of repositories are looked for first, as `folder/owner/name`; None looks for none.
        offline: Nothing is asked of the hub.
        retry_seconds: How long an outage of the hub may last, in seconds waited.
    """

    folder: str | None = None
    offline: bool = False
    retry_seconds: float = 600.0


class Files(NamedTuple):
    """The data files of a split.

    Attributes:
        root: What the names are below: an hf:// address with the commit, or a folder.
        commit: What the repository stood at; None where that is not known.
        licence: As the repository's card states it.
        format: Name of their loader in `datasets`.
        options: What the repository sets for the loader.
        names: The files, in the order of the hub.
    """

    root: str
    commit: str | None
    licence: str | None
    format: str
    options: dict[str, Any]
    names: list[str]


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
        access: How the repository is reached.
    """

    key: str
    repository: str
    configuration: str | None
    split: str
    revision: str | None
    column: str
    access: Access = Access()

    @classmethod
    def at(cls, key: str, uri: str, revision: str | None, column: str, access: Access = Access()) -> "Split":
        """The split at an address; its split is `train` where it names none."""
        found = _ADDRESS.fullmatch(uri)
        assert found, uri
        return cls(key, found[1], found[2], found[3] or "train", revision, column, access)

    def describe(self) -> dict[str, str | None]:
        """Looks the split and its columns up, so that what is wrong is said before hours of work.

        Returns:
            `revision`, the commit; `licence` as the repository's card states it.

        Raises:
            UserError: The hub cannot be reached, or has no such repository, revision, configuration, split or column.
        """
        files = self.files()
        self._columns(files)
        return {"revision": files.commit, "licence": files.licence}

    def parts(self) -> list[Shard]:
        """The files of the split, in the order of the hub; part `N` is labelled `split-N`, counted from 0.

        Raises:
            UserError: As `describe`.
        """
        files = self.files()
        columns = self._columns(files)
        return [self._shard(files, number, columns) for number in range(len(files.names))]

    def files(self) -> Files:
        """What the split is made of.

        Raises:
            UserError: As `describe`.
        """
        with told_in_one_line(self.key, self.repository, self.revision):
            return outlast(self.key, self.repository, self.access.retry_seconds, self._ask_hub)

    def _ask_hub(self) -> Files:
        set_up_clients()
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(self.repository, revision=self.revision, expand=["sha", "cardData"], timeout=30)
        format, options, splits = _loader(self.repository, self.configuration, info.sha)
        if self.split not in splits:
            raise BadValue(
                f"{self.key}: {self.repository} cannot be opened as asked: Bad split: {self.split}. Available splits: "
                f"{list(splits)} Write {ADDRESS}."
            )
        licence = info.card_data.get("license") if info.card_data else None
        root = _root(self.repository, info.sha)
        licence = ", ".join(licence) if isinstance(licence, list) else licence
        return Files(root, info.sha, licence, format, options, splits[self.split])

    def _columns(self, files: Files) -> tuple[str, ...]:
        """The text column and, where there is one, that of ids; checks that the first is there and holds text."""
        with told_in_one_line(self.key, self.repository, self.revision):
            schema = outlast(self.key, self.repository, self.access.retry_seconds, self._shard(files, 0, None).schema)
        if self.column not in schema.names:
            raise missing_column(self.key, self.repository, self.column, schema.names)
        check_text_type(self.key, self.repository, self.column, schema.field(self.column).type)
        return (self.column, "id") if "id" in schema.names and self.column != "id" else (self.column,)

    def _shard(self, files: Files, number: int, columns: tuple[str, ...] | None) -> Shard:
        return Shard(
            self.key,
            self.repository,
            f"{files.root}/{files.names[number]}",
            f"{self.split}-{number}",
            files.format,
            files.options,
            columns,
            self.access.retry_seconds,
        )


def _root(repository: str, commit: str) -> str:
    return f"hf://datasets/{repository}@{commit}"


@functools.lru_cache
def _loader(
    repository: str, configuration: str | None, commit: str
) -> tuple[str, dict[str, Any], dict[str, list[str]]]:
    """The loader of a configuration in `datasets`, its options, and the names of the files of each split."""
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
    root = _root(repository, commit) + "/"
    splits = {
        str(split): [name.removeprefix(root) for name in names]
        for split, names in (builder.config.data_files or {}).items()
    }
    return format, options, splits
