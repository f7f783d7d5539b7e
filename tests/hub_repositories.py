"""Small repositories under real names, laid out as on the hub; the text in them is written for the tests."""

from itertools import islice
from pathlib import Path

from scratchlm.text.tales import tales

N_ARTICLES = 40  # of Salesforce/wikitext, configuration wikitext-103-raw-v1
N_PAGES = 300  # of HuggingFaceFW/fineweb, configuration sample-10BT
N_STORIES = {"train": 320, "validation": 40}  # of roneneldan/TinyStories


def write_repositories(root: Path) -> None:
    """Makes all of them in `root`: Salesforce/wikitext, HuggingFaceFW/fineweb and roneneldan/TinyStories."""
    _write_wikitext(root / "Salesforce" / "wikitext")
    _write_fineweb(root / "HuggingFaceFW" / "fineweb")
    _write_tiny_stories(root / "roneneldan" / "TinyStories")


def wikitext_lines(n_articles: int) -> list[str]:
    """Articles as WikiText has them: a line a row, set apart by blanks."""
    lines = [""]
    for n in range(n_articles):
        lines += [f" = Lighthouse {n} ( island ) = \n", ""]
        lines += [
            f' The Lighthouse {n} , called " Old Tom " by the island \'s people , is {n + 10} @.@ 5 m high . \n',
            "",
        ]
        for heading, year in (("History", 1800 + n), ("Keepers", 1900 + n)):
            lines += [f" = = {heading} = = \n", ""]
            lines.append(
                f" In {year} a well @-@ known keeper ( of the north tower ) saw 1 @,@ {n:03d} ships pass by . \n"
            )
            lines.append(
                f" The light was lit again in {year + 1} – {year + 2} ; it did n't fail once in {n + 3} winters . \n"
            )
            lines += [""]
        lines += [""]
    return lines


def _write_repository(root: Path, licence: str, configurations: dict[str, dict[str, str]]) -> None:
    root.mkdir(parents=True)
    lines = ["---", f"license: {licence}", "configs:"]
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, files in splits.items():
            lines += [f"  - split: {split}", f"    path: {files}"]
    (root / "README.md").write_text("\n".join([*lines, "---", "A repository made for a test."]))


def _write_parquet(path: Path, columns: dict[str, list[str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=100)


def _write_wikitext(root: Path) -> None:
    _write_repository(root, "cc-by-sa-3.0", {"wikitext-103-raw-v1": {"train": "wikitext-103-raw-v1/train-*"}})
    lines = wikitext_lines(N_ARTICLES)
    cut = len(lines) // 2 + 1  # in the middle of an article, as the hub's own files are cut
    for number, part in enumerate((lines[:cut], lines[cut:])):
        _write_parquet(root / "wikitext-103-raw-v1" / f"train-{number:05d}-of-00002.parquet", {"text": part})


def _write_fineweb(root: Path) -> None:
    _write_repository(root, "odc-by", {"sample-10BT": {"train": "sample/10BT/*"}})
    for number in range(2):
        pages = range(number * N_PAGES // 2, (number + 1) * N_PAGES // 2)
        texts = [
            f"How to mend bicycle number {n}\n"
            f"First turn the bicycle over and look at wheel {n % 7}. Then take out {n % 5 + 2} screws on the left.\n"
            f"Readers of this page wrote {n * 3} letters, and most of them found step {n % 11 + 1} the hardest one."
            for n in pages
        ]
        columns = {
            "text": texts,
            "id": [f"page-{n}" for n in pages],
            "url": [f"https://example.org/{n}" for n in pages],
        }
        _write_parquet(root / "sample" / "10BT" / f"{number:03d}_00000.parquet", columns)


def _write_tiny_stories(root: Path) -> None:
    _write_repository(
        root, "cdla-sharing-1.0", {"default": {"train": "data/train-*", "validation": "data/validation-*"}}
    )
    stories = (text for text, _ in tales(sum(N_STORIES.values())))
    for split, n in N_STORIES.items():
        _write_parquet(root / "data" / f"{split}-00000-of-00001.parquet", {"text": list(islice(stories, n))})
