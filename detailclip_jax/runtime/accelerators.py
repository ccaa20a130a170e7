"""What is known of accelerators from their makers' pages: memory, peaks, bandwidths.

Sources: docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and NVIDIA's data sheets.  Memory is what jax may use: on a
TPU what its compiler states, on a GPU three quarters of the card, jax's default.
"""

import re
from typing import NamedTuple

GIB = 2**30


class Accelerator(NamedTuple):
    """One kind of chip.  Bandwidths are in bytes per second, those of links in one direction."""

    kind: str  # pattern of jax's `device_kind`
    bfloat16: float  # dense peak in TFLOP/s
    float32: float  # the same at jax's default precision: TF32 on NVIDIA, passes in bfloat16 on TPU
    memory: int = 0  # bytes that jax may use
    bandwidth: float = 0.0  # of the memory
    link: float = 0.0  # of all links of a chip within a slice (TPU) or host (GPU)
    network: float = 0.0  # of a chip's share of the network between hosts (GPU) or slices (TPU); 0: not known

    def peak(self, dtype: str) -> float:
        """Returns the peak of products in `dtype`, in FLOP/s."""
        tera: float = getattr(self, dtype)
        return tera * 1e12


# The first pattern that is found counts.
ACCELERATORS = (
    Accelerator(r"H[12]00 NVL", 835, 417),
    Accelerator(r"H100 PCIe", 756, 378),
    Accelerator(r"H200", 989, 494),
    Accelerator(r"H100", 989, 494, 84929347584 * 3 // 4, 3352e9, 450e9, 50e9),
    Accelerator(r"A100.*40GB", 312, 156, 42331013120 * 3 // 4, 1555e9, 300e9, 25e9),
    Accelerator(r"A100", 312, 156, 85100068864 * 3 // 4, 2039e9, 300e9, 25e9),
    Accelerator(r"\bL4\b", 121, 60),
    Accelerator(r"TPU v4$", 275, 275),
    Accelerator(r"TPU v5 ?(lite|e)", 197, 197, int(15.75 * GIB), 819e9, 200e9, 3.125e9),
    Accelerator(r"TPU v5(p|$)", 459, 459, int(95.74 * GIB), 2765e9, 600e9),
    Accelerator(r"TPU v6 ?(lite|e)", 918, 918, int(31.25 * GIB), 1638e9, 400e9, 12.5e9),
)


def of_kind(kind: str) -> Accelerator | None:
    """Returns the accelerator of a `device_kind` of jax; None for an unknown one."""
    return next((each for each in ACCELERATORS if re.search(each.kind, kind)), None)
