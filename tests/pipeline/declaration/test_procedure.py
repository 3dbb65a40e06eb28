import pytest

from ndc_core.certificates.cohen import Cohen
from ndc_core.certificates.lipschitz import Lipschitz
from ndc_core.certificates.sequential import Sequential
from pipeline.declaration.declaration import Declaration, DeclarationChangedError, declare, refuse_undeclared_radii
from pipeline.declaration.toml_files import load_config
from tests.support.small_runs import digits, listing_of

LISTING = listing_of(digits("test", limit=1))
SHARED = "certificate.maximum_over_sigmas=true"


def law(preset: str, *assignments: str) -> Declaration:
    return declare(load_config(preset, list(assignments)), LISTING, models={})


@pytest.mark.parametrize(
    ("preset", "kind", "sigma_pixel"),
    [("demo", Cohen, 0.25), ("sequential", Sequential, 0.25), ("lipschitz", Lipschitz, 0)],
)
def test_the_law_says_all_that_a_procedure_needs(preset: str, kind: type, sigma_pixel: float) -> None:
    config = load_config(preset)
    method = law(preset).procedure(sigma_pixel)
    assert isinstance(method, kind)
    assert method.looks[-1] == config.votes.estimation
    assert method.terms.alpha == 0.001
    assert method.terms.lipschitz is None or method.terms.lipschitz.dimension == 64


def test_a_maximum_over_sigmas_shares_alpha() -> None:
    shared = law("demo", SHARED)
    assert load_config("demo", [SHARED]).procedure_spec.alpha_of_each() == 0.0005
    assert load_config("demo", [SHARED]).procedure_spec.alpha_of_each(0.01) == 0.005
    assert shared.procedure(0.25).largest_radius < law("demo").procedure(0.25).largest_radius
    assert load_config("demo").procedure_spec.alpha_of_each() == 0.001


def test_integer_noise_lowers_the_bound_and_names_its_scope() -> None:
    whole, real = law("demo").procedure(0.25), law("demo", "noise=float").procedure(0.25)
    assert 0 < whole.terms.distance < 1e-13
    assert whole.terms.scope == "8-bit images"
    assert real.terms.distance == 0


def test_radii_that_a_sequential_run_did_not_declare_are_refused() -> None:
    refuse_undeclared_radii(law("sequential"), (0.25,))
    refuse_undeclared_radii(law("demo"), (0.3,))
    with pytest.raises(DeclarationChangedError, match=r"radius 0\.3 was not declared: this run stopped sampling"):
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
    assert Declaration({"classifier": classifier, "certificate": {"method": certificate}}).method_name == name
