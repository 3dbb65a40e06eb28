import pytest

from ndc_core.certificates.cohen import Cohen
from ndc_core.certificates.lipschitz import Lipschitz
from ndc_core.certificates.sequential import Sequential
from pipeline.declaration.declaration import LawChangedError, law_of, refuse_undeclared_radii
from pipeline.declaration.procedure import alpha_of_each, method_name, method_of
from pipeline.declaration.toml_files import load_config
from tests.support.small_runs import digits, listing_of

LISTING = listing_of(digits("test", limit=1))


def law(preset: str, *assignments: str) -> dict:
    return law_of(load_config(preset, list(assignments)), LISTING, models={})


@pytest.mark.parametrize(
    ("preset", "kind", "sigma_pixel"),
    [("demo", Cohen, 0.25), ("sequential", Sequential, 0.25), ("lipschitz", Lipschitz, 0)],
)
def test_the_law_says_all_that_a_procedure_needs(preset: str, kind: type, sigma_pixel: float) -> None:
    config = load_config(preset)
    method = method_of(law(preset), sigma_pixel)
    assert isinstance(method, kind)
    assert method.looks[-1] == config.votes.estimation
    assert method.terms.alpha == 0.001
    assert method.terms.dimension == 64


def test_a_maximum_over_sigmas_shares_alpha() -> None:
    shared = law("demo", "certificate.maximum_over_sigmas=true")
    assert alpha_of_each(shared) == 0.0005
    assert alpha_of_each(shared, 0.01) == 0.005
    assert method_of(shared, 0.25).largest_radius < method_of(law("demo"), 0.25).largest_radius
    assert alpha_of_each(law("demo")) == 0.001


def test_integer_noise_lowers_the_bound_and_names_its_scope() -> None:
    whole, real = method_of(law("demo"), 0.25), method_of(law("demo", "noise=float"), 0.25)
    assert 0 < whole.terms.distance < 1e-13
    assert whole.terms.scope == "8-bit images"
    assert real.terms.distance == 0


def test_radii_that_a_sequential_run_did_not_declare_are_refused() -> None:
    refuse_undeclared_radii(law("sequential"), (0.25,))
    refuse_undeclared_radii(law("demo"), (0.3,))
    with pytest.raises(LawChangedError, match=r"radius 0\.3 was not declared: this run stopped sampling"):
        refuse_undeclared_radii(law("sequential"), (0.25, 0.3))


@pytest.mark.parametrize(
    ("classifier", "certificate", "name"),
    [
        ({"name": "dc"}, "cohen", "DC"),
        ({"name": "dc"}, "lipschitz", "DC, Lipschitz"),
        ({"name": "epndc"}, "sequential", "EPNDC"),
        ({"name": "apndc"}, "cohen", "APNDC"),
        ({"name": "apndc-ensemble"}, "cohen", "APNDC-ensemble"),
        ({"name": "plain"}, "cohen", "RS"),
        ({"name": "denoise"}, "cohen", "Carlini"),
        ({"name": "denoise", "steps": 1}, "cohen", "Carlini"),
        ({"name": "denoise", "steps": 10}, "cohen", "Xiao"),
        ({"name": "newest"}, "cohen", "newest"),
    ],
)
def test_tables_call_a_method_by_its_name_in_the_literature(classifier: dict, certificate: str, name: str) -> None:
    assert method_name({"classifier": classifier, "certificate": {"method": certificate}}) == name
