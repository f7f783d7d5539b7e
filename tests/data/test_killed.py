"""However `prepare` is stopped, the same command goes on and ends with the same bytes. Real processes, real signals."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tests.data.dying import contents

from scratchlm.data.preparation import Corpus
from scratchlm.text.tales import tales

CLEANING = ["unicode", "whitespace", {"length": {"min_characters": 10}}]
SMALL = {"vocab_size": 300, "context_length": 16, "cleaning": CLEANING, "val_fraction": 0.05, "shuffle_documents": 10}

# The command itself, with files no larger than so many bytes: writing more is refused as it is on a full disk.
FULL = """
import resource, sys
from scratchlm.cli import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""

# The command itself, but that it commits behind every document; that it is killed some seconds after it has renamed so
# many files (-1: never), a moment that does not depend on how busy the machine is; and that the disk may be slow.
COMMAND = """
import os, signal, sys, threading, time
from scratchlm.cli import main
from scratchlm.data import assembly
assembly.COMMIT_SECONDS = 0.0
left, seconds, slow = int(sys.argv.pop(1)), float(sys.argv.pop(1)), float(sys.argv.pop(1))
rename = os.replace
def counted_rename(*paths):
    global left
    time.sleep(slow)
    rename(*paths)
    left -= 1
    if not left:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
os.replace = counted_rename
main()
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "bins"


@pytest.fixture
def two(write_jsonl, story):
    """Two local sources; the first is dry early."""
    return {
        "a": write_jsonl("a", [story(i, 15, 1) for i in range(12)]),
        "b": {"uri": write_jsonl("b", [story(i, 30, 2) for i in range(20)]), "weight": 2},
    }


@pytest.fixture
def mixed(hub, write_jsonl, story):
    """Sources of every kind that travels: three from the hub, one file."""
    return {
        "wiki": "hf://Salesforce/wikitext/wikitext-103-raw-v1",
        "web": {"uri": "hf://HuggingFaceFW/fineweb/sample-10BT", "weight": 2},
        "tales": "hf://roneneldan/TinyStories",
        "file": write_jsonl("file", [story(i, 25, 3) for i in range(150)]),
    }


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `scratchlm prepare`, in a process group of its own as a shell would."""
    started = []

    def run(folder, sources, n_renames=-1, seconds=0.0, slow=0.0, **settings):
        words = words_of(folder, sources, **settings)
        command = [sys.executable, "-c", COMMAND, str(n_renames), str(seconds), str(slow), *words]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if process.stderr and not process.stderr.closed:
            process.communicate()


def words_of(folder, sources, **settings):
    settings = SMALL | {"folder": str(folder), "sources": sources} | settings
    return ["prepare", *(f"--data.{key}={json.dumps(value).strip(chr(34))}" for key, value in settings.items())]


def group(process: subprocess.Popen[str]) -> set[int]:
    """The processes that the process has started and that live."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    found = {int(pid) for pid, of, state in rows if int(of) == process.pid and not state.startswith("Z")}
    return found - {process.pid}


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def committed_tokens(folder: Path) -> int:
    try:
        return json.loads((folder / ".partial" / "commit.json").read_bytes())["writers"]["train"]["tokens"]
    except (OSError, ValueError):
        return 0


def went_on_from(said: str) -> int | None:
    found = re.search(r"going on from ([\d,]+) tokens, where prepare was stopped", said)
    return int(found[1].replace(",", "")) if found else None


def finished(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize("n_kills", [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3_000)])])
def test_kills_at_random_moments_change_nothing(start, mixed, folder, tmp_path, n_kills):
    settings = {"total_tokens": 110_000, "n_processes": 2}
    finished(start(tmp_path / "whole", mixed, **settings))
    whole = contents(tmp_path / "whole")
    card = json.loads((tmp_path / "whole" / "manifest.json").read_text())["card"]
    assert max(source["passes"] for source in card["sources"]) > 1
    n_commits = sum(sum(source["documents"].values()) * source["repetitions"] for source in card["sources"])
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments, kills, kept = random.Random(seed), 0, []
    while kills < n_kills:
        shutil.rmtree(folder, ignore_errors=True)
        before = 0
        while True:
            when = (moments.randrange(1, round(n_commits / 5)), moments.uniform(0, 0.02)) if kills < n_kills else ()
            process = start(folder, mixed, *when, **settings)
            said = process.communicate(timeout=120)[1]
            wait_for(lambda process=process: not group(process), 30)
            now = went_on_from(said)
            if now is None:  # nothing was kept yet, or all was finished
                assert not before or "encoding with" not in said, said
            else:
                assert now >= before, said
                before = now
                kept.append(now)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, said
            kills += 1
        assert contents(folder) == whole
    assert len(set(kept)) >= 5, kept


@pytest.fixture
def begun(start, mixed, folder):
    """A `prepare` in three processes that has committed some of its work and is far from its end."""

    def begin():
        process = start(folder, mixed, total_tokens=40_000, n_processes=3, slow=0.02)
        wait_for(lambda: committed_tokens(folder) > 4_000, 60)
        return process

    return begin


@pytest.fixture
def goes_on(mixed, folder, tmp_path, capfd):
    """Prepares once more and makes sure that it went on, and that its bins are those of a quiet run."""

    def go_on():
        capfd.readouterr()
        Corpus(str(folder), mixed, total_tokens=40_000, n_processes=1, **SMALL).prepare()
        assert (went_on_from(capfd.readouterr().err) or 0) > 4_000
        Corpus(str(tmp_path / "whole"), mixed, total_tokens=40_000, n_processes=1, **SMALL).prepare()
        assert contents(folder) == contents(tmp_path / "whole")

    return go_on


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        (lambda process: process.send_signal(signal.SIGTERM), -signal.SIGTERM, None),
        (lambda process: os.killpg(process.pid, signal.SIGINT), 130, "scratchlm: interrupted"),
        (
            lambda process: os.kill(min(group(process)), signal.SIGKILL),
            2,
            "scratchlm: error: data.n_processes: a process that was preparing text has been killed, most likely for "
            "want of memory. Lower data.n_processes and run again: it goes on from where it stopped.",
        ),
    ],
    ids=["SIGTERM", "Ctrl-C", "a worker killed"],
)
def test_a_stopped_prepare_ends_at_once_in_one_line_and_goes_on(begun, goes_on, how, status, said):
    process = begun()
    assert len(group(process)) == 2
    how(process)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == status
    assert "Traceback" not in told
    assert said is None or told.rstrip().splitlines()[-1] == said
    wait_for(lambda: not group(process), 5)
    goes_on()


def test_ctrl_c_while_processes_start_is_one_line(start, folder, mixed):
    process = start(folder, mixed, n_processes=4)
    wait_for(lambda: len(group(process)) == 3)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Traceback" not in told
    wait_for(lambda: not group(process), 5)


def test_ctrl_c_while_the_hub_hangs_ends_at_once(start, folder, mixed, hub):
    hub.faults.hang_every, hub.faults.hang_seconds = 1, 3.0
    process = start(folder, mixed, n_processes=1)
    wait_for(lambda: hub.n_data_requests)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Traceback" not in told


def test_a_second_prepare_in_the_folder_is_refused_and_a_dead_ones_lock_is_taken_over(begun, start, folder, mixed):
    first = begun()
    second = start(folder, mixed, total_tokens=40_000)
    told = second.communicate(timeout=60)[1]
    assert second.returncode == 2
    host = json.loads((folder / "prepare.lock").read_text())["host"]
    assert told.splitlines()[-1] == (
        f"scratchlm: error: {folder}: in use by process {first.pid} on {host}. Wait for it or name another folder."
    )
    first.kill()
    first.communicate()
    finished(start(folder, mixed, total_tokens=40_000))


def dying(folder, settings, old=None, torn=False):
    """What `dying.py` tells of each kill; the first is of the old bins where there are some, the last of no kill."""
    asked = json.dumps({"folder": str(folder), "settings": settings, "old": old, "torn": torn})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    script = [sys.executable, "-m", "tests.data.dying", asked]
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_kill_at_any_call_leaves_the_old_bins_or_none_and_the_same_command_goes_on(folder, two, write_jsonl, story):
    near = [f"{story(i, 30, 2)} Or so it was told." for i in range(0, 20, 3)]
    two["a"] = {"uri": two["a"], "weight": 4}  # so that it is repeated
    two["near"] = {"uri": write_jsonl("near", [*near, *(story(i, 30, 4) for i in range(8))]), "weight": 2}
    settings = SMALL | {"sources": two, "n_processes": 1, "shuffle_documents": 5, "near_duplicates": 0.7}
    old = settings | {"seed": 2, "test_fraction": 0.1}
    old, *kills, whole = dying(folder, settings | {"tokenizer": "char", "total_tokens": 6_500}, old)
    new = whole["end"]
    assert set(new) == {f"{split}.{kind}" for split in ("train", "val") for kind in ("bin", "docs.npy")} | {
        "tokenizer.json",
        "manifest.json",
    }
    assert [kill for kill in kills if kill["end"] != new] == []
    calls, taken = [kill["call"] for kill in kills], [kill["taken"] for kill in kills]
    begun = calls.index(f"os.remove {folder}/train.bin") + 1
    moved = calls.index(f"os.rename {folder}/.partial/manifest.json") + 1
    assert all(files == old["end"] for files in taken[:begun])
    assert all(files is None for files in taken[begun:moved])
    assert all(files == new for files in taken[moved:])
    went_on = [kill["from"] for kill in kills if kill["from"]]
    assert went_on == sorted(went_on)
    assert len(set(went_on)) > 20
    card = json.loads((folder / "manifest.json").read_text())["card"]
    assert sum(source["dropped"].get("near copy", 0) for source in card["sources"]) > 3
    train = np.load(folder / "train.docs.npy")
    assert len(train) - len(set(train["hash"].tolist())) > 3  # so there were kills in a repeated pass, too


def test_a_kill_while_any_file_is_written_changes_nothing(folder, two):
    settings = SMALL | {"sources": two, "n_processes": 1, "total_tokens": 900, "split": "tail", "val_fraction": 0.2}
    *kills, whole = dying(folder, settings, torn=True)
    torn = {Path(kill["call"]).name.removeprefix(".").partition(".partial")[0] for kill in kills}
    assert torn == {"plan.json", "vocab.json", "merges.txt", "tokenizer.json", "commit.json.new", "manifest.json"}
    assert [kill for kill in kills if kill["end"] != whole["end"] or kill["taken"]] == []


@pytest.fixture
def half_made(folder, two):
    """The folder of a `prepare` that was killed in the middle; gives the settings of its command."""
    settings = SMALL | {"sources": two, "n_processes": 1, "total_tokens": 1_500}
    script = (
        "import os, sys, json, tests.data.dying as dying\n"
        "dying.assembly.COMMIT_SECONDS = 0\n"
        "dying.die_at(20, sys.argv[1], dying.Path(os.devnull), torn=True)\n"
        "dying.Corpus(sys.argv[1], **json.loads(sys.argv[2])).prepare()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(folder), json.dumps(settings)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, env=environment).returncode == -signal.SIGKILL
    assert committed_tokens(folder) > 500
    return settings


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def zero(path):
    size = path.stat().st_size
    cut(path)
    os.truncate(path, size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


ANEW = "Beginning the bins anew."
DAMAGES = [
    *((name, damage, ANEW) for name in ("train.bin", "val.bin") for damage in (cut, zero, flip, os.remove)),
    *(("train.docs.npy", damage, ANEW) for damage in (cut, zero, os.remove)),
    *(("commit.json", damage, None) for damage in (cut, zero, os.remove)),
    *(("plan.json", damage, None) for damage in (cut, zero, os.remove)),
    *(("tokenizer.json", damage, "tokenizer not as it was left") for damage in (cut, zero, flip, os.remove)),
    *(
        (name, damage, "tokenizer not as it was left")
        for name in ("vocab.json", "merges.txt")
        for damage in (cut, flip)
    ),
]


def test_whatever_a_power_cut_left_of_a_file_the_same_command_ends_with_the_same_bytes(
    half_made, folder, tmp_path, capfd
):
    Corpus(str(tmp_path / "whole"), **half_made).prepare()
    shutil.copytree(folder, tmp_path / "left")
    for name, damage, said in DAMAGES:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "left", folder)
        damage(folder / ".partial" / name)
        capfd.readouterr()
        Corpus(str(folder), **half_made).prepare()
        told = capfd.readouterr().err
        assert went_on_from(told) is None, (name, damage)
        assert said is None or said in told, (name, damage)
        assert contents(folder) == contents(tmp_path / "whole"), (name, damage)


def test_what_was_written_behind_the_last_commit_is_cut_off(half_made, folder, tmp_path, capfd):
    for name in ("train.bin", "val.docs.npy"):
        with (folder / ".partial" / name).open("ab") as file:
            file.write(b"half a rec")
    Corpus(str(folder), **half_made).prepare()
    assert went_on_from(capfd.readouterr().err)
    Corpus(str(tmp_path / "whole"), **half_made).prepare()
    assert contents(folder) == contents(tmp_path / "whole")


def append_a_row(two):
    with open(two["a"], "a") as file:
        file.write('{"text": "one more row, which was not there before"}\n')


def touch(two):
    os.utime(two["a"])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"vocab_size": 290},
        {"tokenizer": "char"},
        {"total_tokens": 1_400},
        {"context_length": 20},
        {"cleaning": ["unicode"]},
        {"shuffle_documents": 3},
        append_a_row,
        touch,
    ],
    ids=str,
)
def test_other_settings_or_files_begin_anew(half_made, folder, two, tmp_path, capfd, change):
    if callable(change):
        change(two)
    else:
        half_made |= change
    Corpus(str(folder), **half_made).prepare()
    told = capfd.readouterr().err
    assert went_on_from(told) is None
    assert f"scratchlm: {folder}: holds unfinished bins, made with another " in told
    Corpus(str(tmp_path / "whole"), **half_made).prepare()
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_another_number_of_processes_goes_on(half_made, folder, tmp_path, capfd, n_processes):
    Corpus(str(folder), **half_made | {"n_processes": n_processes}).prepare()
    assert went_on_from(capfd.readouterr().err)
    Corpus(str(tmp_path / "whole"), **half_made).prepare()
    assert contents(folder) == contents(tmp_path / "whole")


def test_fresh_with_other_settings_after_a_kill_while_publishing_heeds_them(half_made, folder, capfd):
    Corpus(str(folder), **half_made).prepare()
    (folder / ".partial").mkdir()
    for name in ("manifest.json", "val.bin"):
        os.replace(folder / name, folder / ".partial" / name)
    shutil.copytree(folder, folder.with_name("again"))
    capfd.readouterr()
    assert Corpus(str(folder), **half_made).prepare(fresh=True)["settings"]["seed"] == 1
    assert "encoding with" not in capfd.readouterr().err  # they were only moved into place
    settings = half_made | {"folder": str(folder.with_name("again")), "seed": 2}
    assert Corpus(**settings).prepare(fresh=True)["settings"]["seed"] == 2


IN_THE_FOLDER = r"{folder}: no space left; about [\d,]+ bytes more are needed, and [\d,]+ are free\. .* it goes on from"
AT_A_FILE = (
    r"{folder}/%s: no space left to write it \([\d,]+ bytes written, [\d,]+ bytes free there\)\. "
    r"Make space and run again\."
)


@pytest.mark.parametrize(
    ("settings", "said_at"),
    [
        (
            {"tokenizer": "char", "total_tokens": 600},
            {
                0: r"\S+: no temporary file can be written \([\d,]+ bytes free\)\. Make space there",
                1_000: AT_A_FILE % r"\.partial/plan\.json",
                2_700: IN_THE_FOLDER,  # at commit.json
                5_500: IN_THE_FOLDER,  # at manifest.json
            },
        ),
        (
            {"total_tokens": 40_000, "vocab_size": 1_000},
            {
                3_000: r"\S+: no space left \([\d,]+ bytes free\)\. Make space there",  # at the trainer's own file
                12_000: AT_A_FILE % r"\.partial/vocab\.json",
                20_000: AT_A_FILE % r"\.partial/tokenizer\.json",
                60_000: IN_THE_FOLDER,  # at train.bin
            },
        ),
    ],
    ids=["char", "bpe"],
)
def test_a_disk_that_is_full_in_any_phase_is_one_line_and_the_same_command_goes_on(
    folder, two, write_jsonl, tmp_path, settings, said_at
):
    two["c"] = write_jsonl("c", [text for text, _ in islice(tales(), 60)])
    Corpus(str(folder), two, **SMALL | {"seed": 2, "test_fraction": 0.1}).prepare()
    old = contents(folder)
    words = [*words_of(folder, two, n_processes=1, **settings), "--fresh=true"]
    for limit, said in said_at.items():
        done = subprocess.run([sys.executable, "-c", FULL, str(limit), *words], capture_output=True, text=True)
        told = done.stderr.splitlines()[-1]
        assert re.fullmatch(f"scratchlm: error: {said.format(folder=folder)}.*", told), (limit, told)
        assert done.returncode == 2
        assert {name: hash_ for name, hash_ in contents(folder).items() if not name.startswith(".partial/")} == old
    subprocess.run([sys.executable, "-c", FULL, str(10**9), *words], capture_output=True, check=True)
    Corpus(str(tmp_path / "whole"), two, **SMALL | settings).prepare()
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "settings",
    [
        {"shuffle_documents": 0},
        {"shuffle_documents": 7, "split": "tail", "val_fraction": 0.1, "total_tokens": 60_000},
        {"shuffle_documents": 30, "near_duplicates": 0.7},
    ],
    ids=str,
)
def test_the_bins_do_not_depend_on_the_number_of_processes(mixed, tmp_path, settings):
    if settings["shuffle_documents"]:  # else a block of it is large
        mixed["built in"] = {"uri": "builtin:tiny-tales", "weight": 0.5}
    made = []
    for n in (1, 2, 3):
        folder = tmp_path / str(n)
        settings = {"total_tokens": 30_000, "tokenizer_sample_bytes": 100_000} | settings
        Corpus(str(folder), mixed, n_processes=n, **SMALL | settings).prepare()
        made.append(contents(folder))
    assert made[0] == made[1] == made[2]
