import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from scratchlm.training.progress import fitted

FIGURES = {
    "step": "1,250/6,866",
    "loss": "loss 3.8123",
    "rate": "452,310 tokens/s",
    "mfu": "MFU 54.1%",
    "memory": "18.3 GB",
    "wait": "data wait 1%",
    "left": "2:13:05 left",
}


def run_on_terminal(script, folder, columns, *arguments):
    """What a terminal so wide is sent, as the lines that stand on it one after the other."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, script, str(folder), *arguments]
    with subprocess.Popen(command, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        sent = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not part:
                break
            sent += part
        os.close(ours)
    assert process.returncode == 0, sent.decode()
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Z]", "", sent.decode()))


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_a_bar_with_the_figures_is_no_wider_than_it(tiny, tmp_path, columns):
    # Spread over two seconds by validations, so that the bar is drawn now and then.
    lines = run_on_terminal(tiny.__file__, tmp_path, columns, "--steps", "30")
    bars = [line.split("`Trainer.fit`")[0] for line in lines if "%|" in line]
    assert len(bars) > 5
    assert {len(bar.rstrip()) for bar in bars} <= set(range(columns + 1))
    last = bars[-1]
    for part in (r"^100%\|█+\| 30/30  ", r"loss \d\.\d{4}", r"[\d,]+ tokens/s", r"MFU [\d.]+%", r"took 0:00:\d\d$"):
        assert re.search(part, last.rstrip()), part
    assert any(re.search(r"\d:\d\d:\d\d left$", bar.rstrip()) for bar in bars)
    assert (" GB  data wait " in last) == (columns == 120)
    assert any(line.startswith("validation:") for line in lines)
    assert any(line.startswith("step 30  val/loss") for line in lines)


def test_a_narrow_terminal_goes_without_the_lesser_figures():
    all_but_wait = "1,250/6,866  loss 3.8123  452,310 tokens/s  MFU 54.1%  18.3 GB  2:13:05 left"
    assert fitted(FIGURES, 200) == all_but_wait.replace("GB", "GB  data wait 1%")
    assert fitted(FIGURES, 78) == all_but_wait
    assert fitted(FIGURES, 68) == "1,250/6,866  loss 3.8123  452,310 tokens/s  MFU 54.1%  2:13:05 left"
    assert fitted(FIGURES, 60) == "1,250/6,866  loss 3.8123  452,310 tokens/s  2:13:05 left"
    assert fitted(FIGURES, 28) == "loss 3.8123  2:13:05 left"
    for columns in range(12, 100):
        assert len(fitted(FIGURES, columns)) <= columns
        assert fitted(FIGURES, columns).endswith("2:13:05 left")


def test_without_a_terminal_there_is_a_plain_line_each_log_interval(tiny, tmp_path, capsys):
    trainer = tiny.tiny_trainer(tmp_path, max_steps=5, log_every_n_steps=2)
    trainer.fit(tiny.tiny_task(), tiny.TinyData())
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "tokens/s" in line]
    shape = r"step \d/5  loss \d\.\d{4}  [\d,]+ tokens/s  MFU [\d.]+%  [\d.]+ GB  data wait \d+%  \d:\d\d:\d\d left"
    assert all(re.fullmatch(shape, line) for line in lines), lines
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    assert "step 5  val/loss" in said
    assert "\r" not in said
