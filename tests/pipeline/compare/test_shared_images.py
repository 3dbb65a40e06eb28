"""Which images methods are compared on, and which are no longer the same."""

from pathlib import Path

import pytest

from pipeline.compare.shared_images import OtherImagesError
from tests.support.comparisons import LOG, SOME, compared
from tests.support.finished_runs import EXAMPLES, example, finished_run, log_text


def test_shared_images_are_compared_on_request(tmp_path: Path, out: Path) -> None:
    first = finished_run(tmp_path / "a", {0.25: [20, 40, 40, 40]})
    second = finished_run(tmp_path / "b", {0.25: [40, 40]}, examples=[EXAMPLES[3], EXAMPLES[1]])
    with pytest.raises(OtherImagesError) as caught:
        compared(f"A={first}", f"B={second}", out=out)
    assert str(caught.value) == (
        f"these are not over the same images: {first} has 4, {second} has 2; all share 2; image-0 is in {first} only. "
        "--intersect compares them on what they share"
    )
    written = compared(f"A={first}", f"B={second}", out=out, intersect=True)
    assert [row[2] for row in written.tables[0].rows] == ["50.0 %", "50.0 %"]
    assert f"These are the images that all share; {first} has 4" in written.comparison.remarks[1]


def other_pixels(folder: Path) -> Path:
    return finished_run(folder, SOME, examples=[example(0, grey=9), *EXAMPLES[1:]])


def other_labels(folder: Path) -> Path:
    return finished_run(folder, SOME, examples=[example(0, label=2), *EXAMPLES[1:]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_pixels, r"image image-0 has other pixels in .*a than in .*b: other data, or another size"),
        (other_labels, r"image image-0 has label 1 in .*a and 2 in .*b: these are not the same data"),
    ],
)
def test_an_id_with_another_content_is_refused_even_where_images_are_intersected(
    tmp_path: Path, out: Path, make, message: str
) -> None:
    with pytest.raises(OtherImagesError, match=message):
        compared(finished_run(tmp_path / "a", SOME), make(tmp_path / "b"), out=out, intersect=True)


def test_a_label_of_a_log_that_is_not_the_runs_is_refused_with_its_idx(tmp_path: Path, out: Path) -> None:
    (tmp_path / "rs.tsv").write_text(log_text([*LOG[:2], (2, 0, 1, 0.3), LOG[3]]))
    with pytest.raises(OtherImagesError, match=r"image-2 has label 1 in .*a and 0 in .*rs\.tsv \(idx 2\)"):
        compared(finished_run(tmp_path / "a", SOME), f"RS@0.25={tmp_path / 'rs.tsv'}", out=out)


def test_images_chosen_by_id_have_no_place_that_a_log_could_name(tmp_path: Path, out: Path) -> None:
    chosen = 'dataset.ids=["image-0", "image-1", "image-2", "image-3"]'
    run = finished_run(tmp_path / "a", SOME, chosen, "dataset.offset=0", "dataset.every=1")
    (tmp_path / "rs.tsv").write_text(log_text(LOG))
    with pytest.raises(ValueError, match=r"a chose its images by id, so that .* a log's idx tells nothing"):
        compared(run, f"RS@0.25={tmp_path / 'rs.tsv'}", out=out)


def test_an_idx_that_two_runs_understand_differently_is_refused(tmp_path: Path, out: Path) -> None:
    first = finished_run(tmp_path / "a", SOME)
    later = finished_run(tmp_path / "b", {0.25: [40] * 3}, "dataset.offset=2", examples=EXAMPLES[:3])
    (tmp_path / "rs.tsv").write_text(log_text(LOG))
    with pytest.raises(OtherImagesError, match=r"rs\.tsv: idx 2 is image image-2 in .*a and image image-0 in .*b"):
        compared(f"A={first}", f"B={later}", f"RS@0.25={tmp_path / 'rs.tsv'}", out=out, intersect=True)


def test_a_list_of_images_that_was_changed_is_refused(tmp_path: Path, out: Path) -> None:
    run, other = finished_run(tmp_path / "a", SOME), other_labels(tmp_path / "b")
    (run / "images.parquet").write_bytes((other / "images.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"a/images\.parquet is not what the run was declared with"):
        compared(run, out=out)
