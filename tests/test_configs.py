"""Every file in configs/ parses, builds, repeats no default, and trains once with its steps cut down."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = [path.stem for path in sorted(CONFIGS.glob("*.yaml"))]
OVERLAYS = sorted((*CONFIGS.glob("size/*.yaml"), *CONFIGS.glob("machine/*.yaml")))
TEXT = "--data.sources={text: input.txt}"


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and key != "data.sources":
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


def printed(command: Callable[..., None], capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        command("fit", *words, "--print_config")
    assert stop.value.code == 0
    return dict(leaves(yaml.safe_load(capsys.readouterr().out)))


@pytest.mark.parametrize("path", [*(CONFIGS / f"{run}.yaml" for run in RUNS), *OVERLAYS], ids=lambda path: path.stem)
def test_a_configuration_repeats_no_default(
    path: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = printed(command, capsys)
    resolved = printed(command, capsys, "-c", str(path))
    given = dict(leaves(yaml.safe_load(path.read_text())))
    assert given
    for key in given:
        assert resolved[key] != defaults[key], f"{path.name} repeats the default of {key}"


@pytest.mark.parametrize("name", ["char", "mini"])
def test_a_configuration_for_one_text_says_how_to_name_it(
    name: str, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command("fit", "-c", str(CONFIGS / f"{name}.yaml"))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--data.sources '{text: input.txt}'" in error
    assert error.count("\n") == 1
