import json

import numpy as np
import pytest
import torch

WORDS = ["sea", "wind", "old", "boat", "salt", "rope", "light", "gull", "tide", "morning", "said", "went", "found"]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def story():
    """Makes a text that no other number gives."""

    def tell(number, n_words=40, seed=0):
        words = np.random.default_rng([seed, number]).choice(WORDS, n_words)
        return f"Story {seed}-{number}: " + " ".join(words) + "."

    return tell


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes texts as rows of a JSON lines file and gives its path."""

    def write(name, texts, column="text"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in texts), encoding="utf-8")
        return str(path)

    return write
