"""Data sets of the Hugging Face hub: the Parquet files of a split, fetched once, with the names of their classes."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.parquet import LABEL_COLUMNS, parquet_files
from pipeline.data.source import FILES_OF_SPLIT, DataError, Source, Split, of_split
from pipeline.file_names import Notes
from pipeline.hub import HubName, card, local_copy
from pipeline.locations import location

SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.parquet")
CARD = "README.md"


def hub_data(where: str, split: Split) -> Source:
    """The images of a split of `hf://datasets/ORG/NAME[@REVISION][/FOLDER or pattern]`.

    Class names are those of the Parquet files, or else of the repository's card.

    Raises:
        HubError: it cannot be fetched.
        DataError: it has no Parquet file of the split, several configurations, or some shards only.
    """
    name = HubName.parse(where)
    if name.kind != "dataset":
        raise DataError(f"{where} names a model; data sets are hf://datasets/{name.repo}")
    folder, exact, files = fetched(name, split)
    refuse_several(where, name, files)
    refuse_some_shards(where, files)
    notes = Notes()
    notes.said["hub"] = f"{len(files):,} Parquet file{'s' * (len(files) > 1)} of {exact}"
    source = parquet_files([location(folder / file) for file in files], notes)
    return replace(source, format="hub", class_names=source.class_names or names_of_card(card(folder)))


def fetched(name: HubName, split: Split) -> tuple[Path, HubName, list[str]]:
    """The local folder of a commit, and the files of a split in it.

    If the path is a file or a pattern, it names the files. Otherwise the split's word is in the files' names or
    folders, as push_to_hub and the hub's own conversion write them; if there are none, files without any split's word
    are taken.

    Raises:
        HubError: they cannot be fetched.
        DataError: there are none, or their names leave it open.
    """
    if name.path.endswith(".parquet") or "*" in name.path:
        folder, exact = local_copy(name, [name.path, CARD])
        return folder, exact, some(parquet_below(folder, [name.path]), name, split)
    below = f"{name.path}/" if name.path else ""
    own = [f"{below}*{word}*.parquet" for word in sorted(FILES_OF_SPLIT[split])]
    folder, exact = local_copy(name, [*own, CARD])
    if files := parquet_below(folder, own):
        return folder, exact, of_split(files, split, name)
    words = [f"{below}*{word}*.parquet" for group in FILES_OF_SPLIT.values() for word in sorted(group)]
    folder, exact = local_copy(name, [f"{below}*.parquet"], without=words)
    return folder, exact, some(parquet_below(folder, [f"{below}*.parquet"], without=words), name, split)


def some(files: list[str], name: HubName, split: Split) -> list[str]:
    """The files; raises DataError if there are none."""
    if not files:
        raise DataError(
            f"{name} has no Parquet file of the {split} split; take the other one (dataset.split), name files "
            f"with a pattern (as {replace(name, path='data/*validation*')}), take the hub's own conversion "
            f"(hf://datasets/{name.repo}@refs/convert/parquet), or fetch it with `hf download` and name the folder"
        )
    return files


def parquet_below(folder: Path, patterns: Sequence[str], *, without: Sequence[str] = ()) -> list[str]:
    """The files in a folder that fit a pattern; there may be others, fetched for another run."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    return [
        file
        for file in files
        if any(fnmatch(file, pattern) for pattern in patterns) and not any(fnmatch(file, other) for other in without)
    ]


def refuse_several(where: str, name: HubName, files: Sequence[str]) -> None:
    """Raises DataError where the files are of several configurations, which lie in folders of their own."""
    if name.path:
        return
    folders = sorted({PurePosixPath(file).parts[0] for file in files if "/" in file})
    if len(folders) > 1:
        raise DataError(
            f"{where} has several configurations: {', '.join(folders)}; name one, as {replace(name, path=folders[0])}"
        )


def refuse_some_shards(where: str, files: Sequence[str]) -> None:
    """Raises DataError where shards say that there are more than were found."""
    counted = Counter((shard[1], int(shard[2])) for file in files if (shard := SHARD.fullmatch(file)))
    for (stem, total), present in counted.items():
        if present != total:
            raise DataError(f"{where}: {present} of {total} shards {stem}-* are there; name or fetch all of them")


def names_of_card(declared: dict[str, Any]) -> tuple[str, ...] | None:
    """The class names that a card's `dataset_info` gives the labels, if all configurations give the same."""
    infos = declared.get("dataset_info") or []
    declared_names = set()
    for info in [infos] if isinstance(infos, dict) else infos:
        for feature in info.get("features") or []:
            kind = feature.get("dtype")
            if feature.get("name") in LABEL_COLUMNS and isinstance(kind, dict) and "class_label" in kind:
                names = kind["class_label"]["names"]
                ordered = [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else names
                declared_names.add(tuple(map(str, ordered)))
    return declared_names.pop() if len(declared_names) == 1 else None
