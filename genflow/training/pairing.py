"""Which image of one set meets which of another in training: by chance, by class, or by name."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from torch import Tensor

from genflow.data import ImageData
from genflow.errors import InputError
from genflow.training.batches import BatchStream, flip_half, mixed_seed, stream_indices

__all__ = ["PairStream", "align_classes", "match_images"]

_SECOND, _WITHIN = 11, 12  # streams of random numbers apart from those of the first side


def align_classes(first: ImageData, second: ImageData, chosen: bool) -> ImageData:
    """``second`` with its classes in the order of ``first``'s.

    Classes correspond by name. ``chosen`` says that a person named the classes of both sides: then the first is for the
    first, the second for the second, whatever their names.

    Raises:
        InputError: no labels, other numbers of classes, other names, or a class of ``first`` without images here.
    """
    counts = first.num_classes, second.num_classes
    if None in counts or counts[0] != counts[1]:
        raise InputError(f"interpolant.class_wise: {counts[0]} and {counts[1]} classes; allowed: as many on both sides")
    names, others = first.class_names, second.class_names
    if not chosen and names != others:
        if set(names or ()) != set(others or ()):
            raise InputError(
                f"interpolant.class_wise: classes {names} and {others}; allowed: the same names, or data.classes and "
                "interpolant.classes that say which belong together"
            )
        second = second.select(names)
    missing = torch.bincount(first.labels, minlength=counts[0]) > 0
    missing &= torch.bincount(second.labels, minlength=counts[0]) == 0
    if missing.any():
        raise InputError(f"interpolant.class_wise: class {int(missing.int().argmax())} has no image at t = 1")
    return second


def match_images(first: ImageData, second: ImageData) -> Tensor:
    """For every image of ``first`` the place of its partner in ``second``, int64 ``(N,)``.

    Partners have the same name below their folders, suffixes apart; in arrays, which have no names, the same place.

    Raises:
        InputError: an image without a partner, or two images of one name.
    """
    if first.names is None or second.names is None:
        if len(first) != len(second):
            counts = f"{len(first)} images at t = 0 and {len(second)} at t = 1"
            raise InputError(f"interpolant.pairing: {counts}; allowed: as many on each side")
        return torch.arange(len(first))
    ours, theirs = _stems(first.names), _stems(second.names)
    places = {name: place for place, name in enumerate(theirs)}
    alone = [name for name in ours if name not in places]
    if alone:
        raise InputError(
            f"interpolant.pairing: {len(alone)} images of data have no partner of their name, as {', '.join(alone[:3])}"
        )
    return torch.tensor([places[name] for name in ours])


def _stems(names: Sequence[str]) -> list[str]:
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise InputError(f"interpolant.pairing: two images are called {twice}; allowed: one, whatever its suffix")
    return stems


@dataclass(frozen=True)
class PairStream:
    """Micro-batches of images of both sides, a function of (seed, step, slot); see :class:`BatchStream`.

    Attributes:
        first: the images at t = 0, each of which comes once an epoch.
        second: those at t = 1, or None for an interpolant without.
        seed, size, slots, device, flip: as in BatchStream. Partners are mirrored together.
        paired: each image comes with its partner (:func:`match_images`).
        class_wise: its partner is one of its class, drawn anew each time, and the labels are given out.
    """

    first: ImageData
    second: ImageData | None
    seed: int
    size: int
    slots: int
    device: torch.device
    flip: bool = False
    paired: bool = False
    class_wise: bool = False

    @functools.cached_property
    def _ours(self) -> BatchStream:
        data = self.first
        if self.paired:  # one image of twice the channels
            partners = self.second.images[match_images(self.first, self.second)]
            data = ImageData(torch.cat([data.images, partners], dim=1), data.labels)
        if not self.class_wise:
            data = ImageData(data.images)
        return BatchStream(data, self.seed, self.size, self.slots, self.device, self.flip)

    @functools.cached_property
    def _theirs(self) -> BatchStream:
        seed = mixed_seed(self.seed, _SECOND) % 2**31
        return BatchStream(ImageData(self.second.images), seed, self.size, self.slots, self.device, self.flip)

    @functools.cached_property
    def _members(self) -> tuple[Tensor, Tensor, Tensor]:
        """The second side in the order of its classes, where each class starts there, and how many it has."""
        counts = torch.bincount(self.second.labels, minlength=self.first.num_classes)
        return torch.argsort(self.second.labels, stable=True), counts.cumsum(0) - counts, counts

    def draw(self, step: int, slot: int) -> tuple[Tensor, Tensor | None, Tensor | None, torch.Generator]:
        """x0 and x1 in [-1, 1], labels, and the generator for the rest of this micro-batch's draws."""
        images, labels, generator = self._ours.draw(step, slot)
        if self.second is None:
            return images, None, labels, generator
        if self.paired:
            x0, x1 = images.chunk(2, dim=1)
            return x0, x1, labels, generator
        if not self.class_wise:
            return images, self._theirs.draw(step, slot)[0], labels, generator
        return images, self._same_class(step, slot, generator), labels, generator

    def _same_class(self, step: int, slot: int, generator: torch.Generator) -> Tensor:
        start = (step * self.slots + slot) * self.size
        ours = torch.from_numpy(stream_indices(self.seed, start, start + self.size, len(self.first)))
        labels = self.first.labels[ours]  # on the host, where the images are
        host = torch.Generator().manual_seed(mixed_seed(self.seed, step, slot, _WITHIN))
        order, starts, counts = self._members
        within = (torch.rand(len(labels), generator=host, dtype=torch.float64) * counts[labels]).long()
        images = self.second.images[order[starts[labels] + within]].to(self.device).float() / 127.5 - 1
        return flip_half(images, generator) if self.flip else images
