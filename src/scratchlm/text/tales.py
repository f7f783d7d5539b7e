"""Tiny tales, made by rule."""

from collections.abc import Iterator


def tales() -> Iterator[tuple[str, str]]:
    return iter(())
