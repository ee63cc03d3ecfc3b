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
from torch import Tensor, nn

from genflow.assets import ROOT
from genflow.errors import check_number
from genflow.evaluate.console import run
from genflow.files import write_text
from genflow.metrics.classifier import ClassifierConfig, ImageClassifier, load_classifier, save_classifier

__all__ = ["accuracy", "augment", "train_classifier"]

MAX_SHIFT = 2
DEFAULT_FOLDER = ROOT / "fashion-mnist-classifier"

CARD = """# fashion-mnist-classifier

A small residual network that tells Fashion-MNIST's ten classes apart. Its {dimensions} penultimate features (the mean
over the last feature map) are genflow's default evaluation features; a Frechet distance in them is called
FD (fashion-mnist), never FID.

| | |
| --- | --- |
| accuracy on the 10,000 test images | {accuracy:.2%} |
| parameters | {parameters:.2f} M, in float16 (batch norm in float32) |
| input | float images in [-1, 1], (B, 1, 28, 28) |
| data | Fashion-MNIST's 60,000 training images; MIT licence, (c) 2017 Zalando SE |
| recipe | {epochs:g} epochs of batch {batch_size}; shifts of up to two pixels, horizontal flips |
| optimizer | SGD, Nesterov momentum 0.9, weight decay 5e-4; rate up to 0.2 over a fifth of the steps, cosine to 0 |
| seed | {seed} |
| trained in | {minutes:.1f} CPU-minutes on one core, {precision}, torch {torch} |

Made by `python -m genflow.evaluate.classifier`, then `python -m genflow.evaluate.reference` for the reference features
that belong to it.

The network was trained with horizontal flips, so these features say little about left and right.
"""


def augment(images: Tensor, generator: torch.Generator, max_shift: int = MAX_SHIFT) -> Tensor:
    """``(B, 1, H, W)`` images, each shifted by up to ``max_shift`` pixels both ways (zeros come in) and flipped or not.

    Zero is the background of uint8 images: augment before scaling to [-1, 1].
    """
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (max_shift,) * 4)
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
            loss = nn.functional.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
            bar.update(task, advance=1, description=f"training, loss {running:.3f}")
            if progress and (step + 1) % per_epoch == 0:
                seconds = time.monotonic() - started
                speed = (step + 1) * batch_size / seconds
                line = f"epoch {(step + 1) // per_epoch}: loss {running:.4f}, {speed:.0f} images/s"
                bar.console.print(line, highlight=False)
    return network.eval()


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = DEFAULT_FOLDER,
    epochs: Annotated[float, typer.Option(help="Passes over the training images.")] = 12,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the order of the images and their shifts.")] = 0,
    precision: Annotated[str, typer.Option(help="Arithmetic of the training: auto, fp32, bf16.")] = "auto",
) -> None:
    """Train the Fashion-MNIST classifier; write its weights, its configuration and its card."""
    from genflow import data
    from genflow.precision import resolve

    chosen = resolve(precision)
    print(f"{chosen.name}: {chosen.reason}")
    train, test = (data.load_images("fashion-mnist", split=split) for split in ("train", "test"))
    config = ClassifierConfig(class_names=train.class_names)
    started = time.process_time()
    network = train_classifier(
        train.images,
        train.labels,
        config,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        bf16=chosen.name == "bf16",
    )
    minutes = (time.process_time() - started) / 60
    save_classifier(network, out)
    share = accuracy(load_classifier(out), test.images, test.labels)
    card = CARD.format(
        accuracy=share,
        dimensions=network.num_features,
        parameters=sum(p.numel() for p in network.parameters()) / 1e6,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        precision=chosen.name,
        minutes=minutes,
        torch=torch.__version__,
    )
    write_text(out / "card.md", card)
    print(f"{share:.2%} of {len(test)} test images right after {minutes:.1f} CPU-minutes; written to {out}")


if __name__ == "__main__":
    run(main)
