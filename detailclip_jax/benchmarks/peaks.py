"""Peak performance of devices, from the manufacturers' data sheets."""

import re
from typing import NamedTuple

NVIDIA = "nvidia.com/en-us/data-center, data sheet; dense, half of the figure with sparsity"
GOOGLE = "cloud.google.com/tpu/docs, system architecture, per chip"


class Device(NamedTuple):
    """Dense peaks of one chip."""

    name: str
    pattern: str  # regular expression for jax's name (`device_kind`)
    bfloat16: int  # TFLOP/s
    float32: int  # TFLOP/s of products at jax's default precision: TF32 on NVIDIA, bfloat16 passes on TPU
    memory_bandwidth: int  # GB/s
    memory: int  # GB
    source: str


DEVICES = (  # the first entry whose pattern matches is used
    Device("H100 PCIe", r"H100 PCIe", 756, 378, 2000, 80, NVIDIA),
    Device("H100 NVL", r"H100 NVL", 835, 417, 3900, 94, NVIDIA),
    Device("H100 SXM", r"H100", 989, 494, 3350, 80, NVIDIA),
    Device("H200 NVL", r"H200 NVL", 835, 417, 4800, 141, NVIDIA),
    Device("H200 SXM", r"H200", 989, 494, 4800, 141, NVIDIA),
    Device("A100 80GB", r"A100.*80GB", 312, 156, 2039, 80, NVIDIA),
    Device("A100 40GB", r"A100", 312, 156, 1555, 40, NVIDIA),
    Device("L4", r"\bL4\b", 121, 60, 300, 24, NVIDIA),
    Device("TPU v4", r"TPU v4$", 275, 275, 1228, 32, GOOGLE),
    Device("TPU v5e", r"TPU v5 ?(lite|e)", 197, 197, 819, 16, GOOGLE),
    Device("TPU v5p", r"TPU v5(p|$)", 459, 459, 2765, 95, GOOGLE),
    Device("TPU v6e", r"TPU v6 ?(lite|e)", 918, 918, 1638, 32, GOOGLE),
)


def device_named(kind: str) -> Device | None:
    """The entry for a `device_kind` of jax or for a name in the table; None for an unknown device."""
    exact = [device for device in DEVICES if device.name == kind]
    found = exact or [device for device in DEVICES if re.search(device.pattern, kind)]
    return found[0] if found else None


def peak_flops(kind: str, dtype: str, given: int | float | None = None) -> int | float | None:
    """FLOP/s of one device in products of `dtype`; None for an unknown device.

    `given`, in TFLOP/s, overrides the table. Raises ValueError unless it is greater than 0.
    """
    if given is not None:
        if not given > 0:
            raise ValueError(f"--peak={given} must be the device's peak in TFLOP/s, greater than 0")
        return given * 1e12
    device = device_named(kind)
    return None if device is None else getattr(device, dtype) * 1e12


def unknown_peak(kind: str) -> str:
    """The message for a device without a known peak."""
    known = ", ".join(device.name for device in DEVICES)
    return f"unknown peak of {kind!r}, so no utilisation; give --peak=TFLOPS (known: {known})"
