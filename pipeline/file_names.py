"""Names in a data set: which ones are not data, and how those that are not UTF-8 are written.

One rule for all readers. Paths are relative to the data's folder or archive: it does not matter where that lies.
"""

from collections import Counter

IMAGE_EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"})
# What systems and tools leave beside data without hiding it, in lower case.
LEFTOVERS = frozenset(
    {
        *("__macosx", "icon\r"),
        *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"),
        *("__pycache__", "_delta_log", "_temporary"),
    }
)
NOT_UTF8 = "not UTF-8"
COPY = "a copy"
KINDS_NAMED_AT_MOST = 5


def leftover(path: str) -> str | None:
    """Why a path is not data, or None: at any depth a hidden name, or one of LEFTOVERS."""
    *folders, name = path.split("/")
    folder = next((folder for folder in folders if is_leftover(folder)), None)
    if folder is not None:
        return f"{folder}/"
    if not is_leftover(name):
        return None
    return "._*" if name.startswith("._") else ".*" if name.startswith(".") and name != ".DS_Store" else name


def is_leftover(name: str) -> bool:
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in LEFTOVERS


def extension(path: str) -> str:
    """The extension in lower case; empty where there is none."""
    return path.rpartition("/")[2].rpartition(".")[2].lower() if "." in path.rpartition("/")[2] else ""


def no_image(path: str) -> str | None:
    """Why a path is not an image: it is a leftover, or its extension is another; None for an image."""
    if (kind := leftover(path)) or extension(path) in IMAGE_EXTENSIONS:
        return kind
    return f"*.{extension(path)}" if extension(path) else "without an extension"


def is_image(path: str) -> bool:
    return no_image(path) is None


def no_shard(name: str, endings: tuple[str, ...]) -> str | None:
    """Why a file is not a shard of a data set, as `no_image`. To all readers of Parquet, files that begin with `_` are
    unfinished writes."""
    if kind := leftover(name) or ("_*" if name.startswith("_") else None):
        return kind
    return None if name.lower().endswith(endings) else f"*.{extension(name)}" if extension(name) else name


def readable(name: str) -> str:
    r"""The name as valid UTF-8, as Parquet and JSON want it: invalid bytes become `\xe9`, the same everywhere."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Notes:
    """What readers decided by rule about a data set, to be said once.

    It is counted by the part of the data that it is about (a class folder, a shard), and a pass over a part counts it
    afresh: so it stays right however often, and how far, the data are read.
    """

    def __init__(self) -> None:
        self.said: dict[str, str] = {}  # by what it is about
        self.losses: Counter[str] = Counter()  # of images, by what is lost when they are decoded
        self._counts: dict[str, Counter[str]] = {}

    def of_part(self, part: str) -> Counter[str]:
        """Counts, by kind, what is left out of a part; NOT_UTF8 counts rewritten names, and COPY counts copies."""
        self._counts[part] = Counter()
        return self._counts[part]

    def lines(self) -> list[str]:
        kinds: Counter[str] = sum(self._counts.values(), Counter())
        escaped, copies = kinds.pop(NOT_UTF8, 0), kinds.pop(COPY, 0)
        lines = list(self.said.values())
        if kinds:
            listed = [f"{count:,} {readable(kind)}" for kind, count in kinds.most_common(KINDS_NAMED_AT_MOST)]
            more = f", and {len(kinds) - len(listed):,} other kinds" if len(kinds) > len(listed) else ""
            lines.append(f"passed over as no images: {kinds.total():,} ({', '.join(listed)}{more})")
        if escaped:
            lines.append(rf"names that are not UTF-8: {escaped:,}; ids have such bytes as \xe9")
        if copies:
            lines.append(
                f"copies, with content, label and path of an image before: {copies:,}; each is taken, and its id ends "
                "with -1, -2 ..."
            )
        return lines + [f"images that {loss}: {count:,}" for loss, count in self.losses.items()]
