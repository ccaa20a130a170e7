"""What devices say to each other, counted in a compiled program."""

import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "u8": 1, "pred": 1, "bf16": 2}


def collectives(text):
    """(kind, bytes of what comes out of it on a device), one by one."""
    found = []
    for shapes, kind in re.findall(rf"= (\(?[a-z0-9]+\[.*?) ({'|'.join(KINDS)})(?:-start)?\(", text):
        arrays = re.findall(r"([a-z0-9]+)\[([\d,]*)\]", shapes)
        found.append((kind, sum(BYTES[t] * math.prod(int(n) for n in dims.split(",") if n) for t, dims in arrays)))
    return found
