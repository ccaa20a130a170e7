"""Compiles the steps of the tables on the pages for devices that are not here.

    python tools/targets.py                    # lists the rows, and which are compiled
    python tools/targets.py paper h100-B       # compiles these, minutes each, and writes the pages
    python tools/targets.py missing            # all that are not compiled yet

docs/targets.json holds the records of `python -m detailclip_jax.benchmark step --for`; PAGES have their tables
between `<!-- targets NAME -->` and `<!-- end -->` (a test compares them).  Needs the extra `targets`.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detailclip_jax.benchmarks import planned, targets
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.progress import Console

ROOT = Path(__file__).parents[1]
STORED, PAGES = ROOT / "docs/targets.json", (ROOT / "docs/performance.md", ROOT / "tools/measured.md")
DETAIL = "configs/detail.py:data=yfcc"
GIB = 2**30


class Row(NamedTuple):
    """A step to compile."""

    what: str  # for the reader
    target: str
    settings: Mapping[str, Any]
    spec: str = "configs/vitb16_yfcc.py"


def _row(what: str, target: str, per_device: int, spec: str = "configs/vitb16_yfcc.py", **model: Any) -> Row:
    """A row with `per_device` pairs; `model` has fields of config.model, and fsdp."""
    fsdp = {"mesh.fsdp": model.pop("fsdp")} if "fsdp" in model else {}
    fields = {f"model.{name}": value for name, value in {"dtype": "bfloat16", "scan": True, **model}.items()}
    return Row(what, target, {"batch": per_device * targets.find(target).count, **fields, **fsdp}, spec)


def _rows() -> dict[str, Row]:
    """All rows: the paper's run first, then methods and sizes on each kind of device, then weak scaling."""
    rows = {"paper": Row("the paper's run", "a100x4x4", {})}
    rows |= {f"paper-{remat}": Row("the paper's run", "a100x4x4", {"remat": remat}) for remat in ("none", "full")}
    kinds = {"h100": ("h100x8", 256), "a100": ("a100x8", 256), "v5e": ("v5e:4x4", 64)}
    kinds |= {"v6e": ("v6e:4x4", 64), "v5p": ("v5p:2x2x4", 256)}
    for kind, (target, pairs) in kinds.items():
        usual = "full" if kind in ("v5e", "v6e") else "dots"
        for remat in (usual, *sorted({"none", "dots", "full"} - {usual})):
            name = f"{kind}-B" if remat == usual else f"{kind}-B-{remat}"
            rows[name] = _row("DetailCLIP B/16", target, pairs, remat=remat)
        rows[f"{kind}-S"] = _row("DetailCLIP S/16", target, pairs, size="S/16", remat=usual)
        rows[f"{kind}-L"] = _row("DetailCLIP L/16", target, pairs // 2, size="L/16", remat=usual)
        rows[f"{kind}-L-fsdp"] = _row("DetailCLIP L/16, fsdp=8", target, pairs // 2, size="L/16", remat=usual, fsdp=8)
        rows[f"{kind}-clip"] = _row("CLIP B/16", target, pairs, "clip", remat=usual)
        rows[f"{kind}-detail"] = _row(DETAIL, target, pairs, DETAIL, remat=usual)
        whole = rows[f"{kind}-detail"]._replace(what="the same, its last tenth")
        rows[f"{kind}-detail-whole"] = whole._replace(settings={**whole.settings, **planned.WHOLE})
    for chips in ("2x4", "8x8", "16x16"):
        for pairs in (64, 256):
            for fsdp in (1, 8):
                name = f"scale-{chips}-{pairs}" + ("-fsdp" if fsdp > 1 else "")
                rows[name] = _row("DetailCLIP B/16", f"v5e:{chips}", pairs, remat="full", fsdp=fsdp)
    return rows


ROWS = _rows()


def request_of(name: str) -> dict[str, Any]:
    """The arguments of `variants.build` for a row."""
    row, settings = ROWS[name], dict(ROWS[name].settings)
    if row.spec == "clip":
        return {"name": name, "spec": None, "settings": {"method": "clip", **settings}}
    return {"name": name, "spec": row.spec, "settings": settings}


def stored() -> dict[str, Any]:
    """The records that are compiled, by row."""
    return json.loads(STORED.read_text()) if STORED.exists() else {}


def compile_rows(names: Iterable[str]) -> None:
    """Compiles rows one after the other, and stores each record at once."""
    console = Console(stream=sys.stderr)
    for name in names:
        record = planned.plan(targets.find(ROWS[name].target), request_of(name), console)
        replace_text(STORED, json.dumps(stored() | {name: record}, indent=1) + "\n")
        print(planned.verdict(record), flush=True)


def short_table(records: Mapping[str, Any]) -> list[str]:
    """What fits, and the bound of the rate: the steps with their usual remat and, if compiled so, a sharded state."""
    others = ("none", "dots", "full")
    usual = {n: r for n, r in records.items() if n.rpartition("-")[2] not in others and f"{n}-fsdp" not in records}
    rows = [line.strip("|").split("|") for line in step_table(usual)]
    return [f"|{'|'.join([*row[:2], *row[3:6], *row[-2:]])}|" for row in rows]


def step_table(records: Mapping[str, Any]) -> list[str]:
    """The table of all steps but those of weak scaling, with the bytes and milliseconds that bound them."""
    head = "what | devices | remat | pairs a device | arguments + temporaries | fits about | traffic a pair | products"
    lines = [f"| {head} | memory | links | pairs/s | share of peak |", "|" + "---|" * 12]
    for name, row in ROWS.items():
        if name in records and not name.startswith("scale"):
            lines.append(_line(row, records[name]))
    return lines


def _line(row: Row, record: Mapping[str, Any]) -> str:
    each = record["batch"] // record["devices"]
    what = [row.what, record["target"], record["remat"], str(each)]
    if "total_bytes" not in record:
        return f"| {' | '.join(what)} | refused by the compiler{' |' * 8}"
    memory = f"{record['argument_bytes'] / GIB:.2f} + {record['temp_bytes'] / GIB:.2f} GiB"
    bounds = [f"{1000 * record['roofline_seconds'][name]:.0f} ms" for name in ("products", "memory", "links")]
    traffic = f"{record['traffic_bytes'] * record['devices'] / record['batch'] / GIB:.2f} GiB"
    rate = f"{record['roofline_pairs_per_second']:,.0f}"
    seconds = record["roofline_seconds"]
    share = f"{100 * seconds['products'] / max(seconds.values()):.0f} %"
    return f"| {' | '.join([*what, memory, _most(record), traffic, *bounds, rate, share])} |"


def _most(record: Mapping[str, Any]) -> str:
    """The pairs of a device that fit if all temporaries grow with them."""
    each = record["batch"] / record["devices"]
    room = record["memory_bytes"] - record["argument_bytes"]
    most = int(each * room / record["temp_bytes"])
    return f"{most - most % 8}"


def scale_table(records: Mapping[str, Any]) -> list[str]:
    """The table of weak scaling."""
    lines = ["| chips | pairs a chip | fsdp | sent by a chip | links | products | memory |", "|" + "---|" * 7]
    for name in ROWS:
        if name in records and name.startswith("scale") and "total_bytes" in records[name]:
            record = records[name]
            sent = (record["sent_within"] + record["sent_between"]) / GIB
            bounds = [f"{1000 * record['roofline_seconds'][part]:.1f} ms" for part in ("links", "products", "memory")]
            each = record["batch"] // record["devices"]
            lines.append(f"| {record['devices']} | {each} | {record['fsdp']} | {sent:.2f} GiB | {' | '.join(bounds)} |")
    return lines


TABLES = {"short": short_table, "steps": step_table, "scaling": scale_table}


def with_tables(page: str, records: Mapping[str, Any]) -> str:
    """The page with the tables of these records."""
    for name, table in TABLES.items():
        block = "\n".join([f"<!-- targets {name} -->", *table(records), "<!-- end -->"])
        page = re.sub(rf"<!-- targets {name} -->.*?<!-- end -->", lambda _: block, page, flags=re.DOTALL)  # noqa: B023
    return page


def main(names: Sequence[str]) -> int:
    """Runs the script."""
    done = stored()
    if not names:
        for name, row in ROWS.items():
            print(f"{'compiled' if name in done else 'missing '}  {name:<22} {row.what}, {row.target}")
        return 0
    wanted = [name for name in ROWS if name not in done] if list(names) == ["missing"] else names
    if unknown := [name for name in wanted if name not in ROWS]:
        print(f"unknown rows {unknown}; python tools/targets.py lists them", file=sys.stderr)
        return 2
    compile_rows(wanted)
    for page in PAGES:
        replace_text(page, with_tables(page.read_text(), stored()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
