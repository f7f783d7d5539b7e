import pytest

from scratchlm.training.pace import Pace, Pauses


def test_the_pace_of_even_steps_is_theirs_from_the_first():
    pace = Pace()
    assert pace.seconds_per_step is None
    for _ in range(5):
        pace.add(3, 0.6)
        assert pace.seconds_per_step == pytest.approx(0.2)


def test_one_slow_step_hardly_moves_the_pace_and_a_lasting_change_is_followed_in_minutes():
    pace = Pace()
    for _ in range(600):
        pace.add(1, 0.1)
    pace.add(1, 1.0)
    assert 0.1 < pace.seconds_per_step < 0.12
    for _ in range(900):
        pace.add(1, 0.2)
    assert pace.seconds_per_step == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize(
    ("every", "step", "last_step", "due"),
    [
        (10, 11, 30, 2),
        (10, 11, 35, 3),  # and one at the last step
        (10, 20, 30, 2),  # that of the step just made is to come
        (10, 29, 30, 1),
        (10, 30, 30, 1),
        (2.5, 11, 20, 4),
        (None, 15, 30, 1),
        (float("inf"), 15, 30, 1),
    ],
)
def test_pauses_to_come_are_counted_to_the_last_step(every, step, last_step, due):
    pauses = Pauses(every)
    assert pauses.seconds_left(step, last_step) == 0
    assert pauses.seconds_left(step, last_step, guess_seconds=2.0) == pytest.approx(2.0 * due)
    pauses.add(10, 3.0)
    assert pauses.seconds_left(step, last_step) == pytest.approx(3.0 * due)


def test_a_pause_that_is_over_is_to_come_no_more_and_an_odd_one_does_not_count():
    pauses = Pauses(10)
    for step, seconds in [(10, 60.0), (20, 2.0), (30, 2.0)]:
        pauses.add(step, seconds)
    assert pauses.seconds_left(30, 50) == pytest.approx(4.0)
    pauses.add(50, 2.0)
    assert pauses.seconds_left(50, 50) == 0
