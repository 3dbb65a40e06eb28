"""What readers of a run are told of its model: which network, how large, and what it learned from."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ndc_core.checkpoints.denoisers import describe_denoiser
from ndc_core.checkpoints.image_classifiers import describe_classifier
from ndc_core.classifiers.voter import Voter
from pipeline.declaration.config import PlainConfig, RunConfig
from pipeline.named_functions import is_function
from pipeline.workers.models import local_checkpoint, local_classifier


def model_facts(config: RunConfig, voter: Voter) -> dict[str, Any]:
    """Of a run's main model. Nothing here decides a vote: what does is in the digest that the run declares."""
    if is_function(config.model):
        network, notes = "a function of your own", {}
    elif isinstance(config.classifier, PlainConfig):
        classifier = describe_classifier(local_classifier(config.model))
        network, notes = classifier.kind, classifier.notes
    else:
        denoiser = describe_denoiser(local_checkpoint(config.model))
        network, notes = denoiser["network"], denoiser.get("notes") or {}
    facts: dict[str, Any] = {"network": network, "origin": ", ".join(origins(notes))}
    main = voter.main_network
    if isinstance(main, nn.Module):
        facts["parameters"] = sum(parameter.numel() for parameter in main.parameters())
    return facts


def origins(notes: dict[str, Any]) -> Iterator[str]:
    """What a checkpoint's notes say of where it comes from."""
    for key, phrase in (("source", "converted from"), ("timm", "timm's"), ("parent", "tuned from")):
        if key in notes:
            yield f"{phrase} {notes[key]}"
    if "teacher_sha256" in notes:
        yield f"distilled from the model {str(notes['teacher_sha256'])[:12]}"
    if "dataset" in notes:
        images = notes.get("images")
        known = [f"{notes['split']} split"] if "split" in notes else []
        known += [f"{images:,} images"] if isinstance(images, int) else []
        yield f"learned from {notes['dataset']}" + (f" ({', '.join(known)})" if known else "")
