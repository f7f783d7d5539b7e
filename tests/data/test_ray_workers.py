"""With a real Ray cluster on this machine; skipped where Ray is not installed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scratchlm.data.block_files import BlockFiles
from scratchlm.data.blocks import Recipe
from scratchlm.data.preparation import Corpus
from scratchlm.data.ray_workers import RayWorkers, require_ray
from scratchlm.data.workers import Here
from scratchlm.errors import BadValue, UserError
from scratchlm.text.cleaning import parse_cleaning
from scratchlm.text.documents import parse_sources, parts
from scratchlm.text.hub import Access
from scratchlm.text.lanes import Lane, lanes
from scratchlm.text.parts import Chunk
from scratchlm.text.tokenizer import train

NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
N_FILES, N_DOCUMENTS = 6, 400
SMALL = {"vocab_size": 400, "context_length": 16, "shuffle_documents": 50, "total_tokens": 300_000}


@pytest.fixture(scope="module")
def cluster():
    """Two cores of this machine, shared by the tests: starting a cluster takes seven seconds."""
    import ray

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    signal.signal(signal.SIGTERM, on_sigterm)
    yield
    ray.shutdown()
    patch.undo()


@pytest.fixture
def text(tmp_path, story, write_jsonl):
    """A source of several files, whose lanes have several blocks each when they are shuffled by fifties."""
    for file in range(N_FILES):
        write_jsonl(f"text-{file}", [story(i, 60, seed=file) for i in range(N_DOCUMENTS)])
    return str(tmp_path / "text-*.jsonl")


@pytest.fixture
def corpus(tmp_path, text, story, write_jsonl):
    """Makes the same corpus, to be prepared in a folder."""
    other = write_jsonl("other", [story(i % 300, 20, seed=9) for i in range(400)])  # a quarter of it are copies

    def make(name, **settings):
        sources = {"text": {"uri": text, "weight": 3}, "other": other}
        return Corpus(str(tmp_path / name), sources, **SMALL | settings)

    return make


@pytest.fixture
def work(text):
    """The lanes of the source, and the recipe, for workers of any kind."""
    [source] = parse_sources({"text": text})
    dealt = [lanes("text", parts(source, Access(None, True, 0.0)), 1, 50)]
    tokenizer = train("bpe", ["sea wind old boat salt rope light"], 300, 2)
    return dealt, Recipe(parse_cleaning(None), [False], tokenizer.to_json(), "tokenizers", None)


def bins(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "prepare.lock"}


def all_blocks(workers, dealt):
    """Every block of the only source, its lanes in turn, and then the cursor behind it."""
    for lane in range(len(dealt[0])):
        workers.begin(0, lane, None)
    found = []
    for lane in range(len(dealt[0])):
        while True:
            workers.order(0, lane)
            if (made := workers.collect(0, lane)) is None:
                break
            found.append(made)
    return found


def assert_same_blocks(found, expected):
    assert len(found) == len(expected)
    for (block, behind), (other, other_behind) in zip(found, expected, strict=True):
        assert behind == other_behind
        assert block.report.to_json() == other.report.to_json()
        for name in ("ids", "offsets", "hashes", "sizes", "near_keys"):
            np.testing.assert_array_equal(getattr(block, name), getattr(other, name))


def wait_until(is_true, seconds=60):
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@NEEDS_RAY
def test_bins_are_the_same_bytes_from_one_process_from_two_and_from_ray(tmp_path, corpus, cluster):
    corpus("one", n_processes=1).prepare()
    corpus("two", n_processes=2).prepare()
    corpus("ray").prepare(executor="ray")
    expected = bins(tmp_path / "one")
    assert bins(tmp_path / "two") == expected
    assert bins(tmp_path / "ray") == expected


@NEEDS_RAY
def test_after_a_kill_ray_goes_on_to_the_same_bytes_and_so_do_local_processes(tmp_path, corpus, cluster):
    corpus("whole", n_processes=1).prepare()
    settings = corpus("killed")
    code = "from scratchlm.data.preparation import Corpus; import sys; "
    code += f"Corpus({settings.folder!r}, {settings.sources!r}, **{SMALL!r}).prepare(executor='ray')"
    blocks = tmp_path / "killed" / ".partial" / "blocks"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_until(lambda: process.poll() is not None or len(list(blocks.glob("*.block"))) >= 5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    settings.prepare(executor="ray")
    assert bins(tmp_path / "killed") == bins(tmp_path / "whole")


@NEEDS_RAY
def test_blocks_that_are_there_are_not_made_again_unless_they_are_damaged(tmp_path, work, cluster):
    dealt, recipe = work
    expected = all_blocks(Here(dealt, recipe), dealt)
    folder = tmp_path / "blocks"
    with RayWorkers(dealt, recipe, 2, folder, 1 << 30) as workers:
        for lane in range(len(dealt[0])):
            workers.begin(0, lane, None)
        workers.order(0, 0)
        wait_until(lambda: len(list(folder.glob("*.block"))) == len(expected))
    first, second, *_ = sorted(folder.glob("*.block"))
    damaged = bytearray(first.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    first.write_bytes(damaged)
    second.write_bytes(second.read_bytes()[:-1])
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.block")}
    with RayWorkers(dealt, recipe, 2, folder, 1 << 30) as workers:
        for lane in range(len(dealt[0])):
            workers.begin(0, lane, None)
        workers.order(0, 0)
        wait_until(lambda: all(path.stat().st_mtime_ns > times[path] for path in (first, second)))
    changed = {path for path in folder.glob("*.block") if path.stat().st_mtime_ns > times[path]}
    assert changed == {first, second}
    with RayWorkers(dealt, recipe, 2, folder, 1 << 30) as workers:
        assert_same_blocks(all_blocks(workers, dealt), expected)
        assert len(list(folder.glob("*.block"))) == len(expected)
        workers.committed()
        assert len(list(folder.glob("*.block"))) == 1  # the block in hand, which another process would begin with


@NEEDS_RAY
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in Linux's /proc")
def test_a_worker_that_is_killed_is_replaced_and_its_block_made_by_another(tmp_path, work, cluster, capfd):
    dealt, recipe = work
    expected = all_blocks(Here(dealt, recipe), dealt)
    with RayWorkers(dealt, recipe, 2, tmp_path / "blocks", 0) as workers:
        for lane in range(len(dealt[0])):
            workers.begin(0, lane, None)
        workers.order(0, 0)
        first = workers.collect(0, 0)
        for pid in pids_of_workers():
            os.kill(pid, signal.SIGKILL)
        found = all_blocks(workers, dealt)
    assert_same_blocks([first], expected[:1])
    assert_same_blocks(found, expected)
    assert "a Ray worker died" in capfd.readouterr().err


class Deadly:
    """A part that ends the process that reads it."""

    label = "deadly"

    def read(self, state=None):
        os.kill(os.getpid(), signal.SIGKILL)
        yield Chunk([], None)


@NEEDS_RAY
def test_a_block_over_which_workers_keep_dying_ends_the_work_in_one_line(tmp_path, work, cluster):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this test
    _, recipe = work
    with RayWorkers([[Lane([Deadly()], 50, [1, 1])]], recipe, 1, tmp_path / "blocks", 0) as workers:
        workers.begin(0, 0, None)
        workers.order(0, 0)
        with pytest.raises(UserError, match=r"ray: 3 workers died one after the other over one block \(.*\)"):
            workers.collect(0, 0)


@NEEDS_RAY
def test_what_is_wrong_with_a_source_is_said_in_the_same_line_as_without_ray(corpus, text, story, cluster, capfd):
    with Path(text.replace("*", "3")).open("a") as file:  # far behind what a tokenizer is trained on
        file.writelines(json.dumps({"text": story(i, 60, seed=20)}) + "\n" for i in range(4_000))
        file.write("{not JSON\n")
    lines = []
    for executor in ("local", "ray"):
        bad = corpus(f"bad-{executor}", n_processes=2, tokenizer_sample_bytes=50_000, total_tokens=None)
        with pytest.raises(BadValue) as caught:
            bad.prepare(executor=executor)
        lines.append(str(caught.value))
    assert "line 4,401 is not JSON" in lines[0]
    assert "2 Ray workers on 1 node" in capfd.readouterr().err
    assert lines[0] == lines[1]


@NEEDS_RAY
def test_an_address_at_which_no_cluster_answers_is_named(tmp_path, work, monkeypatch):
    code = "from scratchlm.data.ray_workers import _connect; _connect(1, 1)"
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:9"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "UserError: RAY_ADDRESS=127.0.0.1:9: cannot be joined ([Errno" in found.stderr


def test_without_ray_the_line_says_how_to_install_it(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadValue, match=r"--executor=ray: Ray is not installed.*pip install 'scratchlm\[ray\]'"):
        corpus("none").prepare(executor="ray")
    assert not (tmp_path / "none").exists()
    with pytest.raises(BadValue):
        require_ray()


def test_a_block_comes_back_from_its_file_as_it_was(tmp_path, work):
    dealt, recipe = work
    files = BlockFiles(tmp_path / "blocks")
    files.open()
    maker = Here(dealt, recipe)
    maker.begin(0, 0, None)
    cursor = None
    block, behind = maker.collect(0, 0)
    n_bytes = files.write(0, 0, cursor, block, behind)
    assert n_bytes == files.n_bytes(0, 0, cursor) > block.ids.nbytes
    assert_same_blocks([files.read(0, 0, cursor)], [(block, behind)])
    assert files.read(0, 0, behind) is None
    assert files.read(0, 1, cursor) is None
    files.remove(0, 0, cursor)
    assert files.read(0, 0, cursor) is None


def pids_of_workers():
    """Workers of the cluster that this process has started."""
    parents, workers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::_Maker"):
                workers.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return [pid for pid in workers if parents.get(parents[pid]) == os.getpid()]
