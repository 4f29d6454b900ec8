"""What accelerators can do at best, as their makers publish it.

Peaks are of dense bfloat16 products. Interconnect is what a chip sends over all its links at once;
makers mostly publish twice that, both directions added up.
"""

from __future__ import annotations

from dataclasses import dataclass

GB, GIB, TERA = 10**9, 2**30, 10**12


@dataclass(frozen=True)
class Chip:
    """Published limits of one chip."""

    peak_flops: float
    """bfloat16 operations a second, dense, accumulated in float32"""
    hbm_bytes: int
    """memory"""
    hbm_bandwidth: float
    """bytes a second"""
    interconnect: float
    """bytes a second that it sends, over all links"""
    device_kinds: tuple[str, ...]
    """what JAX calls it"""
    source: str


def _tpu(page: str) -> str:
    return f"https://cloud.google.com/tpu/docs/{page}"


CHIPS: dict[str, Chip] = {
    "v4": Chip(
        peak_flops=275 * TERA,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1200 * GB,
        interconnect=300 * GB,
        device_kinds=("TPU v4",),
        # Six links of 50 GB/s: Jouppi et al. 2023, table 4.
        source=f"{_tpu('v4')} and https://arxiv.org/abs/2304.01433",
    ),
    "v5e": Chip(
        peak_flops=197 * TERA,
        hbm_bytes=16 * GIB,
        hbm_bandwidth=819 * GB,
        interconnect=200 * GB,
        device_kinds=("TPU v5 lite", "TPU v5e"),
        source=_tpu("v5e"),
    ),
    "v5p": Chip(
        peak_flops=459 * TERA,
        hbm_bytes=95 * GIB,
        hbm_bandwidth=2765 * GB,
        interconnect=600 * GB,
        device_kinds=("TPU v5", "TPU v5p"),
        source=_tpu("v5p"),
    ),
    "v6e": Chip(
        peak_flops=918 * TERA,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1600 * GB,
        interconnect=400 * GB,
        device_kinds=("TPU v6 lite", "TPU v6e"),
        source=_tpu("v6e"),
    ),
    "a100": Chip(
        peak_flops=312 * TERA,
        hbm_bytes=80 * GB,
        hbm_bandwidth=2039 * GB,
        interconnect=300 * GB,
        device_kinds=("NVIDIA A100-SXM4-80GB",),
        source="https://www.nvidia.com/en-us/data-center/a100/",
    ),
    # NVIDIA's pages give Hopper's peaks with sparsity, 1,979 TFLOP/s: twice the dense ones.
    "h100": Chip(
        peak_flops=989.5 * TERA,
        hbm_bytes=80 * GB,
        hbm_bandwidth=3350 * GB,
        interconnect=450 * GB,
        device_kinds=("NVIDIA H100 80GB HBM3",),
        source="https://www.nvidia.com/en-us/data-center/h100/",
    ),
    "h200": Chip(
        peak_flops=989.5 * TERA,
        hbm_bytes=141 * GB,
        hbm_bandwidth=4800 * GB,
        interconnect=450 * GB,
        device_kinds=("NVIDIA H200",),
        source="https://www.nvidia.com/en-us/data-center/h200/",
    ),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip JAX calls `device_kind`; None for one that is not in the table, such as a CPU."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.device_kinds), None)
