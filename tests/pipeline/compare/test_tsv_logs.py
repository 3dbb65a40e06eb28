"""Logs of other tools: what is read from them, and what is wrong with them."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compare.tsv_logs import Log, LogError, LogRow, read_log, seconds_of
from pipeline.locations import location

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
# Right, abstained, wrong, right.
ROWS = [(0, 3, 3, 0.25), (20, 1, -1, 0.0), (40, 5, 4, 0.9), (60, 2, 2, 1.5)]
CORRECT = ("1", "0", "0", "1")


def written(folder: Path, correct: tuple[str, ...] = CORRECT, rows: list[tuple] = ROWS) -> Log:
    lines = [f"{i}\t{y}\t{p}\t{r}\t{c}\t0:00:02.500000" for (i, y, p, r), c in zip(rows, correct, strict=True)]
    return read_text(folder, "\n".join([HEADER, *lines]) + "\n")


def read_text(folder: Path, text: str) -> Log:
    (folder / "log.tsv").write_text(text)
    return read_log(location(folder / "log.tsv"))


def test_rows_are_read_and_an_abstention_has_no_class(tmp_path: Path) -> None:
    log = written(tmp_path)
    assert log == Log(
        {
            None: [
                LogRow(0, 3, 3, 0.25, 2.5),
                LogRow(20, 1, None, 0.0, 2.5),
                LogRow(40, 5, 4, 0.9, 2.5),
                LogRow(60, 2, 2, 1.5, 2.5),
            ]
        },
        None,
    )
    assert [row.right for row in log.levels[None]] == [True, False, False, True]


def test_columns_may_come_in_any_order_and_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    text = "time\tcorrect\tidx\tlabel\tpredict\tradius\r\n0:01:00\t1\t7\t1\t1\t0.5\r\n"
    assert read_text(tmp_path, text).levels == {None: [LogRow(7, 1, 1, 0.5, 60.0)]}


def test_a_column_of_noise_levels_splits_the_rows(tmp_path: Path) -> None:
    rows = ["0\t1\t1\t0.5\t1\t0:00:01\t0.25", "0\t1\t2\t0.5\t0\t0:00:01\t0.5"]
    log = read_text(tmp_path, "\n".join([HEADER + "\tsigma_pixel", *rows]))
    assert {level: [row.predicted for row in rows_of_level] for level, rows_of_level in log.levels.items()} == {
        0.25: [1],
        0.5: [2],
    }
    assert log.own


@pytest.mark.parametrize(
    ("correct", "message"),
    [
        (("1", "1", "1", "2"), r"column `correct` holds the running count of right rows, not .* \(line 3 has 1\)"),
        (("1", "0.5", "0.333", "0.5"), r"column `correct` holds the running accuracy, not .* \(line 3 has 0\.5\)"),
        (("100", "50", "33.3", "50.0"), r"the running accuracy in percent, not .* \(line 2 has 100\)"),
    ],
)
def test_a_running_correct_column_is_named_and_recomputed(
    tmp_path: Path, correct: tuple[str, ...], message: str
) -> None:
    log = written(tmp_path, correct)
    assert re.search(message, log.remark)
    assert "left out, and recomputed from predict and label" in log.remark
    assert log.levels == written(tmp_path).levels


@pytest.mark.parametrize("correct", [("True", "False", "False", "True"), ("1.0", "0.0", "0", "1")])
def test_a_sound_correct_column_is_not_remarked_on(tmp_path: Path, correct: tuple[str, ...]) -> None:
    assert written(tmp_path, correct).remark is None


@pytest.mark.parametrize(
    ("correct", "line"),
    [
        (("1", "0", "1", "1"), "line 4: correct is 1, but predict is 4 and label 5"),
        (("1", "1", "0", "1"), "line 3: correct is 1, but predict is -1 and label 1"),
        (("1", "1", "1", "3"), "line 3: correct is 1"),
        (("1", "0.5", "0.4", "0.5"), "line 3: correct is 0.5"),
        (("yes", "0", "0", "1"), "line 2: correct is yes"),
    ],
)
def test_any_other_disagreement_of_correct_is_refused(tmp_path: Path, correct: tuple[str, ...], line: str) -> None:
    with pytest.raises(LogError, match=line):
        written(tmp_path, correct)


@given(right=st.lists(st.booleans(), min_size=2, max_size=40), digits=st.integers(2, 17), count=st.booleans())
def test_every_running_column_that_differs_from_its_rows_is_found(
    tmp_path_factory: pytest.TempPathFactory, right: list[bool], digits: int, count: bool
) -> None:
    rows = [(i, 1, int(correct), 0.5) for i, correct in enumerate(right)]
    sums = [sum(right[: k + 1]) for k in range(len(right))]
    column = [str(s) if count else f"{s / (k + 1):.{digits}f}" for k, s in enumerate(sums)]
    log = written(tmp_path_factory.mktemp("log"), tuple(column), rows)
    same = all(float(text) == correct for text, correct in zip(column, right, strict=True))
    assert (log.remark is None) == same
    assert [row.right for row in log.levels[None]] == right


def test_a_log_may_begin_with_a_byte_order_mark_and_have_blank_lines(tmp_path: Path) -> None:
    text = f"\ufeff{HEADER}\n\n0\t1\t1\t0.5\t1\t0:00:02\n\t\n1\t1\t1\t0.5\t1\t0:00:02\n\n"
    assert [row.index for row in read_text(tmp_path, text).levels[None]] == [0, 1]


def test_times_may_be_seconds_or_missing(tmp_path: Path) -> None:
    rows = ["0\t1\t1\t0.5\t1\t15.4", "1\t1\t1\t0.5\t1\t0:00:15.400000", "2\t1\t1\t0.5\t1\t"]
    log = read_text(tmp_path, "\n".join([HEADER, *rows]))
    assert [row.seconds for row in log.levels[None]] == [15.4, 15.4, None]
    assert not log.timed
    assert read_text(tmp_path, "\n".join([HEADER, *rows[:2]])).timed
    without = read_text(tmp_path, "\n".join(line.rpartition("\t")[0] for line in [HEADER, *rows]))
    assert [row.seconds for row in without.levels[None]] == [None, None, None]
    assert [row.radius for row in without.levels[None]] == [0.5, 0.5, 0.5]


@given(seconds=st.integers(0, 10**12))
def test_every_time_that_python_writes_is_read(seconds: int) -> None:
    span = timedelta(microseconds=seconds)
    assert seconds_of(str(span)) == pytest.approx(span.total_seconds(), abs=1e-9, rel=1e-15)


ROW = "0\t1\t1\t0.5\t1\t0:00:01"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column idx, label, predict, radius, correct; a log has"),
        (HEADER.replace("\tradius", "") + "\n", "has no column radius; a log has the tab-separated columns idx"),
        (HEADER + "\n", "has no rows"),
        (f"{HEADER}\n{ROW}\n0\t1\t1", "line 3: 3 cells where the header has 6"),
        (f"{HEADER}\n{ROW}\n{ROW}", "line 3: idx 0 comes a second time at one noise level"),
        (f"{HEADER}\n{ROW.replace('0.5', 'nan')}", "line 2: radius is 'nan', not a radius"),
        (f"{HEADER}\n{ROW.replace('0.5', '-0.5')}", "line 2: radius is '-0.5'"),
        (f"{HEADER}\n{ROW.replace('0:00:01', '1.2 s')}", "line 2: time is '1.2 s', not a time as H:MM:SS"),
        (f"{HEADER}\n{ROW.replace('0:00:01', 'nan')}", "line 2: time is 'nan', not a time as H:MM:SS.ffffff or in sec"),
        (f"{HEADER}\n{ROW.replace('0:00:01', '-3')}", "line 2: time is '-3'"),
        (f"{HEADER}\n\n{ROW}\n\n{ROW}", "line 5: idx 0 comes a second time at one noise level"),
        (f"{HEADER}\n\n{ROW.replace('1', '0', 3)}", "line 3: correct is"),
        (f"{HEADER}\tradius\n{ROW}\t1", "has two columns radius; leave one out"),
        (f"{HEADER}\n-1{ROW[1:]}", "line 2: idx is '-1', not a place in the data"),
        (f"{HEADER}\n0\tcat{ROW[3:]}", "line 2: label is 'cat', not a class"),
        (f"{HEADER}\tsigma_pixel\n{ROW}\tlow", "line 2: sigma_pixel is 'low', not a noise level"),
    ],
)
def test_what_is_no_log_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LogError, match=rf"log\.tsv.*{message}"):
        read_text(tmp_path, text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LogError, match=r"log\.tsv is no text"):
        read_log(location(tmp_path / "log.tsv"))
