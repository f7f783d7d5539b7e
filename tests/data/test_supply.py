"""What a killed pass is gone on with: states of copies, supplies and the assembly, taken up after any document."""

import json
from collections import Counter
from contextlib import ExitStack

import pytest

from scratchlm.data.assembly import Assembly, Progress, Splits
from scratchlm.data.blocks import Recipe
from scratchlm.data.supply import Copies, Supply
from scratchlm.data.workers import Here
from scratchlm.data.writer import BinWriter
from scratchlm.errors import BrokenState
from scratchlm.text import near
from scratchlm.text.cleaning import parse_cleaning
from scratchlm.text.documents import parse_sources, parts
from scratchlm.text.hub import Access
from scratchlm.text.lanes import lanes
from scratchlm.text.tokenizer import train


@pytest.fixture(params=[None, 0.7], ids=["whole copies", "near copies"])
def alike(request):
    return request.param


@pytest.fixture
def sources(write_jsonl, story):
    """Two sources with copies and near copies, inside and across, and documents too short to stay."""
    own = [[story(i, 25, seed) for i in range(14)] for seed in (1, 2)]
    near_copies = [text + " Or so they say." for text in own[0][:4]]
    return parse_sources(
        {
            "one": write_jsonl("one", [*own[0], *own[0][:3], "short", *near_copies[:2]]),
            "two": {"uri": write_jsonl("two", [*own[1], *own[0][5:8], *near_copies[2:], "short"]), "weight": 2.0},
        }
    )


@pytest.fixture
def passes(sources, tmp_path, alike):
    """Opens a pass over the sources in a folder of its own, from what an earlier one has committed."""
    dealt = [lanes(source.name, parts(source, Access()), 1, 4) for source in sources]
    tokenizer = train("char", ["abcdefghijklmnopqrstuvwxyzSCO 0123456789-:,."], 300)
    recipe = Recipe(parse_cleaning(["whitespace", {"length": {"min_characters": 10}}]), [False, False],
                    tokenizer.to_json(), tokenizer.encoder, alike)  # fmt: skip

    def begin(name, committed=None):
        return Pass(tmp_path / name, sources, dealt, recipe, committed)

    return begin


class Pass:
    """All that one process has of a making of bins."""

    def __init__(self, folder, sources, dealt, recipe, committed):
        state = json.loads(json.dumps(committed)) if committed else {}
        with ExitStack() as tried:
            self.writers = {
                split: tried.enter_context(BinWriter(folder, split, 0, state and state["writers"][split]))
                for split in ("train", "val")
            }
            self.copies = Copies(
                folder / "near.log", near.n_keys(recipe.near_duplicates) if recipe.near_duplicates else 0
            )
            tried.callback(self.copies.close)
            self.copies.open(self.writers.values(), state.get("near"))
            workers = Here(dealt, recipe)
            self.supplies = [
                Supply(n, len(own), workers, self.copies, self.writers["train"], 3, 1, state and state["supplies"][n])
                for n, own in enumerate(dealt)
            ]
            progress = tried.enter_context(Progress(None, None))
            splits = Splits("documents", 0.1, 0.0, 16)
            self.assembly = Assembly(self.supplies, sources, splits, self.writers, progress, state.get("assembly"))
            self._opened = tried.pop_all()

    def commit(self):
        return {
            "near": self.copies.commit(),
            "writers": {name: writer.commit() for name, writer in self.writers.items()},
            "supplies": [supply.state() for supply in self.supplies],
            "assembly": self.assembly.state(),
        }

    def leave(self):
        """What a kill leaves: nothing is finished, nothing is tidied up."""
        self._opened.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    def take(self, n):
        """Takes some documents of the first source, writing each as the assembly does."""
        taken = []
        while len(taken) < n and (document := self.supplies[0].current()):
            taken.append((document.ids.tolist(), *document[1:]))
            self.writers["train"].add(document.ids, 0, document.hash)
            self.supplies[0].advance()
        return taken


def test_a_supply_goes_on_behind_any_document_in_every_pass(passes, alike):
    whole = passes("whole")
    expected = whole.take(1000)
    dropped, report = whole.supplies[0].all_dropped(), whole.supplies[0].report.to_json()
    whole.leave()
    n = 14 if alike else 16
    assert [document[-1] for document in expected] == [0] * n + [1] * n + [2] * n
    assert dropped == {"copy": 3, "too short": 1} | ({"near copy": 2} if alike else {})
    for n in range(len(expected) + 1):
        first = passes(str(n))
        taken, committed = first.take(n), first.commit()
        first.take(3)  # not committed: as if it had never been
        first.leave()
        second = passes(str(n), committed)
        assert taken + second.take(1000) == expected
        assert second.supplies[0].all_dropped() == dropped
        assert second.supplies[0].report.to_json() == report
        second.leave()


def test_the_state_of_a_supply_is_the_same_after_it_was_taken_up(passes):
    for n in (0, 1, 5, 14, 20, 42):
        first = passes(str(n))
        first.take(n)
        committed = first.commit()
        first.leave()
        second = passes(str(n), committed)
        assert json.loads(json.dumps(second.commit())) == json.loads(json.dumps(committed))
        second.leave()


def test_a_pass_goes_on_from_any_commit_to_the_same_bins(passes, tmp_path, monkeypatch):
    monkeypatch.setattr("scratchlm.data.assembly.COMMIT_SECONDS", -1.0)
    whole, commits = passes("whole"), []
    whole.assembly.run(9_000, lambda: commits.append(whole.commit()))
    expected, end = bins(whole), whole.commit()
    whole.leave()
    assert len(commits) > 50
    for n, committed in enumerate(commits):
        folder = tmp_path / f"from-{n}"
        folder.mkdir()
        for path in (tmp_path / "whole").iterdir():  # longer than what was committed: the rest is cut off
            (folder / path.name).write_bytes(path.read_bytes())
        again = passes(folder.name, committed)
        again.assembly.run(9_000, lambda: None)
        assert bins(again) == expected
        assert json.loads(json.dumps(again.commit())) == json.loads(json.dumps(end))
        again.leave()


def bins(a_pass):
    return {name: (w.tokens.tolist(), w.documents.tolist()) for name, w in a_pass.writers.items()}


def test_a_copy_is_dropped_wherever_it_stands_also_after_a_kill(passes, alike):
    whole = passes("whole")
    whole.assembly.run(None, lambda: None)
    dropped = {"copy": 3, "too short": 1} | ({"near copy": 2} if alike else {})
    assert [supply.all_dropped() for supply in whole.supplies] == [dropped, dropped]
    hashes = [hash_ for writer in whole.writers.values() for _, _, hash_ in writer.documents.tolist()]
    assert max(Counter(hashes).values()) == 3  # passes, not copies
    whole.leave()


@pytest.fixture
def left(passes, tmp_path):
    """A pass that was left after a commit, with the commit; its log is `near.log` in `left`."""
    first = passes("left")
    first.take(6)
    committed = first.commit()
    first.take(4)
    first.leave()
    return committed


@pytest.mark.parametrize("alike", [0.7])
@pytest.mark.parametrize(
    "damage",
    [
        lambda log: log.unlink(),
        lambda log: log.write_bytes(log.read_bytes()[:100]),
        lambda log: log.write_bytes(bytes(log.stat().st_size)),
    ],
    ids=["gone", "cut", "zeroed"],
)
def test_a_log_of_near_copies_that_is_not_as_it_was_left_is_not_trusted(passes, left, tmp_path, damage):
    damage(tmp_path / "left" / "near.log")
    with pytest.raises(BrokenState, match=r"near\.log: not (there any more|as it was left)"):
        passes("left", left)


def test_a_log_that_no_commit_speaks_of_is_begun_anew(passes, left):
    second = passes("left")
    assert len(second.take(1000)) >= 42
    second.leave()


def test_a_block_of_copies_alone_gives_nothing_and_is_counted(passes):
    first = passes("new")
    first.take(1)
    block, dropped = first.supplies[0]._block, Counter()
    assert len(first.copies.new(block, dropped)) == 0
    assert dropped["copy"] == len(block.hashes)
    first.leave()
