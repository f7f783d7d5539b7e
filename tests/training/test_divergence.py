from scratchlm.training.divergence import DivergenceGuard


def test_a_loss_that_triples_is_warned_of_once_with_a_third_of_the_rate(capsys):
    guard = DivergenceGuard()
    for step, loss in enumerate([10.0, *[2.0] * 60, *[9.0] * 60]):
        guard.watch(loss, step, 3e-3)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "model.learning_rate=0.003" in warnings[0]
    assert "--model.learning_rate 0.001" in warnings[0]


def test_a_single_spike_or_a_slow_fall_is_not_warned_of(capsys):
    guard = DivergenceGuard()
    for step, loss in enumerate([10.0, 8.0, 6.0, *[4.0] * 20, 30.0, *[4.0] * 20]):
        guard.watch(loss, step, 3e-3)
    assert "warning" not in capsys.readouterr().err


def test_the_guard_goes_on_from_what_it_had_seen(capsys):
    before, after = DivergenceGuard(), DivergenceGuard()
    for step in range(40):
        before.watch(2.0, step, 3e-3)
    after.load_state_dict(before.state_dict())
    for step in range(60):
        after.watch(9.0, step, 3e-3)
    assert "after a lowest of 2.00" in capsys.readouterr().err
