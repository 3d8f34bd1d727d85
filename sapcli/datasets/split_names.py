"""What the name of a folder or of a file says about the split that it holds."""

from __future__ import annotations

import re
import unicodedata
from enum import Enum


class SplitRole(Enum):
    """What the images of a split are for; the value is its usual name, for messages."""

    TRAIN = "train"
    VALIDATION = "val"
    TEST = "test"


# The words of Hugging Face's image folders, and what else is found on disks. They say the same for "eval".
_WORDS = {
    SplitRole.TRAIN: ("train", "training", "trainval", "trn"),
    SplitRole.VALIDATION: ("val", "valid", "validation", "validate", "validating", "dev", "devel", "development"),
    SplitRole.TEST: ("test", "testing", "tst", "eval", "evaluation", "evaluate", "holdout", "heldout"),
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words}
_EVALUATION = frozenset({"eval", "evaluation", "evaluate"})
# What stands beside such a word and changes nothing.
_FILLERS = (
    *("sets", "set", "datasets", "dataset", "data", "images", "image", "imgs", "img", "pictures", "picture"),
    *("photos", "photo", "jpegs", "jpeg", "jpg", "png", "samples", "sample", "examples", "example"),
    *("splits", "split", "folder", "dir", "files", "subset", "partition"),
)
_FILE_FILLERS = ("labels", "label", "metadata", "meta", "annotations", "annotation", "list", "classes", "gt", "csv")


def split_role(name: str) -> SplitRole | None:
    """The role of a folder by its name: `train`, `Training-Set`, `testImages`, `VALID`, `dev`; None for other names.

    Case, separators and numbers do not count, nor do words such as "set", "data" and "images".
    """
    return _role(_words(name), (*_FILLERS, ""))


def file_role(stem: str) -> SplitRole | None:
    """The split that a label file's name without its ending tells of: `train`, `val_labels`; None for other names."""
    return _role(_words(stem), (*_FILLERS, *_FILE_FILLERS, ""))


def mentioned_role(name: str) -> SplitRole | None:
    """The only role that a name mentions among other words, as `seg_train` does; None where there is none, or two.

    That alone makes no split: `freight_train` may be a class.
    """
    roles = {role for word in _words(name) if (role := _ROLES.get(_stripped(word, _FILLERS)))}
    return roles.pop() if len(roles) == 1 else None


def says_evaluation(name: str) -> bool:
    """Whether a folder is called `eval` or `evaluation`, which people use for validation as well as for test images."""
    return not _EVALUATION.isdisjoint(_stripped(word, _FILLERS) for word in _words(name))


def says_images(name: str) -> bool:
    """Whether a folder is called `images` or the like, which tells neither a class nor a split."""
    return all(word in _FILLERS for word in _words(name))


def _words(name: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", name)
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain).casefold()
    plain = re.sub(r"[\W\d_]+", " ", plain).strip()
    return re.sub(r"\b(hold|held) out\b", r"\1out", plain).split(" ")


def _role(words: list[str], fillers: tuple[str, ...]) -> SplitRole | None:
    telling = [word for word in (_stripped(word, fillers) for word in words) if word not in fillers]
    return _ROLES.get(telling[0]) if len(telling) == 1 else None


def _stripped(word: str, fillers: tuple[str, ...]) -> str:
    """A word without a filler that is joined to it: `train` of `trainset`."""
    for filler in fillers:
        rest = word.removesuffix(filler)
        if filler and rest != word and rest in _ROLES:
            return rest
    return word
