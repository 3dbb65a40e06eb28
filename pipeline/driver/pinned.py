"""Names of the Hugging Face hub in a run's configuration, with the commits that they mean when it starts."""

from dataclasses import replace

from pipeline.declaration.config import DenoiseConfig, RunConfig
from pipeline.hub import pinned


def with_commits(config: RunConfig) -> RunConfig:
    """A branch may move while a run goes on: its actors, its resume and its verification take what it began with.

    Raises:
        HubError: there is no such repository or revision, or the hub cannot be reached.
    """
    classifier = config.classifier
    if isinstance(classifier, DenoiseConfig):
        classifier = classifier.model_copy(update={"network": pinned(classifier.network)})
    return config.model_copy(
        update={
            "model": pinned(config.model),
            "unconditional": pinned(config.unconditional),
            "classifier": classifier,
            "dataset": replace(config.dataset, name=pinned(config.dataset.name)),
        }
    )
