import copy
import math
from itertools import pairwise

import pytest
import torch

from scratchlm.model.gpt import GPT
from scratchlm.training.optimizers import adamw, clip_in_step, learning_rate_at, parameter_groups, set_rates
from scratchlm.training.sharding import is_finite


def rates(n, **settings):
    defaults = {"peak": 1e-3, "warmup_steps": 10, "decay_steps": 100, "floor_fraction": 0.1}
    return [learning_rate_at(step, **(defaults | settings)) for step in range(1, n + 1)]


def test_the_rate_rises_in_a_line_to_its_peak_falls_to_the_floor_and_stays():
    curve = rates(120)
    assert curve[:10] == pytest.approx([1e-4 * k for k in range(1, 11)])
    assert max(curve) == curve[9] == 1e-3
    assert all(left > right for left, right in pairwise(curve[9:100]))
    assert curve[54] == pytest.approx((1e-3 + 1e-4) / 2)  # half-way down a cosine
    assert curve[99:] == pytest.approx([1e-4] * 21)


def test_without_warm_up_the_first_step_is_near_the_peak_and_none_is_zero():
    curve = rates(100, warmup_steps=0)
    assert curve[0] == pytest.approx(1e-3, rel=1e-3)
    assert min(curve) > 0


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    assert rates(5, decay_steps=5) == pytest.approx([1e-4 * k for k in range(1, 6)])


@pytest.mark.parametrize("tied_head", [True, False])
def test_matrices_decay_and_embeddings_norms_and_biases_do_not(tied_head):
    gpt = GPT(50, 8, d_model=16, n_layers=2, n_heads=2, d_ff=32, linear_biases=True, tied_head=tied_head)
    decayed, undecayed = parameter_groups(gpt, 0.1)
    names = {id(parameter): name for name, parameter in gpt.named_parameters()}
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    assert sorted(names) == sorted(id(p) for group in (decayed, undecayed) for p in group["params"])
    for parameter in decayed["params"]:
        assert parameter.ndim == 2
        assert "embedding" not in names[id(parameter)]
    for parameter in undecayed["params"]:
        assert parameter.ndim == 1 or "embedding" in names[id(parameter)]


def tiny_optimizer():
    gpt = GPT(50, 8, d_model=16, n_layers=1, n_heads=2, d_ff=32)
    return gpt, adamw(gpt, 1e-3, 0.1, (0.9, 0.95))


def stepped():
    gpt, optimizer = tiny_optimizer()
    gpt(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    optimizer.step()
    return gpt, optimizer


def test_one_fused_kernel_makes_the_step():
    assert all(group["fused"] for group in tiny_optimizer()[1].param_groups)


def test_rates_set_for_a_step_win_over_those_that_a_checkpoint_brings():
    _, saved = stepped()
    _, optimizer = tiny_optimizer()
    optimizer.load_state_dict(saved.state_dict())
    set_rates(optimizer, 5e-4, 0.2, (0.8, 0.9))
    decayed, undecayed = optimizer.param_groups
    assert (decayed["lr"], decayed["weight_decay"], decayed["betas"]) == (5e-4, 0.2, (0.8, 0.9))
    assert (undecayed["lr"], undecayed["weight_decay"], undecayed["betas"]) == (5e-4, 0.0, (0.8, 0.9))


def test_one_number_that_is_not_finite_is_found_in_weights_and_in_the_optimizers_state():
    gpt, optimizer = stepped()
    assert is_finite(gpt, optimizer)
    state = next(iter(optimizer.state.values()))["exp_avg_sq"]
    state[0] = torch.inf
    assert not is_finite(gpt, optimizer)
    gpt, optimizer = stepped()
    with torch.no_grad():
        gpt.norm.bias[3] = torch.nan
    assert not is_finite(gpt, optimizer)


@pytest.mark.parametrize("most", [0.1, 1e9])
def test_a_fused_step_that_scales_its_gradients_is_one_after_clipping_them(most):
    weights = []
    for scales in (False, True):
        torch.manual_seed(0)
        gpt = GPT(50, 8, d_model=16, n_layers=1, n_heads=2, d_ff=32)
        optimizer = adamw(gpt, 1e-2, 0.1, (0.9, 0.95))
        for seed in range(3):
            torch.manual_seed(seed)
            for parameter in gpt.parameters():
                parameter.grad = torch.randn_like(parameter)
            norm = torch.nn.utils.get_total_norm([p.grad for p in gpt.parameters()])
            assert norm > 1
            if scales:
                clip_in_step(optimizer, norm, most, torch.tensor(False))
            else:
                torch.nn.utils.clip_grads_with_norm_(gpt.parameters(), most, norm)
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in gpt.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [None, 1.0])
def test_a_step_that_is_left_out_changes_neither_weights_nor_moments_nor_the_count_of_steps(most):
    gpt = GPT(50, 8, d_model=16, n_layers=1, n_heads=2, d_ff=32)
    optimizer = adamw(gpt, 1e-2, 0.1, (0.9, 0.95))
    for is_left_out in (False, True):
        before = copy.deepcopy((gpt.state_dict(), optimizer.state_dict()["state"]))
        for parameter in gpt.parameters():
            parameter.grad = torch.full_like(parameter, math.nan if is_left_out else 1.0)
        clip_in_step(optimizer, torch.tensor(math.nan if is_left_out else 2.0), most, torch.tensor(is_left_out))
        optimizer.step()
    torch.testing.assert_close((gpt.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
