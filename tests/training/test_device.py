import time

import pytest
import torch

from scratchlm.training import device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_the_data_sheets_peak_is_found_by_torchs_name(name, tflops):
    assert device.data_sheet_flops(name) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A1000",  # not an A100
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4070 Ti SUPER",
        "Tesla V100-SXM2-16GB",
        "Tesla T4",
        "NVIDIA B2000",
    ],
)
def test_a_part_a_cut_down_model_and_one_without_bf16_have_no_data_sheet_peak(name):
    assert device.data_sheet_flops(name) is None


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_the_measured_peak_is_what_a_matmul_reaches_and_takes_under_half_a_second(precision, dtype):
    device._measured.cache_clear()
    start = time.thread_time()  # this process's own: other work on the machine is not its fault
    found = device.peak(CPU, precision)
    assert time.thread_time() - start < 0.5
    assert found.is_measured
    assert found.dtype == dtype
    factor = torch.randn(1024, 1024).to(dtype)
    factor @ factor
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        factor @ factor
        seconds.append(time.perf_counter() - start)
    assert 1 / 3 < found.flops_per_second / (2 * 1024**3 / min(seconds)) < 3


def test_measuring_draws_no_random_numbers_and_happens_once():
    device._measured.cache_clear()
    state = torch.get_rng_state()
    first = device.peak(CPU, "32-true")
    assert torch.equal(torch.get_rng_state(), state)
    assert device.peak(CPU, "32-true") == first


def test_a_peak_says_where_it_is_from():
    assert str(device.Peak(989e12, torch.bfloat16, is_measured=False)) == "989 TFLOP/s in bfloat16, data sheet"
    assert str(device.Peak(0.1e12, torch.float32, is_measured=True)) == "0.1 TFLOP/s in float32, measured"


_LOOK = """
import torch
from scratchlm.training import device
memory = device.Memory(torch.device("cpu"))
print(memory.take()["memory_bytes"])
taken = torch.ones(50_000_000 // 4)
memory.look()
del taken
print(memory.take()["memory_bytes"], memory.take()["memory_bytes"])
"""


def test_memory_is_what_is_held_where_it_is_looked_at_and_starts_anew_when_taken(run_alone):
    before, most, after = run_alone(_LOOK)
    assert 45e6 < most - before < 80e6
    assert after < most - 40e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_devices_memory_is_its_peak_since_it_was_last_taken():
    cuda = torch.device("cuda", 0)
    memory = device.Memory(cuda)
    before = memory.take()["memory_bytes"]
    taken = torch.ones(100_000_000, device=cuda)
    del taken
    figures = memory.take()
    assert figures["memory_bytes"] - before == pytest.approx(400e6, rel=0.01)
    assert figures["memory_reserved_bytes"] >= figures["memory_bytes"]
    assert memory.take()["memory_bytes"] == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_measured_cuda_peak_is_below_the_data_sheets():
    cuda = torch.device("cuda", 0)
    known = device.data_sheet_flops(device.name(cuda))
    if known is None:
        pytest.skip("the device is in no table")
    measured = device._measured(cuda, torch.bfloat16, 1)
    assert 0.4 < measured / known < 1.1
    assert device.peak(cuda, "32-true").is_measured
