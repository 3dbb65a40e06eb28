from pathlib import Path

import pytest

from ndc_core.noise.grid import build_grid
from pipeline.cli.options import as_toml
from pipeline.declaration.config import ConfigError
from pipeline.declaration.toml_files import load_config, preset_names


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid_and_survives_a_round_trip(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)
    path = tmp_path / "run.toml"
    path.write_text(config.to_toml())
    assert load_config(str(path)) == config


def test_overrides_are_toml_or_plain_strings() -> None:
    config = load_config("demo", ["votes.estimation=2000", "classifier.weight=elbo", "sigma_pixel=[0.25]", "seed = 7"])
    assert config.votes.estimation == 2000
    assert config.classifier.weight == "elbo"
    assert config.sigma_pixel == (0.25,)
    assert config.seed == 7


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("votes.estimatoin=5", "unknown key votes.estimatoin"),
        ("classifier.grid.pionts=5", "unknown key classifier.grid.pionts"),
        ("nonsense=1", "unknown key nonsense"),
        (
            "classifier.name=cnn",
            "classifier.name 'cnn' is unknown; there are: dc, epndc, apndc, apndc-ensemble, plain",
        ),
        ("classifier.weight=uniform", "classifier.weight 'uniform' is unknown"),
        ("dataset.format=zip", "dataset.format 'zip' is unknown; there are: image-folder, parquet, webdataset"),
        ("dataset.resize=8", "dataset.resize and dataset.filter go together"),
        ("compute.precision=float8", "compute.precision: Input should be 'float32', 'tf32', 'bfloat16' or 'float16'"),
        ("certificate.method=magic", "certificate.method 'magic' is unknown"),
        ("certificate.alpha=0", "certificate.alpha: Input should be greater than 0"),
        ("certificate.alpha=1.5", "certificate.alpha: Input should be less than 1"),
        ("sigma_pixel=[0.0]", "sigma_pixel 0.0 is out of range"),
        ("sigma_pixel=[0.0001]", r"sigma_pixel 0\.0001 is too small for noise = 'integer': no radius .* 0\.0039 away"),
        ("sigma_pixel=[-0.25]", "out of range"),
        ("sigma_pixel=[0.25, 0.25]", "names a level twice"),
        ("sigma_pixel=[2.0]", "raise sigma_model_max or lower sigma_pixel"),
        ("dataset.limit=0", "dataset.limit must be at least 1, not 0"),
        ("votes.selection=0", "votes.selection"),
        ("votes.estimation=5", "can never certify|can never be certified"),
        ("certificate.radii=[0.0, 9.0]", "radius 9 can never be certified: if all 1,000 estimation votes agree"),
        ("certificate.radii=[-1.0]", "radii are not negative"),
        (
            "certificate.method=lipschitz",
            "the lipschitz certificate is of the scores of all classes by dc",
        ),
        ("noise=none", "the cohen certificate needs noise: set noise to 'integer' or 'float'"),
        ("noise=gaussian", "noise: Input should be 'integer', 'float' or 'none'"),
        ("certificate.radii=[]", "certificate.radii"),
        ("certificate.precision=1.0", "certificate.precision"),
        ("classifier.loss_cap=0", "classifier.loss_cap"),
        ("classifier.grid.points=2", "at least 3 points"),
        ("classifier.sift.keep=0", "at least 1 class"),
        ("seed", "not of the form key=value"),
        ("seed.deep=1", "'seed' is a value, not a section"),
        ("votes=3", "votes"),
    ],
)
def test_bad_settings_are_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("demo", [assignment])


def test_a_maximum_over_sigmas_needs_several() -> None:
    with pytest.raises(ConfigError, match="needs at least two sigma_pixel: it splits alpha among them"):
        load_config("demo", ["certificate.maximum_over_sigmas=true", "sigma_pixel=[0.25]"])


def test_a_lipschitz_radius_out_of_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"radius 1 can never be certified: .* the radius is 0\.\d+"):
        load_config("lipschitz", ["certificate.radii=[0.0, 1.0]"])


def test_a_sequential_certificate_without_radii_is_refused(tmp_path: Path) -> None:
    source = Path(__file__).parents[3] / "pipeline/presets/sequential.toml"
    path = tmp_path / "a.toml"
    path.write_text("\n".join(line for line in source.read_text().splitlines() if not line.startswith("radii")))
    with pytest.raises(ConfigError, match=r"key certificate\.radii is missing"):
        load_config(str(path))


def test_unknown_presets_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'demmo' is neither a preset \(demo.*\) nor the path"):
        load_config("demmo")
    broken = tmp_path / "a.toml"
    broken.write_text("seed = = 3")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(str(broken))
    broken.write_text("seed = 3")
    with pytest.raises(ConfigError, match="key model is missing"):
        load_config(str(broken))
    broken.write_bytes(b"model = 'caf\xe9'")
    with pytest.raises(ConfigError, match=r"a\.toml is not TOML: it is no text in UTF-8"):
        load_config(str(broken))


def test_a_byte_order_mark_does_not_change_a_configuration(tmp_path: Path) -> None:
    text = load_config("demo").to_toml()
    (tmp_path / "marked.toml").write_text(text, encoding="utf-8-sig")
    assert load_config(str(tmp_path / "marked.toml")) == load_config("demo")


@pytest.mark.parametrize("name", ["donn\xe9es", "\U0001f600/a b", 'with "quotes" and \\', "tab\tand\nline"])
def test_names_in_any_script_come_through_the_command_line(name: str) -> None:
    given = [f"dataset.name={as_toml(name)}", f"dataset.ids={as_toml([name])}", "dataset.limit=1"]
    dataset = load_config("demo", given).dataset
    assert (dataset.name, dataset.ids) == (name, (name,))


@pytest.mark.parametrize("sigma_pixel", [0.25, 0.5, 1.0])
def test_the_paper_preset_has_the_authors_threshold_in_our_unit(sigma_pixel: float) -> None:
    """They drop at 5e-5 on sums of w * loss * d, d the 126-point width; ours carry the 50-point width instead."""
    classifier = load_config("paper").classifier
    assert classifier.sift is not None
    refine, sift = (build_grid(grid, tau_model=2 * sigma_pixel) for grid in (classifier.grid, classifier.sift.grid))
    widths = [float((grid.level - grid.previous)[0]) for grid in (refine, sift)]
    assert classifier.sift.threshold_per_dim / widths[1] == pytest.approx(5e-5 / widths[0])
    assert (classifier.grid.points, classifier.sift.grid.points, classifier.sift.keep) == (126, 50, 10)


def test_the_paper_preset_costs_what_the_paper_says() -> None:
    config = load_config("paper")
    assert config.classifier.grid.steps * 10 + 1 == 1241
    assert (config.votes.selection, config.votes.estimation, config.certificate.alpha) == (100, 10_000, 0.001)
