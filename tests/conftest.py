"""Eight virtual CPU devices for every test, and flags that grain wants parsed."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def pytest_configure(config):
    from absl import flags

    flags.FLAGS.mark_as_parsed()
