"""The curves of a run as plain values: which metrics share a chart, and few enough points to draw."""

import math
from collections.abc import Sequence
from typing import Any

from scratchlm.training.run_log import MARKS

_MOST_POINTS = 2000  # of a curve: about two for each pixel of a wide screen

# Title, unit, metrics with their names in the legend, whether its y axis can be logarithmic, factor of the values.
_CHARTS: list[tuple[str, str, dict[str, str], bool, float]] = [
    ("Loss", "nats a token", {"train/loss": "train", "val/loss": "validation"}, True, 1.0),
    ("Gradient norm", "before clipping", {"train/gradient_norm": "gradient norm"}, True, 1.0),
    ("Learning rate", "of the step", {"train/learning_rate": "learning rate"}, False, 1.0),
    ("Validation bits a byte", "bits", {"val/bits_per_byte": "bits a byte"}, True, 1.0),
    ("Throughput", "tokens a second", {"throughput/tokens_per_second": "tokens a second"}, False, 1.0),
    ("MFU", "share of the devices' peak", {"throughput/mfu": "MFU"}, False, 1.0),
    (
        "Memory",
        "GB",
        {"throughput/memory_bytes": "held", "throughput/memory_reserved_bytes": "reserved"},
        False,
        1e-9,
    ),
    ("Waiting for data", "share of the time", {"throughput/data_wait_fraction": "waiting"}, False, 1.0),
]
_NOT_DRAWN = ("perplexity", "bits_per_byte", "seconds_left")  # last words of names: said by a loss, or of the moment


def charts(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The charts of a run; those without a point are left out.

    Args:
        lines: One a step, as `run_log.one_line_a_step` gives them.

    Returns:
        Of each chart `title`, `unit`, `log` (whether its y axis can be logarithmic), `wide` and `series`: a list of
        `name`, `steps` and `values`. Values that are no finite numbers are left out.
    """
    names = dict.fromkeys(name for line in lines for name in line)
    by_source = {name: name[4:-5] for name in names if name.startswith("val/") and name[4:].endswith("/loss")}
    plan = [*_CHARTS[:1], ("Validation loss by source", "nats a token", by_source, True, 1.0), *_CHARTS[1:]]
    known = {name for _, _, series, _, _ in plan for name in series}
    others = [
        name for name in names if name not in known and name not in MARKS and name.split("/")[-1] not in _NOT_DRAWN
    ]
    plan += [(name, "", {name: name}, False, 1.0) for name in others]
    made = []
    for title, unit, metrics, log, factor in plan:
        found = [(label, *_curve(lines, metric, factor)) for metric, label in metrics.items() if metric in names]
        series = [{"name": label, "steps": steps, "values": values} for label, steps, values in found if steps]
        if series:
            made.append({"title": title, "unit": unit, "log": log, "wide": title == "Loss", "series": series})
    return made


def _curve(lines: Sequence[dict[str, Any]], metric: str, factor: float) -> tuple[list[int], list[float]]:
    steps, values = [], []
    for line in lines:
        value = line.get(metric)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            steps.append(line["step"])
            values.append(value)
    kept = thinned(values, _MOST_POINTS)
    return [steps[i] for i in kept], [float(f"{values[i] * factor:.7g}") for i in kept]


def thinned(values: Sequence[float], most: int) -> Sequence[int]:
    """Which points to draw so that no peak is lost.

    Args:
        values: In the order of steps.
        most: Points to keep at most, 4 or more.

    Returns:
        Their numbers, rising: the first, the last, and of each of as many buckets as there is room for the lowest and
        the highest.
    """
    if len(values) <= most:
        return range(len(values))
    n_buckets = (most - 2) // 2
    kept = {0, len(values) - 1}
    for bucket in range(n_buckets):
        members = range(bucket * len(values) // n_buckets, (bucket + 1) * len(values) // n_buckets)
        kept.add(min(members, key=values.__getitem__))
        kept.add(max(members, key=values.__getitem__))
    return sorted(kept)
