"""The classes of images in folders and archives, from whatever tells them.

In this order: a ``dataset.json`` as EDM's dataset tool writes it; the record that ``genflow generate`` leaves in a PNG;
sub-folders.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.images import METADATA_KEY

__all__ = ["DATASET_JSON", "Labelling", "folder_classes", "listed_labels", "png_text", "record_labels", "renumbered"]

DATASET_JSON = "dataset.json"

Labelling = tuple[Tensor | None, tuple[str, ...] | None]
"""int64 ``(N,)`` labels with -1 for unknown, or None, and their names, or None."""

_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNK_FOLDER = re.compile(r"[0-9]{5,}")  # 00000, 001000: how dataset tools spread many files over folders


def listed_labels(text: bytes, place: str, paths: Sequence[str]) -> list[int] | None:
    """The labels of ``paths`` that a dataset.json lists, -1 for those that it leaves out; None where it lists none.

    Raises InputError: no JSON of that form.
    """
    try:
        entries = json.loads(text)["labels"]
        table = None if entries is None else {str(path): label for path, label in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place}: allowed: JSON with 'labels', a list of [file, class number] or null") from error
    if table is None:
        return None
    labels = [table.get(path, -1) for path in paths]
    if not all(isinstance(label, int) and not isinstance(label, bool) and label >= -1 for label in labels):
        raise InputError(f"{place}: labels that are not class numbers; allowed: whole numbers from 0")
    return labels


def png_text(head: bytes, whole: Callable[[], bytes], key: str = METADATA_KEY) -> str | None:
    """The text under ``key`` in a PNG file, of its chunks before the pixels; None where there is none.

    ``head`` is the beginning of the file; ``whole`` is asked for all of it where the beginning does not suffice.
    """
    if not head.startswith(_PNG):
        return None
    at, wanted = len(_PNG), key.encode("latin-1") + b"\0"
    while True:
        if at + 8 > len(head):
            data = whole()
            if len(data) <= len(head):
                return None
            head = data
            continue
        size, kind = int.from_bytes(head[at : at + 4], "big"), head[at + 4 : at + 8]
        if kind in (b"IDAT", b"IEND"):
            return None
        if kind == b"tEXt":
            if at + 8 + size > len(head):
                data = whole()
                if at + 8 + size > len(data):
                    return None
                head = data
            if head.startswith(wanted, at + 8):
                return head[at + 8 + len(wanted) : at + 8 + size].decode("latin-1")
        at += 12 + size


def record_labels(texts: Iterable[str | None], class_names: Sequence[str] | None) -> Labelling | None:
    """Labels from the records in images; None where no record tells a class.

    With ``class_names`` a label is a number among them: a recorded name counts before a number, since numbers are a
    model's own. Without, the records' numbers are the labels, named as the records name them.
    """
    found = [_class_of(text) for text in texts]
    if all(number is None and name is None for number, name in found):
        return None
    if class_names:
        place = {name: index for index, name in enumerate(class_names)}
        labels = [
            place.get(name, -1) if name is not None else number if number is not None and number < len(place) else -1
            for number, name in found
        ]
        return torch.tensor(labels), tuple(class_names)
    known = {(number, name) for number, name in found if number is not None or name is not None}
    numbers, names = [number for number, _ in known], {name for _, name in known}
    if None not in numbers and len(set(numbers)) == len(known):  # one model's: each number has one name, or none
        labels = torch.tensor([-1 if number is None else number for number, _ in found])
        table = dict(known)
        complete = None not in names and len(names) == len(known)
        return labels, tuple(table.get(i, str(i)) for i in range(max(numbers) + 1)) if complete else None
    if None in names:  # several models', and not all told by name
        return torch.tensor([-1 if number is None else number for number, _ in found]), None
    order = sorted(names)
    return torch.tensor([-1 if name is None else order.index(name) for _, name in found]), tuple(order)


def _class_of(text: str | None) -> tuple[int | None, str | None]:
    """The class number and name that an image's record tells."""
    try:
        record: Any = json.loads(text) if text else {}
    except ValueError:
        record = {}
    record = record if isinstance(record, dict) else {}
    number, name = record.get("class"), record.get("class_name")
    known = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    return number if known else None, name if isinstance(name, str) else None


def folder_classes(paths: Sequence[str], class_names: Sequence[str] | None) -> Labelling | None:
    """Labels from the sub-folders, where every image lies in one of two or more; None where they tell no classes.

    Folders around all images do not count, nor do folders that are numbers of five digits or more, over which dataset
    tools spread their files. Without ``class_names`` the folders are the classes 0, 1, ... in the order of their names,
    as torchvision's ImageFolder has it. With ``class_names`` a folder is the class of its name, or of its number where
    it is one; a single folder counts too then.
    """
    folders = [path.split("/")[:-1] for path in paths]
    if not folders:
        return None
    shortest = min(folders, key=len)
    common = next((i for i, part in enumerate(shortest) if any(f[i] != part for f in folders)), len(shortest))
    if any(len(folder) == common for folder in folders):  # some lie side by side with folders, or all in one folder
        name = shortest[-1] if common and all(len(folder) == common for folder in folders) else None
        if not class_names or name not in class_names:
            return None
        return torch.full((len(paths),), list(class_names).index(name)), tuple(class_names)
    tops = [folder[common] for folder in folders]
    classes = sorted(set(tops))
    if class_names:
        number = {name: index for index, name in enumerate(class_names)}
        for name in classes:
            if name.isdecimal() and int(name) < len(class_names):
                number.setdefault(name, int(name))
        if not any(name in number for name in classes):
            return None
        return torch.tensor([number.get(name, -1) for name in tops]), tuple(class_names)
    if all(_CHUNK_FOLDER.fullmatch(name) for name in classes):
        return None
    number = {name: index for index, name in enumerate(classes)}
    return torch.tensor([number[name] for name in tops]), tuple(classes)


def renumbered(labels: Tensor, own_names: Sequence[str] | None, class_names: Sequence[str] | None) -> Labelling:
    """Labels as numbers among ``class_names``: by name where they have names of their own, else by number; -1 for
    others. Without ``class_names`` they stay as they are."""
    if not class_names:
        return labels, tuple(own_names) if own_names else None
    known = list(class_names)
    if own_names:
        table = torch.tensor([known.index(name) if name in known else -1 for name in own_names])
        inside = (labels >= 0) & (labels < len(table))
        return torch.where(inside, table[labels.clamp(0, len(table) - 1)], -1), tuple(class_names)
    return torch.where((labels >= 0) & (labels < len(known)), labels, -1), tuple(class_names)
