"""Methods in one table: what the cells say, and how logs stand beside runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ndc_core.radius_curves import interval_of
from pipeline.certificates.reduce import LARGEST
from pipeline.cli import main
from pipeline.compare.method_tables import Comparison
from pipeline.compare.shared_images import OtherImagesError
from pipeline.declaration.declaration import DeclarationChangedError
from pipeline.locations import location
from pipeline.report.curves import BEST_PER_RADIUS, Curve, best_of
from pipeline.report.figures import LETTERS_OF_A_LINE, certified_accuracy_figure, curve_label
from pipeline.report.report import reduce_and_report
from pipeline.store.run_store import RunStore
from tests.support.comparisons import LOG, SOME, WINS, compared
from tests.support.finished_runs import EXAMPLES, example, finished_run, log_text
from tests.support.pages import page_data


def unanimous(sigma_pixel: float, *, alpha: float = 0.001, votes: int = 40) -> float:
    return float(sigma_pixel * stats.norm.ppf(alpha ** (1 / votes)))


def fall(comparison: Comparison) -> dict[tuple[str, str], tuple[float, ...]]:
    """The radii at which each curve falls."""
    return {(entry.method, entry.level): entry.curve.radii for entry in comparison.entries}


def test_tables_of_a_run_say_what_its_votes_do(tmp_path: Path, out: Path) -> None:
    run = finished_run(tmp_path / "a", WINS, "certificate.radii=[0.0, 0.1, 0.2]")
    accuracy, cost = compared(run, out=out).tables
    assert accuracy.header == ["method", "sigma", "natural", "r = 0.1", "r = 0.2", "average radius", "abstained"]
    low, high = f"{unanimous(0.125) * 2 / 4:.5f}", f"{unanimous(0.25) / 4:.5f}"
    name = "APNDC-ensemble"
    assert accuracy.rows == [
        [name, "0.125", "50.0 %", "50.0 %", "0.0 %", low, "1 of 4"],
        [name, "0.25", "25.0 %", "25.0 %", "25.0 %", high, "2 of 4"],
        [name, BEST_PER_RADIUS, "50.0 % (0.125)", "50.0 % (0.125)", "25.0 % (0.25)", "", ""],
    ]
    assert "chosen on this data" in BEST_PER_RADIUS
    network = "tiny (01234567)"
    assert cost.header[4:] == [
        "votes per image",
        "certify: evaluations",
        "certify: s",
        "classify: evaluations",
        "classify: s",
    ]
    assert cost.rows == [
        [name, "0.125", network, "cpu", "40", "170", "5", "5.0", "0.1"],
        [name, "0.25", network, "cpu", "40", "170", "5", "5.0", "0.1"],
        [name, "all levels together", "", "", "80", "340", "10", "", ""],
    ]


def test_numbers_intervals_and_sources_are_in_the_json(tmp_path: Path, out: Path) -> None:
    run = finished_run(tmp_path / "a", WINS, "certificate.radii=[0.1]")
    (tmp_path / "rs.tsv").write_text(log_text(LOG))
    compared(run, f"RS@0.25={tmp_path / 'rs.tsv'}", out=out)
    comparison = json.loads((out / "compare.json").read_text())
    assert (comparison["alpha"], comparison["images"], comparison["radii"]) == (0.001, 4, [0.1])
    own, log = comparison["methods"]
    level = own["levels"][0]
    assert level["certified_accuracy"]["0.1"] == {"right": 2, "share": 0.5, "interval": list(interval_of(2, 4))}
    assert level["certify"] == {"votes": 40, "evaluations": 170, "seconds": 5}
    assert level["classify"] == {"evaluations": 5, "seconds": pytest.approx(0.1)}
    best = own["best_sigma_per_radius_chosen_on_this_data"]
    assert best["0.1"] == {"sigma_pixel": "0.125", "share": 0.5}
    assert log["levels"][0]["source"] == str(tmp_path / "rs.tsv")
    assert log["levels"][0]["certify"] == {"votes": None, "evaluations": None, "seconds": 10.5}
    assert log["best_sigma_per_radius_chosen_on_this_data"] is None


def test_a_missing_time_is_missing_and_not_0(tmp_path: Path, out: Path) -> None:
    run = finished_run(tmp_path / "a", WINS, "certificate.radii=[0.1]")
    rows = log_text(LOG).splitlines()
    logs = {
        "none": [row.rpartition("\t")[0] for row in rows],
        "some": [*rows[:-1], rows[-1].rpartition("\t")[0] + "\t"],
        "seconds": [row.replace("0:00:10.500000", "10.5") for row in rows],
    }
    for name, lines in logs.items():
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    written = compared(run, *(f"{name}@0.25={tmp_path / name}.tsv" for name in logs), out=out)
    methods = json.loads((out / "compare.json").read_text())["methods"][1:]
    assert [method["levels"][0]["certify"]["seconds"] for method in methods] == [None, None, 10.5]
    assert [row[-3] for row in written.tables[1].rows[3:]] == ["", "", "10.5"]
    assert "The log of none, some does not tell the time of each image: its seconds are unknown." in (
        written.comparison.remarks
    )


def test_all_formats_are_written_and_names_never_become_markup(tmp_path: Path, out: Path) -> None:
    run = finished_run(tmp_path / "a", SOME)
    written = compared(f"<b>|100% & $x_1$\\^~#={run}", run, out=out)
    assert {path.name for path in out.iterdir()} == {
        "compare.html",
        "compare.json",
        "curves.png",
        "curves.svg",
        "table.md",
        "table.tex",
    }
    cells = (out / "table.md").read_text()
    assert r"| \<b\>\|100% & $x\_1$\\^~# | 0.25 |" in cells
    tabular = (out / "table.tex").read_text()
    name = r"\textless{}b\textgreater{}\textbar{}100\% \& \$x\_1\$\textbackslash{}\textasciicircum{}\textasciitilde{}\#"
    assert f"\n{name} & 0.25 & 75.0 \\% &" in tabular
    assert tabular.count(r"\begin{table}") == tabular.count(r"\end{table}") == 2
    page = written.page.read_text()
    assert "<b>|" not in page
    assert [curve["method"] for curve in page_data(page)["curves"]] == ["<b>|100% & $x_1$\\^~#", "APNDC-ensemble"]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@given(st.lists(st.lists(st.floats(0, 3), max_size=20), min_size=1, max_size=4), st.floats(0, 3.5))
def test_the_best_curve_is_the_highest_at_every_radius(levels: list[list[float]], radius: float) -> None:
    curves = [Curve(20, tuple(sorted(radii)), 0, "m", str(i)) for i, radii in enumerate(levels)]
    assert best_of(curves).right_at(radius) == max(curve.right_at(radius) for curve in curves)


def test_names_in_a_figure_are_wrapped_and_no_formulas() -> None:
    long = Curve(4, (0.1,), 0, f"$x$ {'word ' * 20}".strip(), "0.25")
    label = curve_label(long, with_method=True)
    assert label.startswith("\\$x\\$ word")
    assert label.split()[-3:] == ["\N{GREEK SMALL LETTER SIGMA}", "=", "0.25"]
    assert max(map(len, label.splitlines())) <= LETTERS_OF_A_LINE + 2  # the dollars' backslashes
    certified_accuracy_figure([long, Curve(4, (), 0, "$", BEST_PER_RADIUS)])


def test_a_runs_own_log_gives_its_own_curves(tmp_path: Path, out: Path) -> None:
    wins = {0.125: [40, 39, 20, 40], 0.25: [38, 40, 37, 40]}
    run = finished_run(tmp_path / "a", wins, "dataset.offset=5", "dataset.every=2")
    reduce_and_report(RunStore(run), alpha=None, radii=(0.1,), folder=location(run))
    written = compared(run, f"Log={run / 'certificates.tsv'}", out=out)
    radii = fall(written.comparison)
    for level in ("0.125", "0.25"):
        own, read = radii["APNDC-ensemble", level], radii["Log", level]
        assert read == pytest.approx(own, abs=1e-6)
        assert all(a <= b for a, b in zip(read, own, strict=True))
    assert len(radii["Log", "0.25"]) == 3
    assert not any("may round up" in remark for remark in written.comparison.remarks)


def test_a_published_logs_idx_is_the_place_in_the_data(tmp_path: Path, out: Path) -> None:
    run = finished_run(tmp_path / "a", SOME, "dataset.offset=20", "dataset.every=10")
    log = tmp_path / "rs.tsv"
    log.write_text(log_text([(20 + 10 * i, *rest) for i, *rest in LOG]))
    written = compared(run, f"RS@0.5={log}", out=out)
    assert fall(written.comparison)["RS", "0.5"] == (0.05, 0.31)
    said = " ".join(written.comparison.remarks)
    assert "those of RS are unknown" in said
    assert "published logs give three digits, and may round up" in said
    log.write_text(log_text(LOG))
    with pytest.raises(OtherImagesError, match=r"all share 0; image-0 is in .*a only; there is nothing to compare"):
        compared(run, f"RS@0.5={log}", out=out)


def test_logs_of_one_name_are_one_method_in_the_order_of_their_noise(tmp_path: Path, out: Path) -> None:
    for level, radius in (("0.5", 0.9), ("0.25", 0.4)):
        (tmp_path / level).write_text(log_text([(0, 1, 1, radius), (7, 1, 0, radius)]))
    written = compared(
        f"RS@0.5={tmp_path / '0.5'}", f"RS@0.25={tmp_path / '0.25'}", out=out, alpha=0.01, radii=(0.0, 0.3, 0.6)
    )
    assert [row[:4] for row in written.tables[0].rows] == [
        ["RS", "0.25", "50.0 %", "50.0 %"],
        ["RS", "0.5", "50.0 %", "50.0 %"],
        ["RS", BEST_PER_RADIUS, "50.0 % (0.25)", "50.0 % (0.25)"],
    ]
    assert written.tables[0].rows[2][4] == "50.0 % (0.5)"
    assert written.comparison.alpha is None
    assert written.tables[1].rows[0] == ["RS", "0.25", "", "", "", "", "10.5", "", ""]
    assert any("No run is there to name the images" in remark for remark in written.comparison.remarks)


def test_a_running_correct_column_is_named_in_every_output(tmp_path: Path, out: Path) -> None:
    log = tmp_path / "rs.tsv"
    log.write_text(log_text([(0, 1, 1, 0.5), (1, 1, 1, 0.5)]).replace("1\t0.5\t1\t", "1\t0.5\t2\t"))
    text = log.read_text().splitlines()
    log.write_text("\n".join([text[0], text[1].replace("\t2\t", "\t1\t"), text[2]]))
    shown = CliRunner().invoke(main, ["compare", f"RS@0.25={log}", "--radii", "0.1", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    sentence = "holds the running count of right rows, not 0 or 1 for its own row (line 3 has 2)"
    assert sentence in shown.stderr
    for name in ("table.md", "table.tex", "compare.html", "compare.json"):
        assert sentence in (out / name).read_text(), name


def test_one_alpha_makes_runs_of_different_alpha_comparable(tmp_path: Path, out: Path) -> None:
    strict, loose = (
        finished_run(tmp_path / name, SOME, f"certificate.alpha={alpha}") for name, alpha in (("a", 0.001), ("b", 0.01))
    )
    with pytest.raises(
        DeclarationChangedError, match=r"a was declared with alpha 0.001, .*b with 0.01: .* --alpha 0.01"
    ):
        compared(f"A={strict}", f"B={loose}", out=out)
    written = compared(f"A={strict}", f"B={loose}", out=out, alpha=0.01)
    for radii in fall(written.comparison).values():
        assert radii == pytest.approx([unanimous(0.25, alpha=0.01)] * 3, abs=1e-9)
    assert written.comparison.alpha == 0.01
    assert any("another alpha than this one: A with 0.001." in remark for remark in written.comparison.remarks)
    with pytest.raises(ValueError, match=r"alpha"):
        compared(f"A={strict}", out=out, alpha=2.0)


def test_what_attacks_left_stands_below_its_level_unless_images_are_left_out(tmp_path: Path, out: Path) -> None:
    run = finished_run(tmp_path / "a", SOME)
    fingerprint = RunStore(run).manifest()["fingerprint"]
    left = {"0.25": {"0.0": 1.0, "0.1": 0.5}}
    earlier = {"fingerprint": fingerprint, "images": 2, "empirical_accuracy": left}
    for summary, label in (
        ({**earlier, "falls_confirmed_at": 1e-4}, "under attack"),
        (earlier, "under attack, an estimate"),  # one plurality of votes decided about each fall
    ):
        (run / "attacks.json").write_text(json.dumps(summary))
        rows = compared(run, out=out).tables[0].rows
        assert rows[1] == ["APNDC-ensemble", f"0.25, {label} (first 2 images)", "100.0 %", "50.0 %", "", ""]
    fewer = finished_run(tmp_path / "b", {0.25: [40]}, examples=EXAMPLES[:1])
    rows = compared(run, fewer, out=out, intersect=True).tables[0].rows
    assert not any("under attack" in row[1] for row in rows)


def test_a_maximum_over_sigmas_is_no_noise_level(tmp_path: Path, out: Path) -> None:
    run = finished_run(tmp_path / "a", WINS, "certificate.maximum_over_sigmas=true")
    written = compared(run, out=out)
    accuracy, cost = written.tables
    assert [row[1] for row in accuracy.rows] == ["0.125", "0.25", LARGEST, BEST_PER_RADIUS]
    largest = json.loads((out / "compare.json").read_text())["methods"][0]["levels"][2]
    assert (largest["sigma_pixel"], largest["certify"]["evaluations"]) == (LARGEST, 340)
    assert largest["classify"] == {"evaluations": None, "seconds": None}
    assert any("shares this among its noise levels" in remark for remark in written.comparison.remarks)
    assert not any(LARGEST in cell for cell in accuracy.rows[3])
    assert [row[1] for row in cost.rows] == ["0.125", "0.25", "all levels together"]


def test_devices_that_differ_give_a_warning(tmp_path: Path, out: Path) -> None:
    slow, fast = (finished_run(tmp_path / name, SOME, device=name) for name in ("cpu", "cuda"))
    said = compared(f"A={slow}", f"B={fast}", out=out).comparison.remarks
    assert "Warning: seconds are of different or unknown devices, and do not compare (A: cpu; B: cuda)." in said
    alike = compared(slow, out=out).comparison.remarks
    assert "Seconds are those of actors at work, all on cpu." in alike


def test_a_comparison_needs_neither_ray_nor_a_model_nor_this_machines_disk(s3: str, tmp_path: Path) -> None:
    finished_run(f"{s3}/run", SOME)
    script = (
        "import sys; from click.testing import CliRunner; from pipeline.cli import main; "
        f"done = CliRunner().invoke(main, ['compare', '{s3}/run', '--out', '{s3}/out']); "
        "print(done.output, {'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"Comparison: {s3}/out/compare.html" in done.stdout
    assert done.stdout.endswith("set()\n")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_no_better_than_chance_is_named_and_keeps_its_class_names(tmp_path: Path, out: Path) -> None:
    wrong = [example(index, label=2) for index in range(6)]  # all are given class 1, of three
    run = finished_run(tmp_path / "a", {0.25: [40] * 6}, examples=wrong)
    remarks = compared(run, out=out).comparison.remarks
    assert [remark[:71] for remark in remarks if "chance" in remark] == [
        "APNDC-ensemble: Warning: at no noise level are images right more often "
    ]
    assert not [remark for remark in told(tmp_path / "right", out) if "chance" in remark]

    def table() -> str:
        reduce_and_report(RunStore(run), alpha=None, radii=(0.0,), folder=location(run))
        return (run / "table.md").read_text()

    assert "0 of 6 at sigma 0.25" in table()
    assert "Classes" not in table()  # a folder from before names were kept
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"data": {"classes": ["ant", "bee", "cow"]}}))
    assert "Classes: 0 = ant, 1 = bee, 2 = cow" in table()


def told(folder: Path, out: Path) -> tuple[str, ...]:
    """The remarks on a run that is right."""
    run = finished_run(folder, {0.25: [40] * 6}, examples=[example(index) for index in range(6)])
    return compared(run, out=out).comparison.remarks
