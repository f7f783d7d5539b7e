"""The laws of the table of keys, against a plain set."""

import numpy as np

from scratchlm.data.seen import Seen


def test_a_key_is_new_once_as_a_plain_set_has_it() -> None:
    random = np.random.default_rng(0)
    table, plain = Seen(), set()
    for _ in range(50):
        keys = random.integers(0, 2**63, 700, dtype=np.uint64) % np.uint64(9_973) * np.uint64(0xD1342543DE82EF95)
        expected = []
        for key in keys.tolist():
            expected.append(key not in plain)
            plain.add(key)
        assert table.add(keys).tolist() == expected
    assert table.n == len(plain)


def test_keys_that_want_one_place_all_find_theirs() -> None:
    keys = np.arange(1, 2_000, dtype=np.uint64) * np.uint64(4096)  # one place of the first table
    table = Seen()
    assert table.add(keys).all()
    assert not table.add(keys[::-1]).any()


def test_nought_is_a_key_as_any_other() -> None:
    table = Seen()
    assert table.add(np.array([0, 5, 0], np.uint64)).tolist() == [True, True, False]
    assert table.add(np.array([0], np.uint64)).tolist() == [False]
    assert table.add(np.empty(0, np.uint64)).tolist() == []


def test_a_million_keys_take_at_most_sixteen_bytes_each() -> None:
    table = Seen()
    for start in range(0, 1_000_000, 10_000):
        table.add(np.random.default_rng(start).integers(0, 2**64, 10_000, dtype=np.uint64))
        assert table.n < 10_000 or table._places.nbytes <= 16 * table.n
