"""Images per second of the study's training loop beside the usual one, and what share of a study is no training.

    python benchmarks/training.py                             ResNet18 at 64 px, 1024-px JPEGs, on this CPU
    python benchmarks/training.py --image-size 224 --device cuda --architectures resnet34 vgg19 resnet18 alexnet
    python benchmarks/training.py --input PHOTOS/             your own JPEGs
    python benchmarks/training.py --study DIR                 of a finished study that was trained in one go

Ours: photographs decoded and resized once, then the study's steps from pixels in memory. The usual one: torch's
DataLoader whose workers decode and resize JPEGs in every epoch (PIL, torchvision), float32, channels first. Same
network, batch, optimizer, threads; epochs of both in turns, after one of each that isn't counted; medians.
The bare step is forward, backward and optimizer on one batch that already lies on the device, in our precision.
"""

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from qualitygate.training import data, loop, models, study_run

SKIMAGE = ("astronaut", "coffee", "chelsea", "rocket")


def public_photographs(folder: Path, count: int, side: int) -> list[Path]:
    """JPEG files of scikit-image's photographs at `side` x `side`, each turned and shifted in its own way."""
    import skimage.data

    files = []
    for number in range(count):
        pixels = getattr(skimage.data, SKIMAGE[number % len(SKIMAGE)])()[..., :3]
        pixels = np.roll(np.rot90(pixels, number // len(SKIMAGE) % 4), 7 * number, axis=1)
        resized = cv2.resize(np.ascontiguousarray(pixels[..., ::-1]), (side, side), interpolation=cv2.INTER_CUBIC)
        files.append(folder / f"{number:05}.jpg")
        files[-1].write_bytes(cv2.imencode(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    return files


class Decoding(Dataset):  # type: ignore[type-arg]
    """What tutorials show: a file opened, decoded, resized and normalised whenever it is asked for."""

    def __init__(self, files: list[Path], labels: torch.Tensor, image_size: int) -> None:
        from torchvision.transforms import v2

        self.files, self.labels = files, labels
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize((image_size, image_size), antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(models.MEAN, models.STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        with Image.open(io.BytesIO(self.files[row].read_bytes())) as image:
            return self.transform(image.convert("RGB")), self.labels[row]


def synchronised(device: torch.device) -> float:
    """The time, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Usual:
    """The usual loop; workers stay alive between epochs."""

    def __init__(self, files: list[Path], labels: torch.Tensor, model: nn.Module, options: argparse.Namespace) -> None:
        self.model, self.device = model, torch.device(options.device)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        self.loader = DataLoader(
            Decoding(files, labels, options.image_size),
            batch_size=options.batch_size,
            shuffle=True,
            num_workers=options.loader_workers,
            persistent_workers=options.loader_workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def epoch(self, _epoch: int) -> None:
        self.model.train()
        for images, labels in self.loader:
            images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()


class Ours:
    """The study's."""

    def __init__(
        self, pixels: torch.Tensor, labels: torch.Tensor, model: nn.Module, options: argparse.Namespace
    ) -> None:
        self.device = torch.device(options.device)
        self.recipe = loop.Recipe(epochs=1, batch_size=options.batch_size, learning_rate=1e-4, augment=options.augment)
        self.optimizer = study_run._optimizer(model, self.recipe, self.device)
        precision = study_run.BFLOAT16 if self.device.type == "cuda" else study_run.FLOAT32
        self.model = study_run._in_precision(model, precision, self.device)
        self.photographs = loop.Photographs(pixels=pixels.to(self.device), labels=labels.to(self.device))
        self.rows = np.arange(len(pixels))

    def epoch(self, epoch: int) -> None:
        loop.train_epoch(self.model, self.optimizer, self.photographs, self.rows, self.recipe, epoch)

    def bare(self, _epoch: int) -> None:
        """As many steps as an epoch has, on one batch that is already there."""
        count = min(self.recipe.batch_size, len(self.rows))
        images = loop.normalised(self.photographs.pixels[:count].float() / 255)
        labels = self.photographs.labels[:count]
        self.model.train()
        for _ in range(len(self.rows) // count):
            self.optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()


def compare(architecture: str, files: list[Path], options: argparse.Namespace) -> dict[str, float]:
    """Median images per second of each side, and seconds of decoding once."""
    device = torch.device(options.device)
    labels = torch.arange(len(files)) % 2
    started = time.perf_counter()
    prepared = list(data.prepare(({"uri": str(path), "box": None} for path in files), options.image_size))
    decoding = time.perf_counter() - started
    pixels = torch.from_numpy(np.stack([one.pixels for one in prepared if one.pixels is not None]))
    built = [models.build(architecture, 2, image_size=options.image_size).to(device) for _ in range(2)]
    ours, usual = Ours(pixels, labels, built[0], options), Usual(files, labels, built[1], options)
    sides = {"ours": ours.epoch, "usual": usual.epoch, "bare": ours.bare}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for epoch in range(1 + options.rounds):
        for side, call in sides.items():
            started = synchronised(device)
            call(epoch)
            seconds = synchronised(device) - started
            images = len(files) if side != "bare" else len(files) // options.batch_size * options.batch_size
            if epoch:
                rates[side].append(images / seconds)
    return {side: statistics.median(found) for side, found in rates.items()} | {"decoding": decoding}


def of_study(folder: Path) -> str:
    """How much of a study's time its workers did not train, test or write checkpoints."""
    record = json.loads((folder / "study.json").read_bytes())
    runs = pq.read_table(folder / "runs.parquet", columns=["seconds", "status"]).to_pylist()
    if record["runs"]["reused"]:
        return "this study was not trained in one go: its seconds can't be compared"
    total, workers = record["seconds"]["total"], record["workers"]
    trained = sum(one["seconds"] for one in runs if one["status"] == "ok") / workers
    stages = ", ".join(f"{name} {seconds} s" for name, seconds in record["seconds"].items() if name != "total")
    return (
        f"{len(runs)} runs, {workers} workers, {total:.0f} s: {trained:.0f} s of training, so "
        f"{1 - trained / total:.0%} outside ({stages})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, help="a finished study's --output")
    parser.add_argument("--input", type=Path, help="folder of JPEGs")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--architectures", nargs="+", default=["resnet18"])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="torch's, of both sides")
    parser.add_argument("--loader-workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-augment", dest="augment", action="store_false", help="leave our augmentation out")
    options = parser.parse_args()
    if options.study is not None:
        print(of_study(options.study))
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        files = (
            sorted(path for path in options.input.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))[
                : options.count
            ]
            if options.input
            else public_photographs(Path(scratch), options.count, options.side)
        )
        name = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
        print(
            f"{len(files)} JPEGs, {options.image_size} px, batch {options.batch_size}, {name}, {options.threads} torch "
            f"threads, {options.loader_workers} loader workers, torch {torch.__version__}; load "
            f"{os.getloadavg()[0]:.1f}, medians of {options.rounds} epochs\n"
        )
        print(
            "| network | ours, images/s | usual, images/s | ratio | with decoding once, 40 epochs | of the bare step |"
        )
        print("|---|---|---|---|---|---|")
        for architecture in options.architectures:
            found = compare(architecture, files, options)
            epochs = 40
            whole = epochs * len(files) / (epochs * len(files) / found["ours"] + found["decoding"])
            cells = (
                architecture,
                f"{found['ours']:.1f}",
                f"{found['usual']:.1f}",
                f"{found['ours'] / found['usual']:.2f}",
                f"{whole / found['usual']:.2f}",
                f"{found['ours'] / found['bare']:.0%}",
            )
            print(
                "| " + " | ".join(cells) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
