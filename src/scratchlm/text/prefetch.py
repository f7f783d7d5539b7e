"""Brings what splits of the hub are made of into a folder, for preparing without a network."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scratchlm.errors import BadValue, BrokenState
from scratchlm.files.whole import require_space, sha256, told_if_unwritable
from scratchlm.text.hub import Split
from scratchlm.text.hub_copies import known_hashes, note_commit, note_split
from scratchlm.text.hub_files import Files, on_hub
from scratchlm.text.hub_outages import Interrupted, outlast, set_up_clients, told_in_one_line

_CARD = "README.md"


def prefetch(splits: Sequence[Split], folder: str) -> None:
    """Downloads the data files of the splits, and the cards of their repositories, at the commits they stand at now.

    What is there is not fetched again, unless it is no longer what came; a file half fetched is gone on with, and takes
    its name when it is whole.

    Args:
        splits: What to bring. Their `access` says how long an outage may last.
        folder: Where to; each repository gets `folder/owner/name`, laid out as it is. Set it as `data.hub_folder`.

    Raises:
        UserError: The hub or a split cannot be reached, two splits want different commits of one repository, the disk
            is too small, or a file came otherwise than the hub describes it.
    """
    found = [(split, _listed(split)) for split in splits]
    _check_commits(found)
    plans = [(split, files, _sizes(split, files)) for split, files in found]
    roots = {split.repository: Path(folder).expanduser().absolute() / split.repository for split in splits}
    wanted = {(split.repository, name): size for split, _, sizes in plans for name, size in sizes.items()}
    hashes = {root / name: hash_ for root in roots.values() for name, hash_ in known_hashes(root).items()}
    for path, hash_ in hashes.items():
        if path.is_file() and sha256(path) != hash_:
            path.unlink()
    missing = sum(size for (repository, name), size in wanted.items() if not _has(roots[repository] / name, size))
    if missing:
        require_space(folder, missing)
    with _Progress(sum(wanted.values())) as progress:
        for split, files, sizes in plans:
            root = roots[split.repository]
            with told_if_unwritable(root):
                note_commit(root, files, split.revision)
            for name, size in sizes.items():
                _bring(split, files, root, name, size, progress)
            note_split(root, split.configuration, split.split, files, {n: sizes[n] for n in files.names})
    said = f"{missing / 1e6:,.1f} MB brought" if missing else "all there before"
    print(
        f"scratchlm: {folder}: {len(wanted)} files of {len(roots)} repositories, {sum(wanted.values()) / 1e6:,.1f} MB, "
        f"{said}; read them with --data.hub_folder {folder}",
        file=sys.stderr,
    )
    for root in roots.values():  # halves of a try that was killed, under names that its successor did not use
        for half in root.glob(".cache/huggingface/download/**/*.incomplete"):
            half.unlink()


def _listed(split: Split) -> Files:
    with told_in_one_line(split.key, split.repository, split.revision):
        return outlast(
            split.key,
            split.repository,
            split.access.retry_seconds,
            lambda: on_hub(split.repository, split.configuration, split.split, split.revision),
        )


def _check_commits(found: Sequence[tuple[Split, Files]]) -> None:
    first: dict[str, tuple[Split, Files]] = {}
    for split, files in found:
        other, others = first.setdefault(split.repository, (split, files))
        if files.commit != others.commit:
            raise BadValue(
                f"{split.key}: revision={split.revision!r} of {split.repository} is another commit than that of "
                f"{other.key}, and a folder holds one. Prefetch them into two folders, or name one revision."
            )
        if outside := [name for name in files.names if "://" in name]:
            raise BadValue(f"{split.key}: {split.repository} keeps {outside[0]} elsewhere. Prefetch cannot bring it.")


def _sizes(split: Split, files: Files) -> dict[str, int]:
    """The files to bring, the card first where there is one, with their bytes."""

    def ask() -> dict[str, int]:
        sizes = {}
        with suppress(FileNotFoundError):
            (sizes[_CARD],) = files.sizes([_CARD])
        return sizes | dict(zip(files.names, files.sizes(), strict=True))

    with told_in_one_line(split.key, split.repository, split.revision):
        return outlast(split.key, split.repository, split.access.retry_seconds, ask)


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


class _Progress:
    """One bar over the bytes of all files, with rate and time left."""

    def __init__(self, n_bytes: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=n_bytes, unit="B", unit_scale=True, unit_divisor=1024, desc="prefetch")
        self._n_done = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def finish(self, size: int) -> None:
        """Counts a whole file."""
        self._n_done += size
        self._show(0)

    def _show(self, n_of_file: int) -> None:
        self._bar.update(self._n_done + n_of_file - self._bar.n)

    def of_file(self) -> type[Any]:
        """The class of the bar that the hub's client is to make for the next file: it moves this one."""
        from huggingface_hub.utils.tqdm import tqdm

        show = self._show

        class OfFile(tqdm):
            def __init__(self, *arguments: Any, initial: int = 0, **options: Any) -> None:
                super().__init__(*arguments, initial=initial, **options)  # type: ignore[no-untyped-call]
                self.n_bytes = initial

            def update(self, n: float | None = 1) -> None:
                self.n_bytes += int(n or 0)
                show(self.n_bytes)

        return OfFile


def _bring(split: Split, files: Files, root: Path, name: str, size: int, progress: _Progress) -> None:
    from huggingface_hub import hf_hub_download

    set_up_clients()

    def download() -> None:
        try:
            with told_if_unwritable(root / name):
                hf_hub_download(
                    split.repository,
                    name,
                    repo_type="dataset",
                    revision=files.commit,
                    local_dir=root,
                    force_download=(root / name).exists() and not _has(root / name, size),
                    tqdm_class=progress.of_file(),
                )
        except RuntimeError as error:  # of the hub's own protocol for large files
            if isinstance(error, BrokenState):
                raise
            raise Interrupted(str(error)) from error

    with told_in_one_line(split.key, split.repository, split.revision):
        outlast(split.key, split.repository, split.access.retry_seconds, download)
    if not _has(root / name, size):
        raise BrokenState(f"{split.key}: {root / name} is not of the {size:,} bytes the hub names. Run again.")
    progress.finish(size)
