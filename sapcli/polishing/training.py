"""The training itself: steps of one cycle, their average, and a way back where they lead astray."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from sapcli.activations.scoring import Classifier, normalise
from sapcli.datasets.smaller_batches import smaller_batch
from sapcli.machine.parallel.ranks import Ranks
from sapcli.machine.progress import Progress
from sapcli.networks.own.outputs import require_gradient
from sapcli.polishing.augmentation import Augmentation
from sapcli.polishing.course import Course, Epoch, Snapshot, State, course_of, numbers_of
from sapcli.polishing.pace import Pace
from sapcli.polishing.pixels import Pixels
from sapcli.polishing.recipe import Recipe
from sapcli.polishing.reproducible import deterministic, own_random_numbers, seed_all, seed_of
from sapcli.polishing.targets import Targets
from sapcli.polishing.watch import LOOKS, Diverged, Watch

# The scheduler counts in parts of the whole course, so that it need not know how many steps there will be.
_TICKS = 100_000
_WARMUP = 0.3
_FIRST_RATE = 1 / 25
# The average reaches back over a fifth of the course, and at most over 100 steps.
_AVERAGED_PART, _AVERAGED_STEPS = 0.2, 100
# A run whose loss does not come down is begun again at a quarter of its rate, three times at most.
_LOWER = 4
_RESTARTS = 3


@dataclass(frozen=True)
class Task:
    """What is trained, and on what.

    Attributes:
        classifier: The network, changed in place.
        names: The parameters that are trained.
        pixels: The training images.
        targets: What the network is to answer, on its device.
        indices: The samples that are trained on.
        augmentation: How images are varied.
        recipe: The numbers.
        seed: For all that is random.
        dtype: What passes are converted to; `None` for float32.
        portion: How many images fit into memory at a time; fewer are taken where they do not.
        seconds: What the training may take; `None` where that does not matter.
    """

    classifier: Classifier
    names: Sequence[str]
    pixels: Pixels
    targets: Targets
    indices: Sequence[int]
    augmentation: Augmentation
    recipe: Recipe
    seed: int
    dtype: torch.dtype | None
    portion: int
    seconds: float | None = None


class Training:
    """Trains a network; afterwards it has the average of its weights, and is in eval mode.

    Args:
        task: What is trained.
        progress: Told of the epochs.
        ranks: The processes that train together.
        save: Called with a snapshot after each epoch.
    """

    def __init__(
        self, task: Task, progress: Progress, ranks: Ranks, save: Callable[[Snapshot], None] = lambda _snapshot: None
    ) -> None:
        self._task = task
        self._progress = progress
        self._ranks = ranks
        self._save = save
        module = task.classifier.module
        self._parameters = {name: parameter for name, parameter in module.named_parameters() if name in task.names}
        self._buffers = dict(module.named_buffers())
        self._start = {
            name: tensor.detach().to("cpu", copy=True) for name, tensor in {**self._parameters, **self._buffers}.items()
        }
        self._holder = nn.ParameterList(self._parameters.values())
        self._portion = min(task.portion, task.recipe.batch_size)
        self._wrapped: nn.Module = module

    def run(self, resumed: Snapshot | None = None) -> Course:
        """Train, beginning again at a lower rate where the loss says so.

        Args:
            resumed: Where another process has come to.
        """
        course = Course(self._task.recipe.learning_rate)
        if resumed is not None:
            course = course_of(resumed.numbers)
        device = self._task.classifier.device
        began, earlier = time.monotonic(), course.seconds
        with deterministic(self._progress), own_random_numbers(device), torch.enable_grad(), self._training():
            while course.restarts <= _RESTARTS and course.settled:
                try:
                    return self._attempt(course, resumed)
                except Diverged:
                    resumed = None
                    self._put_back()
                    seconds = earlier + time.monotonic() - began
                    course = Course(course.learning_rate / _LOWER, restarts=course.restarts + 1, seconds=seconds)
                    if course.restarts <= _RESTARTS:
                        self._progress.warn(
                            "the loss rises above where it began: training begins again with a peak of"
                            f" {course.learning_rate:.3g}"
                        )
        return replace(course, settled=False)

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Have the network learn what is to be learned, and nothing else; it is as before afterwards, its mode too."""
        classifier = self._task.classifier
        module = classifier.module
        learned = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
        try:
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in self._parameters)
            with classifier.running():
                module.train()
                for part in parts_at_rest(module, self._parameters):
                    part.eval()
            if self._ranks.world > 1:
                device = classifier.device
                self._wrapped = nn.parallel.DistributedDataParallel(
                    module,
                    device_ids=[device] if device.type == "cuda" else None,
                    broadcast_buffers=False,
                    find_unused_parameters=True,
                )
            yield
        finally:
            self._wrapped = module
            with classifier.running():
                module.eval()
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(learned.get(name, True))
                parameter.grad = None

    def _put_back(self) -> None:
        with torch.no_grad():
            for name, tensor in {**self._parameters, **self._buffers}.items():
                tensor.copy_(self._start[name])

    def _attempt(self, course: Course, resumed: Snapshot | None) -> Course:
        """One run at one rate."""
        from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
        from timm.scheduler.cosine_lr import CosineLRScheduler
        from timm.utils.model_ema import ModelEmaV3

        task, recipe = self._task, self._task.recipe
        optimizer = create_optimizer_v2(
            task.classifier.module,
            opt=recipe.optimizer.value,
            lr=course.learning_rate,
            weight_decay=recipe.weight_decay,
            momentum=0.9,
        )
        schedule = CosineLRScheduler(
            optimizer,
            t_initial=round(_TICKS * (1 - _WARMUP)),
            warmup_t=round(_TICKS * _WARMUP),
            warmup_lr_init=course.learning_rate * _FIRST_RATE,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        average = ModelEmaV3(self._holder)
        scaler = torch.amp.GradScaler(task.classifier.device.type, enabled=task.dtype is torch.float16)
        pace = Pace(recipe.steps, None if task.seconds is None else task.seconds - course.seconds)
        watch = Watch(task.targets.num_classes, max(recipe.steps // LOOKS, 1), self._ranks)
        state = State(self._parameters, self._buffers, average, optimizer, scaler)
        if resumed is not None:
            state.restore(resumed.tensors)
            pace.resume(resumed.numbers["done"], resumed.numbers["course"])
            watch.resume(resumed.numbers["watch"])
            self._portion = min(resumed.numbers["portion"], self._portion)
        before = course.seconds
        while not pace.is_at_end:
            number = len(course.epochs) + 1
            of = f" of {recipe.epochs}" if task.seconds is None else ""
            total = recipe.steps_an_epoch * recipe.batch_size
            sums, steps = torch.zeros((), device=task.classifier.device), 0
            with self._progress.stage(f"training, epoch {number}{of}", total) as advance:
                for indices, pixels in task.pixels.batches(self._order(number), recipe.batch_size // self._ranks.world):
                    share = self._share_of_course(pace)
                    schedule.step_update(round(pace.course * _TICKS))
                    loss = self._step(course.restarts, pace.done, indices, pixels, optimizer, scaler)
                    average.decay = 1 - min(max(1 / _AVERAGED_STEPS, share / _AVERAGED_PART), 1.0)
                    average.update(self._holder)
                    sums, steps = sums + loss, steps + 1
                    pace.advance(share)
                    watch.look(loss)
                    advance(recipe.batch_size)
                    if pace.is_at_end:
                        break
            mean = float(self._ranks.mean(sums / max(steps, 1), "loss"))
            rate = max(group["lr"] for group in optimizer.param_groups)
            self._progress.note(f"epoch {number}{of}: loss {mean:.4f}, learning rate {rate:.3g}")
            epochs = (*course.epochs, Epoch(number, mean, rate))
            course = replace(course, steps=pace.done, epochs=epochs, seconds=before + pace.seconds)
            if not math.isfinite(mean):
                raise Diverged
            numbers = {"done": pace.done, "course": pace.course, "watch": watch.numbers, "portion": self._portion}
            self._save(Snapshot(state.tensors(), numbers | numbers_of(course)))
        with torch.no_grad():
            for parameter, averaged in zip(self._holder, average.module, strict=True):
                parameter.copy_(averaged)
        return course

    def _order(self, epoch: int) -> list[int]:
        """The samples of this process in the order of an epoch, in whole batches."""
        indices, recipe, ranks = self._task.indices, self._task.recipe, self._ranks
        generator = torch.Generator().manual_seed(seed_of(self._task.seed, epoch))
        order = torch.randperm(len(indices), generator=generator)[: recipe.steps_an_epoch * recipe.batch_size]
        own = order.reshape(-1, recipe.batch_size)
        each = recipe.batch_size // ranks.world
        own = own[:, ranks.rank * each : (ranks.rank + 1) * each]
        return torch.as_tensor(indices)[own.reshape(-1)].tolist()

    def _share_of_course(self, pace: Pace) -> float:
        share = pace.next_share()
        if self._task.seconds is None or self._ranks.world == 1:
            return share
        of_first = torch.tensor(share, device=self._task.classifier.device)
        self._ranks.broadcast(of_first, 0, "course")
        return float(of_first)

    def _step(
        self,
        attempt: int,
        number: int,
        indices: Tensor,
        pixels: Tensor,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> Tensor:
        """One step on a batch; in ever smaller portions where memory runs out."""
        task = self._task
        seed = seed_of(task.seed, attempt, number, self._ranks.rank)
        while True:
            seed_all(seed)
            try:
                loss = self._gradients(seed, indices, pixels, scaler)
                break
            except (MemoryError, RuntimeError) as error:
                if self._ranks.world > 1:
                    raise
                optimizer.zero_grad()
                self._portion = smaller_batch(min(self._portion, len(indices)), error, self._progress)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self._parameters.values(), task.recipe.most_gradient)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    def _gradients(self, seed: int, indices: Tensor, pixels: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
        """The loss of a batch, whose gradients are added up."""
        task = self._task
        classifier = task.classifier
        inputs = normalise(task.augmentation(pixels), classifier.architecture.preprocessing)
        inputs, targets = mixed_up(inputs, task.targets.rows(indices), task.recipe.mixup)
        layout = torch.contiguous_format if classifier.as_built or classifier.device.type == "mps" else None
        inputs = inputs.contiguous(memory_format=layout or torch.channels_last)
        total = torch.zeros((), device=inputs.device)
        parts = list(zip(torch.split(inputs, self._portion), torch.split(targets, self._portion), strict=True))
        for position, (part, wanted) in enumerate(parts):
            is_last = position == len(parts) - 1
            waiting = contextlib.nullcontext() if is_last or self._ranks.world == 1 else self._wrapped.no_sync()  # type: ignore[operator]
            with waiting:
                # The user's own code has random numbers of its own, which begin anew in every process.
                with classifier.running(), torch.autocast(part.device.type, task.dtype, enabled=task.dtype is not None):
                    torch.manual_seed(seed_of(seed, position))
                    output = self._wrapped(part)
                logits = classifier.check_output(logits_of(output, len(part)), len(part))
                require_gradient(logits, classifier.architecture.name)
                loss = functional.cross_entropy(logits, wanted) * (len(part) / len(inputs))
                with classifier.running():
                    torch.autograd.backward(scaler.scale(loss))
            total += loss.detach()
        return total


def parts_at_rest(module: nn.Module, trained: Mapping[str, Tensor]) -> list[nn.Module]:
    """The modules that hold parameters of which none is trained, as far down as that is so."""
    found: list[nn.Module] = []

    def look(part: nn.Module, prefix: str) -> None:
        names = [f"{prefix}{name}" for name, _ in part.named_parameters(remove_duplicate=False)]
        if names and not any(name in trained for name in names):
            found.append(part)
            return
        for name, child in part.named_children():
            look(child, f"{prefix}{name}.")

    look(module, "")
    return found


def logits_of(output: object, count: int) -> object:
    """The main logits of a network that gives more than these while it is trained."""
    if not isinstance(output, Tensor) and isinstance(named := getattr(output, "logits", None), Tensor):
        return named
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor) and len(output[0]) == count:
        return output[0]
    return output


def mixed_up(inputs: Tensor, targets: Tensor, parameter: float) -> tuple[Tensor, Tensor]:
    """Pairs of images and of their targets, mixed (Zhang et al., ICLR 2018); `inputs` is changed.

    Args:
        inputs: `[n, ...]`.
        targets: `[n, classes]`.
        parameter: Both parameters of the Beta distribution that the shares come from; 0 mixes nothing.
    """
    if parameter <= 0 or len(inputs) % 2:
        return inputs, targets
    from timm.data.mixup import Mixup

    # timm mixes classes; with every image as a class of its own, that tells the shares of any targets.
    mixup = Mixup(parameter, label_smoothing=0.0, num_classes=len(inputs))  # type: ignore[no-untyped-call]
    inputs, shares = mixup(inputs, torch.arange(len(inputs), device=inputs.device))
    return inputs, shares.to(targets.dtype) @ targets
