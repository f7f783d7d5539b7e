"""The search for the largest micro-batch as laws on planted memories; attempts in real children; what is said."""

import json
import math
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest

from scratchlm.errors import BadValue
from scratchlm.training import fitting
from scratchlm.training.fitting import MARGIN, Attempt, Outcome, as_chosen, measure, search

GB = 10**9
GPT: dict[str, Any] = {
    "vocab_size": 300,
    "context_length": 32,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "d_ff": 64,
    "activation_checkpointing": False,
}
TINY = Attempt(GPT, "cpu", autocast=False)
DIVISORS_OF_480 = [n for n in range(1, 481) if 480 % n == 0]
MEMORIES: dict[str, Callable[[int], float]] = {
    "a line": lambda n: 3.0 + 0.1 * n,
    "a line that is steep": lambda n: 2.0 + 2.9 * n,
    "flat": lambda _n: 3.0,
    "bending up": lambda n: 3.0 + 0.05 * n**1.3,
    "bending down": lambda n: 3.0 + 0.9 * math.sqrt(n),
    "in stairs": lambda n: 2.0 + 2.0 * (n // 8),
    "a jump after the first": lambda n: 1.0 if n == 1 else 9.0 + 0.01 * n,
}


class Machine:
    """Attempts on a machine whose memory is `bytes_of(size)`; more than there is free is not seen, but refused."""

    def __init__(self, gigabytes_of: Callable[[int], float], free: float) -> None:
        self.gigabytes_of, self.free = gigabytes_of, free
        self.tried: list[int] = []

    def attempt(self, size: int) -> Outcome:
        self.tried.append(size)
        took = self.gigabytes_of(size)
        return Outcome(size, int(self.free * GB), None if took > self.free else int(took * GB), 0.1)

    def largest(self, sizes: list[int]) -> int:
        return max(size for size in sizes if self.gigabytes_of(size) <= self.free * (1 - MARGIN))


@pytest.mark.parametrize("free", [6.0, 12.0, 24.0, 1000.0])
@pytest.mark.parametrize("guess", [0.0, 0.1, 50.0], ids=["no guess", "a guess", "a guess too high"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_the_largest_that_fits_is_found_in_few_attempts(memory: str, guess: float, free: float) -> None:
    machine = Machine(MEMORIES[memory], free)
    found = search(DIVISORS_OF_480, machine.attempt, guess * GB)
    assert found.micro_batch_size == machine.largest(DIVISORS_OF_480)
    assert found.fits
    assert len(machine.tried) <= 8  # of 24 sizes


def test_a_line_with_a_fair_guess_takes_two_attempts_and_one_that_shows_there_is_no_more() -> None:
    machine = Machine(lambda n: 3.0 + 0.1 * n, 12.0)
    search(DIVISORS_OF_480, machine.attempt, 0.13 * GB)
    assert machine.tried == [1, 60, 80]


@pytest.mark.parametrize("seed", range(50))
def test_any_memory_that_rises_gives_the_largest_that_fits_and_nothing_is_tried_twice(seed: int) -> None:
    draw = random.Random(seed)
    sizes = sorted(draw.sample(range(1, 200), draw.randint(1, 20)))
    steps = [draw.choice([0.0, 0.01, 0.3, 2.0]) * draw.random() for _ in range(200)]
    needs = list(accumulate(steps, initial=1.0))
    machine = Machine(lambda n: needs[n], draw.uniform(1.2 * needs[sizes[0]], 1.3 * needs[sizes[-1]]))
    found = search(sizes, machine.attempt, draw.choice([0.0, 0.1, 1.0]) * GB)
    assert found.micro_batch_size == machine.largest(sizes)
    assert len(set(machine.tried)) == len(machine.tried)


def test_where_not_even_the_smallest_fits_nothing_else_is_tried() -> None:
    machine = Machine(lambda n: 13.0 * n, 12.0)
    assert not search([1, 2, 4], machine.attempt, 1.0).fits
    assert machine.tried == [1]


def test_what_fits_leaves_the_margin_free() -> None:
    fits = Outcome(4, 1000, int(1000 * (1 - MARGIN)), 1.0)
    assert fits.fits
    assert not replace(fits, peak_bytes=int(1000 * (1 - MARGIN)) + 1).fits
    assert not replace(fits, peak_bytes=None).fits


def test_an_attempt_in_a_child_measures_a_peak_and_the_free_memory() -> None:
    sized = replace(TINY, gpt=GPT | {"context_length": 256, "d_model": 128, "d_ff": 512}, micro_batch_size=16)
    outcome = measure(sized)
    assert outcome.fits
    assert outcome.peak_bytes is not None
    assert 1 / 2 < outcome.peak_bytes / sized.on_paper() < 2
    assert 0 < outcome.seconds < 300


_UNDER_A_LIMIT = """
import json, sys
from scratchlm.training.fitting import Attempt, measure
for attempt in json.load(sys.stdin):
    outcome = measure(Attempt(**attempt))
    print(json.dumps([outcome.free_bytes, outcome.peak_bytes, outcome.fits]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux refuses memory at a limit")
def test_an_attempt_that_is_refused_memory_does_not_fit_and_is_no_error() -> None:
    limit = 1200 * 2**20  # what torch itself holds is within it, with one thread

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    large = replace(TINY, gpt=GPT | {"d_model": 2048, "n_layers": 8, "d_ff": 8192})
    assert large.on_paper() > 2 * limit
    ended = subprocess.run(
        [sys.executable, "-c", _UNDER_A_LIMIT],
        input=f"[{json.dumps(vars(TINY))}, {json.dumps(vars(large))}]",
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lower,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    small, refused = (json.loads(line) for line in ended.stdout.splitlines())
    assert small[2]
    assert 0 < small[0] < limit
    assert refused[1:] == [None, False]
    assert 0 < refused[0] < limit


def test_an_attempt_that_fails_for_another_reason_is_an_error_that_shows_it() -> None:
    with pytest.raises(RuntimeError, match=r"ended with status 1:\n(?s:.*)(CUDA|cuda)"):
        measure(replace(TINY, device="cuda:99"))


def planted(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Machine:
    monkeypatch.setattr(fitting, "measure", lambda wanted: machine.attempt(wanted.micro_batch_size))
    return machine


def test_a_choice_says_what_was_tried_and_holds_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, Machine(lambda n: 3.0 + n, 10.0))
    chosen = as_chosen(None, TINY, [1, 2, 4, 8])
    assert chosen["sequences"] == 4
    assert (chosen["peak_bytes"], chosen["free_bytes"]) == (7 * GB, 10 * GB)
    assert json.loads(json.dumps(chosen)) == chosen
    said = capsys.readouterr().err
    assert "with 10% of the free memory kept back" in said
    assert "1 sequence at once took 4.00 GB of 10.00 GB free (0.1 s)" in said
    assert "8 sequences at once ran out of memory, 10.00 GB free (0.1 s)" in said
    assert said.splitlines()[-1].endswith("4 is the largest of 1, 2, 4, 8 that fits")


def test_a_run_that_goes_on_takes_what_it_chose_and_tries_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, Machine(lambda n: 3.0 + n, 10.0))
    chosen = json.loads(json.dumps(as_chosen(None, TINY, [1, 2, 4, 8])))
    other = planted(monkeypatch, Machine(lambda n: 3.0 + n, 100.0))
    capsys.readouterr()
    assert as_chosen(chosen, replace(TINY, micro_batch_size=7), [1, 2, 4, 8]) == chosen
    assert other.tried == []
    assert "4, as when the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"device": "cuda:0"}, "found anew: device is now cuda:0, was cpu"),
        ({"n_processes": 2}, "found anew: n_processes is now 2, was 1"),
        ({"autocast": True}, "found anew: autocast is now True, was False"),
        ({"gpt": GPT | {"activation_checkpointing": True}}, "activation_checkpointing is now True, was False"),
    ],
)
def test_a_run_that_goes_on_elsewhere_finds_it_anew_and_says_what_changed(
    changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, Machine(lambda n: 3.0 + n, 10.0))
    chosen = as_chosen(None, TINY, [1, 2, 4, 8])
    planted(monkeypatch, Machine(lambda n: 3.0 + n, 100.0))
    again = as_chosen(chosen, replace(TINY, **changed), [1, 2, 4, 8])
    assert again["sequences"] == 8
    assert said in capsys.readouterr().err


def test_a_batch_that_the_choice_does_not_divide_is_found_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, Machine(lambda n: 3.0 + n, 10.0))
    chosen = as_chosen(None, TINY, [1, 2, 4, 8])
    assert as_chosen(chosen, TINY, [1, 3, 9])["sequences"] == 3
    assert "found anew: the batch no longer divides by 4" in capsys.readouterr().err


def refusal(monkeypatch: pytest.MonkeyPatch, gigabytes: float, **gpt: Any) -> str:
    planted(monkeypatch, Machine(lambda n: gigabytes * n, 1.0))
    with pytest.raises(BadValue) as refused:
        as_chosen(None, replace(TINY, gpt=GPT | gpt), [1, 2])
    return str(refused.value)


@pytest.mark.parametrize(("gigabytes", "came"), [(0.95, "0.95 GB measured"), (2.0, "it ran out")])
def test_the_refusal_has_the_numbers_and_the_cures_in_order(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, came: str
) -> None:
    line = refusal(monkeypatch, gigabytes, d_model=1024, n_layers=4)
    assert line.startswith("data.micro_batch_size=auto: not even one sequence at once can be trained: ")
    computed = replace(TINY, gpt=GPT | {"d_model": 1024, "n_layers": 4}).on_paper() / GB
    less = replace(TINY, gpt=GPT | {"d_model": 1024, "n_layers": 4}).on_paper(activation_checkpointing=True) / GB
    parts = [
        f"{computed:.2f} GB computed",
        came,
        "cpu has 1.00 GB free, of which 10% is kept back",
        f"model.gpt.activation_checkpointing=true ({less:.2f} GB computed)",
        "data.context_length=32",
        "model.gpt.d_model=1024",
        "model.gpt.n_layers=4",
    ]
    places = [line.index(part) for part in parts]
    assert places == sorted(places)
    assert "\n" not in line


def test_the_refusal_names_no_cure_that_is_taken_already(monkeypatch: pytest.MonkeyPatch) -> None:
    line = refusal(monkeypatch, 2.0, activation_checkpointing=True)
    assert "activation_checkpointing" not in line
    assert "In this order: lower data.context_length=32, model.gpt.d_model=32 or model.gpt.n_layers=2." in line
