"""CIFAR-10 and ImageNet through the whole pipeline, with networks of EDM's shapes and RANDOM weights.

    .venv/bin/python -m tests.bench.real_input [--data ../shared/data]

It shows that real data pass, what planning takes, and that Parquet and a WebDataset made of it give the same pixels.
The certified accuracies are those of random weights and mean nothing. CIFAR-10 runs on EDM's full network (55.7 million
parameters), ImageNet-64 on ADM with 32 channels instead of 192 (8.4 million; a vote over 1,000 classes takes minutes on
a CPU).
"""

import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import click
import pyarrow.parquet as pq
import torch

from ndc_core.checkpoints.denoisers import write_checkpoint
from ndc_core.models.networks.edm_adm import DhariwalUNet
from ndc_core.models.networks.edm_song import SongUNet
from pipeline.store.run_store import RunStore

NDC = [sys.executable, "-c", "from pipeline.cli import main; main()"]
CIFAR10 = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 10, "channel_mult": [2, 2, 2]}
IMAGENET64 = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000, "model_channels": 32}
# One step of the grid, and as few votes as can certify at this alpha.
FEW = ["classifier.grid.points=3", "votes.selection=1", "votes.estimation=5", "votes.per_unit=5"]
FEW += [
    "certificate.alpha=0.05",
    "certificate.radii=[0.0]",
    "sigma_pixel=[0.25]",
    "compute.actors=1",
    "compute.threads_per_actor=2",
]
STATED = ["--evaluations-per-second", 1]  # a plan that measures nothing


def random_model(folder: Path, network: str, arguments: dict) -> Path:
    torch.manual_seed(0)
    kind = {"edm-song": SongUNet, "edm-adm": DhariwalUNet}[network]
    side, classes = arguments["img_resolution"], arguments["label_dim"]
    write_checkpoint(
        folder,
        kind(**arguments).state_dict(),
        network=network,
        arguments=arguments,
        image_shape=(3, side, side),
        num_classes=classes,
        sigma_data=0.5,
        knows_no_label=False,
        notes={"weights": "random"},
    )
    return folder


def webdataset(parquet: Path, folder: Path, *, images: int) -> Path:
    """The first images as tar shards of 10; the key is the image's path without its extension."""
    folder.mkdir()
    rows = next(pq.ParquetFile(parquet).iter_batches(batch_size=images)).to_pylist()
    for first in range(0, images, 10):
        with tarfile.open(folder / f"shard-{first // 10:04d}.tar", "w") as shard:
            for row in rows[first : first + 10]:
                key, extension = row["image"]["path"].rsplit(".", 1)
                for name, content in ((extension, row["image"]["bytes"]), ("cls", str(row["label"]).encode())):
                    member = tarfile.TarInfo(f"{key}.{name}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    return folder


def ndc(place: Path, *arguments: object) -> tuple[str, float, float]:
    """A command's output, its seconds, and the largest memory of any process so far in GB."""
    started = time.perf_counter()
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db"}
    done = subprocess.run([*NDC, *map(str, arguments)], cwd=place, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return done.stderr + done.stdout, time.perf_counter() - started, peak


def pictures_of(run: Path) -> list[tuple[int, str]]:
    """Labels and hashes of the pixels that a run certified."""
    return [(record.label, record.sha256) for record in RunStore(run).records()]


def settings(*assignments: str) -> list[str]:
    return [argument for assignment in assignments for argument in ("--set", assignment)]


@click.command()
@click.option(
    "--data", default="../shared/data", type=click.Path(path_type=Path), help="Folder with the Parquet files."
)
def main(data: Path) -> None:
    cifar, imagenet = data / "cifar10-jpeg-test.parquet", data / "imagenet-sample-160px.parquet"
    for path in (cifar, imagenet):
        if not path.is_file():
            raise SystemExit(f"this needs {path}: point --data at a folder that has it")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        song = random_model(place / "song", "edm-song", CIFAR10)
        adm = random_model(place / "adm", "edm-adm", IMAGENET64)
        base = ["paper-cifar10", "--model", song, "--data", cifar.absolute()]
        base += settings("unconditional=blended_label")
        whole = settings("dataset.every=1", "dataset.limit=10000", "votes.per_unit=500")
        said, seconds, peak = ndc(place, "plan", *base, *whole, *STATED)
        click.echo(f"planning 10,000 images: {seconds:.1f} s, {peak:.2f} GB\n  {said.strip()}")

        few = settings(*FEW, "dataset.every=1", "compute.rows_per_pass=11")
        said, seconds, _ = ndc(place, "certify", *base, *few, "--limit", 2, "--run", "parquet")
        click.echo(f"CIFAR-10, random weights, from Parquet: {seconds:.0f} s\n{said}")
        tars = webdataset(cifar.absolute(), place / "tars", images=20)
        _, seconds, _ = ndc(place, "certify", *base, *few, "--data", tars, "--limit", 2, "--run", "tars")
        same = pictures_of(place / "parquet") == pictures_of(place / "tars")
        click.echo(f"the same from a WebDataset: {seconds:.0f} s; pixels and labels {'equal' if same else 'DIFFER'}")

        small = settings(*FEW, "dataset.every=1", "compute.rows_per_pass=50")
        small += settings("dataset.resize=64", "dataset.filter=box", "dataset.format=parquet")
        small += settings("classifier.sift.keep=1000", "unconditional=blended_label", "classifier.grid.points=3")
        arguments = ["paper-imagenet64", "--model", adm, "--data", imagenet.absolute(), *small]
        said, seconds, _ = ndc(place, "certify", *arguments, "--limit", 1, "--run", "imagenet")
        click.echo(f"ImageNet sample at 64 x 64, random weights, from Parquet: {seconds:.0f} s\n{said}")
        tars = webdataset(imagenet.absolute(), place / "imagenet-tars", images=20)
        other = ["--data", tars, "--format", "webdataset", "--limit", 20, *STATED, "--run", "imagenet-tars"]
        said, seconds, _ = ndc(place, "plan", *arguments, *other)
        click.echo(f"the same from a WebDataset, planned only: {seconds:.0f} s\n  {said.strip()}")


if __name__ == "__main__":
    main()
