"""The device that trains: its name, how much arithmetic it could do at most, and the memory it holds."""

import platform
import re
import resource
import time
from functools import cache
from typing import NamedTuple

import torch

# Dense bf16 matrix products with float32 sums, in 10^12 operations a second, by model as torch names it. NVIDIA's data
# sheets and architecture papers print twice these figures where they count sparsity; GeForce cards sum in float32 at
# half the speed that their int8 and fp16 figures suggest. AMD: the data sheets of the MI300 series. A model that has no
# bf16 (V100, T4), that was cut down for laptops or that is shared (MIG) is none of these: it is measured.
_DATA_SHEET_TFLOPS = {
    "GB300": 2500,
    "GB200": 2500,
    "B300": 2250,
    "B200": 2250,
    "B100": 1750,
    "GH200": 989,
    "H200 NVL": 835,
    "H200": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H100": 989,
    "H800": 989,
    "H20": 148,
    "A100": 312,
    "A800": 312,
    "A40": 149.7,
    "A30": 165,
    "A10": 125,
    "A10G": 70,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX PRO 6000 Blackwell Workstation Edition": 503,
    "RTX 6000 Ada Generation": 364,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 5080": 112.6,
    "RTX 5070 Ti": 87.9,
    "RTX 5070": 61.7,
    "RTX 4090": 165.2,
    "RTX 4080 SUPER": 104.4,
    "RTX 4080": 97.5,
    "RTX 4070 Ti": 80.2,
    "RTX 4070": 58.3,
    "RTX 3090 Ti": 80,
    "RTX 3090": 71,
    "RTX 3080": 59.5,
    "MI300X": 1307,
    "MI325X": 1307,
}
# What may stand behind a model without making it another: its form and its memory, as in "A100-SXM4-80GB".
_FORM = r"(?:[ -](?:PCIe|SXM\d?|\d+ ?GB?|HBM\w+))*"

_MEASURING_SECONDS = 0.3  # chosen: the largest sizes of a fast CPU fit in, and nobody waits for it
_PRODUCTS_IN_A_ROW = 4  # between two looks at the clock, so that waiting for the device weighs little


class Peak(NamedTuple):
    """The most that a device could do."""

    flops_per_second: float
    dtype: torch.dtype  # of the factors
    is_measured: bool  # else it is the data sheet's

    def __str__(self) -> str:
        """As the summary says it."""
        number_format = str(self.dtype).removeprefix("torch.")
        origin = "measured" if self.is_measured else "data sheet"
        return f"{self.flops_per_second / 1e12:.3g} TFLOP/s in {number_format}, {origin}"


def name(device: torch.device) -> str:
    """What the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"mps ({torch.backends.mps.get_name()})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def peak(device: torch.device, precision: str) -> Peak:
    """The most matrix arithmetic that one device could do in a second, which is what MFU is a share of.

    Args:
        device: The device that trains.
        precision: The Trainer's precision, such as bf16-mixed.

    Returns:
        The data sheet's figure for bf16 on a GPU that is known here; anything else is measured, once in a process.
        That takes a third of a second.
    """
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = data_sheet_flops(torch.cuda.get_device_name(device))
        if known is not None:
            return Peak(known, dtype, is_measured=False)
    return Peak(_measured(device, dtype, torch.get_num_threads()), dtype, is_measured=True)


def data_sheet_flops(device_name: str) -> float | None:
    """Operations a second of a GPU in bf16.

    Args:
        device_name: As torch gives it.

    Returns:
        None where the model is not known, or is a part of a GPU.
    """
    for model, tflops in _DATA_SHEET_TFLOPS.items():
        if re.search(rf"\b{re.escape(model)}{_FORM}$", device_name, re.IGNORECASE):
            return tflops * 1e12
    return None


def wait_for(device: torch.device) -> None:
    """Waits until a device that works ahead has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@cache
def _measured(device: torch.device, dtype: torch.dtype, n_threads: int) -> float:
    """Operations a second of the best of some square matrix products: larger ones, then more, while there is time."""
    best, size = 0.0, 512
    largest = 4096 if device.type == "cpu" else 8192
    end = time.monotonic() + _MEASURING_SECONDS
    seconds = 0.0
    while size <= largest and time.monotonic() + 8 * seconds * (1 + 2 * _PRODUCTS_IN_A_ROW) <= end:
        # Not drawn: that would take longer than the products, or move the generators that training draws from.
        factor = torch.linspace(-1, 1, size * size, device=device).to(dtype).view(size, size)
        _seconds_a_product(factor, 1)  # the first one allocates and compiles
        seconds = min(_seconds_a_product(factor, _PRODUCTS_IN_A_ROW) for _ in range(2))
        best = max(best, 2 * size**3 / seconds)
        size *= 2
    while time.monotonic() + _PRODUCTS_IN_A_ROW * seconds <= end:  # another process may have had the cores a while
        best = max(best, 2 * len(factor) ** 3 / _seconds_a_product(factor, _PRODUCTS_IN_A_ROW))
    return best


def _seconds_a_product(factor: torch.Tensor, n_products: int) -> float:
    wait_for(factor.device)
    start = time.perf_counter()
    for _ in range(n_products):
        factor @ factor
    wait_for(factor.device)
    return (time.perf_counter() - start) / n_products


class Memory:
    """The most memory that training has held since it was last asked.

    A CUDA device keeps that figure itself. Elsewhere `look` is to be called where much is held: before the backward
    pass, when all activations are there, and before the optimizer's step, when all gradients are.
    """

    def __init__(self, device: torch.device) -> None:
        """Starts at what is held now.

        Args:
            device: The device that trains; for a CPU this process's own memory is meant.
        """
        self._device = device
        self._most_seen = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def look(self) -> None:
        """Takes notice of what is held now, in some microseconds."""
        if self._device.type != "cuda":
            self._most_seen = max(self._most_seen, _held_bytes(self._device))

    def take(self) -> dict[str, int]:
        """The figures since the last call, and starts anew.

        Returns:
            `memory_bytes`: the most that was held; on a CUDA device in tensors, on Metal in all, on a CPU under Linux
            without mapped files. `memory_reserved_bytes`, on a CUDA device: the most that the allocator had taken from
            it, which is what runs out.
        """
        if self._device.type == "cuda":
            counters = torch.cuda.memory_stats_as_nested_dict(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return {
                "memory_bytes": int(counters["allocated_bytes"]["all"]["peak"]),
                "memory_reserved_bytes": int(counters["reserved_bytes"]["all"]["peak"]),
            }
        self.look()
        most, self._most_seen = self._most_seen, 0
        return {"memory_bytes": most}


def _held_bytes(device: torch.device) -> int:
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    if platform.system() == "Linux":
        with open("/proc/self/statm", "rb", buffering=0) as file:  # a third of the time of /proc/self/status
            _, resident, of_files, *_ = file.read().split()
        return (int(resident) - int(of_files)) * resource.getpagesize()
    # The most since the process began; the unit is bytes on macOS, kilobytes everywhere else.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024
