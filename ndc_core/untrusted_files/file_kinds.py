"""What a file is where a model should be: a git-lfs pointer, a web page, an archive, half a download."""

import json
import re
from pathlib import Path

HEAD_BYTES = 4096
# The end of a zip archive, with the longest comment that may follow it.
ZIP_END, ZIP_END_BYTES = b"PK\x05\x06", 22 + 65_535
ZIP_START = b"PK\x03\x04"
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"Rar!": "rar",
}


def foreign_kind(path: Path) -> str | None:
    """What a file is, with the remedy, if it certainly is no model of any kind; else None. Reads both ends."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(max(0, size - ZIP_END_BYTES))
        if head.startswith(ZIP_START) and ZIP_END not in stream.read():
            return "a zip archive whose end is missing: a download that was cut off; fetch it again"
    if head[TAR_MAGIC_AT:].startswith(TAR_MAGIC):
        return "a tar archive: unpack it, and name the file in it"
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            return f"a file compressed with {name}: unpack it first"
    return text_kind(head, whole=size <= HEAD_BYTES)


def text_kind(head: bytes, *, whole: bool = True) -> str | None:
    """The same for text, with `head` its beginning or the whole, and for an empty file."""
    if not head:
        return "empty (0 bytes): a download or copy that failed; fetch it again"
    text = _text(head)
    if head.startswith(LFS_POINTER):
        size = re.search(rb"size (\d+)", head)
        says = f" (of {int(size[1]):,} bytes)" if size else ""
        return f"a git-lfs pointer to a file{says}, not the file itself: run `git lfs pull` where it was cloned"
    if re.match(r"<(!doctype\s+html|html|head|body)\b", text, re.IGNORECASE):
        return f"an HTML page, not a model{_shown(text)}: the address needs a login or has moved; fetch the file again"
    if text.startswith("<?xml"):
        return f"an XML answer of a server, not a model{_shown(text)}: fetch the file again"
    if text.startswith(("{", "[")) and _is_json(text, whole=whole):
        return f"JSON text, not a model ({_line(text)}): a server's answer, or the wrong file; fetch the file again"
    # A pickle, which may be text as well, ends with a full stop.
    if whole and text and "".join(text.split()).isprintable() and "\ufffd" not in text and not text.endswith("."):
        return f"plain text, not a model ({_line(text)}): a server's answer, or the wrong file; fetch the file again"
    return None


def _text(head: bytes) -> str:
    """The beginning as text, in the encodings that tools write; empty if it is not text."""
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = head.decode("utf-16" if wide else "utf-8-sig", errors="replace").lstrip()
    return "" if "\x00" in text else text


def _is_json(text: str, *, whole: bool) -> bool:
    """No opcode of a pickle is an opening brace or bracket, so the beginning tells JSON apart."""
    if not whole:
        return re.match(r"[\[{]\s*([\"\[{\d\]}-]|true|false|null)", text) is not None
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _shown(markup: str) -> str:
    words = _line(re.sub(r"<[^>]*>", " ", markup))
    return f" ({words})" if words else ""


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
