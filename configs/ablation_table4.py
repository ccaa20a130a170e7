"""Table 4 of the paper: the weights of the three added terms (alpha of eq. 10), ImageNet-1K zero-shot at 25 epochs.

    python -m detailclip_jax.main --config=configs/ablation_table4.py:row=3 --config.data.path=/data/yfcc15m
    python -m detailclip_jax.compare --sweep=configs/ablation_table4.py --workdir=runs/table4

The second command trains the five rows of the table on the embedded data and writes their table.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

ROWS = (  # weights of CLS, patch, reconstruction; comment: the paper's zero-shot accuracy
    (1.0, 1.0, 1.0),  # 43.9
    (1.0, 1.0, 0.0),  # 42.9
    (1.0, 1.0, 2.0),  # 43.2
    (0.5, 0.5, 0.5),  # 43.3
    (0.0, 0.0, 1.0),  # 42.6
)


def weights(row):
    cls, patch, reconstruction = row
    return {"clip": 1.0, "cls": cls, "patch": patch, "reconstruction": reconstruction}


def get_config(arg=None):
    arg = base.parse_arg(arg, row=1)
    if not 1 <= arg.row <= len(ROWS):
        raise ValueError(f"config argument row={arg.row}: table 4 has rows 1 to {len(ROWS)}")
    c = run_config.load(str(Path(__file__).with_name("vitb16_yfcc.py")))
    c.losses.weights.update(weights(ROWS[arg.row - 1]))
    return c


SWEEP = {f"({', '.join(f'{w:g}' for w in row)})": ("detailclip", weights(row)) for row in ROWS}
