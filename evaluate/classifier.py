"""Train the classifier whose features are genflow's default evaluation features.

``python -m genflow.evaluate.classifier`` makes ``assets/fashion-mnist-classifier`` again: Fashion-MNIST's 60,000
training images, random shifts of up to two pixels and horizontal flips, SGD with Nesterov momentum, a linear warm-up
and a cosine to zero. About twenty minutes on one core.
"""

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F

from genflow.errors import check_number
from genflow.metrics.classifier import ClassifierConfig, ImageClassifier, save_classifier

__all__ = ["accuracy", "augment", "train_classifier"]

MAX_SHIFT = 2


def augment(images: Tensor, generator: torch.Generator, max_shift: int = MAX_SHIFT) -> Tensor:
    """``(B, 1, H, W)`` images, each shifted by up to ``max_shift`` pixels both ways (zeros come in) and flipped or not.

    Zero is the background of uint8 images: augment before scaling to [-1, 1].
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4)
    shift = torch.randint(0, 2 * max_shift + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(flip, columns.flip(1), columns) + shift[1]
    rows = torch.arange(height).expand(count, height) + shift[0]
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def accuracy(network: ImageClassifier, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Share of uint8 ``images`` ``(N, 1, H, W)`` that ``network``, in evaluation mode, puts in their class."""
    network.eval()
    with torch.inference_mode():
        correct = sum(
            int((network(batch.float() / 127.5 - 1).argmax(1) == target).sum())
            for batch, target in zip(images.split(batch_size), labels.split(batch_size), strict=True)
        )
    return correct / len(images)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    config: ClassifierConfig,
    *,
    epochs: float = 12,
    batch_size: int = 256,
    peak_lr: float = 0.2,
    warmup: float = 0.2,
    weight_decay: float = 5e-4,
    seed: int = 0,
    bf16: bool = False,
    progress: bool = True,
) -> ImageClassifier:
    """Train a new classifier on uint8 ``images`` ``(N, 1, H, W)`` and int64 ``labels`` ``(N,)``.

    The defaults gave the shipped network. The result depends on ``seed`` and on the processor's arithmetic only.
    """
    check_number("epochs", epochs, above=0)
    check_number("batch_size", batch_size, at_least=1, at_most=len(images), integer=True)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = ImageClassifier(config).to(memory_format=torch.channels_last).train()
    # Norms and biases are left out of weight decay (He et al. 2019, "Bag of tricks").
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=peak_lr, momentum=0.9, nesterov=True)
    per_epoch = len(images) // batch_size
    total = math.ceil(epochs * per_epoch)
    rising = max(1, round(warmup * total))

    def rate(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 + 0.5 * math.cos(math.pi * (step - rising + 1) / (total - rising + 1))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("training", total=total)
        running, started = 0.0, time.monotonic()
        for step in range(total):
            if step % per_epoch == 0:
                order = torch.randperm(len(images), generator=generator)
            chosen = order[(step % per_epoch) * batch_size :][:batch_size]
            batch = augment(images[chosen], generator).float() / 127.5 - 1
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = network(batch.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
            bar.update(task, advance=1, description=f"training, loss {running:.3f}")
            if progress and (step + 1) % per_epoch == 0:
                seconds = time.monotonic() - started
                bar.console.print(
                    f"epoch {(step + 1) // per_epoch}: loss {running:.4f}, {(step + 1) * batch_size / seconds:.0f} images/s",
                    highlight=False,
                )
    return network.eval()


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("assets/fashion-mnist-classifier"),
    epochs: Annotated[float, typer.Option(help="Passes over the training images.")] = 12,
    batch_size: int = 256,
    seed: int = 0,
    dtype: Annotated[str, typer.Option(help="auto, bf16 or fp32: arithmetic of the training.")] = "auto",
) -> None:
    """Train the Fashion-MNIST classifier and write it, its test accuracy with it."""
    import gzip

    import numpy as np

    def read(name: str, offset: int) -> np.ndarray:
        with gzip.open(f"/usr/share/datasets/fashion-mnist/{name}-ubyte.gz") as file:
            return np.frombuffer(file.read(), np.uint8, offset=offset)

    names = "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot".split()
    images = torch.from_numpy(read("train-images-idx3", 16).reshape(-1, 1, 28, 28).copy())
    labels = torch.from_numpy(read("train-labels-idx1", 8).astype("int64"))
    config = ClassifierConfig(class_names=tuple(names))
    bf16 = torch.cpu._is_avx512_bf16_supported() if dtype == "auto" else dtype == "bf16"
    started = time.process_time()
    network = train_classifier(images, labels, config, epochs=epochs, batch_size=batch_size, seed=seed, bf16=bf16)
    minutes = (time.process_time() - started) / 60
    save_classifier(network, out)
    from genflow.metrics.classifier import load_classifier

    test_images = torch.from_numpy(read("t10k-images-idx3", 16).reshape(-1, 1, 28, 28).copy())
    test_labels = torch.from_numpy(read("t10k-labels-idx1", 8).astype("int64"))
    print(f"bf16 {bf16}, {minutes:.1f} CPU-minutes")
    print("unrounded accuracy", accuracy(network, test_images, test_labels))
    print("accuracy", accuracy(load_classifier(out), test_images, test_labels))


if __name__ == "__main__":
    typer.run(main)
