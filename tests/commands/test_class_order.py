"""Networks whose outputs are in another order than the class folders: found, said, and never repaired by mistake."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.ordered_classes import NETWORK, accuracy, weights, write_data
from support.small_project import Outcome, run_here
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torchvision.datasets import ImageFolder

ANIMALS = ("ant", "bee", "cat", "dog", "elk", "fox")
NUMBERS = tuple(str(number) for number in range(12))


class Place:
    """A folder with data, `network.py` and checkpoints of it."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder = folder
        self.data = write_data(folder / "data", names)
        (folder / "network.py").write_text(NETWORK)

    def save(self, order: tuple[str, ...], name: str = "model.safetensors", **beside: object) -> Path:
        """Write the network with its outputs in an order, and what a config.json beside it says."""
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        save_file(weights(order), file)
        if beside:
            file.with_name("config.json").write_text(json.dumps(beside))
        return file

    def run(self, command: str, model: Path, *more: str | Path) -> Outcome:
        """Run a command on a model and the data."""
        return run_here(command, model, self.data, "--arch", f"{self.folder / 'network.py'}:linear", *more)

    def top1(self, model: Path, *more: str | Path) -> float:
        """The accuracy that `sap eval` measures."""
        ended = self.run("eval", model, *more)
        assert ended.status == 0, ended.stderr
        return float(json.loads(ended.stdout)["top1"])

    def own(self, order: tuple[str, ...]) -> object:
        """The accuracy on the test images in plain PyTorch, to be compared with."""
        return pytest.approx(accuracy(order, self.data / "test"), abs=1e-4)


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("animals"), ANIMALS)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("numbers"), NUMBERS)


ORDERS = {
    "two exchanged": ("ant", "bee", "dog", "cat", "elk", "fox"),
    "three rotated": ("bee", "cat", "ant", "dog", "elk", "fox"),
    "all": ("fox", "ant", "elk", "bee", "dog", "cat"),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("command", ["project", "select", "activations", "suspects"])
def test_commands_that_use_the_labels_stop(
    animals: Place, command: str, order: tuple[str, ...], tmp_path: Path
) -> None:
    suggested, output = tmp_path / "order.csv", tmp_path / "out"
    count = () if command == "suspects" else ("-n", "20")
    model = animals.save(order)
    ended = animals.run(command, model, "-o", output, *count, "--suggest-class-map", suggested)
    assert (ended.status, output.exists(), ended.stdout) == (1, False, b"")
    message, hint = ended.stderr.splitlines()[-2:]
    moved = [name for name, taken in zip(order, ANIMALS, strict=True) if name != taken]
    assert "answers images of" in message
    assert any(f"{name!r} as " in message for name in moved)
    assert str(suggested) in hint
    with suggested.open(newline="") as file:
        assert {row["folder"]: int(row["class"]) for row in csv.DictReader(file)} == {
            name: position for position, name in enumerate(order)
        }
    # With what is suggested, it runs, and all is right.
    assert animals.run(command, model, "-o", output, *count, "--class-map", suggested).status == 0
    assert animals.top1(model, "--class-map", suggested) == animals.own(order)


def test_exchanged_training_labels_are_no_exchanged_classes(animals: Place, tmp_path: Path) -> None:
    # The validation images say that the order is right: it is the labels of the training images that are wrong.
    model, labels = animals.save(ANIMALS), tmp_path / "labels.csv"
    images = sorted((animals.data / "train").rglob("*.png"))
    turned = dict(zip(ANIMALS, (*ANIMALS[1:], ANIMALS[0]), strict=True))
    rows = [f"{image.relative_to(animals.data)},{turned[image.parent.name]}\n" for image in images]
    labels.write_text("path,label\n" + "".join(rows))
    ended = animals.run("select", model, "-n", "20", "--labels", labels, "--val", animals.data / "test")
    assert ended.status == 0, ended.stderr
    assert "the training labels are likely wrong" in ended.stderr
    chosen = [json.loads(line) for line in ended.stdout.splitlines()]
    assert all(turned[row["path"].split("/")[1]] == row["label"] for row in chosen)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_eval_warns_and_measures(animals: Place, order: tuple[str, ...], tmp_path: Path) -> None:
    suggested = tmp_path / "order.csv"
    ended = animals.run("eval", animals.save(order), "--suggest-class-map", suggested)
    assert ended.status == 0
    assert "its outputs are likely in the order" in ended.stderr
    kept = sum(name == taken for name, taken in zip(order, ANIMALS, strict=True))
    assert json.loads(ended.stdout)["top1"] < 100 * kept / len(order) + 1
    assert animals.top1(animals.save(order), "--class-map", suggested) == animals.own(order)


def test_the_right_order_is_not_doubted(animals: Place, tmp_path: Path) -> None:
    model, suggested = animals.save(ANIMALS), tmp_path / "order.csv"
    for command in ("eval", "suspects", "select", "project"):
        output = tmp_path / command
        count = ("-n", "20") if command in ("select", "project") else ()
        ended = animals.run(command, model, "-o", output, *count, "--suggest-class-map", suggested)
        assert ended.status == 0
        assert "answers images of" not in ended.stderr
    assert not suggested.exists()


def test_an_order_that_the_user_states_is_believed_and_doubted(animals: Place, tmp_path: Path) -> None:
    stated = tmp_path / "stated.txt"
    stated.write_text("\n".join(ANIMALS))
    ended = animals.run("select", animals.save(ORDERS["all"]), "-n", "20", "--class-map", stated)
    assert ended.status == 0
    assert f"{stated} says another" in ended.stderr
    # The list that was kept then is no list of an order that was checked.
    assert animals.run("select", animals.save(ORDERS["all"]), "-n", "20").status == 1


def test_wrong_label_names_stop_too(animals: Place) -> None:
    model = animals.save(ORDERS["two exchanged"], "named/model.safetensors", label_names=list(ANIMALS))
    ended = animals.run("select", model, "-n", "20")
    assert ended.status == 1
    assert "'cat', 'dog' exchanged" in ended.stderr


def test_a_suggestion_overwrites_nothing(animals: Place, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    ended = animals.run("eval", animals.save(ANIMALS), "--suggest-class-map", tmp_path / "mine.csv")
    assert ended.status == 1
    assert (tmp_path / "mine.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("project", ("--alpha", "1000")),
        ("project", ("--alpha", "1000", "--val", "{data}/test")),
        ("project", ()),
        ("activations", ()),
    ],
)
def test_it_is_told_where_trusted_samples_are_given(
    animals: Place, tmp_path: Path, command: str, options: tuple[str, ...]
) -> None:
    trusted, output = tmp_path / "trusted.txt", tmp_path / "out.safetensors"
    trusted.write_text("\n".join(str(index) for index in range(0, 72, 4)))
    arguments = ("--trusted", trusted, "-o", output, *(option.format(data=animals.data) for option in options))
    for order, status in ((ORDERS["all"], 1), (ORDERS["two exchanged"], 1), (ANIMALS, 0)):
        ended = animals.run(command, animals.save(order), *arguments)
        assert (ended.status, output.exists()) == (status, status == 0), ended.stderr
        assert ("answers images of" in ended.stderr) == (status == 1)


@pytest.mark.parametrize("strategy", ["random", "curvature"])
def test_it_is_told_where_the_selection_compares_no_labels(animals: Place, strategy: str) -> None:
    arguments = ("-n", "20", "--strategy", strategy)
    assert animals.run("select", animals.save(ORDERS["three rotated"]), *arguments).status == 1
    assert animals.run("select", animals.save(ANIMALS), *arguments).status == 0


@pytest.mark.parametrize(("fond_of", "other"), [("ant", "bee"), ("bee", "ant"), ("cat", "fox")])
def test_exchanged_classes_of_which_the_network_answers_one_alone(
    animals: Place, tmp_path: Path, fond_of: str, other: str
) -> None:
    """The logits tell it: nearly all images of two classes are answered with the same of both."""
    file, suggested = tmp_path / "model.safetensors", tmp_path / "order.csv"
    exchanged = [{fond_of: other, other: fond_of}.get(name, name) for name in ANIMALS]
    for order, status in ((exchanged, 1), (list(ANIMALS), 0)):
        state = weights(order)
        pair = [order.index(fond_of), order.index(other)]
        for tensor in state.values():
            # The two are a fifth as far from each other.
            tensor[pair] = tensor[pair].mean(0) + 0.2 * (tensor[pair] - tensor[pair].mean(0))
        state["1.bias"][pair[0]] += 6.0
        state["1.bias"][pair] += 4.0
        answers = {name: answered(state, order, animals.data / "test" / name) for name in ANIMALS}
        assert answers[fond_of][fond_of] + answers[other][fond_of] >= 20
        assert sum(answers[name][name] for name in ANIMALS) >= 0.6 * 72
        save_file(state, file)
        ended = animals.run("select", file, "-n", "20", "--suggest-class-map", suggested)
        assert ended.status == status, ended.stderr
        assert ("answers images of" in ended.stderr) == (status == 1)
        if status:
            with suggested.open(newline="") as rows:
                found = {row["folder"]: int(row["class"]) for row in csv.DictReader(rows)}
            assert found == {name: place for place, name in enumerate(order)}
            suggested.unlink()


def answered(state: dict[str, torch.Tensor], order: list[str], folder: Path) -> Counter[str]:
    """How many images of a folder are answered with each class, in plain PyTorch."""
    pixels = np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))])
    inputs = (torch.tensor(pixels).permute(0, 3, 1, 2).flatten(1) / 255 - 0.5) / 0.5
    logits = inputs @ state["1.weight"].T + state["1.bias"]
    return Counter(order[place] for place in logits.argmax(1).tolist())


@pytest.mark.parametrize("names", [NUMBERS, ("ape", "Bee", "cat", "Dog", "level10", "level9")], ids=["numbers", "case"])
@pytest.mark.parametrize("loader", ["timm", "torchvision"])
def test_the_order_of_the_tool_that_trained_is_found(tmp_path: Path, names: tuple[str, ...], loader: str) -> None:
    place = Place(tmp_path, names)
    train = str(place.data / "train")
    numbers = ReaderImageFolder(train).class_to_idx if loader == "timm" else ImageFolder(train).class_to_idx
    order = tuple(sorted(numbers, key=numbers.__getitem__))
    model, output = place.save(order), tmp_path / "out.safetensors"
    assert place.top1(model) == place.own(order)
    ended = place.run("project", model, "-n", "24", "--alpha", "1000", "-o", output)
    assert ended.status == 0
    said = "the order of timm's folders" if loader == "timm" else "the alphabetical order"
    assert f"classes: {said}" in ended.stderr
    # The corrected file knows its order, also where no image tells it.
    assert place.run("eval", output).stderr.count("found from") == 0
    assert place.top1(output) > 90


def test_answers_that_do_not_tell_are_said_to_be_so(numbers: Place, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in weights(NUMBERS).items()}, model)
    ended = numbers.run("eval", model)
    assert "do not tell in which order" in ended.stderr
    assert "alphabetical" in ended.stderr
    torch.save(
        {"arch": "linear", "state_dict": load_file(model), "version": 2, "args": Namespace(class_map="")},
        tmp_path / "timm.pth.tar",
    )
    ended = numbers.run("eval", tmp_path / "timm.pth.tar")
    assert "the order of timm's folders (natural, ignoring case) is taken" in ended.stderr


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"meta": {"dataset_meta": {"classes": ORDERS["all"]}}}, "meta.dataset_meta.classes of the file"),
        ({"hyper_parameters": {"class_names": list(ORDERS["all"])}}, "hyper_parameters.class_names of the file"),
        ({"names": dict(enumerate(ORDERS["all"]))}, "names of the file"),
    ],
)
def test_classes_that_training_tools_save(animals: Place, tmp_path: Path, beside: dict[str, object], said: str) -> None:
    model = tmp_path / "model.pt"
    torch.save({"state_dict": weights(ORDERS["all"]), **beside}, model)
    ended = animals.run("eval", model)
    assert f"classes: in the order of {said}" in ended.stderr
    assert json.loads(ended.stdout)["top1"] == animals.own(ORDERS["all"])


def test_the_config_of_transformers_names_the_classes(animals: Place) -> None:
    named = {str(number): name for number, name in enumerate(ORDERS["all"])}
    model = animals.save(ORDERS["all"], "hub/model.safetensors", model_type="vit", id2label=named)
    assert animals.top1(model) == animals.own(ORDERS["all"])
    model = animals.save(ANIMALS, "hub2/model.safetensors", model_type="vit", id2label={"0": "ant", "1": "bee"})
    ended = animals.run("eval", model)
    assert "id2label of config.json names 2 classes, the network has 6 outputs: not used" in ended.stderr
    assert json.loads(ended.stdout)["top1"] == animals.own(ANIMALS)


@pytest.mark.parametrize("key", ["label_names", "classes"])
def test_a_baseline_is_judged_in_its_own_order(animals: Place, key: str) -> None:
    first = animals.save(ORDERS["all"], "first/model.safetensors", label_names=list(ORDERS["all"]))
    second = animals.save(ORDERS["three rotated"], "second/model.safetensors", **{key: list(ORDERS["three rotated"])})
    for own, other, name in ((first, second, "three rotated"), (second, first, "all")):
        ended = animals.run("eval", own, "--baseline", other)
        assert json.loads(ended.stdout)["baseline"]["top1"] == animals.own(ORDERS[name])
        assert json.loads(ended.stdout)["baseline"]["top1"] > 90


def test_a_baseline_that_names_no_classes_has_those_of_the_checkpoint(animals: Place) -> None:
    named = animals.save(ORDERS["all"], "named/model.safetensors", label_names=list(ORDERS["all"]))
    ended = animals.run("eval", named, "--baseline", animals.save(ORDERS["all"], "bare/model.safetensors"))
    assert json.loads(ended.stdout)["baseline"]["top1"] == animals.own(ORDERS["all"])


def test_a_baseline_has_the_order_of_its_own_training(numbers: Place) -> None:
    of_timm, of_torchvision = NUMBERS, tuple(sorted(NUMBERS))
    first = numbers.save(of_timm, "timm.safetensors")
    ended = numbers.run("eval", first, "--baseline", numbers.save(of_torchvision, "torchvision.safetensors"))
    found = json.loads(ended.stdout)
    assert (found["top1"], found["baseline"]["top1"]) == (numbers.own(of_timm), numbers.own(of_torchvision))
    assert found["top1"] > 90
