import pytest

from ndc_core.certificates.cohen import cohen
from pipeline.certificates.files import certificate_rows, certificate_tsv, cut_text
from pipeline.certificates.reduce import LARGEST, CertifiedImage, by_level, certify_images
from pipeline.certificates.stopping import IncompleteRunError
from pipeline.declaration.declaration import Declaration, UnsoundVotesError, refuse_unsound_votes
from pipeline.declaration.units import WorkUnit
from pipeline.report.tables import percent
from pipeline.store.evidence import Evidence
from pipeline.store.run_store import StoredImage

LAW = {
    "votes": {"selection": 10, "estimation": 100, "per_unit": 50},
    "sigma_pixel": [0.25],
    "noise": "float",
    "dataset": {"image_shape": [1, 8, 8]},
    "classifier": {"grid": {"points": 4, "sigma_model_max": 1.5}, "weight": "edm", "loss_cap": None},
    "certificate": {"method": "cohen", "alpha": 0.001, "maximum_over_sigmas": False},
}
IMAGES = [StoredImage("a", 1, None), StoredImage("b", 0, None)]


def evidence(image_id: str, phase: str, start: int, stop: int, votes: dict[int, int]) -> Evidence:
    return Evidence(WorkUnit(image_id, 1, 0.25, phase, start, stop), votes, 10, 1.5, 0.0, "cpu")


def complete() -> list[Evidence]:
    return [
        evidence("a", "selection", 0, 10, {1: 10}),
        evidence("a", "estimation", 0, 50, {1: 50}),
        evidence("a", "estimation", 50, 100, {1: 49, 2: 1}),
        evidence("b", "selection", 0, 10, {1: 6, 0: 4}),
        evidence("b", "estimation", 0, 50, {0: 25, 1: 25}),
        evidence("b", "estimation", 50, 100, {0: 25, 1: 25}),
    ]


def certify(items: list[Evidence]):
    return certify_images(
        items, IMAGES, declaration=Declaration(LAW), num_classes=3, alpha=None, resume_with="ndc certify runs/a"
    )


def test_counts_are_summed_and_certified_in_the_order_of_the_data() -> None:
    first, second = certify(complete()[::-1])
    assert first.image_id == "a"
    assert list(first.counts) == [0, 99, 1]
    assert first.certificate.votes_top == 99
    assert first.certificate.predicted == 1
    assert first.evaluations == 30
    assert second.certificate.predicted is None
    assert not second.holds(0.0)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (2, r"image a, sigma_pixel 0.25: 50 of 100 estimation votes present; run `ndc certify runs/a` to finish"),
        (3, r"image b, sigma_pixel 0.25: 0 of 10 selection votes present"),
    ],
)
def test_a_missing_vote_makes_the_image_incomplete_not_smaller(missing: int, message: str) -> None:
    items = complete()
    del items[missing]
    with pytest.raises(IncompleteRunError, match=message):
        certify(items)


def test_a_draw_counted_twice_is_refused() -> None:
    with pytest.raises(IncompleteRunError, match=r"image a.* estimation draw 0 was counted twice"):
        certify([*complete(), evidence("a", "estimation", 0, 50, {1: 50})])


def test_the_largest_radius_of_an_image_is_chosen_without_its_label() -> None:
    def item(image_id: str, sigma_pixel: float, wins: int) -> CertifiedImage:
        certificate = cohen([0, 10], [1000 - wins, wins], sigma_pixel=sigma_pixel, alpha=0.0005)
        return CertifiedImage(image_id, 0, certificate, (), 10, 1.0)

    items = [item("a", 0.25, 1000), item("b", 0.25, 1000), item("a", 0.5, 600), item("b", 0.5, 990)]
    levels = by_level(items, maximum_over_sigmas=True)
    assert list(levels) == ["0.25", "0.5", LARGEST]
    assert [best.certificate.sigma_pixel for best in levels[LARGEST]] == [0.25, 0.5]
    assert all(best.evaluations == 20 for best in levels[LARGEST])
    assert not any(best.holds(0.0) for best in levels[LARGEST]), "class 1 was certified, the label is 0"
    assert list(by_level(items, maximum_over_sigmas=False)) == ["0.25", "0.5"]


def test_rows_say_what_was_certified() -> None:
    first, second = certificate_rows(certify(complete()))
    assert first["correct"]
    assert first["predicted"] == 1
    assert second["predicted"] is None
    assert not second["correct"]
    assert second["radius"] == 0


def test_the_log_for_other_tools_never_rounds_a_radius_up() -> None:
    certified = certify(complete())
    header, first, second = (line.split("\t") for line in certificate_tsv(certified, ["a", "b"]).splitlines())
    assert header == ["idx", "label", "predict", "radius", "correct", "time", "sigma_pixel"]
    assert first[:3] + first[4:] == ["0", "1", "1", "1", "0:00:04.500000", "0.25"]
    assert 0 <= certified[0].certificate.radius - float(first[3]) < 1e-6
    assert second[:5] == ["1", "0", "-1", "0.000000", "0"]


def test_numbers_that_are_proved_are_rounded_down_and_bounds_from_above_up() -> None:
    assert cut_text(0.12389, 3) == "0.123"
    assert cut_text(0.0799999, 5) == "0.07999"
    assert [percent(share) for share in (15 / 16, 0.57, 2 / 3, 1.0, 0.0, None)] == [
        "93.7 %",
        "57.0 %",
        "66.6 %",
        "100.0 %",
        "0.0 %",
        "",
    ]
    assert [percent(share, up=True) for share in (15 / 16, 0.57, 1 / 3)] == ["93.8 %", "57.0 %", "33.4 %"]
    assert all(percent(right / 500) == f"{right / 5:.1f} %" for right in range(501))


def test_votes_of_a_float_path_before_version_6_are_refused() -> None:
    """They may have had more noise than they state."""
    path = {**LAW, "noise": "float", "sigma_pixel": [0.25, 0.5], "classifier": {"name": "apndc", "one_path": True}}
    for law in ({**path, "vote_version": 6}, {**path, "noise": "integer", "vote_version": 5}):
        refuse_unsound_votes(Declaration(law))
    with pytest.raises(UnsoundVotesError, match="votes of version 5 with noise 'float' on one path may have had more"):
        certify_images(
            [], [], declaration=Declaration({**path, "vote_version": 5}), num_classes=3, alpha=None, resume_with=""
        )
