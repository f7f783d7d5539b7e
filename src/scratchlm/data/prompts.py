"""Prompts to complete, out of a file."""

import json
from pathlib import Path

from scratchlm.errors import BadValue, MissingFile


def read_prompts(name: str) -> list[str]:
    """The prompts of a file.

    Args:
        name: A .jsonl file with a text under `prompt` in each line, or any other text file, one prompt a line.

    Returns:
        At least one prompt; blank lines are passed over.

    Raises:
        MissingFile: The file cannot be opened.
        BadValue: It is empty, not UTF-8, or a line holds no prompt.
    """
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise MissingFile(
            f"data.prompts_file={name}: {error.strerror}. Name a .txt or .jsonl file of prompts."
        ) from error
    except UnicodeDecodeError as error:
        raise BadValue(f"data.prompts_file={name}: not UTF-8 text (byte {error.start:,}). Save it as UTF-8.") from error
    # Not splitlines: it would also break a prompt at U+2028 and the like.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise BadValue(f"data.prompts_file={name}: it is empty. Put a prompt on each line, or give data.prompts.")
    if name.endswith(".jsonl"):
        return [_prompt_of(name, number, line) for number, line in lines]
    return [line for _, line in lines]


def _prompt_of(name: str, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadValue(
            f"data.prompts_file={name}: line {number} is not JSON ({error}). Write one object a line."
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise BadValue(
            f'data.prompts_file={name}: line {number} has no text under "prompt". Write {{"prompt": "..."}}.'
        )
    return str(row["prompt"])
