"""Runs of several methods in a running MLflow server, over HTTP and in Debian's Chromium."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pipeline.certificates.reduce import CertifiedImage, by_level
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.toml_files import load_config
from pipeline.locations import location
from pipeline.report.mlflow_tracker import Tracker
from pipeline.report.report import accuracy_at, summarise, write_report
from tests.end_to_end.test_browser import CHROMIUM
from tests.pipeline.report.test_mlflow_tracker import LAW
from tests.support.commands import environment, ndc
from tests.support.pages import certified_images, random_images
from tests.support.servers import mlflow_server

ROOT = Path(__file__).parents[2]
PATH = "/tracking"
FILES = ("report.html", "curve.svg", "table.md")
# What MLflow's pages say of themselves: who is logged in on a server without users, and their grid's old options.
MLFLOWS_OWN = re.compile("users/current|ResizeObserver|AG Grid")
RUNS = {"epndc": (0.25, 0.5), "plain": (0.25,), "denoise": (0.5, 1.0)}


@dataclass(frozen=True)
class Logged:
    """Finished runs of three methods, of different noise levels, in one experiment."""

    server: str
    experiment_id: str
    folders: dict[str, Path]
    ids: dict[str, str]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.server)


def items_of(method: str) -> list[CertifiedImage]:
    return certified_images(20 + 10 * list(RUNS).index(method), RUNS[method])


def log_run(method: str, folder: Path) -> Tracker:
    law = {
        **LAW,
        "classifier": {"name": method},
        "certificate": {"method": "cohen", "alpha": 0.001, "maximum_over_sigmas": False},
        "sigma_pixel": list(RUNS[method]),
        "dataset": {"sha256": "ab" * 32, "name": "digits"},
    }
    config, items = load_config("demo", ["sweep=methods"]), items_of(method)
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"law": law, "fingerprint": method, "plan": {}}))
    (folder / "run.toml").write_text(config.to_toml())
    place = location(folder)
    report = write_report(
        place,
        items,
        random_images(items, (1, 8, 8)),
        declaration=Declaration(law),
        alpha=0.001,
        radii=(0.0, 0.25),
        title=method,
        evidence_digest="",
    )
    tracker = Tracker(config, folder=place, declaration=Declaration(law))
    tracker.finish(report, [place / name for name in FILES])
    return tracker


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[Logged]:
    workplace = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_database, workplace / "server.db")
    with mlflow_server(workplace, path=PATH) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setenv("MLFLOW_TRACKING_URI", server)
        folders = {method: workplace / f"run-{method}" for method in RUNS}
        trackers = {method: log_run(method, folder) for method, folder in folders.items()}
        ids = {method: tracker.run_id for method, tracker in trackers.items()}
        yield Logged(server, trackers["plain"].experiment_id, folders, ids)


def runs_of(logged: Logged, query: str) -> set[str]:
    return {run.info.run_name for run in logged.client.search_runs([logged.experiment_id], query)}


def test_runs_of_a_sweep_are_filtered_by_tags_and_by_results(logged: Logged) -> None:
    assert runs_of(logged, "tags.sweep = 'methods'") == {f"{method}: run-{method}" for method in RUNS}
    assert runs_of(logged, "tags.sweep = 'methods' and tags.method != 'plain'") == {
        "epndc: run-epndc",
        "denoise: run-denoise",
    }
    assert runs_of(logged, "tags.sigmas = '0.25'") == {"plain: run-plain"}
    assert runs_of(logged, "tags.certificate = 'lipschitz'") == set()
    summary = summarise({"0.25": items_of("plain")}, alpha=0.001, radii=(0.25,))
    share = summary.best_accuracy[0.25]
    assert "plain: run-plain" in runs_of(logged, f"metrics.`radius/0.25_best_sigma` >= {share - 1e-9}")
    assert "plain: run-plain" not in runs_of(logged, f"metrics.`radius/0.25_best_sigma` > {share + 1e-9}")


def test_curves_of_all_methods_have_one_name_and_are_logged_once(logged: Logged) -> None:
    log_run("plain", logged.folders["plain"])  # resumed
    for method, run_id in logged.ids.items():
        history = logged.client.get_metric_history(run_id, "curve/best_sigma")
        steps = [point.step for point in history]
        assert len(set(steps)) == len(steps) > 20
        levels = by_level(items_of(method), maximum_over_sigmas=False).values()
        for point in history[::10]:
            assert point.value == max(accuracy_at(items, point.step / 1000) for items in levels)
    assert len(logged.client.search_runs([logged.experiment_id])) == len(RUNS)


# What mlflow has and mlflow-skinny, which the image of clusters/Dockerfile has in its place, does not.
OF_THE_SERVER = ("alembic", "docker", "flask", "graphene", "gunicorn", "huey", "mlflow.server", "sklearn", "sqlalchemy")


def test_the_client_alone_logs_to_a_server(logged: Logged, tmp_path: Path) -> None:
    program = f"""
import sys
from importlib.machinery import PathFinder
from pathlib import Path

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, *where):
        return None if name.startswith({OF_THE_SERVER!r}) else super().find_spec(name, *where)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from tests.end_to_end.test_mlflow_server import log_run
print(log_run("plain", Path({str(tmp_path / "alone")!r})).run_id)
assert not [name for name in sys.modules if name.startswith({OF_THE_SERVER!r})]
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(MLFLOW_TRACKING_URI=logged.server),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    run = logged.client.get_run(done.stdout.split()[-1])
    assert run.info.status == "FINISHED"
    assert {item.path for item in logged.client.list_artifacts(run.info.run_id)} == {*FILES, "certified.json"}
    logged.client.delete_run(run.info.run_id)


def test_artifacts_come_back_as_they_were_written(logged: Logged, tmp_path: Path) -> None:
    run_id, folder = logged.ids["epndc"], logged.folders["epndc"]
    kept = {item.path for item in logged.client.list_artifacts(run_id)}
    assert kept == {*FILES, "certified.json"}
    for name in FILES:
        copy = logged.client.download_artifacts(run_id, name, str(tmp_path))
        assert Path(copy).read_bytes() == (folder / name).read_bytes()


def link_of(folder: Path) -> str:
    shown = ndc("report", folder, "--mlflow-link")
    assert (shown.returncode, shown.stderr) == (0, "")
    return shown.stdout.removesuffix("\n")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is missing (Debian's package chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 1600, "height": 2400}) as context:
        page = context.new_page()
        expect.set_options(timeout=30_000)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(f"{message.text} {message.location['url']}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        expect.set_options(timeout=5_000)
        assert [text for text in complaints if not MLFLOWS_OWN.search(text)] == []


def test_the_printed_link_opens_on_charts_by_section_with_every_methods_curve(logged: Logged, page: Page) -> None:
    link = link_of(logged.folders["plain"])
    assert link.startswith(f"{logged.server}/#/experiments/{logged.experiment_id}/runs?")
    page.goto(link)
    for section in ("cost", "curve", "radius", "sigma_0.25", "sigma_0.5", "sigma_1"):
        expect(page.get_by_text(section, exact=True)).to_be_visible()
    for method in RUNS:
        expect(page.get_by_text(f"{method}: run-{method} (curve/best_sigma)")).to_be_visible()
        expect(page.get_by_role("link", name=f"{method}: run-{method}")).to_be_visible()


def test_a_runs_page_shows_its_result_and_its_report_with_working_scripts(logged: Logged, page: Page) -> None:
    run = f"{logged.server}/#/experiments/{logged.experiment_id}/runs/{logged.ids['epndc']}"
    page.goto(run)
    expect(page.get_by_role("cell", name="best per radius, chosen on this data")).to_be_visible()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("report.html").first.click()
    report = page.frame_locator("iframe")
    expect(report.locator("#curves-chart g.curve")).to_have_count(2)
    report.get_by_label("sigma 0.25", exact=True).uncheck()
    expect(report.locator("#curves-chart g.curve")).to_have_count(1)


def test_the_tables_of_runs_are_compared_side_by_side(logged: Logged, page: Page) -> None:
    charts = link_of(logged.folders["plain"])
    page.goto(charts.replace("compareRunsMode=CHART", "compareRunsMode=ARTIFACT"))
    expect(page.get_by_text("best sigma, chosen on this data, r = 0.25")).to_be_visible()
    expect(page.get_by_text("certified accuracy", exact=True).first).to_be_visible()
