"""The network that docs/models.md plugs in: taken from the page, trained for seconds, certified and verified."""

import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.store.run_store import RunStore
from tests.support.commands import ndc, ndc_process
from tests.support.in_process import replace_ray
from tests.support.plugged_in import users_folder
from tests.support.small_runs import digits

PAGE = Path(__file__).parents[2] / "docs/models.md"
STEPS, BATCH = 150, 64


def example() -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    return str(block)


def train(denoiser: torch.nn.Module) -> None:
    """As a user might: squared errors, levels around those of the votes, a tenth of the labels left out."""
    examples, generator = digits("train"), torch.Generator().manual_seed(0)
    clean = torch.from_numpy(np.stack([example.image for example in examples])) / 127.5 - 1
    labels = torch.eye(10)[torch.tensor([example.label for example in examples])]
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=4e-3)
    for _ in range(STEPS):
        rows = torch.randint(len(clean), (BATCH,), generator=generator)
        sigma = (torch.randn(BATCH, generator=generator) * 0.8 - 0.5).exp()
        kept = (torch.rand(BATCH, 1, generator=generator) > 0.1).float()
        noise = torch.randn(clean[rows].shape, generator=generator)
        estimate = denoiser(clean[rows] + sigma.view(-1, 1, 1, 1) * noise, sigma, labels[rows] * kept)
        loss = ((estimate - clean[rows]) ** 2 / sigma.view(-1, 1, 1, 1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("where", ["in this process", pytest.param("on Ray", marks=pytest.mark.slow)])
def test_the_network_of_the_page_is_certified(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "in this process":
        replace_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert len(example().splitlines()) <= 30
    with users_folder(tmp_path) as write:
        write("mynet.py", example())
        torch.set_num_threads(1)
        torch.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(tmp_path))
            denoiser = import_module("mynet").MyDenoiser()
        train(denoiser)
        torch.save(denoiser.state_dict(), "mynet.pt")
        settings = [
            "tracking=none",
            "votes.selection=20",
            "votes.estimation=60",
            "votes.per_unit=60",
            "compute.actors=1",
            "certificate.radii=[0.0, 0.1]",
        ]
        assignments = [word for setting in settings for word in ("--set", setting)]
        done = (ndc_process if where == "on Ray" else ndc)(
            "certify", "demo", "--model", "mynet:build", "--run", "run", "--limit", "6", *assignments
        )
        assert done.returncode == 0, done.stderr
        assert "model: mynet:build is run as a program; it is declared with its 1 Python file (mynet.py)" in done.stderr
        verified = ndc("verify", "run", "--redraw", "2")  # in a process whose cores and libraries are the same
        assert verified.returncode == 0, verified.stdout
        assert "2 of 24 units drawn again from the model: equal bit for bit" in verified.stdout
        write("mynet.py", example() + "# changed\n")
        changed = ndc("certify", "run")
        assert changed.returncode == 1
        assert "model_sha256: " in changed.stderr
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["levels"][0]["certified_accuracy"]["0.0"] >= 0.5
    assert RunStore(Path("run")).manifest()["law"]["model_sha256"]
