import json
import os
import random
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from scratchlm.errors import BadValue, MissingFile
from scratchlm.text.tokenizer import (
    END_OF_TEXT,
    KINDS,
    SPECIAL_TOKENS,
    Tokenizer,
    from_json,
    load,
    train,
)

NASTY = [
    "",
    " ",
    "   leading and trailing   ",
    "\ttabs\t\tand  double  blanks",
    "one\r\ntwo\n\n\nthree\rfour\x0b\x0c\x85\u2028",
    "a\x00b\x00\x00",
    "\x00",
    "cafe\u0301 caf\u00e9 \u0301\u0323 lone combining \u0327",
    "\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f \U0001f44d\U0001f3fd",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
    "\ufeffbom \ufffd replacement \u202eright to left \u05e9\u05dc\u05d5\u05dd",
    "x" * 3000,
    "CAPITALS and ﬁne ﬂigatures, Ⅻ ½ 12345678901234567890",
    "<|endoftext|><|pad|> <|im_start|>user<|im_end|> <|endoftext",
    "".join(map(chr, range(256))),
    "\U0010ffff\ue000\u0378",
]
STORY = "The cat sat on the mat, and the other cat sat beside it. They didn't say a word; it was 1986.\n" * 20


def random_texts(n: int) -> list[str]:
    """Strings of characters from all of Unicode but the surrogates."""
    generator = random.Random(7)
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    common = [ord(character) for character in "ab \n<|>e\u0301\u4f60"]
    return [
        "".join(
            chr(generator.choice(points if generator.random() < 0.5 else common))
            for _ in range(generator.randrange(60))
        )
        for _ in range(n)
    ]


TEXTS = NASTY + random_texts(200)
TRAINED = {kind: train(kind, [STORY, *TEXTS], 400) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TRAINED[request.param]


def library(vocabulary: int = 400, *, flagged: bool = True) -> Library:
    """A byte-level BPE as other people make them."""
    inner = Library(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [STORY], trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    )
    inner.add_tokens([AddedToken(END_OF_TEXT, special=flagged), AddedToken("<s>", special=True)])
    return inner


def test_every_text_comes_back_unchanged(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encoding_many_is_encoding_each(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_many(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_bytes_of_ids_sum_to_the_length_of_the_text(tokenizer: Tokenizer) -> None:
    sizes = tokenizer.bytes_of_ids()
    assert len(sizes) == tokenizer.vocab_size
    for text in TEXTS:
        assert sum(sizes[id] for id in tokenizer.encode(text)) == len(text.encode())


def test_streamed_pieces_are_whole_characters_and_join_to_the_text(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        stream, so_far = tokenizer.stream(), ""
        for id in tokenizer.encode(text):
            so_far += stream.add(id)
            assert text.startswith(so_far)
        assert so_far + stream.end() == text


def test_streaming_any_ids_gives_what_decoding_them_gives(tokenizer: Tokenizer) -> None:
    generator = random.Random(3)
    for _ in range(200):
        ids = [generator.randrange(tokenizer.vocab_size) for _ in range(generator.randrange(30))]
        stream = tokenizer.stream()
        assert "".join([*map(stream.add, ids), stream.end()]) == tokenizer.decode(ids)


def test_our_decoding_is_that_of_the_library(tokenizer: Tokenizer) -> None:
    inner = Library.from_str(tokenizer.to_json())
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert inner.decode(ids) == tokenizer.decode(ids)


def test_a_character_cut_off_at_the_end_streams_as_a_replacement() -> None:
    tokenizer = TRAINED["bpe"]
    ids = tokenizer.encode("\U0001f469"[0])[:-1]
    stream = tokenizer.stream()
    assert [stream.add(id) for id in ids] == [""] * len(ids)
    assert stream.end() == "\ufffd"


def test_the_special_tokens_are_the_first_ids_and_stand_for_no_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids == [0, 1, 2, 3]
    assert tokenizer.end_of_text_id == 0
    assert tokenizer.bytes_of_ids()[:4] == [0, 0, 0, 0]
    assert all(tokenizer.bytes_of_ids()[4:])
    assert tokenizer.decode([0, *tokenizer.encode("a"), 1, 2, 3]) == "a"
    entries = json.loads(tokenizer.to_json())["added_tokens"]
    assert [(entry["id"], entry["content"]) for entry in entries] == list(enumerate(SPECIAL_TOKENS))


def test_literal_special_tokens_are_ordinary_text(tokenizer: Tokenizer) -> None:
    for again in (tokenizer, from_json(tokenizer.to_json())):
        for special in SPECIAL_TOKENS:
            for text in (special, f"a{special}b", f" {special} \n{special}", special * 3):
                ids = again.encode(text)
                assert not set(ids) & set(again.special_ids)
                assert again.decode(ids) == text


def test_json_and_back_is_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    again = from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json()
    assert again.kind == tokenizer.kind
    assert again.encode_many(TEXTS) == tokenizer.encode_many(TEXTS)
    assert again.bytes_of_ids() == tokenizer.bytes_of_ids()


def test_what_is_saved_loads_as_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load(path).to_json() == tokenizer.to_json()


def test_vocab_and_merges_alone_are_the_same_bpe(tmp_path: Path) -> None:
    TRAINED["bpe"].save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert load(tmp_path).to_json() == TRAINED["bpe"].to_json()


def test_only_a_bpe_has_vocab_and_merges(tmp_path: Path) -> None:
    TRAINED["unigram"].save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", ["1", "4"])
def test_training_again_gives_the_same_json(kind: str, threads: str) -> None:
    # Characters drawn evenly make many pairs of equal frequency, which is where an order could show.
    program = (
        "import random; from scratchlm.text.tokenizer import train; r = random.Random(5);"
        "texts = [''.join(r.choice('abcdefgh \\n') for _ in range(300)) for _ in range(40)];"
        f"print(train({kind!r}, texts, 700).to_json())"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": threads}
    outputs = {
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True).stdout
        for _ in range(2)
    }
    generator = random.Random(5)
    texts = ["".join(generator.choice("abcdefgh \n") for _ in range(300)) for _ in range(40)]
    outputs.add(train(kind, texts, 700).to_json().encode() + b"\n")
    assert len(outputs) == 1


def test_a_tokenizer_of_bytes_has_the_size_asked_for_where_text_suffices() -> None:
    texts = [STORY + " ".join(f"word{n} {n * 977}" for n in range(2000))]
    assert train("bpe", texts, 500).vocab_size == 500
    assert train("unigram", texts, 500).vocab_size == 500
    assert train("bpe", ["abc"], 500).vocab_size == 260
    assert train("unigram", ["abc"], 500).vocab_size <= 500


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_at_all_is_refused(kind: str) -> None:
    for texts in ([], ["", ""]):
        with pytest.raises(BadValue, match=f"data.tokenizer={kind}: there is no text"):
            train(kind, texts, 300)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_english_is_learnt_to_three_characters_a_token(kind: str) -> None:
    texts = [text for _, text in sorted(topics.items())]
    tokenizer = train(kind, texts, 2000)
    assert sum(map(len, tokenizer.encode_many(texts))) < sum(map(len, texts)) / 3


def test_a_pair_rarer_than_the_minimum_frequency_is_not_merged() -> None:
    assert train("bpe", ["qz qz"], 300, min_frequency=3).vocab_size == 260
    assert train("bpe", ["qz qz"], 300, min_frequency=2).vocab_size > 260


def test_texts_are_read_once_and_may_be_a_generator(tokenizer: Tokenizer) -> None:
    assert train(tokenizer.kind, (text for text in [STORY, *TEXTS]), 400).to_json() == tokenizer.to_json()


def test_characters_are_numbered_in_their_order() -> None:
    tokenizer = train("char", ["hello", "\nabc"], 9)
    assert tokenizer.vocab_size == 4 + len("\nabcehlo")
    assert tokenizer.encode("\nabcehlo") == list(range(4, 12))


def test_an_unknown_character_is_named_in_one_line() -> None:
    tokenizer = train("char", ["abc"], 300)
    assert tokenizer.unknown_characters("a\u00e9b\u00e9c") == ["\u00e9"]
    with pytest.raises(BadValue, match=r"cannot spell '\u00e9' \(U\+00E9\)") as caught:
        tokenizer.encode("ab\u00e9")
    assert "\n" not in str(caught.value)
    with pytest.raises(BadValue, match=r"'1' .* and 4 more"):
        tokenizer.encode_many(["abc", "123456789"])


def test_half_a_surrogate_pair_is_read_as_a_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"
    assert train(tokenizer.kind, ["a\ud83db"], 300).encode("\ufffd")


def test_a_vocabulary_too_small_or_too_large_is_refused() -> None:
    for kind in ("bpe", "unigram"):
        with pytest.raises(BadValue, match=r"data\.vocab_size=259: .* needs 260"):
            train(kind, [STORY], 259)
        with pytest.raises(BadValue, match=r"data\.vocab_size=65537: .* 65536 is the most"):
            train(kind, [STORY], 65_537)
    with pytest.raises(BadValue, match=r"data\.tokenizer=char: the text has 65,533 different characters"):
        train("char", ["".join(map(chr, range(0x10000, 0x10000 + 65_533)))], 1)


def test_an_unknown_kind_or_frequency_is_refused() -> None:
    with pytest.raises(BadValue, match=r"data\.tokenizer=wordpiece: no such kind"):
        train("wordpiece", [STORY], 300)
    with pytest.raises(BadValue, match=r"data\.min_frequency=0"):
        train("bpe", [STORY], 300, min_frequency=0)


@pytest.mark.parametrize("flagged", [True, False])
def test_an_adopted_tokenizer_gets_our_specials_whether_or_not_flagged(tmp_path: Path, flagged: bool) -> None:
    inner = library(flagged=flagged)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load(tmp_path)
    assert tokenizer.kind == "bpe"
    assert tokenizer.end_of_text_id == inner.token_to_id(END_OF_TEXT)
    assert tokenizer.vocab_size == inner.get_vocab_size() + 3
    assert len(tokenizer.special_ids) == 5
    for text in [*TEXTS, "<s> is text too"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.special_ids)
    assert from_json(tokenizer.to_json()).to_json() == tokenizer.to_json()


def test_nothing_of_an_adopted_tokenizer_cuts_pads_or_decorates_text(tmp_path: Path) -> None:
    inner = library()
    plain = load_of(inner, tmp_path)
    inner.enable_truncation(4)
    inner.enable_padding(length=8)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    inner.normalizer = normalizers.NFC()
    inner.model.dropout = 0.5
    assert load_of(inner, tmp_path).encode_many(TEXTS) == plain.encode_many(TEXTS)


def test_added_tokens_that_are_not_special_are_text(tmp_path: Path) -> None:
    inner = library()
    inner.add_tokens([AddedToken("    ", special=False, rstrip=True), AddedToken("\u4f60\u597d", special=False)])
    tokenizer = load_of(inner, tmp_path)
    for text in [*TEXTS, "if x:\n        \u4f60\u597d  \n"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert sum(tokenizer.bytes_of_ids()[id] for id in ids) == len(text.encode())
    assert len(tokenizer.encode("\u4f60\u597d")) == 1


def test_bytes_that_an_adopted_tokenizer_lacks_are_named_when_text_needs_them(tmp_path: Path) -> None:
    inner = Library(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator([STORY], trainers.BpeTrainer(vocab_size=100, show_progress=False))
    tokenizer = load_of(inner, tmp_path)
    assert tokenizer.decode(tokenizer.encode(STORY)) == STORY
    with pytest.raises(BadValue, match=r"cannot spell '\u4f60' \(U\+4F60\)"):
        tokenizer.encode("the \u4f60")


def test_a_tokenizer_that_loses_text_is_refused(tmp_path: Path) -> None:
    lossy = library()
    lossy.normalizer = normalizers.Lowercase()
    with pytest.raises(BadValue, match=r"would change the corpus"):
        load_of(lossy, tmp_path)
    prefixed = library()
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(BadValue, match=r"would change the corpus"):
        load_of(prefixed, tmp_path)
    words = Library(models.WordLevel({"the": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(BadValue, match=r"a WordLevel model with a None decoder does not give back every text"):
        load_of(words, tmp_path)


def test_a_vocabulary_beyond_uint16_is_refused(tmp_path: Path) -> None:
    inner = library()
    inner.add_tokens([f"token{n}" for n in range(65_536 - 3 - inner.get_vocab_size())])
    assert load_of(inner, tmp_path).vocab_size == 65_536
    inner.add_tokens(["one more"])
    with pytest.raises(BadValue, match=r"a vocabulary of 65,537 tokens does not fit"):
        load_of(inner, tmp_path)


def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"data\.tokenizer=.*nowhere: no tokenizer there"):
        load(tmp_path / "nowhere")
    with pytest.raises(MissingFile, match=r"no tokenizer there"):
        load(tmp_path)
    for content in (
        b"",
        b"{}",
        b"[]",
        b"null",
        b"not json",
        b'{"model": {}}',
        b"\xff\xfe",
        b'{"model": 3, "added_tokens": 4}',
    ):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(BadValue, match=r"not a tokenizer\.json") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("a b c d\n")
    with pytest.raises(BadValue, match=r"vocab\.json and merges\.txt cannot be read"):
        load(tmp_path)


def test_a_forked_child_encodes_without_a_warning_or_a_hang() -> None:
    program = (
        "import os; from scratchlm.text.tokenizer import train;"
        "t = train('bpe', ['some text to learn from'] * 50, 300);"
        "t.encode_many(['some text'] * 200); child = os.fork();"
        "assert len(t.encode_many(['some text'] * 200)) == 200;"
        "os._exit(0) if child == 0 else os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def load_of(inner: Library, folder: Path) -> Tokenizer:
    inner.save(str(folder / "tokenizer.json"))
    return load(folder)
