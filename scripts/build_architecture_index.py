"""Build the index by which a bare checkpoint is recognised, from the installed timm and torchvision.

Every classifier is built twice without memory, with two numbers of classes. It takes some minutes. Run it after a new
release of either library, and commit what it writes:

    python scripts/build_architecture_index.py
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torchvision import models

from sapcli.errors import ArchitectureError
from sapcli.networks.class_count import PROBED_COUNTS, class_dimensions
from sapcli.networks.factories import find_factory
from sapcli.networks.fitting import published_settings
from sapcli.networks.loading import Outline
from sapcli.networks.preprocessing import resolve_preprocessing
from sapcli.networks.recognition import INDEX_NAME, KnownArchitecture, digest_of, sketch_of, write_index
from sapcli.settings import PreprocessingOverrides

OUTPUT = Path(__file__).parent.parent / "sapcli" / "networks" / "data" / INDEX_NAME


def known_architecture(name: str) -> KnownArchitecture | None:
    """The entry of one architecture; None if it is no classifier.

    Args:
        name: `timm:NAME` or `torchvision:NAME`.

    Raises:
        ArchitectureError: If it cannot be built.
    """
    factory = find_factory(name)
    network, other = (factory.outline({"num_classes": count}) for count in PROBED_COUNTS)
    shapes = Outline.of(network).shapes
    dimensions = class_dimensions(shapes, Outline.of(other).shapes)
    if not dimensions:
        return None
    published = [replace(item, source="published settings") for item in published_settings(factory, network)]
    preprocessing = resolve_preprocessing(name, published, PreprocessingOverrides())
    return KnownArchitecture(name, dimensions, digest_of(shapes, dimensions), sketch_of(shapes), preprocessing)


def main() -> None:
    """Build the index of everything that the two libraries list."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = [f"timm:{name}" for name in timm.list_models()]
    names += [f"torchvision:{name}" for name in models.list_models(module=models)]
    found = []
    for position, name in enumerate(names):
        sys.stderr.write(f"\r\033[K{position + 1}/{len(names)} {name}")
        try:
            architecture = known_architecture(name)
        except ArchitectureError as error:
            sys.stderr.write(f"\nleft out: {error.message}\n")
            continue
        if architecture is None:
            sys.stderr.write("\nleft out: no classifier\n")
        else:
            found.append(architecture)
    write_index(found, OUTPUT)
    sys.stderr.write(f"\n{len(found)} architectures, {OUTPUT.stat().st_size} bytes in {OUTPUT}\n")


if __name__ == "__main__":
    main()
