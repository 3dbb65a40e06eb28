"""Where runs are tracked, a server or database of MLflow, and in one line what is wrong with it. Imports no MLflow."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote, urlparse

from pipeline.side_channel import in_one_line

DEFAULT_DATABASE = "mlflow.db"
SQLITE = "sqlite:///"
WITHOUT = "or leave MLflow out: --set tracking=none"
# For the first request: MLflow itself would retry for minutes.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


class TrackingError(ValueError):
    """The tracking server or database cannot be used: what, where, remedy."""


def tracking_uri() -> str:
    # Absolute: MLflow keeps one connection for each address, whatever the working folder is by then.
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{SQLITE}{Path(DEFAULT_DATABASE).absolute()}"


def without_password(uri: str) -> str:
    """The address as it may be shown."""
    place = urlparse(uri)
    if "@" not in place.netloc:
        return uri  # put together again, an sqlite address would lack slashes
    return place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()


def database_of(uri: str) -> Path | None:
    """The file of a local database."""
    place = uri.removeprefix(SQLITE).partition("?")[0]
    return Path(place) if uri.startswith(SQLITE) and place else None


def refuse_unusable(uri: str) -> None:
    """Refuses what can be told from an address without MLflow; creates nothing.

    Raises:
        TrackingError: a folder of files, or a file that is not a database, is another program's, or cannot be written.
    """
    if urlparse(uri).scheme in ("", "file") and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() != "true":
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={uri} is a folder of files, which MLflow no longer writes to; make it a database "
            f"with `mlflow migrate-filestore`, or set MLFLOW_TRACKING_URI to {SQLITE}{DEFAULT_DATABASE} or a server, "
            f"{WITHOUT}"
        )
    if database := database_of(uri):
        for place in [database] if database.exists() else [database.absolute().parent]:
            if not os.access(place, os.W_OK):
                raise TrackingError(
                    f"MLflow's database {database} cannot be written; set MLFLOW_TRACKING_URI, {WITHOUT}"
                )
        if database.exists():
            _refuse_foreign(database)


def _refuse_foreign(database: Path) -> None:
    """MLflow would make its own tables among those of another program."""
    elsewhere = f"move it away, or set MLFLOW_TRACKING_URI to another database or a server, {WITHOUT}"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database.absolute()))}?mode=ro", uri=True)) as opened:
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:  # another process is writing: MLflow waits for it
        return
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"{database} is damaged, or no database ({error}); {elsewhere}") from error
    if tables - {"alembic_version"} and "experiments" not in tables:
        raise TrackingError(f"{database} is not a database of MLflow; {elsewhere}")


# A port may hold the same digits.
REFUSED = re.compile(r"\b(error code|too many) 40[13]\b|\bUNAUTHENTICATED\b|\bPERMISSION_DENIED\b")


@contextmanager
def impatient() -> Iterator[None]:
    """MLflow asks a server once only, and not for long."""
    before = {name: os.environ.get(name) for name in IMPATIENT}
    os.environ.update(IMPATIENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def explained(error: Exception, uri: str) -> TrackingError:
    """What MLflow says of an address, with the remedy."""
    place, message = without_password(uri), str(error)
    if "database schema" in message:
        return TrackingError(
            f"the tables of {place} are those of another version of MLflow than {version('mlflow')}: if they are "
            f"older, keep a copy and run `mlflow db upgrade {place}`; if they are newer, upgrade MLflow; {WITHOUT}"
        )
    server = urlparse(uri).scheme in ("http", "https")
    if server and REFUSED.search(message):
        return TrackingError(
            f"the MLflow server {place} refuses access; check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            f"or MLFLOW_TRACKING_TOKEN, {WITHOUT}"
        )
    if server and ("SSLError" in message or "CERTIFICATE" in message):
        return TrackingError(
            f"the certificate of the MLflow server {place} is not trusted here; set MLFLOW_TRACKING_SERVER_CERT_PATH "
            f"to the certificate file of its issuer, {WITHOUT}"
        )
    if server and "error responses" in message:
        return TrackingError(
            f"the MLflow server {place} answers with an error ({_cause(message)}); see its log, {WITHOUT}"
        )
    if server and ("timed out" in message or "timeout" in message or "failed with exception" in message):
        return TrackingError(
            f"the MLflow server {place} does not answer ({_cause(message)}); start it, or unset MLFLOW_TRACKING_URI to "
            f"use {DEFAULT_DATABASE} in this folder, {WITHOUT}"
        )
    if server:
        return TrackingError(
            f"{place} answers, but not as an MLflow server does ({in_one_line(error)}); check MLFLOW_TRACKING_URI, and "
            f"the path in it, {WITHOUT}"
        )
    return TrackingError(f"MLflow cannot use {place} ({in_one_line(error)}); check MLFLOW_TRACKING_URI, {WITHOUT}")


def _cause(message: str) -> str:
    """The innermost of a chain of exceptions that come as one text."""
    innermost = message.splitlines()[0].rpartition("Caused by ")[2].rpartition(": ")[2].rpartition("('")[2]
    return innermost.strip("'\")> ") or "no cause is given"


def refuse_deleted(name: str, experiment_id: str, uri: str) -> TrackingError:
    return TrackingError(
        f"the experiment {name!r} at {without_password(uri)} was deleted; restore it with `mlflow experiments restore "
        f"--experiment-id {experiment_id}`, or choose another: --set experiment=NAME"
    )
