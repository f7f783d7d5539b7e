"""Every name on the road, the table in the package's docstring, exists."""

import importlib.util
import re

import scratchlm


def test_every_module_on_the_road_exists() -> None:
    assert scratchlm.__doc__ is not None
    rows = re.findall(r"^    (\d+) .*$", scratchlm.__doc__, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 11))
    named = set(re.findall(r"\b((?:text|data|model|training|inference)\.[a-z_]+)", scratchlm.__doc__))
    assert len(named) >= 11
    for name in named:
        assert importlib.util.find_spec(f"scratchlm.{name}") is not None, name
