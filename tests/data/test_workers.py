"""Whoever makes the blocks, they are the same; and whatever happens to a process, it is told in one line."""

import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from scratchlm.data.blocks import Recipe
from scratchlm.data.workers import Here, Processes, workers
from scratchlm.errors import BadValue, UserError
from scratchlm.text.cleaning import parse_cleaning
from scratchlm.text.documents import parse_sources, parts
from scratchlm.text.hub import Access
from scratchlm.text.lanes import Lane, lanes
from scratchlm.text.tokenizer import train


@pytest.fixture
def dealt(tmp_path, story, write_jsonl):
    """Lanes of two sources, of four files and of one."""
    for file in range(4):
        write_jsonl(f"one-{file}", [story(i, 20, file) for i in range(35)])
    sources = parse_sources(
        {"one": str(tmp_path / "one-*.jsonl"), "two": write_jsonl("two", [story(i, 20, 9) for i in range(25)])}
    )
    return [lanes(source.name, parts(source, Access()), 1, 10) for source in sources]


@pytest.fixture
def recipe():
    tokenizer = train("bpe", ["sea wind old boat salt rope light"], 300, 2)
    return Recipe(parse_cleaning(None), [False, False], tokenizer.to_json(), tokenizer.encoder, None)


def everything(made_by, dealt, cursors=None):
    """Lane -> its blocks with the cursors behind them; the orders of all lanes are mixed."""
    left = [(source, lane) for source, own in enumerate(dealt) for lane in range(len(own))]
    for key in left:
        made_by.begin(*key, (cursors or {}).get(key))
    found = {key: [] for key in left}
    while left:
        for key in left:
            made_by.order(*key)
        for key in list(left):
            made = made_by.collect(*key)
            if made is None:
                left.remove(key)
            else:
                block, cursor = made
                arrays = (block.ids, block.offsets, block.hashes, block.sizes, block.near_keys)
                found[key].append(([array.tolist() for array in arrays], block.report.to_json(), cursor))
    return found


def test_processes_make_the_blocks_that_this_process_makes(dealt, recipe):
    expected = everything(Here(dealt, recipe), dealt)
    assert [len(blocks) for blocks in expected.values()] == [4, 4, 4, 4, 3]
    with Processes(dealt, recipe, 2) as made_by:
        assert everything(made_by, dealt) == expected


def test_a_lane_goes_on_from_any_cursor_in_any_process(dealt, recipe):
    expected = everything(Here(dealt, recipe), dealt)
    for n in range(3):
        cursors = {key: blocks[n][2] for key, blocks in expected.items()}
        rest = {key: blocks[n + 1 :] for key, blocks in expected.items()}
        assert everything(Here(dealt, recipe), dealt, cursors) == rest
    with Processes(dealt, recipe, 3) as made_by:
        assert everything(made_by, dealt, cursors) == rest


def test_one_process_is_this_one(dealt, recipe):
    assert isinstance(workers(dealt, recipe, 1), Here)
    assert workers(dealt, recipe, 2).n == 2


@pytest.mark.parametrize(("n", "n_started"), [(2, 1), (3, 2), (5, 4)])
def test_the_number_of_processes_counts_this_one(dealt, recipe, n, n_started):
    expected = everything(Here(dealt, recipe), dealt)
    with Processes(dealt, recipe, n) as made_by:
        assert len(made_by._processes) == n_started
        assert everything(made_by, dealt) == expected


def test_what_a_source_has_to_say_comes_from_a_process_as_it_is(tmp_path, dealt, recipe):
    Path(tmp_path / "one-0.jsonl").write_text('{"body": "no text"}\n')
    said = r"^data\.sources\.one: .*one-0\.jsonl, line 1 has no column 'text'"
    with Processes(dealt, recipe, 3) as made_by, pytest.raises(BadValue, match=said):
        everything(made_by, dealt)


def test_a_bug_in_a_process_keeps_its_traceback(dealt, recipe):
    with Processes(dealt, recipe._replace(whole_files=[]), 3) as made_by, pytest.raises(IndexError) as caught:
        everything(made_by, dealt)
    assert "in _follow_orders" in "".join(caught.value.__notes__)


class Odd(Exception):
    """Cannot be unpickled: that would make it out of its text alone."""

    def __init__(self, what, why):
        super().__init__(f"{what} {why}")


class Bad(NamedTuple):
    """A part that cannot be read."""

    label: str

    def read(self, state=None):
        raise Odd("so", "it is")


def test_a_bug_whose_error_cannot_travel_is_told_all_the_same(recipe):
    dealt = [[Lane([Bad("bad")], 0, [1, 1])]]
    with Processes(dealt, recipe, 3) as made_by, pytest.raises(RuntimeError, match=r"^Odd: so it is\n") as caught:
        everything(made_by, dealt)
    assert 'raise Odd("so", "it is")' in "".join(caught.value.__notes__)


@pytest.mark.parametrize("begun", [False, True])
def test_a_killed_process_is_one_line_at_its_next_block_and_no_hang(dealt, recipe, begun):
    with Processes(dealt, recipe, 3) as made_by:
        if begun:
            made_by.begin(0, 1, None)
            made_by.order(0, 1)
            assert made_by.collect(0, 1)
        made_by._processes[1].kill()
        with pytest.raises(UserError, match=r"^data\.n_processes: a process .* has been killed"):
            everything(made_by, dealt)


def test_processes_end_with_the_block(dealt, recipe):
    with Processes(dealt, recipe, 3) as made_by:
        processes = made_by._processes
        assert [process.poll() for process in processes] == [None, None]
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
