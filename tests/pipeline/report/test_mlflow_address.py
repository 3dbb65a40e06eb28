"""MLflow where it cannot be used: one line, with the remedy, and nothing created."""

import base64
import json
import shutil
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from click.testing import CliRunner

import pipeline.driver.attack
import pipeline.sweep.run  # noqa: F401  (with all that takes `prepare` by its name, before a test replaces it)
from pipeline.cli import commands as cli
from pipeline.declaration.toml_files import load_config
from pipeline.report.mlflow_address import IMPATIENT, TrackingError, explained, tracking_uri
from pipeline.report.mlflow_tracker import check_tracking

CONFIG = load_config("demo")
SETTINGS = ["INSECURE_TLS", "SERVER_CERT_PATH", "USERNAME", "PASSWORD", "TOKEN", "URI"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in SETTINGS:
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    return tmp_path


def refusal() -> str:
    with pytest.raises(TrackingError) as caught:
        check_tracking(CONFIG)
    assert "\n" not in str(caught.value)
    assert "--set tracking=none" in str(caught.value)
    return str(caught.value)


def executed(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as opened:
        for statement in statements:
            opened.execute(statement)
    opened.close()


def test_a_check_creates_nothing(workplace: Path) -> None:
    check_tracking(CONFIG)
    assert list(workplace.iterdir()) == []


def test_a_database_of_this_mlflow_is_taken(workplace: Path, mlflow_database: Path) -> None:
    shutil.copy(mlflow_database, workplace)
    check_tracking(CONFIG)


def test_a_database_of_another_mlflow_is_upgraded_by_a_named_command(workplace: Path, mlflow_database: Path) -> None:
    shutil.copy(mlflow_database, workplace)
    executed(workplace / "mlflow.db", "UPDATE alembic_version SET version_num = '90e64c465722'")
    assert f"keep a copy and run `mlflow db upgrade sqlite:///{workplace}/mlflow.db`" in refusal()


def test_another_programs_database_is_refused_and_left_as_it_is(workplace: Path) -> None:
    executed(workplace / "mlflow.db", "CREATE TABLE customers (name TEXT)")
    before = (workplace / "mlflow.db").read_bytes()
    assert "mlflow.db is not a database of MLflow; move it away" in refusal()
    assert (workplace / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"this is no database, however long it may be\n" * 50, b"SQLite format 3\0" + b"x" * 999]
)
def test_a_damaged_database_is_named(workplace: Path, content: bytes) -> None:
    (workplace / "mlflow.db").write_bytes(content)
    assert "mlflow.db is damaged, or no database" in refusal()


def test_a_database_damaged_further_in_is_named(workplace: Path, mlflow_database: Path) -> None:
    content = bytearray(mlflow_database.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    (workplace / "mlflow.db").write_bytes(content)
    assert "mlflow.db" in refusal()


def test_a_database_that_cannot_be_written_is_named(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "mlflow.db cannot be written; set MLFLOW_TRACKING_URI" in refusal()
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace}/missing/mlflow.db")
    assert "missing/mlflow.db cannot be written" in refusal()


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:///tmp/mlruns"])
def test_a_folder_of_files_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert f"MLFLOW_TRACKING_URI={uri} is a folder of files, which MLflow no longer writes to" in refusal()


@pytest.mark.parametrize("uri", ["nonsense://host", "postgresql+nodriver://user:secret@host/db"])
def test_an_address_that_mlflow_cannot_use_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    said = refusal()
    assert "check MLFLOW_TRACKING_URI" in said
    assert "secret" not in said


def test_spaces_around_an_address_mean_nothing(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    assert tracking_uri() == f"sqlite:///{workplace}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " http://host:5000\n")
    assert tracking_uri() == "http://host:5000"


Answer = Callable[[BaseHTTPRequestHandler], tuple[int, str]]
KNOWN = json.dumps({"experiment": {"experiment_id": "1", "name": "ndc", "lifecycle_stage": "active"}})


@contextmanager
def server(answer: Answer, *, context: ssl.SSLContext | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, text = answer(self)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        if context:
            running.socket = context.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"{'https' if context else 'http'}://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def mlflow(request: BaseHTTPRequestHandler) -> tuple[int, str]:
    """A server that has what a run needs, and no page of its health."""
    return (200, KNOWN) if "/mlflow/experiments/get-by-name" in request.path else (404, "nothing here")


def guarded(header: str) -> Answer:
    return lambda request: mlflow(request) if request.headers["Authorization"] == header else (401, "who are you?")


def test_a_server_without_a_health_page_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(mlflow) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        check_tracking(CONFIG)


def test_a_server_is_asked_with_the_name_or_the_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    basic = "Basic " + base64.b64encode(b"me:secret").decode()
    with server(guarded(basic)) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "refuses access; check MLFLOW_TRACKING_USERNAME" in refusal()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        check_tracking(CONFIG)
    with server(guarded("Bearer abc")) as uri:
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
        check_tracking(CONFIG)


@pytest.mark.parametrize("answer", [(404, "no such page"), (200, "<html>welcome</html>")])
def test_another_kind_of_server_is_reported_as_one(monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str]) -> None:
    with server(lambda request: answer) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "as an MLflow server does" in refusal()


def test_a_server_that_reports_an_error_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(lambda request: (500, "oops")) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert f"the MLflow server {uri} answers with an error (too many 500 error responses); see its log" in refusal()


def test_a_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPATIENT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    gone = threading.Event()
    with server(lambda request: (gone.wait(10), (200, KNOWN))[1]) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "does not answer" in refusal()
        gone.set()


def certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that it signed itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, path = serialization.Encoding.PEM, folder / "server.pem"
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(signed.public_bytes(pem) + private)
    return path


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_server_with_a_certificate_of_its_own_is_trusted_as_the_environment_says(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, context = certificate(workplace), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with server(mlflow, context=context) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "is not trusted here; set MLFLOW_TRACKING_SERVER_CERT_PATH" in refusal()
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(path))
            check_tracking(CONFIG)
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        check_tracking(CONFIG)


def test_a_run_that_asks_for_no_tracking_is_not_checked_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check_tracking(load_config("demo", ["tracking=none"]))


def test_a_dead_server_ends_a_run_before_any_work(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("pipeline.driver.services.check_ray", lambda: None)
    monkeypatch.setattr("pipeline.driver.prepare.prepare", lambda *_, **__: pytest.fail("work was begun"))
    done = CliRunner().invoke(cli.main, ["certify", "demo", "--run", "run"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: the MLflow server http://127.0.0.1:9 does not answer (")
    assert done.output.count("\n") == 1
    assert list(workplace.iterdir()) == []


def test_a_port_is_not_taken_for_a_servers_answer() -> None:
    error = RuntimeError("failed with exception HTTPConnectionPool(host='127.0.0.1', port=40155): Read timed out")
    assert "does not answer" in str(explained(error, "http://127.0.0.1:40155"))


def test_any_error_of_mlflow_becomes_one_line() -> None:
    said = str(explained(RuntimeError("first\nsecond"), "sqlite:///x.db"))
    assert said.startswith("MLflow cannot use sqlite:///x.db (RuntimeError: first); check MLFLOW_TRACKING_URI")
