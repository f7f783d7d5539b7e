"""How fast the steps go, smoothed, and when the last will be done."""

import math
from statistics import median

_SECONDS = 60.0  # that a step's weight takes to fall to 1/e; chosen, not tuned


class Pace:
    """Seconds a step: the mean of the last minute or so, in which a longer step counts for longer."""

    def __init__(self) -> None:
        """Starts with no step seen."""
        self._steps = self._seconds = 0.0

    def add(self, steps: int, seconds: float) -> None:
        """Takes in steps that are done.

        Args:
            steps: How many.
            seconds: How long they took together.
        """
        kept = math.exp(-seconds / _SECONDS)
        self._steps = kept * self._steps + steps
        self._seconds = kept * self._seconds + seconds

    @property
    def seconds_per_step(self) -> float | None:
        """None before the first step."""
        return self._seconds / self._steps if self._steps else None


class Pauses:
    """Interruptions that come every so many steps and at the last one: validations, or checkpoints."""

    def __init__(self, every_steps: float | None) -> None:
        """Starts with none seen.

        Args:
            every_steps: Steps from one to the next; None or infinite where only the one at the end is certain.
        """
        self._every_steps = every_steps or math.inf
        self._seconds: list[float] = []
        self._last_step = 0

    def add(self, step: int, seconds: float) -> None:
        """Takes in one that is over.

        Args:
            step: The step it came after.
            seconds: How long it took.
        """
        self._seconds.append(seconds)
        self._last_step = step

    def seconds_left(self, step: int, last_step: int, guess_seconds: float = 0.0) -> float:
        """What those still to come will take, each as long as the median of those seen.

        Args:
            step: The step just made; its own pause is still to come unless it was added.
            last_step: The last step of the run.
            guess_seconds: How long one takes, as long as none was seen.
        """
        after = max(step - 1, self._last_step)  # pauses up to this step are over
        due = int(last_step // self._every_steps) - int(after // self._every_steps)
        if last_step % self._every_steps and after < last_step:
            due += 1
        return max(0, due) * (median(self._seconds) if self._seconds else guess_seconds)
