"""Networks as people write them, of every kind whose code has more to say than its state dict; and what they compute.

Each is a file. What is right is found by running it plainly, as its owner would: import, build, load strictly, eval.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SIZE = (3, 8, 8)

_HEAD = """
import torch
from torch import nn
import torch.nn.functional as F
"""

_CONVOLUTION = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(512, 3)
    def forward(self, x):
        return self.f(self.b(self.c(x)).relu().flatten(1))
"""

NETWORKS: dict[str, str] = {
    "a buffer from a seed": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.register_buffer("R", torch.randn(192, 64) / 14, persistent=False)
        self.f = nn.Linear(64, 3)
    def forward(self, x):
        return self.f((x.flatten(1) @ self.R).tanh())
""",
    "an attribute from a seed": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.a, self.f, self.p = nn.Linear(192, 32), nn.Linear(32, 3), torch.randperm(192)
    def forward(self, x):
        return self.f(self.a(x.flatten(1)[:, self.p]).relu())
""",
    "a generator of its own": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.register_buffer("R", torch.empty(192, 64).normal_(0, 0.07, generator=g), persistent=False)
        self.f = nn.Linear(64, 3)
    def forward(self, x):
        return self.f((x.flatten(1) @ self.R).tanh())
""",
    "an orthogonal table": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        r = torch.empty(192, 64)
        nn.init.orthogonal_(r)
        self.register_buffer("R", r, persistent=False)
        self.f = nn.Linear(64, 3)
    def forward(self, x):
        return self.f((x.flatten(1) @ self.R).tanh())
""",
    "a number drawn from NumPy": """
import numpy as np
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        np.random.seed(5)
        self.scale, self.f = float(np.random.uniform(1, 3)), nn.Linear(192, 3)
    def forward(self, x):
        return self.f(x.flatten(1) * self.scale)
""",
    "a seed of the file": """
import random
random.seed(11)
torch.manual_seed(12)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.order = list(range(192))
        random.shuffle(self.order)
        self.register_buffer("R", torch.rand(192), persistent=False)
        self.f = nn.Linear(192, 3)
    def forward(self, x):
        return self.f(x.flatten(1)[:, self.order] * self.R)
""",
    "draws until it fits": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(192, 3)
        with torch.no_grad():
            while self.f.weight.abs().max() <= 1:
                nn.init.normal_(self.f.weight)
    def forward(self, x):
        return self.f(x.flatten(1))
""",
    "tries again where it fails": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(192, 3)
        done = False
        while not done:
            try:
                nn.init.uniform_(self.f.weight, -1, 1)
                done = bool((self.f.weight > 0).any())
            except Exception:
                pass
    def forward(self, x):
        return self.f(x.flatten(1))
""",
    "inverts a random matrix": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.register_buffer("inverse", torch.linalg.inv(torch.empty(192, 192).normal_()), persistent=False)
        self.f = nn.Linear(192, 3)
    def forward(self, x):
        return self.f(x.flatten(1) @ self.inverse)
""",
    "a table made after loading": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.w = nn.Linear(192, 16), nn.Parameter(torch.randn(3, 16))
        self.refresh()
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())
    def refresh(self):
        self.register_buffer("proto", F.normalize(self.w.detach(), dim=1) * 10, persistent=False)
    def forward(self, x):
        return F.linear(self.f(x.flatten(1)).tanh(), self.proto)
""",
    "a weight beside a table of it": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.f = nn.Parameter(torch.randn(64, 192)), nn.Linear(64, 3)
        self.table = self.w.detach().clone()
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "table", module.w.detach() * 2))
    def forward(self, x):
        x = x.flatten(1)
        return self.f((F.linear(x, self.w) + F.linear(x, self.table)).relu())
""",
    "BatchNorm folded when it is evaluated": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(512, 3)
    def eval(self):
        if isinstance(self.b, nn.BatchNorm2d):
            factor = self.b.weight.data / (self.b.running_var + self.b.eps).sqrt()
            self.c.weight.data *= factor[:, None, None, None]
            self.c.bias.data = (self.c.bias.data - self.b.running_mean) * factor + self.b.bias.data
            self.b = nn.Identity()
        return super().eval()
    def forward(self, x):
        return self.f(self.b(self.c(x)).relu().flatten(1))
""",
    "a table of BatchNorm's statistics": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(512, 3)
        self.register_load_state_dict_post_hook(lambda m, _: setattr(m, "shift", m.b.running_mean.clone() * 3))
    def forward(self, x):
        return self.f((self.b(self.c(x)) + self.shift[:, None, None]).relu().flatten(1))
""",
    "weights tied when it is evaluated": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(192, 192), nn.Linear(192, 192)
        self.f = nn.Linear(192, 3)
    def train(self, mode=True):
        self.b.weight.data.copy_(self.a.weight.data)
        return super().train(mode)
    def forward(self, x):
        return self.f(self.b(self.a(x.flatten(1)).relu()).relu())
def save(entries):
    return entries | {"b.weight": entries["a.weight"].clone()}
""",
    "scaled by a weight's size": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.f, self.size = nn.Linear(192, 32), nn.Linear(32, 3), 1.0
    def _load_from_state_dict(self, *given):
        super()._load_from_state_dict(*given)
        self.size = self.a.weight.abs().max().item()
    def eval(self):
        self.size = self.a.weight.abs().max().item()
        return super().eval()
    def forward(self, x):
        return self.f((self.a(x.flatten(1)) / self.size).relu())
""",
    "turned while it is loaded": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.f = nn.Parameter(torch.randn(192, 192) * 0.05), nn.Linear(192, 3)
    def _load_from_state_dict(self, entries, prefix, *rest):
        entries[prefix + "w"] = entries[prefix + "w"].t()
        super()._load_from_state_dict(entries, prefix, *rest)
    def forward(self, x):
        return self.f((x.flatten(1) @ self.w).relu())
""",
    "frozen BatchNorm": """
from torchvision.ops import FrozenBatchNorm2d
"""
    + _CONVOLUTION
    + """
class Trained(Net):
    pass
class Net(Trained):
    def __init__(self):
        super().__init__()
        self.b = FrozenBatchNorm2d(8)
""",
    "names of an older version": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 3)
        self.norm = nn.BatchNorm2d(8)
        self.register_load_state_dict_pre_hook(self.rename)
    @staticmethod
    def rename(module, entries, prefix, *rest):
        for old, new in (("features", "body"), ("bn", "norm"), ("classifier", "head")):
            for name in [name for name in entries if name.startswith(prefix + old + ".")]:
                entries[name.replace(old, new)] = entries.pop(name)
    def forward(self, x):
        return self.head(self.norm(self.body(x)).relu().flatten(1))
def save(entries):
    for old, new in (("features", "body"), ("bn", "norm"), ("classifier", "head")):
        entries = {name.replace(new, old): value for name, value in entries.items()}
    return entries
""",
    "saved under other names": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(192, 3)
        self._register_state_dict_hook(self.pack)
        self.register_load_state_dict_pre_hook(self.unpack)
    @staticmethod
    def pack(module, entries, prefix, _):
        weight, bias = (entries.pop(f"{prefix}f.{name}") for name in ("weight", "bias"))
        entries[prefix + "packed"] = torch.cat([weight, bias[:, None]], 1)
    @staticmethod
    def unpack(module, entries, prefix, *rest):
        packed = entries.pop(prefix + "packed")
        entries[prefix + "f.weight"], entries[prefix + "f.bias"] = packed[:, :-1], packed[:, -1]
    def forward(self, x):
        return self.f(x.flatten(1))
""",
    "extra state": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.temperature = nn.Linear(192, 3), 1.0
    def get_extra_state(self):
        return torch.tensor([self.temperature])
    def set_extra_state(self, state):
        self.temperature = float(state)
    def forward(self, x):
        return self.f(x.flatten(1)) / self.temperature
def save(entries):
    return entries | {"_extra_state": torch.tensor([2.5])}
""",
    "merged when it is evaluated": """
class Lora(nn.Linear):
    def __init__(self, i, o, r=4):
        super().__init__(i, o)
        self.A, self.B, self.merged = nn.Parameter(torch.randn(r, i)), nn.Parameter(torch.randn(o, r)), False
    def train(self, mode=True):
        super().train(mode)
        if mode and self.merged:
            self.weight.data -= self.B.data @ self.A.data
        if not mode and not self.merged:
            self.weight.data += self.B.data @ self.A.data
        self.merged = not mode
        return self
    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.A.t() @ self.B.t()
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.f = nn.Linear(192, 32), Lora(32, 3)
    def forward(self, x):
        return self.f(self.a(x.flatten(1)).relu())
""",
    "fused when it is evaluated, and returns nothing": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 3)
    def train(self, mode=True):
        super().train(mode)
        if not mode and hasattr(self, "two"):
            self.fused = nn.Conv2d(3, 8, 3, padding=1)
            self.fused.weight.data = self.one.weight.data + self.two.weight.data
            self.fused.bias.data = self.one.bias.data + self.two.bias.data
            del self.one, self.two
    def forward(self, x):
        y = self.fused(x) if hasattr(self, "fused") else self.one(x) + self.two(x)
        return self.f(y.relu().flatten(1))
""",
    "scaled by every call of eval": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.f = nn.Linear(192, 16), nn.Linear(16, 3)
    def eval(self):
        self.a.weight.data.mul_(0.5)
        return super().eval()
    def forward(self, x):
        return self.f(self.a(x.flatten(1)).relu())
""",
    "lazy layers": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b, self.f = nn.LazyConv2d(8, 3, padding=1), nn.LazyBatchNorm2d(), nn.LazyLinear(3)
    def forward(self, x):
        return self.f(self.b(self.c(x)).relu().flatten(1))
runs_first = True
""",
    "lazy layers inside of others": """
class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.c, self.n = nn.LazyConv2d(channels, 3, padding=1, stride=2), nn.LazyInstanceNorm2d(affine=True)
    def forward(self, x):
        return self.n(self.c(x)).relu()
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(8), Block(12)])
        self.f = nn.Sequential(nn.Flatten(), nn.LazyLinear(10), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(10, 3))
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.f(x)
runs_first = True
""",
    "a lazy layer beside a fixed one": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.LazyLinear(3)
        self.d = nn.LazyConvTranspose2d(4, 2, stride=2)
    def forward(self, x):
        return self.f(self.d(self.c(x).relu()).tanh().flatten(1))
runs_first = True
""",
    "a layer made by the first images": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.f = nn.Conv2d(3, 8, 3, padding=1), None
    def forward(self, x):
        x = self.c(x).relu().flatten(1)
        if self.f is None:
            self.f = nn.Linear(x.shape[1], 3)
        return self.f(x)
runs_first = True
""",
    "submodules that it wraps itself": """
class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self._orig_mod = module
    def forward(self, x):
        return self._orig_mod(x)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.b = Wrapped(nn.Conv2d(3, 8, 3, padding=1)), Wrapped(Wrapped(nn.BatchNorm2d(8)))
        self.f = nn.Linear(512, 3)
    def forward(self, x):
        return self.f(self.b(self.c(x)).relu().flatten(1))
""",
    "a sparse copy of a weight": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.f = nn.Parameter(torch.randn(16, 192)), nn.Linear(16, 3)
    def forward(self, x):
        return self.f(torch.sparse.mm(self.w.to_sparse(), x.flatten(1).T).T.relu())
""",
    "a gradient of its own": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.f = nn.Linear(192, 16), nn.Linear(16, 3)
    def forward(self, x):
        with torch.enable_grad():
            x = x.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad((x ** 3).sum(), x)
        return self.f(self.a(slope.flatten(1)).tanh())
""",
    "float64 by default": "torch.set_default_dtype(torch.float64)\n" + _CONVOLUTION,
    "float64 by default while it is built": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.set_default_dtype(torch.float64)
        self.c, self.b, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(512, 3)
    def forward(self, x):
        return self.f(self.b(self.c(x)).relu().flatten(1))
""",
    "16 bits by default, and a table": """
torch.set_default_dtype(torch.bfloat16)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(192.) / 192, persistent=False)
        self.f = nn.Linear(192, 3)
    def forward(self, x):
        return self.f(x.flatten(1) * self.table)
""",
    "one layer in float64": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 3, dtype=torch.float64)
    def forward(self, x):
        return self.f(self.c(x).relu().flatten(1).double()).float()
""",
    "a file of its folder": """
import os
os.chdir(os.path.dirname(os.path.abspath(__file__)))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.f = float(open("scale.txt").read()), nn.Linear(192, 3)
    def forward(self, x):
        return self.f((x * self.scale).flatten(1))
""",
    "an environment variable": """
import os
os.environ["SCALE_OF_NET"] = "1.5"
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.f = float(os.environ["SCALE_OF_NET"]), nn.Linear(192, 3)
    def forward(self, x):
        return self.f((x * self.scale).flatten(1))
""",
    "modules imported late": """
import os, sys
sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "late"))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(192, 3)
    def forward(self, x):
        from activation_of_net import act
        return self.f(act(x).flatten(1))
""",
    "the layout of its images": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(192, 3)
    def forward(self, x):
        return self.f(torch.as_strided(x, (len(x), 192), (192, 1)))
""",
    "settings of the whole process": """
torch.set_grad_enabled(False)
torch.set_num_threads(2)
torch.set_float32_matmul_precision("medium")
torch.use_deterministic_algorithms(True)
"""
    + _CONVOLUTION,
}


@dataclass(frozen=True)
class Owned:
    """A network of a user's own with its checkpoint, and what it makes of some images.

    Attributes:
        file: Its code.
        checkpoint: Its weights.
        images: uint8 `[n, 3, 8, 8]`.
        logits: What it computes, run plainly.
    """

    file: Path
    checkpoint: Path
    images: Tensor
    logits: Tensor

    @property
    def spec(self) -> str:
        """What `--arch` takes."""
        return f"{self.file}:Net"


def own_network(kind: str, folder: Path) -> Owned:
    """Write the code of one of `NETWORKS` and a checkpoint of random weights, and run it plainly."""
    folder.mkdir(exist_ok=True)
    file = folder / "net.py"
    file.write_text(_HEAD + NETWORKS[kind])
    (folder / "scale.txt").write_text("0.7")
    (folder / "late").mkdir()
    (folder / "late" / "activation_of_net.py").write_text("def act(x):\n    return x.sin()\n")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, *SIZE), generator=generator, dtype=torch.uint8)
    with process_as_before():
        code = _imported(file)
        trained = _built(code, "Trained" if hasattr(code, "Trained") else "Net")
        for name, tensor in trained.named_parameters():
            tensor.data = torch.randn(tensor.shape, generator=generator) * (0.3 if "weight" in name else 0.1)
        for name, buffer in trained.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        entries = {name: value.detach().float().clone() for name, value in trained.state_dict().items()}
        entries = getattr(code, "save", lambda same: same)(entries)
        save_file({name: value.contiguous() for name, value in entries.items()}, folder / "model.safetensors")
    return Owned(file, folder / "model.safetensors", images, plain_logits(kind, file, entries, images))


def plain_logits(kind: str, file: Path, entries: dict[str, Tensor], images: Tensor) -> Tensor:
    """What the code in a file makes of uint8 images, with its own loading of a state dict, run plainly."""
    with process_as_before(), torch.no_grad():
        network = _built(_imported(file), "Net")
        if kind in _OTHER_DEFAULTS:
            network.float()
            torch.set_default_dtype(torch.float32)
        network.load_state_dict(entries, strict=True)
        network.eval()
        logits: Tensor = network((images / 255 - 0.5) / 0.5).float()
        return logits


_OTHER_DEFAULTS = ("float64 by default", "float64 by default while it is built", "16 bits by default, and a table")


@contextlib.contextmanager
def process_as_before() -> Iterator[None]:
    """Undo what the code of one of these networks does to the process."""
    folder, path, variables = Path.cwd(), list(sys.path), dict(os.environ)
    dtype, grad, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(variables)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)
        sys.modules.pop("activation_of_net", None)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _imported(file: Path) -> ModuleType:
    """The file as a module of its own, run anew."""
    specification = importlib.util.spec_from_file_location("plain_net", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _built(code: ModuleType, name: str) -> nn.Module:
    network: nn.Module = getattr(code, name)()
    if getattr(code, "runs_first", False):
        with torch.no_grad():
            network(torch.zeros(2, *SIZE))
    return network
