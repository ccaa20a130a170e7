"""The tables of compiled steps: the pages show what docs/targets.json holds."""

import targets

from detailclip_jax.benchmarks import variants


def test_the_pages_show_what_the_data_file_holds():
    records, pages = targets.stored(), [page.read_text() for page in targets.PAGES]
    assert [targets.with_tables(page, records) for page in pages] == pages
    assert all(sum(f"<!-- targets {name} -->" in page for page in pages) == 1 for name in targets.TABLES)
    assert set(records) <= set(targets.ROWS)
    assert targets.ROWS["paper"].settings == {} and records["paper"]["batch"] == 4096


def test_rows_build_their_configs():
    built = {name: variants.build(**targets.request_of(name)) for name in ("v5e-L-fsdp", "h100-clip", "v5p-detail")}
    assert built["v5e-L-fsdp"].config.mesh.fsdp == 8 and built["v5e-L-fsdp"].batch == 16 * 32
    assert built["h100-clip"].config.method == "clip"
    assert (built["v5p-detail"].config.model.size, built["v5p-detail"].config.model.image_size) == ("B/16", 224)


def test_a_refused_step_has_a_row():
    record = {"batch": 64, "devices": 8, "target": "h100x8", "remat": "none", "fits": False, "refused": "too large"}
    line = targets.step_table({"h100-B-none": record})[-1]
    assert line.count("|") == targets.step_table({})[0].count("|") and "refused by the compiler" in line


def test_rows_are_listed_and_unknown_ones_named(capsys):
    assert targets.main([]) == 0
    assert "the paper's run, a100x4x4" in capsys.readouterr().out
    assert targets.main(["papier"]) == 2 and "unknown rows ['papier']" in capsys.readouterr().err
