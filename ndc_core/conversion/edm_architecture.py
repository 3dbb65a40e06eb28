"""The architecture of EDM's networks from the names and shapes of their weights."""

import re
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

BLOCK = re.compile(r"enc\.(\d+)x\1_block(\d+)\.conv0\.weight")
FILTERS = {2: [1, 1], 4: [1, 3, 3, 1]}


def infer_arguments(shapes: Shapes) -> tuple[str, dict[str, Any]]:
    """The name of the network and the arguments that build it.

    Raises:
        LookupError: a weight that both networks have is missing.
        ValueError: it is neither network, or one of a kind that is not supported.
    """
    blocks = [(int(match[1]), int(match[2]), name) for name in shapes if (match := BLOCK.fullmatch(name))]
    if not blocks:
        raise ValueError("no weight is called enc.<n>x<n>_block0.conv0.weight")
    sides = sorted({side for side, _, _ in blocks}, reverse=True)
    first = shapes[f"enc.{sides[0]}x{sides[0]}_conv.weight"]
    is_adm = "out_conv.weight" in shapes
    channels = first[0] if not is_adm else shapes["map_layer0.weight"][1]
    widths = [shapes[f"enc.{side}x{side}_block0.conv0.weight"][0] for side in sides]
    label = shapes.get("map_label.weight")
    augment = shapes.get("map_augment.weight")
    arguments = {
        "img_resolution": sides[0],
        "in_channels": first[1],
        "out_channels": shapes["out_conv.weight" if is_adm else f"dec.{sides[0]}x{sides[0]}_aux_conv.weight"][0],
        "label_dim": label[1] if label else 0,
        "augment_dim": augment[1] if augment else 0,
        "model_channels": channels,
        "channel_mult": [width // channels for width in widths],
        "channel_mult_emb": shapes["map_layer1.weight"][0] // channels,
        "num_blocks": 1 + max(index for _, index, _ in blocks),
        "attn_resolutions": [side for side in sides if f"enc.{side}x{side}_block0.qkv.weight" in shapes],
    }
    return ("edm-adm", arguments) if is_adm else ("edm-song", arguments | _song_only(shapes, sides, channels))


def _song_only(shapes: Shapes, sides: list[int], channels: int) -> dict[str, Any]:
    if any("aux_skip" in name for name in shapes):
        raise ValueError("an encoder of type skip is not supported")
    filters = {shape[-1] for name, shape in shapes.items() if name.endswith("resample_filter")} or {2}
    if len(filters) > 1 or not filters <= set(FILTERS):
        raise ValueError(f"resampling filters of lengths {sorted(filters)}")
    return {
        "embedding_type": "fourier" if "map_noise.freqs" in shapes else "positional",
        "channel_mult_noise": shapes["map_layer0.weight"][1] // channels,
        "encoder_type": "residual" if any("aux_residual" in name for name in shapes) else "standard",
        "resample_filter": FILTERS[filters.pop()],
    }
