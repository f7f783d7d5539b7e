"""The page about a run, in a real browser and without."""

import json
import math
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.browser import CHROMIUM, Page
from tests.wandb_files import history, no_account

from scratchlm.errors import BadValue, MissingFile
from scratchlm.files.journal import Journal
from scratchlm.training.environment import environment
from scratchlm.training.report import page, report
from scratchlm.training.run_charts import thinned
from scratchlm.training.run_log import read_metrics

TOKENS_PER_STEP = 524_288
HOSTILE = "</script></div><script>window.canary = 1</script><img src=x onerror='window.canary = 1'><!-- {{data}} &lt;b>"
PROMPTS = ["", "Once upon a time", "The history of", HOSTILE]
BEGAN = 1_700_000_000.0


def train_loss(step: int) -> float:
    return 2 + 7 * math.exp(-step / 60) + 0.1 * math.sin(step)


def write_run(folder: Path, steps: int = 300) -> Path:
    """A run of three attempts: killed at step 120, on from 100 with another rate, stopped by SIGTERM at 180, finished.

    Steps 115 (given up later) and 135 were skipped, at 210 was a spike, and in the second attempt the clock was set
    back by a day.
    """
    metrics, events, samples = (Journal(folder / f"{name}.jsonl") for name in ("metrics", "events", "samples"))
    changed = {"model.learning_rate": [0.0018, 0.0009]}
    facts = {**environment(), "torch": "2.12.0"}
    documents = [{"source": "tales", "document": 1200 + i, "hash": "00ff", "tokens": 40} for i in range(9)]
    sequences = [{"sequence": number, "at": 33 * number, "documents": documents} for number in range(70, 90)]
    for attempt, (first, last) in enumerate([(1, 120), (101, 180), (181, steps)], 1):
        clock = BEGAN + attempt * 1000
        checkpoint = f"step-{first - 1:08d}.ckpt" if first > 1 else None
        start = {"checkpoint": checkpoint, "changed": changed if attempt == 2 else {}, "environment": facts}
        events.append({"kind": "start", "step": first - 1, "time": clock, **start})
        for step in range(first, last + 1):
            clock += 0.5 if not (attempt == 2 and step == 150) else -86_400
            marks = {"attempt": attempt, "step": step, "tokens": step * TOKENS_PER_STEP, "time": clock}
            if (attempt, step) in ((1, 115), (2, 135)):
                events.append({"kind": "skipped", "step": step, "time": clock, "sequences": sequences})
                metrics.append(marks | {"train/loss": None, "train/gradient_norm": math.nan})
                continue
            rates = {"train/gradient_norm": 1 + step % 7, "train/learning_rate": 0.0018 / attempt}
            figures = {"tokens_per_second": 1e6 + step, "mfu": 0.4, "memory_bytes": 7e10, "data_wait_fraction": 0.001}
            measured = {f"throughput/{name}": value for name, value in figures.items()}
            metrics.append(marks | {"train/loss": train_loss(step)} | rates | measured)
            if step % 10 == 0:
                losses = {"val/loss": train_loss(step) + 0.1, "val/tales/loss": 3.0, f"val/{HOSTILE}/loss": 5.0}
                metrics.append(marks | losses)
                for prompt in PROMPTS:
                    completion = HOSTILE if prompt == HOSTILE else f" there was a {prompt.lower()} at step {step}. " * 5
                    samples.append({"step": step, "tokens": 0, "prompt": prompt, "completion": completion})
            if step == 210:
                worst = [sequences[0] | {"loss": 11.5, "text": HOSTILE}]
                events.append({"kind": "spike", "step": step, "time": clock, "loss": 9.5, "usual": 3.1, "worst": worst})
        if attempt == 2:
            events.append({"kind": "stop", "step": last, "time": clock, "signal": "SIGTERM", "saved": True})
        facts = environment()
    events.append({"kind": "end", "step": steps, "time": clock})
    source = {"name": "tales", "uri": "tales.txt", "licence": None, "revision": None, "documents": {"train": 90_000}}
    shares = {"asked_share": 1.0, "achieved_share": 0.987, "repetitions": 1.5, "dropped": {"too short": 17}}
    manifest = {"card": {"sources": [source | shares | {"tokens": {"train": 1_234_567, "val": 890}}]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(
        f"data:\n  folder: {folder}\ntrainer:\n  max_steps: {steps}\nnote: {HOSTILE!r}\n"
    )
    for journal in (metrics, events, samples):
        journal.close()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("a-run"))


@pytest.fixture(scope="module")
def report_page(run: Path) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    report(str(run))
    with Page() as opened:
        yield opened


@pytest.fixture(scope="module")
def shown_page(report_page: Page, run: Path) -> Page:
    """Shown once for all tests that only look at it."""
    report_page.show(run / "report.html")
    return report_page


def is_blank(png: bytes) -> bool:
    position, pixels = 8, b""
    while position < len(png):
        length, kind = int.from_bytes(png[position : position + 4]), png[position + 4 : position + 8]
        pixels += png[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        position += 12 + length
    return len(set(zlib.decompress(pixels))) < 50


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 400)])
def test_the_page_shows_the_run_in_a_browser(report_page: Page, run: Path, scheme: str, width: int) -> None:
    report_page.requests.clear()
    report_page.show(run / "report.html", width=width, scheme=scheme)
    assert report_page.complaints == []
    assert report_page.requests == [(run / "report.html").as_uri()]
    assert report_page.run("document.documentElement.scrollWidth <= innerWidth")
    background = report_page.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(246, 247, 249)") == (scheme == "light")
    assert not is_blank(report_page.picture())

    points = "path => path.getAttribute('d').split('L').length"
    curves = report_page.run(f"[...document.querySelectorAll('.chart.wide .curve')].map({points})")
    assert curves == [299, 30]  # a step of training was skipped
    counts = "(name) => [...document.querySelectorAll('.chart')].map(chart => chart.querySelectorAll(name).length)"
    charts = report_page.run(f"({counts})('.curve')")
    assert charts == [2, 2, 1, 1, 1, 1, 1, 1]
    assert report_page.run(f"({counts})('.resume')") == [2] * len(charts)
    assert report_page.run(f"({counts})('.skipped')") == [1] * len(charts)
    assert report_page.run(f"({counts})('.spike')") == [1] * len(charts)


def test_the_mouse_reads_values_off_the_curves(shown_page: Page) -> None:
    x, y, width = shown_page.run(
        "(({x, y, width}) => [x, y, width])(document.querySelector('.chart > div > svg').getBoundingClientRect())"
    )
    assert shown_page.run("document.querySelector('.tooltip').hidden")
    shown_page.point_at(x + 54 + (width - 54 - 14) * 200 / 300, y + 100)
    text = shown_page.run("document.querySelector('.tooltip').innerText")
    assert f"step 200 · {200 * TOKENS_PER_STEP / 1e6:.3f}M tokens" in text
    assert f"train {float(f'{train_loss(200):.6g}')}" in text
    shown_page.point_at(x + 54 + (width - 54 - 14) * 100 / 300, y + 100)
    text = shown_page.run("document.querySelector('.tooltip').innerText")
    assert "attempt 2, from step 100: model.learning_rate 0.0018 → 0.0009" in text


def test_the_axes_can_be_changed(shown_page: Page) -> None:
    texts = "[...document.querySelectorAll('.chart.wide svg text')].map(text => text.textContent)"
    before = shown_page.run(texts)
    assert "300" in before
    shown_page.run("axis.value = 'tokens', axis.dispatchEvent(new Event('change'))")
    assert "140M" in shown_page.run(texts)
    heights = "[...document.querySelectorAll('.chart.wide .grid')].map(line => line.getAttribute('y1'))"
    linear = shown_page.run(heights)
    shown_page.run("log.click()")
    assert shown_page.run(heights) != linear


def test_no_text_of_the_run_becomes_a_part_of_the_page(shown_page: Page) -> None:
    shown = "[...document.querySelectorAll('#samples td')].filter(cell => cell.textContent === said).length"
    assert shown_page.run(f"(said => {shown})({json.dumps(HOSTILE)})") == 30
    assert HOSTILE in shown_page.run("document.querySelector('#samples tbody tr:last-child th').textContent")
    assert HOSTILE in shown_page.run("[...document.querySelectorAll('.legend')].map(l => l.textContent).join()")
    assert shown_page.run("document.body.textContent.split('window.canary').length") > 60
    assert shown_page.run("document.images.length") == 0
    assert shown_page.run("window.canary === undefined")
    assert shown_page.complaints == []


def test_thirty_validations_of_four_prompts_stay_side_by_side(shown_page: Page) -> None:
    rows = shown_page.run("[...document.querySelectorAll('#samples tr')].map(row => row.children.length)")
    assert rows == [31] * 5
    box = "document.querySelector('#samples').parentElement"
    assert shown_page.run(f"{box}.scrollWidth > 5 * {box}.clientWidth")
    # The newest is in sight, and so is the prompt.
    assert (
        shown_page.run("document.querySelector('#samples tr:last-child td:last-child').getBoundingClientRect().x") > 0
    )
    assert shown_page.run("document.querySelector('#samples tr:last-child th').getBoundingClientRect().x") > 0


def test_an_empty_run_is_a_page_without_an_error(report_page: Page, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    report(str(tmp_path))
    report_page.show(tmp_path / "report.html")
    assert report_page.complaints == []
    assert "No step was logged yet." in report_page.run("document.body.textContent")


def test_the_page_tells_attempts_events_corpus_and_environment(run: Path) -> None:
    shown = page(run)
    for said in (
        "<p class='state finished'>finished</p>",
        "300 of 300",
        f"{300 * TOKENS_PER_STEP:,}",
        f"{min(line['val/loss'] for line in read_metrics(run) if 'val/loss' in line):.4f} at step 300",
        "no end recorded: killed or failed",
        "stopped by SIGTERM at step 180",
        "step-00000100.ckpt",
        "77: tales 1200, tales 1201, tales 1202, tales 1203, tales 1204, tales 1205 and 3 more",
        "and 12 more sequences in events.jsonl",
        "spike at step 210: 9.5 (usual: 3.1)",
        "70, loss 11.5: tales 1200",
        "<td>1,234,567</td>",
        "<td>98.7%</td>",
        "17 too short",
        f"2.12.0 → {environment()['torch']}",
    ):
        assert said in shown, said
    assert "step 115" not in shown  # that step was done anew
    # 120, 80 and 120 steps of half a second, but for the one in which the clock was set back
    assert "<dd>2 min 40 s</dd>" in shown


def test_a_run_that_goes_on_is_not_called_finished(tmp_path: Path) -> None:
    write_run(tmp_path)
    lines = (tmp_path / "events.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "events.jsonl").write_text("".join(lines[:-1]))
    assert "<p class='state open'>no end recorded: killed, failed, or still at work</p>" in page(tmp_path)


def keep_only(folder: Path, *names: str) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (["metrics.jsonl"], ["events.jsonl: there is none.", "No samples.", "No config.yaml.", "no end recorded"]),
        (["events.jsonl"], ["metrics.jsonl: there is none.", "No step was logged yet.", "finished"]),
        (["config.yaml"], ["nothing done yet", "No attempt has written anything yet.", "No card"]),
        (["samples.jsonl"], ["step 300", "No step was logged yet."]),
    ],
)
def test_a_part_of_a_run_is_a_page_that_says_what_is_missing(tmp_path: Path, kept: list[str], said: list[str]) -> None:
    keep_only(write_run(tmp_path), *kept)
    shown = page(tmp_path)
    for words in said:
        assert words in shown


def test_damaged_lines_are_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[4:7] = [b'{"attempt": 1, "st', b"7", b'{"attempt": 1, "step": "six", "tokens": 1, "time": 1}']
    path.write_bytes(b"\n".join(lines) + b'{"half a li')
    (tmp_path / "config.yaml").write_text("a: [")
    shown = page(tmp_path)
    assert "metrics.jsonl: damaged and left out: line 5, 6." in shown
    assert "metrics.jsonl: 1 lines lack one of" in shown
    assert "config.yaml: no valid YAML." in shown


def test_the_card_comes_out_of_the_checkpoint_where_the_bins_are_gone(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=2)
    trainer.fit(tiny.tiny_task(), tiny.TinyData())
    shown = page(tmp_path)
    assert "<td>tales.txt</td>" in shown
    assert "From step-00000002.ckpt." in shown
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    assert "No card: " in page(tmp_path)


def test_a_folder_without_a_run_is_refused(command: Callable[..., None], tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        command("report", "--run", str(tmp_path))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"scratchlm: error: --run={tmp_path}: no run there")
    with pytest.raises(MissingFile, match="nowhere: no run there"):
        report(str(tmp_path / "nowhere"))


def test_a_page_takes_no_torch(run: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from scratchlm.training.report import report; report(*sys.argv[1:]); print('torch' in sys.modules)"
    )
    output = tmp_path / "sub" / "page.html"
    said = subprocess.check_output([sys.executable, "-c", script, str(run), str(output)], text=True)
    assert said.splitlines() == [str(output), "False"]
    assert output.exists()


def test_a_thinned_curve_keeps_its_ends_and_every_peak() -> None:
    values = [math.sin(i / 1000) for i in range(200_000)]
    values[12_345], values[123_456] = 50.0, -50.0
    kept = thinned(values, 2000)
    assert len(kept) <= 2000
    assert list(kept) == sorted(set(kept))
    assert {0, 12_345, 123_456, 199_999} <= set(kept)
    assert list(thinned(values[:2000], 2000)) == list(range(2000))


def test_a_long_run_is_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    names = ("train/loss", "train/gradient_norm", "throughput/mfu")
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 20_001):
            figures = dict.fromkeys(names, 1 / step)
            file.write(json.dumps({"attempt": 1, "step": step, "tokens": step, "time": step} | figures) + "\n")
    assert len(page(tmp_path)) < 300_000


def test_environment_names_versions_and_machine_but_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment()
    assert set(found) >= {"scratchlm", "python", "torch", "lightning", "system", "cpu", "cores", "memory"}
    assert all(type(value) is str and value for value in found.values())


def test_a_new_wandb_run_is_written_out_of_the_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_account(monkeypatch, tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(BadValue, match="WANDB_MODE=disabled turns W&B off"):
        report(str(run), wandb=True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    report(str(run), wandb=True)
    [folder] = (run / "wandb").glob("offline-run-*")
    rows = history(folder)
    losses = [(row["tokens"], row["train/loss"]) for row in rows if row.get("train/loss") is not None]
    truth = [(line["tokens"], line["train/loss"]) for line in read_metrics(run) if line.get("train/loss")]
    assert losses == truth
    assert sum("samples/completions/path" in row for row in rows) == 30
    assert rows[0]["_timestamp"] == pytest.approx(BEGAN + 1000.5)
