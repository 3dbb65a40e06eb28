"""What `ndc convert` takes from the Hugging Face hub: a file, or the folder of a diffusers model."""

from dataclasses import replace
from pathlib import Path

from ndc_core.conversion.diffusers_folders import CONFIG_FILE, WEIGHTS
from pipeline.hub import HubName, local_copy

PICKLES = "*.bin"


def local_source(where: str) -> tuple[Path, str]:
    """The local copy of `hf://ORG/NAME[@REVISION][/FILE or FOLDER]`, and its name with the commit.

    Of a folder, configurations and weights are fetched; pickled weights only where there are no others. In a repository
    whose model lies in `unet`, as in a pipeline, that folder is taken.

    Raises:
        HubError: it cannot be fetched.
    """
    name = HubName.parse(where)
    if Path(name.path).suffix:
        folder, exact = local_copy(name, [name.path])
        return folder / name.path, str(exact)
    folder, exact = local_copy(name, ["*.json"])
    if not name.path and not (folder / CONFIG_FILE).is_file() and (folder / "unet" / CONFIG_FILE).is_file():
        exact = replace(exact, path="unet")
    weights = [f"{exact.path}/{WEIGHTS}*" if exact.path else f"{WEIGHTS}*"]
    local_copy(exact, weights, without=[PICKLES])
    if not any((folder / exact.path).glob(f"{WEIGHTS}*")):
        local_copy(exact, weights)
    return folder / exact.path, str(exact)
