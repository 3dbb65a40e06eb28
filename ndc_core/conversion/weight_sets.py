"""The weights in a file of another program: where they are, which are an average, and which are taken.

A network's own names show where it begins: all wrappers around it, nested in any order, come before the name of a
weight that every such network has.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ndc_core.conversion.foreign_models import ConversionError
from ndc_core.untrusted_files.pickle_values import Instance, StoredTensor

MOST_ENTRIES = 1_000_000
SHOWN_NAMES = 6
# Marks of torch.compile, FSDP and activation checkpointing, which may stand before any module's name.
MARKS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
AVERAGE = re.compile(r"(^|_|-)ema|ema($|_|-)|averag|shadow|(^|(?<!exp)_)(swa|avg)($|_)", re.IGNORECASE)
# What ema_pytorch keeps beside its average, in the same module.
RAW = re.compile(r"(^|_)online(_|$)")
OPTIMIZER = re.compile(r"optim|^opt$", re.IGNORECASE)
# What wrappers count beside a network; it does not change what the network computes.
COUNTER = re.compile(r"(^|[._])(n_averaged|num_updates|decay|initted|steps?|epoch|iteration|num_batches_tracked)$")
# What stands beside a model in EDM's and EDM2's pickles.
NO_NETWORKS = ("loss_fn", "augment_pipe", "encoder")
FOREIGN_NAMES = {
    "down_blocks.": "its names are diffusers': give the folder with its config.json",
    "input_blocks.": "its names are those of OpenAI's guided-diffusion, whose networks are not supported",
}

Weights = dict[str, Tensor | StoredTensor]


@dataclass(frozen=True)
class WeightSet:
    """One network in a file.

    `place` are the keys and wrappers that lead to it, with dots between them; `beside` are the names in its state dict
    that belong to no network.
    """

    place: str
    content: Weights | Instance
    beside: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        return _is_average(self.place)

    def tensors(self) -> dict[str, Tensor]:
        if isinstance(self.content, Instance):
            raise ConversionError(f"it holds a {self.content.class_name}, not weights by their names")
        return {
            name: value.tensor() if isinstance(value, StoredTensor) else value for name, value in self.content.items()
        }


def take_network(content: Any, *, anchor: str) -> tuple[WeightSet, list[str]]:
    """The network in a file's plain data, the averaged one of two; and the places of those that are left.

    `anchor` is the name of a weight that every network of the kind has.

    Raises:
        ConversionError: there is none, or it is unclear which is meant or what a wrapper around it does.
    """
    networks, rest = _networks(list(_entries(content)), anchor)
    averages = [network for network in networks if network.averaged]
    unread = [name for name in rest if _is_average(name) and not COUNTER.search(name)]
    if unread and not averages:
        raise ConversionError(
            f"it has averaged weights under names that are not the network's ({_listed(unread)}), and the raw ones are "
            "not what one samples with: copy the average into the model with the program that trained it (as "
            "ema.copy_to does) and save the model's state_dict()"
        )
    if not networks:
        raise ConversionError(f"no network that is known here is in it; {_described(content, rest)}")
    candidates = averages or networks
    if len(candidates) > 1:
        what, places = "averages" if averages else "networks", [network.place for network in candidates]
        raise ConversionError(
            f"it holds {len(candidates)} {what} ({_listed(places)}) and does not say which is meant: save one alone"
        )
    (taken,) = candidates
    if taken.beside:
        raise ConversionError(
            f"beside the network its state dict holds {_listed(taken.beside)}, of a wrapper that may change what the "
            "network's outputs mean: if it does not, save the state_dict() of the network alone"
        )
    return taken, [network.place for network in networks if network is not taken]


def _is_average(place: str) -> bool:
    parts = place.split(".")
    return any(AVERAGE.search(part) for part in parts) and not any(RAW.search(part) for part in parts)


def _entries(content: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Tensors and modules of nested dicts and lists with the keys that lead to them, except an optimizer's."""
    ahead: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(MOST_ENTRIES):
        if not ahead:
            return
        keys, value = ahead.pop()
        if isinstance(value, Tensor | StoredTensor | Instance):
            yield keys, value
        elif isinstance(value, dict | list | tuple) and not (keys and OPTIMIZER.search(keys[-1])):
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            ahead += [((*keys, str(key)), item) for key, item in reversed(items)]
    raise ConversionError(f"it has more than {MOST_ENTRIES:,} entries: no checkpoint has")


def _networks(entries: list[tuple[tuple[str, ...], Any]], anchor: str) -> tuple[list[WeightSet], list[str]]:
    """The networks, and the full names of tensors that belong to none."""
    networks: list[WeightSet] = []
    rest: list[str] = []
    state_dicts: dict[tuple[str, ...], Weights] = {}
    for keys, value in entries:
        if not isinstance(value, Instance):
            _put(state_dicts.setdefault(keys[:-1], {}), MARKS.sub("", keys[-1] if keys else ""), value)
        elif not keys or keys[-1] not in NO_NETWORKS:
            networks.append(WeightSet(".".join(keys), value))
    for holder, weights in state_dicts.items():
        sets, beside = _split(weights, anchor)
        rest += [".".join((*holder, name)) for name in beside]
        unknown = tuple(name for name in beside if not COUNTER.search(name) and not _is_average(name))
        networks += [
            WeightSet(".".join(part for part in (*holder, prefix.rstrip(".")) if part), content, unknown)
            for prefix, content in sets.items()
        ]
    return networks, rest


def _put(weights: Weights, name: str, value: Tensor | StoredTensor) -> None:
    if name in weights:
        raise ConversionError(f"it has the weight {name} twice, with and without a wrapper's mark")
    weights[name] = value


def _split(weights: Weights, anchor: str) -> tuple[dict[str, Weights], list[str]]:
    """A state dict's networks by the prefix of their names, and the names that belong to none."""
    begins = {name.removesuffix(anchor) for name in weights if f".{name}".endswith(f".{anchor}")}
    prefixes = sorted(begins, key=len, reverse=True)
    sets: dict[str, Weights] = {prefix: {} for prefix in prefixes}
    beside = []
    for name, value in weights.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            beside.append(name)
        else:
            sets[prefix][name.removeprefix(prefix)] = value
    return sets, beside


def _described(content: Any, names: list[str]) -> str:
    for part, meaning in FOREIGN_NAMES.items():
        if any(part in name for name in names):
            return meaning
    if isinstance(content, dict):
        return f"it has {_listed([str(key) for key in content])}"
    return f"it is a {type(content).__name__}"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    """The first few of some names, each short enough to be read."""
    shown = [f"{name[:59]}…" if len(name) > 60 else name or "the file's own" for name in names[:SHOWN_NAMES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
