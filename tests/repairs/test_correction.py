"""Tests of the network under repair: which weights, what is written for each, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.brute_force import ALPHA
from support.networks import save
from support.samples import classifier_of, folder_of, images_of
from torch import Tensor, nn

from sapcli.activations.bases import Bases, SecondMoments
from sapcli.errors import NumericsError, UsageError
from sapcli.machine.progress import SilentProgress
from sapcli.repairs.batchnorm import reestimate
from sapcli.repairs.correction import Correction
from sapcli.repairs.layer_plan import LayerPlan, check_patterns, matches, plan_layers
from sapcli.repairs.projected_weights import ProjectedWeights
from sapcli.repairs.projection import project
from sapcli.settings import ForgetMode, Importance

WEIGHTS = {"stem.weight": 8, "layer1.0.weight": 8, "layer1.1.weight": 8, "layer10.weight": 8, "head.weight": 5}
SKIPPED = {"table": "in no matrix product"}
PRODUCTS = dict(zip(WEIGHTS, [10.0, 30.0, 20.0, 15.0, 5.0], strict=True))


# Which weights


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("layer1", ["layer1.0.weight", "layer1.1.weight"]),
        ("layer1.1", ["layer1.1.weight"]),
        ("layer1.0.weight", ["layer1.0.weight"]),
        ("layer*", ["layer1.0.weight", "layer1.1.weight", "layer10.weight"]),
        ("*.1.weight", ["layer1.1.weight"]),
        ("*", list(WEIGHTS)),
        ("Layer1", []),
        ("weight", []),
        ("layer[1]", ["layer1.0.weight", "layer1.1.weight"]),
    ],
)
def test_patterns(pattern, names):
    assert [name for name in WEIGHTS if matches(name, pattern)] == names


def test_everything_is_projected_by_default():
    assert plan_layers(WEIGHTS, SKIPPED, 5, PRODUCTS) == LayerPlan(tuple(WEIGHTS), SKIPPED)


def test_layers_skipped_layers_and_the_classifier():
    plan = plan_layers(
        WEIGHTS, SKIPPED, 5, PRODUCTS, layers=["layer*", "head"], skip_layers=["layer1.1"], keep_classifier=True
    )
    assert plan.projected == ("layer1.0.weight", "layer10.weight")
    assert plan.skipped == SKIPPED | {
        "stem.weight": "not in --layers", "layer1.1.weight": "--skip-layers", "head.weight": "--keep-classifier",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("products", "late"),
    [
        ([10, 30, 20, 15, 5], 3),  # 40 of 80 lie before layer1.1
        ([1, 1, 1, 1, 100], 1),  # the head begins before half is done: the last weight all the same
        ([100, 1, 1, 1, 1], 4),
        ([1, 1, 1, 1, 1], 2),
    ],
)
def test_halves_of_the_network(products, late):
    counts = dict(zip(WEIGHTS, map(float, products), strict=True))
    names = list(WEIGHTS)
    assert plan_layers(WEIGHTS, SKIPPED, 5, counts, layers=["late"]).projected == tuple(names[-late:])
    assert plan_layers(WEIGHTS, SKIPPED, 5, counts, layers=["early"]).projected == tuple(names[:-late])
    assert plan_layers(WEIGHTS, SKIPPED, 5, counts, skip_layers=["early"]).projected == tuple(names[-late:])
    assert plan_layers(WEIGHTS, SKIPPED, 5, counts, layers=["all"]).projected == tuple(names)
    both = plan_layers(WEIGHTS, SKIPPED, 5, counts, layers=["late", "stem"])
    assert both.projected == (names[0], *names[-late:])


def test_a_module_called_late_comes_first():
    weights = {"late.weight": 5, "middle.weight": 5, "head.weight": 5}
    counts = dict.fromkeys(weights, 1.0)
    assert plan_layers(weights, {}, 5, counts, layers=["late"]).projected == ("late.weight",)
    check_patterns([*weights], ["early"], ["late"])


def test_several_heads_are_the_classifier():
    weights = {"body.weight": 5, "trunk.weight": 7, "head.weight": 5, "distilled.weight": 5}
    assert plan_layers(weights, {}, 5, dict.fromkeys(weights, 1.0), keep_classifier=True).projected == (
        "body.weight",
        "trunk.weight",
    )


def test_without_one_output_a_class_the_last_weight_is_the_classifier():
    assert plan_layers(WEIGHTS, {}, 3, PRODUCTS, keep_classifier=True).projected == tuple(WEIGHTS)[:-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["layer2"]}, "--layers layer2 matches no weight"),
        ({"skip_layers": ["layer1", "nothing"]}, "--skip-layers nothing matches no weight"),
        ({"layers": ["table"]}, "--layers table: table cannot be projected"),
        ({"skip_layers": ["*"]}, "no weight is left to project"),
        ({"layers": ["head"], "keep_classifier": True}, "no weight is left to project"),
    ],
)
def test_plans_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message.replace("*", r"\*")):
        plan_layers(WEIGHTS, SKIPPED, 5, PRODUCTS, **options)


def test_a_network_without_any_weight():
    for options in ({}, {"layers": ["table"]}, {"keep_classifier": True}):
        with pytest.raises(UsageError, match="no weight of the network can be projected"):
            plan_layers({}, SKIPPED, 5, {}, **options)


# The network under repair


class Network(nn.Module):
    """A convolution, BatchNorm, and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.second(self.first(self.norm(self.convolution(images)).relu().mean((2, 3))).tanh()))


PROJECTED = ("convolution.weight", "first.weight", "head.weight")


class Case:
    """A network, its file, and its bases."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, module: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        module = (module or Network()).eval().to(dtype)
        self.checkpoint = save(module, folder)
        self.classifier = classifier_of(module.float())
        self.images = images_of(folder_of(folder / "images", {"cat": 6, "dog": 5}))
        self.original = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.bases = self.bases_of(range(11))

    def bases_of(self, indices: range) -> Bases:
        """The bases of some of the images."""
        moments = SecondMoments(self.classifier.module)
        with moments.capture as capture:
            for batch in self.images.batches(indices):
                capture.forward(self.classifier.inputs(batch.images))
        return Bases(moments.pieces(SilentProgress()), moments.skipped(), "weights", "images")

    def correction(self, projected=PROJECTED, calibrate=None, **options: object) -> Correction:
        """The network under repair."""
        names = self.classifier.loaded.entry_names
        weights = ProjectedWeights(self.checkpoint, names, self.bases, Importance.SAP, torch.device("cpu"), **options)
        return Correction(self.classifier, weights, LayerPlan(projected, {}), calibrate)

    def expected(self, name: str, alpha: float = ALPHA) -> Tensor:
        """A projected weight."""
        projected = self.original[name].clone()
        for piece in self.bases.pieces[name]:
            matrices = piece.view.matrices(self.original[name])
            piece.view.replace(projected, project(matrices, piece.basis, Importance.SAP, alpha))
        return projected

    def calibrate(self, first: int | None = None) -> None:
        """Re-estimate BatchNorm."""
        reestimate(self.classifier, self.images, range(11)[:first], SilentProgress(), "statistics")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def state_of(case: Case) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in case.classifier.module.state_dict().items()}


def test_apply_projects_and_restore_takes_it_back(case):
    correction = case.correction(calibrate=case.calibrate)
    correction.apply(ALPHA)
    state = state_of(case)
    for name in PROJECTED:
        torch.testing.assert_close(state[name], case.expected(name))
        assert not torch.equal(state[name], case.original[name])
    assert torch.equal(state["second.weight"], state["first.weight"])
    assert not torch.equal(state["norm.running_mean"], case.original["norm.running_mean"])
    for name in ("convolution.bias", "norm.weight", "head.bias", "norm.num_batches_tracked"):
        assert torch.equal(state[name], case.original[name])
    correction.restore()
    assert all(torch.equal(tensor, case.original[name]) for name, tensor in state_of(case).items())


def test_alphas_do_not_add_up(case):
    correction = case.correction(calibrate=case.calibrate)
    correction.apply(3.0)
    correction.apply(ALPHA)
    twice = state_of(case)
    correction.restore()
    fresh = case.correction(calibrate=case.calibrate)
    fresh.apply(ALPHA)
    assert all(torch.equal(tensor, twice[name]) for name, tensor in state_of(case).items())


def test_statistics_of_an_alpha_are_estimated_once(case):
    times = []

    def calibrate(first: int | None) -> None:
        times.append(1)
        case.calibrate()

    correction = case.correction(calibrate=calibrate)
    for alpha in (ALPHA, 3.0, ALPHA):
        correction.apply(alpha)
    assert len(times) == 2


def test_a_first_look_leaves_no_statistics_behind(case):
    correction = case.correction(calibrate=case.calibrate)
    correction.apply(ALPHA, 4)
    rough = state_of(case)
    correction.apply(ALPHA)
    found = state_of(case)
    fresh = case.correction(calibrate=case.calibrate)
    fresh.apply(ALPHA)
    assert all(torch.equal(tensor, found[name]) for name, tensor in state_of(case).items())
    assert torch.equal(rough["convolution.weight"], found["convolution.weight"])
    assert not torch.equal(rough["norm.running_mean"], found["norm.running_mean"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_measured_is_what_is_written(tmp_path, dtype):
    case = Case(tmp_path, dtype)
    correction = case.correction(calibrate=case.calibrate)
    correction.apply(ALPHA)
    state = state_of(case)
    written = correction.replacements(ALPHA)
    statistics = {"norm.running_mean", "norm.running_var"}
    assert set(written) == {*PROJECTED, "second.weight"} | statistics
    for name in written:
        assert written[name].dtype == dtype
        assert torch.equal(written[name].float(), state[name]), name


def test_without_calibration_no_buffer_is_written(case):
    correction = case.correction(("head.weight",))
    correction.apply(ALPHA)
    assert set(correction.replacements(ALPHA)) == {"head.weight"}


def test_parameters_that_only_share_their_memory_are_all_written(tmp_path):
    module = Network()
    module.second.weight = nn.Parameter(module.first.weight.data)
    case = Case(tmp_path, module=module)
    correction = case.correction(("first.weight",))
    assert set(correction.replacements(ALPHA)) == {"first.weight", "second.weight"}


def test_how_much_is_removed(case):
    correction = case.correction()
    removed = correction.removed(ALPHA)
    for name in PROJECTED:
        original = case.original[name].double()
        expected = (original - case.expected(name).double()).norm() / original.norm()
        assert removed[name] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("mode", list(ForgetMode))
def test_a_forget_set(case, mode):
    forget = case.bases_of(range(6))
    correction = case.correction(forget=forget, forget_mode=mode)
    correction.apply(ALPHA)
    for name in PROJECTED:
        original = case.original[name]
        expected = original.clone()
        for piece, other in zip(case.bases.pieces[name], forget.pieces[name], strict=True):
            matrices = piece.view.matrices(original)
            projected = project(matrices, piece.basis, Importance.SAP, ALPHA, other.basis, mode)
            piece.view.replace(expected, projected)
        torch.testing.assert_close(state_of(case)[name], expected)


def test_what_the_forget_set_never_met_stays_as_it_is(case):
    forget = Bases({"head.weight": case.bases.pieces["head.weight"]}, {}, "weights", "images")
    case.correction(forget=forget, forget_mode=ForgetMode.ALL).apply(ALPHA)
    state = state_of(case)
    assert torch.equal(state["first.weight"], case.original["first.weight"])
    assert not torch.equal(state["head.weight"], case.original["head.weight"])


def test_layers_of_zeros_stay_zero_and_dead_inputs_lose_their_columns(tmp_path):
    torch.manual_seed(0)
    module = Network()
    with torch.no_grad():
        module.head.weight.zero_()
        module.norm.bias[2] = -100  # dead after the ReLU
        module.convolution.weight[:, 1] = 0
    case = Case(tmp_path, module=module)
    correction = case.correction()
    correction.apply(ALPHA)
    state = state_of(case)
    assert not state["head.weight"].any()
    assert correction.removed(ALPHA)["head.weight"] == 0.0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_inputs_that_are_all_dead_leave_the_layer_as_it_is(tmp_path):
    module = Network()
    with torch.no_grad():
        module.norm.bias.fill_(-100)
    case = Case(
        tmp_path, module=nn.Sequential(module.convolution, module.norm, nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    )
    case.correction(("4.weight",)).apply(ALPHA)
    assert torch.equal(state_of(case)["4.weight"], case.original["4.weight"])


def test_a_weight_that_no_row_reached_is_refused_before_anything_changes(case):
    piece = case.bases.pieces["head.weight"][0]
    empty = type(piece)(piece.view, type(piece.basis)(piece.basis.vectors[..., :0], piece.basis.values[..., :0], 0))
    case.bases = Bases({**case.bases.pieces, "head.weight": (empty,)}, {}, "weights", "images")
    case.correction(("first.weight",))
    with pytest.raises(NumericsError, match=r"head\.weight is used, but none"):
        case.correction(PROJECTED)


def test_a_projection_that_is_not_finite_names_the_layer(case):
    piece = case.bases.pieces["head.weight"][0]
    piece.basis.vectors.fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"projecting head\.weight with alpha 1000 gives NaN"):
        case.correction().apply(ALPHA)
