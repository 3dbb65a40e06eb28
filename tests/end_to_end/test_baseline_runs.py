"""Whole runs of the baselines: planned, interrupted, verified, attacked, in a store, and compared."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ndc_core.checkpoints.denoisers import CheckpointError
from ndc_core.checkpoints.image_classifiers import save_small_classifier
from ndc_core.training.image_classifier import ClassifierSpec, train_classifier
from pipeline.compare.compare import compare
from pipeline.declaration.config import ConfigError, RunConfig
from pipeline.declaration.declaration import DeclarationChangedError
from pipeline.driver.attack import attack_run
from pipeline.driver.certify import certify_run
from pipeline.driver.prepare import prepare
from pipeline.driver.verify import verify_run
from pipeline.locations import location
from pipeline.store.run_store import RunStore
from pipeline.workers.attack_settings import AttackSettings
from pipeline.workers.models import build_classifier, local_classifier, model_digests
from tests.support.small_runs import computed, digits, small_config

QUICK = AttackSettings(restarts=1, steps=2, draws=2, votes=20)


def plain(classifier: Path, *assignments: str) -> RunConfig:
    return small_config(classifier, 'classifier={name="plain"}', *assignments)


def denoised(model: Path, classifier: Path, *assignments: str, steps: int = 1, paths: int = 1) -> RunConfig:
    section = f'classifier={{name="denoise", network="{classifier}", steps={steps}, paths={paths}}}'
    return small_config(model, section, *assignments)


def votes_of(store: RunStore) -> dict[str, tuple[dict[int, int], int]]:
    evidence = store.all_evidence(fingerprint=store.manifest()["fingerprint"])
    return {str(item.unit): (item.votes, item.evaluations) for item in evidence}


@pytest.mark.usefixtures("workplace_without_ray")
def test_baselines_run_are_interrupted_verified_attacked_and_compared(tiny_model: Path, image_classifier: Path) -> None:
    configs = {
        "RS": plain(image_classifier, "dataset.limit=2"),
        "Carlini": denoised(tiny_model, image_classifier, "certificate.method='sequential'", "dataset.limit=2"),
        "Xiao": denoised(tiny_model, image_classifier, "dataset.limit=2", steps=3, paths=2),
    }
    whole = {}
    for name, config in configs.items():
        run = prepare(config, location(name))
        computed(config, Path(name))
        whole[name] = votes_of(RunStore(location(name)))
        each = {"RS": 1, "Carlini": 2, "Xiao": 1 + 2 * 2 + 2}[name]
        assert run.most_evaluations_per_vote == each
        assert run.votes_cost_alike
        for item in RunStore(location(name)).all_evidence(fingerprint=run.fingerprint):
            assert item.evaluations == each * item.unit.draws
        for path in RunStore(location(name)).evidence_files()[::2]:
            path.unlink()
        certify_run(prepare(config, location(name)), say=print)
        assert votes_of(RunStore(location(name))) == whole[name]
        verify_run(location(name), redraw=1000, say=print)
        for attack in (QUICK, replace(QUICK, method="apgd"), replace(QUICK, source=str(image_classifier))):
            report, summary = attack_run(location(name), attack, limit=1, say=print)
            assert report.summary.levels[0].attacked is not None
            assert summary["certificates_broken"] == 0
    written = compare(list(configs), alpha=None, radii=[0.1], intersect=False, out=location("compared"))
    entries = {entry.method: entry for entry in written.comparison.entries}
    assert list(entries) == ["RS", "Carlini", "Xiao"]
    assert entries["Xiao"].evaluations_to_classify == 7
    assert entries["Carlini"].network.count("(") == 2


def test_a_run_is_of_its_image_classifier(tiny_model: Path, image_classifier: Path, tmp_path: Path) -> None:
    config = denoised(tiny_model, image_classifier)
    assert set(model_digests(config)) == {"model_sha256", "unconditional", "network_sha256"}
    assert set(model_digests(plain(image_classifier))) == {"model_sha256"}
    run = prepare(config, location(tmp_path / "run"))
    examples = digits("test", limit=4)
    RunStore(run.folder).declare(
        run.manifest(), config_toml=run.config.to_toml(), records=run.records, examples=examples
    )
    with pytest.raises(DeclarationChangedError, match=r"classifier.steps: 1 -> 2"):
        prepare(denoised(tiny_model, image_classifier, steps=2), run.folder)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{name='plain', grid={points=4}}", "unknown key classifier.grid"),
        ("{name='denoise'}", "key classifier.network is missing"),
        ("{name='denoise', network='c', steps=0}", "classifier.steps: Input should be greater than or equal to 1"),
        ("{name='denoise', network='c', paths=3}", "3 paths of 1 step are all the same"),
        (
            "{name='cnn'}",
            "classifier.name 'cnn' is unknown; there are: dc, epndc, apndc, apndc-ensemble, plain, denoise",
        ),
        ("{grid={points=4}}", "key classifier.name is missing"),
    ],
)
def test_what_a_baseline_cannot_be_is_refused_by_name(tiny_model: Path, section: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(tiny_model, f"classifier={section}")


def test_the_lipschitz_certificate_and_no_noise_are_not_for_baselines(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="the lipschitz certificate is of the scores of all classes by dc"):
        plain(tiny_model, "certificate.method='lipschitz'", "certificate.radii=[0.0]")


def test_networks_that_do_not_go_together_are_refused_before_any_work(
    tiny_model: Path, image_classifier: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is no image classifier"):
        build_classifier(plain(tiny_model), device="cpu")
    with pytest.raises(CheckpointError, match="is no image classifier"):
        build_classifier(denoised(tiny_model, tiny_model), device="cpu")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        build_classifier(denoised(image_classifier, image_classifier), device="cpu")
    other = tmp_path / "other"
    images, labels = torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8)
    wide = train_classifier(images, labels, num_classes=8, spec=ClassifierSpec(steps=1, channels=8))
    save_small_classifier(other, wide, arguments={"channels": 8}, notes={})
    with pytest.raises(CheckpointError, match=r"does not go with .*: the denoiser makes images of shape \(1, 8, 8\)"):
        build_classifier(denoised(tiny_model, other), device="cpu")


def test_an_image_classifier_in_a_store_is_fetched_once_and_checked(
    image_classifier: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = location(f"{s3}/classifier")
    for path in image_classifier.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    folder = local_classifier(str(place))
    assert {path.name for path in folder.iterdir()} >= {path.name for path in image_classifier.iterdir()}
    assert local_classifier(str(place)) == folder
    (folder / "classifier.safetensors").unlink()
    (place / "classifier.safetensors").write_bytes(bytes(5))
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        local_classifier(str(place))
    with pytest.raises(CheckpointError, match=r"is no image classifier \(classifier.json is missing"):
        local_classifier(f"{s3}/nothing")
