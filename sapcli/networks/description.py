"""What a checkpoint says about itself: `config.json` beside it and the file's metadata, both in timm's schema."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from sapcli.checkpoints.class_names import TOP_KEYS, saved_class_names
from sapcli.checkpoints.pytorch_file import LABEL_NAMES_KEY
from sapcli.errors import ArchitectureError, SapError
from sapcli.machine.text import can_be_printed
from sapcli.networks.factories import runs_own_code
from sapcli.networks.huggingface.classifiers import PREFIX, classifier_named_by, network_config
from sapcli.networks.huggingface.image_processor import processor_settings
from sapcli.networks.training_arguments import TrainingArguments, training_arguments

if TYPE_CHECKING:
    from sapcli.checkpoints.checkpoint import Checkpoint

_METADATA_PREFIX = "sap."
_FLAT = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")

T = TypeVar("T")


@dataclass(frozen=True)
class NamedClasses:
    """Class names that a checkpoint has.

    Attributes:
        names: In the order of the outputs.
        source: Where they stand: `id2label of config.json`.
        binding: Whether they have to be as many as the outputs: `label_names`, which is written for this very network.
            Others that are not are passed over.
    """

    names: tuple[str, ...]
    source: str
    binding: bool


@dataclass(frozen=True)
class Description:
    """What names an architecture and goes with it, before anything was built.

    Attributes:
        name: The architecture, as written; None where nothing names it.
        source: Who says so: `--arch`, `config.json`, `the metadata`.
        arguments: The factory's arguments.
        settings: The preprocessing, in the terms of timm's `pretrained_cfg`.
        label_names: The classes' names in the order of the outputs, as the first of `named_classes` has them.
        named_classes: All that name the classes, those that count most first.
        trained: What the file of a training says beside its weights; its preprocessing always counts.
        passed_over: What is to be said of a `config.json` that is not used, a sentence each.
    """

    name: str | None
    source: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    named_classes: tuple[NamedClasses, ...] = field(default=(), compare=False)
    trained: TrainingArguments | None = field(default=None, compare=False)
    passed_over: tuple[str, ...] = field(default=(), compare=False)


def describe(checkpoint: Checkpoint, spec: str | None) -> Description:
    """What names the architecture: the user, else config.json, else the metadata; the rest from the same place.

    Of a corrected checkpoint only its own metadata counts where config.json names another architecture: a folder's
    config.json may be about another of its files.

    The label names and the preprocessing belong to the weights, whoever names the architecture; the arguments and the
    preprocessing only count where they were written for the architecture that is used.
    """
    own_config, passed_over = _config(checkpoint, is_named=spec is not None and not spec.startswith(PREFIX))
    written = [own_config, _description(_metadata_config(checkpoint.metadata), "the metadata")]
    first, second = (item.name for item in written)
    is_ours = f"{_METADATA_PREFIX}architecture" in checkpoint.metadata
    if is_ours and first is not None and second is not None and _identity(first) != _identity(second):
        del written[0]
    named_classes = tuple(classes for item in written for classes in item.named_classes)
    trained = training_arguments(checkpoint)
    if trained is not None:
        written.append(Description(trained.name, trained.source, trained.arguments))
    named = next((item for item in written if item.name is not None), written[0])
    result = replace(
        named,
        label_names=named_classes[0].names if named_classes else None,
        named_classes=named_classes,
        trained=trained,
        passed_over=passed_over,
    )
    if spec is None:
        if named.name is not None and runs_own_code(named.name):
            raise ArchitectureError(
                f"{named.source} of {checkpoint.source} names the code {named.name!r}, which only runs if you say so",
                f"Look at it, then give --arch {named.name!r}.",
            )
        return result
    if named.name is None or _identity(named.name) == _identity(spec):
        return replace(result, name=spec)
    return replace(result, name=spec, source="--arch", arguments={}, settings={})


def _config(checkpoint: Checkpoint, *, is_named: bool) -> tuple[Description, tuple[str, ...]]:
    """What `config.json` says; where the user names the architecture, one that cannot be understood stops nothing."""
    config = checkpoint.config or {}
    try:
        name = None if is_named else classifier_named_by(config)
        if name is not None:
            return _of_transformers(checkpoint, config, name), ()
        return _description(config, "config.json"), ()
    except SapError as error:
        # Names of classes are not those of another schema: what is wrong with them is.
        if not is_named or error.message.startswith("label_names"):
            raise
        return Description(None, "config.json"), (f"config.json is not used: {error.message}",)


def _of_transformers(checkpoint: Checkpoint, config: Mapping[str, object], name: str) -> Description:
    """What a `config.json` of transformers says, and the image processor beside it."""
    assert checkpoint.path is not None
    settings = processor_settings(checkpoint.path.parent, checkpoint.source)
    named = _named_classes(config, "config.json")
    arguments = {"config": network_config(config)}
    names = named[0].names if named else None
    return Description(name, "config.json", arguments, settings or {}, names, tuple(named))


def describes_itself(checkpoint: Checkpoint) -> bool:
    """Whether `config.json` beside the checkpoint, or its metadata, names an architecture."""
    written = [
        _config(checkpoint, is_named=True)[0],
        _description(_metadata_config(checkpoint.metadata), "the metadata"),
    ]
    return any(item.name is not None for item in written)


def _identity(spec: str) -> tuple[str, str]:
    """What two spellings of one architecture have in common: the kind, and the name without a pretrained tag."""
    library, _, name = spec.rpartition(":")
    return ("own" if runs_own_code(spec) else library or "timm"), name.partition(".")[0]


def _description(config: Mapping[str, object], source: str) -> Description:
    """Read a configuration in timm's schema."""
    settings = _typed(config, "pretrained_cfg", dict, source) or _flat_settings(config)
    arguments = _typed(config, "model_args", dict, source) or {}
    labels = config.get("label_names") or settings.get("label_names")
    named_classes = _named_classes(config, source)
    if labels:
        # Of a training file, `label_names` stands for whatever key its script used.
        key = config.get(LABEL_NAMES_KEY)
        where = f"{key} of the file" if isinstance(key, str) else f"label_names of {source}"
        named_classes.insert(0, NamedClasses(_label_names(labels, source), where, not isinstance(key, str)))
    return Description(
        name=_typed(config, "architecture", str, source),
        source=source,
        arguments={key: value for key, value in arguments.items() if key != "num_classes"},  # the tensors tell it
        settings=settings,
        label_names=named_classes[0].names if named_classes else None,
        named_classes=tuple(named_classes),
    )


def _flat_settings(config: Mapping[str, object]) -> dict[str, object]:
    """The preprocessing where timm's older versions have it: beside `architecture`, in no `pretrained_cfg`."""
    return {key: config[key] for key in _FLAT if key in config} if "architecture" in config else {}


def _named_classes(config: Mapping[str, object], source: str) -> list[NamedClasses]:
    """The class names under the keys of other tools than timm, as transformers' `id2label`."""
    return [
        NamedClasses(found.names, f"{found.key} of {source}", binding=False)
        for found in saved_class_names(config)
        if not found.key.endswith("label_names")
    ]


def _typed(config: Mapping[str, object], key: str, kind: type[T], source: str) -> T | None:
    value = config.get(key)
    if value is None or isinstance(value, kind):
        return value
    raise _senseless(key, source, f"is a {type(value).__name__}, expected a {kind.__name__}")


def _label_names(labels: object, source: str) -> tuple[str, ...]:
    if isinstance(labels, dict):  # from a class's number, as text, to its name
        names = [labels.get(str(number), labels.get(number)) for number in range(len(labels))]
    else:
        names = list(labels) if isinstance(labels, list | tuple) else [None]
    texts = tuple(name for name in names if isinstance(name, str))
    if len(texts) < len(names):
        raise _senseless("label_names", source, "is no list of names, and no object from 0, 1, ... to names")
    unprintable = next((name for name in texts if not can_be_printed(name)), None)
    if unprintable is not None:
        raise _senseless("label_names", source, f"has {unprintable!r}, which holds characters that no name can have")
    if len(set(texts)) < len(texts):
        doubled = next(name for name, count in Counter(texts).items() if count > 1)
        raise _senseless("label_names", source, f"has {doubled!r} twice, expected a name of its own for every class")
    return texts


def _senseless(key: str, source: str, problem: str) -> ArchitectureError:
    return ArchitectureError(f"{key} of {source} {problem}", f"Correct {source}, which follows timm's schema.")


def _metadata_config(metadata: Mapping[str, str]) -> dict[str, object]:
    """The configuration in a file's metadata: `config` as JSON, and single keys, those with `sap.` before others."""
    parsed = _json(metadata.get("config", ""))
    config = dict(parsed) if isinstance(parsed, dict) else {}
    expected: dict[str, tuple[type, ...]] = {
        "model_args": (dict,),
        "pretrained_cfg": (dict,),
        "label_names": (list, dict),
    }
    for key, kinds in expected.items():
        for full_key in (key, _METADATA_PREFIX + key):
            value = _json(metadata.get(full_key, ""))
            if isinstance(value, kinds):
                config[key] = value
    for key in TOP_KEYS:
        value = None if key in expected else _json(metadata.get(key, ""))
        if isinstance(value, list | dict):
            config[key] = value
    if LABEL_NAMES_KEY in metadata:
        config[LABEL_NAMES_KEY] = metadata[LABEL_NAMES_KEY]
    name = metadata.get(_METADATA_PREFIX + "architecture") or metadata.get("architecture")
    return {**config, "architecture": name} if name else config


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # not ours: metadata is anybody's
        return None


def metadata_of(description: Description) -> dict[str, str]:
    """The metadata keys from which `describe` reads the same description again."""
    values = {
        "label_names": description.label_names,
        "model_args": description.arguments,
        "pretrained_cfg": description.settings,
    }
    texts = {key: json.dumps(value, sort_keys=True, default=str) for key, value in values.items() if value}
    if description.name is not None:
        texts["architecture"] = description.name
    return {_METADATA_PREFIX + key: text for key, text in sorted(texts.items())}
