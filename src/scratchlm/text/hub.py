"""Splits of repositories on the Hugging Face hub, streamed by `datasets`, never downloaded whole."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from scratchlm.errors import MissingFile
from scratchlm.text.hub_copies import find_copy
from scratchlm.text.hub_files import Files, estimate_text_bytes, on_hub
from scratchlm.text.hub_outages import outlast, told_in_one_line
from scratchlm.text.hub_shards import Shard
from scratchlm.text.local import check_text_type, missing_column

Answer = TypeVar("Answer")

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^/:\s]+))?(?::([\w.-]+))?")


def is_address(uri: str) -> bool:
    """Whether `uri` is written as `hub_outages.ADDRESS` says."""
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


ONLINE = Access()


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
    access: Access = ONLINE

    @classmethod
    def at(cls, key: str, uri: str, revision: str | None, column: str, access: Access = ONLINE) -> "Split":
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

    def estimate_bytes(self) -> int | None:
        """About how many bytes of text the split holds; None where that cannot be told from a look at it.

        Raises:
            UserError: As `describe`.
        """
        files = self.files()
        return self._asked(lambda: estimate_text_bytes(files, self.column))

    def files(self) -> Files:
        """What the split is made of: in a copy where there is one, else on the hub.

        Raises:
            UserError: As `describe`.
        """
        folder = self.access.folder
        asked = (self.repository, self.configuration, self.split, self.revision)
        if folder:
            with told_in_one_line(self.key, self.repository, self.revision):
                if found := find_copy(self.key, folder, *asked):
                    return found
        if self.access.offline:
            revision = f" at revision {self.revision!r}" if self.revision else ""
            raise MissingFile(
                f"{self.key}: data.offline=True and no copy of {self.repository}{revision} with what is asked of it in "
                f"data.hub_folder={folder!r}. Run `scratchlm prefetch -c ...` with these sources where there is a "
                "network, and set data.hub_folder to its folder."
            )
        return self._asked(lambda: on_hub(*asked))

    def _asked(self, ask: Callable[[], Answer]) -> Answer:
        with told_in_one_line(self.key, self.repository, self.revision):
            return outlast(self.key, self.repository, self.access.retry_seconds, ask)

    def _columns(self, files: Files) -> tuple[str, ...]:
        """The text column and, where there is one, that of ids; checks that the first is there and holds text."""
        schema = self._asked(self._shard(files, 0, None).schema)
        if self.column not in schema.names:
            raise missing_column(self.key, self.repository, self.column, schema.names)
        check_text_type(self.key, self.repository, self.column, schema.field(self.column).type)
        return (self.column, "id") if "id" in schema.names and self.column != "id" else (self.column,)

    def _shard(self, files: Files, number: int, columns: tuple[str, ...] | None) -> Shard:
        return Shard(
            self.key,
            self.repository,
            files.path(number),
            f"{self.split}-{number}",
            files.format,
            files.options,
            columns,
            self.access.retry_seconds if "://" in files.root else 0.0,
        )
