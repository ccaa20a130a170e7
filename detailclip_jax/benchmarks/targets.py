"""Devices to compile for without having them: their names, their compilers, and the environment that these need.

    devices = targets.find("v5e:4x4").devices()         # in a process that was started in `targets.environment`

A TPU's name is that of its topology, in chips, after the number of slices if there are several; a GPU's is its kind,
the hosts, and the devices of a host: "v5e:4x4", "2xv6e:2x4" (two slices), "v5p:2x2x4", "h100x8" (one host), "a100x4x4"
(four hosts of four).
"""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detailclip_jax.runtime import accelerators
from detailclip_jax.runtime.accelerators import Accelerator

EXAMPLES = "v5e:4x4, 2xv6e:2x4 (slices), v5p:2x2x4, h100x8, a100x4x4 (hosts x devices), a100-40x8"
NEEDED = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "nvidia.cudnn", "nvidia.cuda_nvcc")}  # modules


class Tpu(NamedTuple):
    """A kind of TPU, and how its compiler names it."""

    device_kind: str
    topology: str  # before the colon
    chips: int  # of a host
    options: tuple[tuple[str, Any], ...] = ()


class Gpu(NamedTuple):
    """A kind of GPU: what its compiler must know of it, as its driver reports it (XLA's GpuTargetConfigProto)."""

    device_kind: str
    capability: int  # major number
    cores: int
    fpus: int  # per core
    shared_memory: int  # per core
    shared_memory_optin: int  # per block
    l2_cache: int
    clock: float  # GHz
    memory: int
    bandwidth: int


TPUS = {
    "v5e": Tpu("TPU v5 lite", "v5e", 4),
    "v6e": Tpu("TPU v6 lite", "v6e", 4),
    "v5p": Tpu("TPU v5", "v5", 4, (("chip_config_name", "megacore"), ("chips_per_host_bounds", (2, 2, 1)))),
}
GPUS = {
    "h100": Gpu(*("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 232448, 52428800, 1.98), 84929347584, 3352320000000),
    "a100": Gpu(*("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 166912, 41943040, 1.41), 85100068864, 2039040000000),
    "a100-40": Gpu(*("NVIDIA A100-SXM4-40GB", 8, 108, 64, 167936, 166912, 41943040, 1.41), 42331013120, 1555200000000),
}
CONFIG = """\
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  shared_memory_per_block: 49152
  shared_memory_per_core: {0.shared_memory}  shared_memory_per_block_optin: {0.shared_memory_optin}
  threads_per_core_limit: 2048  core_count: {0.cores}  fpus_per_core: {0.fpus}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {0.bandwidth}  l2_cache_size: {0.l2_cache}  clock_rate_ghz: {0.clock}
  device_memory_size: {0.memory}  cuda_compute_capability {{ major: {0.capability} }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9  minor: 8 }}
runtime_version {{ major: 12  minor: 8 }}
device_description_str: "{0.device_kind}"
"""


class Target(NamedTuple):
    """Devices to compile for."""

    name: str
    chip: Tpu | Gpu
    shape: tuple[int, ...]  # TPU: chips along the axes of the torus; GPU: hosts, devices of a host
    slices: int = 1  # of a TPU, each of this shape

    @property
    def platform(self) -> str:
        """The platform, "tpu" or "gpu"."""
        return "tpu" if isinstance(self.chip, Tpu) else "gpu"

    @property
    def count(self) -> int:
        """The number of devices."""
        return self.slices * math.prod(self.shape)

    @property
    def per_host(self) -> int:
        """The number of devices that reach each other without the network between hosts, or between slices."""
        return self.count // self.slices if isinstance(self.chip, Tpu) else self.shape[-1]

    @property
    def accelerator(self) -> Accelerator:
        """Its memory, peaks and bandwidths."""
        accelerator = accelerators.of_kind(self.chip.device_kind)
        assert accelerator is not None
        return accelerator

    def devices(self) -> list[Any]:
        """Describes the devices to jax; needs the `environment` of this target."""
        from jax.experimental import topologies

        if isinstance(self.chip, Tpu):
            name = f"{self.chip.topology}:{'x'.join(map(str, self.shape))}"
            options = {**dict(self.chip.options), "num_slices": self.slices}
            return list(topologies.get_topology_desc(name, "tpu", **options).devices)
        hosts, devices = self.shape
        topology = topologies.get_topology_desc(
            self.name, "cuda", target_config=CONFIG.format(self.chip), topology=f"1x{hosts}x{devices}"
        )
        return list(topology.devices)


def find(name: str) -> Target:
    """Returns the target of a name such as "v5e:4x4" or "a100x4x4".  Raises ValueError with examples."""
    match = re.fullmatch(r"(?:(?P<slices>[1-9]\d*)x)?(?P<kind>\w+):(?P<shape>[1-9]\d*(x[1-9]\d*)+)", name)
    if match and match["kind"] in TPUS:
        return Target(name, TPUS[match["kind"]], tuple(map(int, match["shape"].split("x"))), int(match["slices"] or 1))
    match = re.fullmatch(r"(?P<kind>[a-z0-9\-]+?)x(?:(?P<hosts>[1-9]\d*)x)?(?P<devices>[1-9]\d*)", name)
    if match and match["kind"] in GPUS:
        return Target(name, GPUS[match["kind"]], (int(match["hosts"] or 1), int(match["devices"])))
    raise ValueError(f"--for={name} is unknown; known are {', '.join([*TPUS, *GPUS])}, as in {EXAMPLES}")


def check_installed(target: Target) -> None:
    """Raises ValueError with the line of pip if the compiler of a target is missing."""
    missing = [module for module in NEEDED[target.platform] if not _has(module)]
    if missing:
        raise ValueError(
            f"--for={target.name} needs the compiler of its devices ({', '.join(missing)} missing): "
            "pip install 'detailclip_jax[targets]' (6 GB), in an environment of its own"
        )


def _has(module: str) -> bool:
    with contextlib.suppress(ImportError):
        return importlib.util.find_spec(module) is not None
    return False


def environment(target: Target) -> dict[str, str]:
    """Returns the environment of a process that compiles for a target: this one's, without its devices.

    Flags for the target's compiler stay: LIBTPU_INIT_ARGS, and those in XLA_FLAGS that are for GPUs.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "XLA_FLAGS"))}
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.startswith("--xla_gpu_")]
    added = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if target.platform == "tpu":
        added |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_LIBRARY_PATH": str(_folder("libtpu") / "libtpu.so"),
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # several such processes at a time; none holds a device
        }
    else:
        # Without a device nothing can be timed: no autotuning, and products by cuBLAS, since Triton's need it.
        # The scheduler is the one that the files in launch/ ask for.
        chosen = [
            "enable_latency_hiding_scheduler=true",
            "autotune_level=0",
            "enable_triton_gemm=false",
            f"cuda_data_dir={_folder('nvidia.cuda_nvcc')}",
        ]
        added["XLA_FLAGS"] = " ".join([*(f"--xla_gpu_{flag}" for flag in chosen), *flags])
    return kept | added


def _folder(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    places: Sequence[str] = list(spec.submodule_search_locations or [])
    return Path(places[0])
