"""The command as a user types it: most in this process, what a process of its own may do otherwise in one."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.ndc_core.models.test_networks import GOLDEN
from tests.support.commands import ndc, ndc_process
from tests.support.small_runs import small_arguments

pytestmark = pytest.mark.usefixtures("workplace_without_ray")


def test_certify_report_and_status_from_the_command_line(tiny_model: Path, tmp_path: Path) -> None:
    done = ndc("certify", "demo", "--run", "runs/a", *small_arguments(tiny_model))
    assert done.returncode == 0, done.stderr
    assert "4 images, 12 units, 200 votes" in done.stderr
    assert "Certified accuracy" in done.stdout
    assert "Report: runs/a/report.html" in done.stdout
    assert "MLflow: http://127.0.0.1:5000/#/experiments/" in done.stdout
    names = {path.name for path in (tmp_path / "runs/a").iterdir()}
    assert names >= {"certificates.parquet", "certificates.tsv", "curve.svg", "curve.png", "table.md", "table.tex"}

    link = ndc("report", "runs/a", "--mlflow-link")
    assert f"MLflow: {link.stdout}" in done.stdout
    assert link.stdout.count("\n") == 1
    assert link.stderr == f"served by `mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db`\n"
    assert ndc("report", "runs/a", "--mlflow-link", "--json").returncode == 2
    elsewhere = ndc("report", "runs/a", "--mlflow-link", MLFLOW_TRACKING_URI="sqlite:///other.db")
    assert (elsewhere.returncode, elsewhere.stdout) == (1, "")
    assert "runs/a was never logged" in elsewhere.stderr
    assert not (tmp_path / "other.db").exists()

    status = ndc("status", "runs/a", "--json")
    assert json.loads(status.stdout)["votes_done"] == 200

    report = ndc("report", "runs/a", "--alpha", "0.01", "--json")
    assert report.returncode == 0, report.stderr
    assert json.loads(report.stdout)["alpha"] == 0.01
    assert (tmp_path / "runs/a/alpha-0.01/report.html").is_file()

    before = (tmp_path / "runs/a/certificates.tsv").read_text()
    again = ndc("report", "runs/a")
    assert again.returncode == 0
    assert (tmp_path / "runs/a/certificates.tsv").read_text() == before

    compared = ndc("compare", "runs/a", "Log=runs/a/certificates.tsv")
    assert compared.returncode == 0, compared.stderr
    assert "Compared on 4 images." in compared.stderr
    assert "certify:" in compared.stdout
    assert compared.stdout.splitlines()[-1] == "Comparison: runs/compare/compare.html"
    assert json.loads((tmp_path / "runs/compare/compare.json").read_text())["methods"][1]["name"] == "Log"

    resumed = ndc("certify", "runs/a")
    assert resumed.returncode == 0, resumed.stderr
    assert "all 200 votes are there already" in resumed.stderr


def test_a_sequential_run_is_certified_verified_attacked_and_resumed_by_its_declared_radii(
    tiny_model: Path, tmp_path: Path
) -> None:
    small = small_arguments(tiny_model, "votes.estimation=300", "dataset.limit=2")
    command = ("certify", "--certificate", "sequential", "--run", "runs/a", *small, "--radii", "0.05,0.1")
    done = ndc(*command)
    assert done.returncode == 0, done.stderr
    assert "at most" in done.stderr
    assert "r = 0.05" in done.stdout
    assert "votes per image" in done.stdout
    status = ndc("status", "runs/a")
    assert "2 of 2 images and noise levels decided" in status.stdout
    assert status.stdout.splitlines()[-1] == "complete"

    verified = ndc("verify", "runs/a", "--redraw", "2")
    assert verified.returncode == 0, verified.stderr
    assert "units drawn again from the model: equal bit for bit" in verified.stdout

    effort = ["--restarts", "1", "--steps", "1", "--votes", "10", "--budget", "1000"]
    attacked = ndc("attack", "runs/a", "--limit", "1", *effort)
    assert attacked.returncode == 0, attacked.stderr
    assert "0.25, under attack (first 1" in attacked.stdout

    other = ndc("report", "runs/a", "--radii", "0.07")
    assert other.returncode == 1
    assert "radius 0.07 was not declared" in other.stderr
    changed = ndc("certify", "runs/a", "--radii", "0.07")
    assert changed.returncode == 1
    assert "certificate.radii: [0.05, 0.1] -> [0.07]" in changed.stderr

    manifest = tmp_path / "runs/a/table.md"
    manifest.write_text("better")
    tampered = ndc("verify", "runs/a")
    assert tampered.returncode == 1
    assert "table.md does not follow from the evidence" in tampered.stderr
    assert "DIFFERS" in tampered.stdout


def test_a_plan_says_the_cost_and_writes_nothing_and_a_dry_run_is_that_plan(tiny_model: Path, tmp_path: Path) -> None:
    stated = ["--evaluations-per-second", "100", "--gpus", "2", "--price-per-hour", "3"]
    done = ndc("plan", "demo", *stated, "--run", "runs/a", *small_arguments(tiny_model))
    assert done.returncode == 0, done.stderr
    # A sift of 1 step for 10 classes, then 2 steps for the 2 kept, and the unconditional estimate: 15 a vote.
    for line in (
        "4 images, 1 noise level, 12 work units",
        "votes        200",
        "evaluations  at most 3,000",
        "rate         100 evaluations/s per actor, as stated",
        "actor hours  at most 0.01",
        "time         at most 0:15 on 2 actors",
        "price        at most 0.03",
    ):
        assert line in done.stdout.splitlines()
    measured = ndc("certify", "demo", "--dry-run", "--run", "runs/a", *small_arguments(tiny_model))
    assert measured.returncode == 0, measured.stderr
    assert "evaluations/s per actor, measured on cpu" in measured.stdout
    assert "votes        200\n" in measured.stdout
    assert not (tmp_path / "runs").exists()


def test_a_model_is_converted_and_images_are_chosen_by_id(tmp_path: Path) -> None:
    """From a state dict in EDM's names and a folder of images to a plan."""
    from PIL import Image

    shutil.copy(GOLDEN / "edm-song-ddpmpp-cond.weights.safetensors", tmp_path / "edm.safetensors")
    done = ndc("convert", "edm.safetensors", "models/edm")
    assert done.returncode == 0, done.stderr
    assert "models/edm: edm-song, 10 classes, images of [3, 16, 16], does not know images without" in done.stdout
    for name in "0123456789":
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (20, 18), (25 * int(name), 80 * index, 0)).save(tmp_path / "data" / name / f"{index}.png")
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf7/1.png\r\n3/0.png\r\n\r\n")
    plan = ["plan", "demo", "--model", "models/edm", "--data", "data", "--evaluations-per-second", "1"]
    small = ["--set", "dataset.resize=16", "--set", "dataset.filter=box", "--set", "unconditional=blended_label"]
    chosen = ndc(*plan, *small, "--ids", "ids.txt")
    assert chosen.returncode == 0, chosen.stderr
    assert "data: data, read as image-folder (--format overrides): 3 x 16 x 16 pixels, resized with" in chosen.stderr
    assert "2 images, " in chosen.stdout
    assert "passed over" not in chosen.stderr
    (tmp_path / "data" / "3" / "Thumbs.db").write_bytes(b"")
    absent = ndc(*plan, *small, "--data", "nowhere/images")
    assert absent.returncode == 1
    assert "nowhere/images does not exist" in absent.stderr
    some = ndc(*plan, *small, "--every", "5", "--offset", "1", "--limit", "4")
    assert "4 images, " in some.stdout
    assert "data: passed over as no images: 1 (1 Thumbs.db)\n" in some.stderr

    (tmp_path / "data/4/2.png").write_bytes(b"not an image")
    corrupt = ndc(*plan, *small, "--limit", "30")
    assert corrupt.returncode == 1
    assert "1 of 30 images cannot be decoded: 4/2.png (" in corrupt.stderr
    skipped = ndc(*plan, *small, "--limit", "30", "--skip-corrupt")
    assert skipped.returncode == 0, skipped.stderr
    assert "left out 1 corrupt images: 4/2.png (" in skipped.stderr
    assert "29 images, " in skipped.stdout
    assert not (tmp_path / "runs").exists()

    (tmp_path / "edm.pkl").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    raw = ndc("certify", "demo", "--model", "edm.pkl")
    assert raw.returncode == 1
    assert "run `ndc convert edm.pkl models/edm` and use that folder" in raw.stderr
    hostile = ndc("convert", "edm.pkl", "models/hostile")
    assert hostile.returncode == 1
    assert "Error: edm.pkl: at byte 31: it asks to call os.system, which no checkpoint needs; nothing" in hostile.stderr
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "models/hostile").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["certify", "demo", "--run", "s3x://bucket/a"], "s3x://bucket/a cannot be opened"),
        (["convert", "nowhere.pkl", "models/a"], "nowhere.pkl: does not exist|nowhere.pkl does not exist"),
        (["certify", "demmo"], "neither a preset"),
        (["certify", "demo", "--set", "votes.selektion=3"], "unknown key votes.selektion"),
        (["certify", "demo", "--sigma-pixel", "7"], "lower sigma_pixel"),
        (["certify", "demo", "--set", "model=nowhere"], "nowhere is no checkpoint"),
        (["certify", "demo", "--set", "compute.gpus_per_actor=1"], "models/digits is no checkpoint"),
        (["certify", "demo", "--certificate", "lipschitz"], "start from the preset lipschitz"),
        (
            ["certify", "--certificate", "magic"],
            "certificate.method 'magic' is unknown; there are: cohen, sequ",
        ),
        (["certify", "--certificate", "sequential", "--radii", "0.25,9"], "radius 9 can never be certified"),
        (["certify", "--certificate", "sequential", "--radii", "wide"], "certificate.radii"),
        (["verify", "nowhere"], "nowhere holds no run"),
        (["attack", "nowhere"], "nowhere holds no run"),
        (["status", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["train", "--dataset", "emnist", "--out", "m"], "dataset 'emnist' is unknown"),
    ],
)
def test_errors_are_one_line_and_come_before_any_work(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = ndc(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_broken_model_ends_the_run_with_the_failed_units_named(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from ndc_core.checkpoints.denoisers import load_denoiser, save_denoiser

    denoiser = load_denoiser(tiny_model)
    denoiser.network.conv_out.bias.fill_(float("nan"))
    arguments = json.loads((tiny_model / "denoiser.json").read_text())["arguments"]
    save_denoiser(tmp_path / "broken", denoiser, network="small", arguments=arguments, notes={})
    assert torch.isnan(load_file(tmp_path / "broken/denoiser.safetensors")["conv_out.bias"]).all()
    done = ndc("certify", "demo", "--run", "runs/a", *small_arguments(tmp_path / "broken", "dataset.limit=1"))
    assert done.returncode == 1
    assert "3 of 3 units failed" in done.stderr
    assert "NonFiniteScoreError: the network's output is not finite at image digits-" in done.stderr
    status = ndc("status", "runs/a")
    assert "3 units failed; `ndc certify RUN --retry-failed` tries them again" in status.stdout
    assert status.stdout.count("NonFiniteScoreError") == 3


def test_training_writes_a_checkpoint_once_and_shows_loss_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.model_tools.train.SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("pipeline.model_tools.train.usable_cores", lambda: 1)
    done = ndc("train", "--dataset", "digits", "--out", "models/a", "--steps", "4")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"step (\d+) of 4, loss \d+\.\d+, [\d,]+ images/s, \d+:\d\d left", done.stderr) == [
        "1",
        "2",
        "3",
        "4",
    ]
    before = (tmp_path / "models/a/denoiser.safetensors").read_bytes()
    again = ndc("train", "--dataset", "digits", "--out", "models/a", "--steps", "3")
    assert again.returncode == 1
    assert "holds a checkpoint already" in again.stderr
    assert (tmp_path / "models/a/denoiser.safetensors").read_bytes() == before


def test_help_names_every_command_at_once() -> None:
    done = ndc_process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("train", "certify", "report", "status", "verify", "attack", "compare"):
        assert command in done.stdout


def test_a_process_says_an_error_in_one_line_and_its_exit_code() -> None:
    done = ndc_process("certify", "demmo")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: 'demmo' is neither a preset")
    assert done.stderr.count("\n") == 1
