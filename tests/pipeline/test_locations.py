"""Files here, in memory and in an object store behave alike; what goes wrong becomes a sentence with a remedy."""

from pathlib import Path

import pytest
from upath import UPath

from pipeline.locations import (
    LocationError,
    absolute,
    check_writable,
    exists,
    files_of,
    files_of_shards,
    location,
    move,
    publish,
    publish_patiently,
    read,
    read_each,
    remove,
)


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    if request.param == "local":
        return location(tmp_path / "run")
    if request.param == "memory":
        return location(f"memory:/{tmp_path}/run")
    return location(f"{request.getfixturevalue('s3')}/run")


def test_what_is_published_can_be_read_listed_moved_and_removed(folder: UPath) -> None:
    assert not exists(folder / "a.txt")
    assert files_of(folder) == files_of_shards(folder / "evidence") == []
    publish(folder / "a.txt", b"one")
    publish(folder / "a.txt", b"two")
    assert exists(folder / "a.txt")
    assert not exists(folder)
    assert read(folder / "a.txt") == b"two"
    for name in ("ab/1.bin", "ab/2.bin", "cd/3.bin"):
        publish(folder / "evidence" / name, name.encode())
    shards = files_of_shards(folder / "evidence")
    assert [path.name for path in shards] == ["1.bin", "2.bin", "3.bin"]
    assert list(read_each(shards)) == [b"ab/1.bin", b"ab/2.bin", b"cd/3.bin"]
    assert [path.name for path in files_of(folder)] == ["a.txt"]
    move(shards[0], folder / "aside" / "1.bin")
    remove(shards[1])
    remove(shards[1])
    assert files_of_shards(folder / "evidence") == [shards[2]]
    assert read(folder / "aside" / "1.bin") == b"ab/1.bin"
    with pytest.raises(FileNotFoundError):
        read(folder / "nothing")
    check_writable(folder)
    assert [path.name for path in files_of(folder)] == ["a.txt"]


def test_another_process_finds_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(location("runs/a")) == f"{tmp_path}/runs/a"
    assert absolute(location("s3://bucket/runs/a")) == "s3://bucket/runs/a"


def test_a_publication_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = location(tmp_path / "a.txt")
    publish(path, b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(LocationError, match=r"a\.txt: no space is left there"):
        publish(path, b"new")
    assert read(path) == b"old"


def test_what_took_long_to_compute_is_published_as_soon_as_the_store_is_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = location(f"memory:/{tmp_path}/a")
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    put, failures = path.fs.pipe_file, iter([OSError("away")] * 3)

    def sometimes(*arguments: object) -> None:
        if error := next(failures, None):
            raise error
        put(*arguments)

    monkeypatch.setattr(path.fs, "pipe_file", sometimes)
    publish_patiently(path, b"dear")
    assert read(path) == b"dear"
    assert waited == [1, 2, 4]
    failures = iter([OSError("away")] * 100)
    with pytest.raises(LocationError):
        publish_patiently(path, b"dear")
    assert sum(waited) == 7 + 31


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocationError, match="cannot be used: Not a directory"):
        check_writable(location(tmp_path / "file" / "run"))
    with pytest.raises(LocationError, match="nonsense://a cannot be opened"):
        location("nonsense://a")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not answer at http://127.0.0.1:9; check AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9103"}, "Invalid endpoint: 127.0.0.1:9103"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
            "refused access; check AWS_ACCESS_KEY_ID",
        ),
    ],
)
def test_a_store_that_cannot_be_used_is_explained(
    s3: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fresh = UPath(f"{s3}/run", skip_instance_cache=True, config_kwargs={"retries": {"max_attempts": 1}})
    with pytest.raises(LocationError, match=message):
        check_writable(fresh)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("AuthorizationHeaderMalformed", "in another region than the one asked; set AWS_DEFAULT_REGION"),
        ("PermanentRedirect", "in another region"),
        ("InvalidAccessKeyId", r"refused these credentials \(InvalidAccessKeyId\)"),
        ("SignatureDoesNotMatch", r"refused these credentials \(SignatureDoesNotMatch\)"),
        ("AccessDenied", "refused access"),
        ("NoSuchBucket", "no such bucket"),
    ],
)
def test_answers_of_a_store_are_explained(monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    path = location("s3://bucket/run/a")
    answer = ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject")

    def refuse(*arguments: object) -> None:
        raise translate_boto_error(answer) from answer

    monkeypatch.setattr(path.fs, "pipe_file", refuse)
    with pytest.raises(LocationError, match=message):
        publish(path, b"")


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    with pytest.raises(LocationError, match="there is no such bucket"):
        check_writable(location("s3://no-such-bucket-of-ours/run"))
