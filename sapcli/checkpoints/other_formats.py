"""What a file is that holds no weights as they are read here, and the way from it to one that does.

A file is recognised by its first bytes, by the members of its archive, by its ending where these tell nothing, or by
the names of its tensors. Nothing of it is unpickled.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sapcli.errors import CheckpointError

HEAD = 512
"""How many of a file's first bytes are looked at."""
_LOOKED_THROUGH = 1 << 20

# The number that the files of torch.save began with before they were zip archives.
_SAVED_BY_TORCH = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_TEXT_PICKLE = re.compile(rb"\(dp|\(lp|\}q|\]q|c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n")
_EXPORTED_FROM = "Give the PyTorch checkpoint that it was made from; what is in it cannot be turned back."
_UNPACK = "Unpack it, and name the checkpoint inside."


def _arrays(what: str) -> str:
    """The line that makes a safetensors file of a dictionary of NumPy arrays, under the names of the other tool."""
    line = f"safetensors.numpy.save_file({what}, 'model.safetensors')"
    return f"Give the PyTorch checkpoint that it was made from, or its arrays with an --arch of their names: {line}"


@dataclass(frozen=True)
class OtherFormat:
    """A kind of file.

    Attributes:
        what: What it is, to follow "is".
        way_out: What to do, a sentence.
    """

    what: str
    way_out: str

    def error(self, source: str) -> CheckpointError:
        """The error that says so of a file."""
        return CheckpointError(f"{source} is {self.what}", self.way_out)


_ONNX = OtherFormat(
    "an ONNX graph, not a checkpoint",
    _arrays("{t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(FILE).graph.initializer}"),
)
_HDF5 = OtherFormat(
    "an HDF5 file, as Keras writes them",
    "Give the PyTorch checkpoint that it was made from, or its arrays with an --arch of their names: a = {};"
    " h5py.File(FILE).visititems(lambda n, o: a.update({n.replace('/', '.'): o[()]}) if hasattr(o, 'dtype') else None);"
    " safetensors.numpy.save_file(a, 'model.safetensors')",
)
_KERAS = OtherFormat(
    "a Keras model",
    _arrays("{w.path: w.numpy() for w in keras.models.load_model(FILE).weights}"),
)
_GGUF = OtherFormat(
    "a GGUF file, as llama.cpp reads them, whose weights are quantised",
    _arrays("{t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(FILE).tensors}"),
)
_TFLITE = OtherFormat("a TensorFlow Lite model", _EXPORTED_FROM)
_TENSORFLOW = OtherFormat(
    "a TensorFlow model",
    _arrays("{v.name: v.numpy() for v in tf.saved_model.load(FOLDER).variables}"),
)
_TENSORFLOW_CHECKPOINT = OtherFormat(
    "a TensorFlow checkpoint",
    _arrays("{n: tf.train.load_variable(PREFIX, n) for n, _ in tf.train.list_variables(PREFIX)}"),
)
_FLAX = OtherFormat(
    "a Flax checkpoint (msgpack)",
    _arrays("flax.traverse_util.flatten_dict(flax.serialization.msgpack_restore(open(FILE, 'rb').read()), sep='.')"),
)
_ORBAX = OtherFormat(
    "an Orbax checkpoint of JAX",
    _arrays("flax.traverse_util.flatten_dict(orbax.checkpoint.PyTreeCheckpointer().restore(FOLDER), sep='.')"),
)
_CORE_ML = OtherFormat("a Core ML model", _EXPORTED_FROM)
_TENSORRT = OtherFormat("a TensorRT engine", _EXPORTED_FROM)
_EXECUTORCH = OtherFormat("an ExecuTorch program", _EXPORTED_FROM)
_ONNX_RUNTIME = OtherFormat("a model in ONNX Runtime's own format (.ort)", _EXPORTED_FROM)
_OPENVINO = OtherFormat("an OpenVINO model", _EXPORTED_FROM)
_NCNN = OtherFormat("an ncnn model", _EXPORTED_FROM)
_DARKNET = OtherFormat("a Darknet weights file", "Give a PyTorch checkpoint of the network.")
_CAFFE = OtherFormat("a Caffe model", "Give a PyTorch checkpoint of the network.")
_TORCH7 = OtherFormat(
    "a Torch7 file of Lua", "Give a PyTorch checkpoint of the network; torchfile.load(FILE) reads its tensors."
)
_MXNET = OtherFormat(
    "an MXNet checkpoint",
    _arrays("{k.split(':')[-1]: v.asnumpy() for k, v in mxnet.nd.load(FILE).items()}"),
)
_PADDLE = OtherFormat(
    "a PaddlePaddle checkpoint",
    _arrays("{k: v.numpy() for k, v in paddle.load(FILE).items()}"),
)
_WEB_PAGE = OtherFormat("a web page, not a checkpoint", "Download the file itself; the address may ask for a login.")
_NUMPY_ARRAY = OtherFormat("a single NumPy array", "Give a checkpoint with all weights of the network.")
_NUMPY_ARCHIVE = OtherFormat(
    "a NumPy archive (.npz)",
    "Save it as safetensors: safetensors.numpy.save_file(dict(numpy.load(FILE)), 'model.safetensors').",
)
_TORCHSERVE = OtherFormat("an archive of TorchServe (.mar)", _UNPACK)
_EXPORTED_PROGRAM = OtherFormat(
    "an exported program (torch.export), not a state dict",
    "Save its weights: torch.save(dict(torch.export.load(FILE).state_dict), 'model.pt').",
)
_TORCHSCRIPT = OtherFormat(
    "a TorchScript program, not a state dict",
    "Save its weights: torch.save(torch.jit.load(FILE).state_dict(), 'model.pt').",
)
_DISTRIBUTED = OtherFormat(
    "a part of a distributed checkpoint (torch.distributed.checkpoint)",
    "Make one file of its folder: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
)
_PLAIN_PICKLE = OtherFormat(
    "a pickle that torch.save did not write, and cannot be read without running code",
    "Where you trust it, save its arrays as tensors: torch.save({name: torch.as_tensor(value) for name, value in"
    " pickle.load(open(FILE, 'rb')).items()}, 'model.pt').",
)
_SCIKIT_LEARN = OtherFormat(
    "a scikit-learn model, which has no layers to project", "Give a checkpoint of a neural network of PyTorch's."
)
_WHOLE_MODULE = OtherFormat(
    "a whole pickled network (torch.save(model)), whose code would have to run, not a state dict",
    "Where you trust it, save its weights: torch.save(torch.load(FILE, weights_only=False).state_dict(), 'model.pt')",
)
_FASTAI = OtherFormat(
    "a learner that fastai exported, whose code would have to run, not a state dict",
    "Where you trust it: torch.save(fastai.learner.load_learner(FILE).model.state_dict(), 'model.pt')",
)
_SHARDED_TENSORS = OtherFormat(
    "a part of a sharded state dict (DTensor of FSDP), which only its own group of processes can load",
    "There, save all of it: torch.save(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), F)",
)
_OTHER_ARCHIVE = OtherFormat("a zip archive that torch.save did not write", _UNPACK)

_MAGIC = (
    (0, b"\x89HDF\r\n\x1a\n", _HDF5),
    (0, b"GGUF", _GGUF),
    (4, b"TFL3", _TFLITE),
    (4, b"ET12", _EXECUTORCH),
    (4, b"ORTM", _ONNX_RUNTIME),
    (0, b"7767517\n", _NCNN),
    (0, b"\x12\x01\0\0\0\0\0\0", _MXNET),
    (0, b"ptrt", _TENSORRT),
    (0, b"\x93NUMPY", _NUMPY_ARRAY),
    (0, b"\x1f\x8b", OtherFormat("compressed (gzip)", _UNPACK)),
    (0, b"BZh", OtherFormat("compressed (bzip2)", _UNPACK)),
    (0, b"\xfd7zXZ\0", OtherFormat("compressed (xz)", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", OtherFormat("compressed (zstd)", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", OtherFormat("a 7z archive", _UNPACK)),
    (0, b"Rar!\x1a\x07", OtherFormat("a rar archive", _UNPACK)),
    (257, b"ustar", OtherFormat("a tar archive", _UNPACK)),
)
_ENDINGS = {
    ".onnx": _ONNX,
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".keras": _KERAS,
    ".gguf": _GGUF,
    ".ggml": _GGUF,
    ".tflite": _TFLITE,
    ".pb": _TENSORFLOW,
    ".msgpack": _FLAX,
    ".mlmodel": _CORE_ML,
    ".engine": _TENSORRT,
    ".plan": _TENSORRT,
    ".trt": _TENSORRT,
    ".pdparams": _PADDLE,
    ".pdmodel": _PADDLE,
    ".pdopt": _PADDLE,
    ".distcp": _DISTRIBUTED,
    ".pte": _EXECUTORCH,
    ".ort": _ONNX_RUNTIME,
    ".weights": _DARKNET,
    ".caffemodel": _CAFFE,
    ".t7": _TORCH7,
    ".params": _MXNET,
    ".mlpackage": _CORE_ML,
    ".index": _TENSORFLOW_CHECKPOINT,
    ".mar": _TORCHSERVE,
}
# TensorFlow names the parts of a checkpoint so, whatever comes before.
_TENSORFLOW_PART = re.compile(r".*\.data-\d{5}-of-\d{5}")
# The classes and functions that a pickle names, and what a file is that names some of them.
_GLOBAL = re.compile(rb"c([A-Za-z_][\w.]{0,200})\n([A-Za-z_][\w.]{0,200})\n")
_STACK_GLOBAL = re.compile(
    rb"\x8c.([A-Za-z_][\w.]{0,200}?)(?:\x94)?\x8c.([A-Za-z_][\w.]{0,200}?)(?:\x94)?\x93", re.DOTALL
)
_TRAINING_ARGUMENTS = OtherFormat(
    "the arguments of a training by transformers, without weights",
    "Name the checkpoint that lies beside it, model.safetensors or pytorch_model.bin, or their folder.",
)
_DEEPSPEED = OtherFormat(
    "a checkpoint of DeepSpeed, whose weights lie in parts of each process",
    "Make one file of it, and name that: python FOLDER/zero_to_fp32.py FOLDER OUTPUT",
)
_BY_MODULE: tuple[tuple[str, OtherFormat], ...] = (
    ("fastai.", _FASTAI),
    ("transformers.training_args", _TRAINING_ARGUMENTS),
    ("sklearn.", _SCIKIT_LEARN),
    ("joblib.", _SCIKIT_LEARN),
    ("torch.distributed.", _SHARDED_TENSORS),
)

# What adapters are called: LoRA and its relatives in peft and in diffusers.
_ADAPTER = re.compile(
    r"(^|[._])(lora_(A|B|E|embedding_A|embedding_B|up|down|magnitude_vector)"
    r"|hada_w[12](_[ab])?|lokr_w[12](_[ab])?|ia3_l|vera_lambda_[bd]|oft_[rsR])(\.|$)"
)
_OBSERVER = re.compile(
    r"(^|\.)(weight_fake_quant|activation_post_process(_\d+)?|fake_quant_enabled|observer_enabled)(\.|$)"
)
_PACKED = re.compile(r"(^|\.)_packed_params(\.|$)")
_PACKED_BY_GPTQ = re.compile(r"(^|\.)(qweight|qzeros)$")
_BEFORE_QUANTISATION = "Repair the checkpoint from before the quantisation, then quantise the result."
_DEEPSPEED_PART = re.compile(r".*zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt$")


def by_content(head: bytes, name: str) -> OtherFormat | None:
    """What a file is that is neither a safetensors file nor a pickle or zip archive of PyTorch.

    Args:
        head: Its first bytes, `HEAD` of them or all.
        name: Its name, which decides where the bytes tell nothing; may be empty.
    """
    for offset, magic, found in _MAGIC:
        if head[offset:].startswith(magic):
            return found
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return _OPENVINO if b"<net " in head else _WEB_PAGE
    if _is_onnx(head):
        return _ONNX
    if _TENSORFLOW_PART.fullmatch(name):
        return _TENSORFLOW_CHECKPOINT
    return _by_globals(head) or _PLAIN_PICKLE if _TEXT_PICKLE.match(head) else _ENDINGS.get(Path(name).suffix.lower())


def by_objects(pickle: bytes) -> OtherFormat | None:
    """What a file of PyTorch's is that holds more than tensors and plain values, by the names in its pickle.

    Args:
        pickle: The pickle, or as much of it as there is.
    """
    found = _by_globals(pickle)
    if found is not None:
        return found
    # A module is rebuilt by its class and filled with these.
    if all(_has_text(pickle, text) for text in (b"_modules", b"_parameters")):
        key = next((key for key in ("ema", "model", "net", "network") if f"{key}q".encode() in pickle), None)
        if pickle[2:3] == b"}" and key is not None:
            return OtherFormat(
                f"a training file with a whole pickled network under {key!r}, whose code would have to run",
                "Where you trust it, save its weights: torch.save(torch.load(FILE, weights_only=False)"
                f"[{key!r}].float().state_dict(), 'model.pt')",
            )
        return _WHOLE_MODULE
    return None


def _has_text(pickle: bytes, text: bytes) -> bool:
    """Whether the pickle has this text, and not merely one that contains it."""
    # Opcodes BINUNICODE and SHORT_BINUNICODE, with the length behind them.
    return any(code + text in pickle for code in (b"X" + len(text).to_bytes(4, "little"), bytes([0x8C, len(text)])))


def _by_globals(pickle: bytes) -> OtherFormat | None:
    names = {f"{module.decode()}." for found in (_GLOBAL, _STACK_GLOBAL) for module, _ in found.findall(pickle)}
    for module, what in _BY_MODULE:
        if any(name.startswith(module) for name in names):
            return what
    return None


def by_archive(handle: IO[bytes], name: str) -> OtherFormat | None:
    """What a pickle or a zip archive is that PyTorch could not load, by its beginning and by its members' names.

    Args:
        handle: The file, open; it may be read anywhere.
        name: Its name; may be empty.
    """
    if name.lower().endswith(".distcp") or name == ".metadata":
        return _DISTRIBUTED
    handle.seek(0)
    head = handle.read(HEAD)
    if head[:1] == b"\x80":
        if _SAVED_BY_TORCH in head[:32]:
            return None
        handle.seek(0)
        return _by_globals(handle.read(_LOOKED_THROUGH)) or _ENDINGS.get(Path(name).suffix.lower(), _PLAIN_PICKLE)
    try:
        with zipfile.ZipFile(handle) as archive:
            members = [member.partition("/")[2] or member for member in archive.namelist()]
            whole = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if whole and all(member.endswith(".npy") for member in whole):
        return _NUMPY_ARCHIVE
    if "models/model.json" in members or "archive_format" in members or "serialized_exported_program.json" in whole:
        return _EXPORTED_PROGRAM
    if any(member.startswith("code/") for member in members) or "bytecode.pkl" in members:
        return _TORCHSCRIPT
    if any(member.endswith(".weights.h5") for member in whole):
        return _KERAS
    if "MAR-INF/MANIFEST.json" in whole:
        return _TORCHSERVE
    return None if "data.pkl" in members else _OTHER_ARCHIVE


def in_folder(folder: Path) -> OtherFormat | None:
    """What a folder holds in which there is no checkpoint as they are read here."""
    names = {path.name for path in folder.iterdir()}
    if any(name.endswith(".distcp") for name in names):
        return OtherFormat(
            "the folder of a distributed checkpoint (torch.distributed.checkpoint)", _DISTRIBUTED.way_out
        )
    if "zero_to_fp32.py" in names or any(_DEEPSPEED_PART.match(name) for name in names):
        return _DEEPSPEED
    if "saved_model.pb" in names:
        return _TENSORFLOW
    if any(_TENSORFLOW_PART.fullmatch(name) for name in names):
        return _TENSORFLOW_CHECKPOINT
    if not names.isdisjoint({"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"}):
        return _ORBAX
    if any(name.endswith(".xml") and f"{name.removesuffix('.xml')}.bin" in names for name in names):
        return _OPENVINO
    for name in sorted(names):
        found = _ENDINGS.get(Path(name).suffix.lower())
        if found is not None:
            return OtherFormat(f"a folder with {found.what}", found.way_out)
    return None


def adapter_alone(names: Collection[str]) -> OtherFormat | None:
    """Whether tensors of these names are an adapter without the network that it changes."""
    adapters = [name for name in names if _ADAPTER.search(name)]
    if not adapters or not all(_base_of(name).isdisjoint(names) for name in adapters):
        return None
    return OtherFormat(
        f"an adapter (LoRA or one of its kind: {adapters[0]}), without the weights of the network",
        "Merge it into its network: peft.PeftModel.from_pretrained(NETWORK, FOLDER).merge_and_unload(), and save that"
        " with save_pretrained or torch.save(....state_dict(), 'model.pt')",
    )


def explain_names(names: Collection[str]) -> OtherFormat | None:
    """What the file of these tensors is that a network as it was trained has no place for, if they tell."""
    for pattern, what, way_out in (
        (
            _OBSERVER,
            "was saved in quantisation-aware training, with observers",
            (
                "Save the rest: torch.save({k: v for k, v in torch.load(FILE).items() if 'fake_quant' not in k and"
                " 'activation_post_process' not in k}, 'model.pt')"
            ),
        ),
        (_PACKED_BY_GPTQ, "is quantised (GPTQ, AWQ)", _BEFORE_QUANTISATION),
        (_PACKED, "is quantised", _BEFORE_QUANTISATION),
        (
            _ADAPTER,
            "holds adapters (LoRA) beside the weights",
            "Merge them, and save that: torch.save(model.merge_and_unload().state_dict(), 'model.pt')",
        ),
    ):
        example = next((name for name in names if pattern.search(name)), None)
        if example is not None:
            return OtherFormat(f"{what} ({example})", way_out)
    return None


def _is_onnx(head: bytes) -> bool:
    """Whether a file begins as ONNX models do: the version, then the producer's name or another of their fields."""
    # https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
    if len(head) < 8 or head[0] != 0x08 or not 1 <= head[1] < 0x40:
        return False
    if head[2] == 0x12:
        producer = head[4 : 4 + head[3]]
        return bool(producer) and producer.isascii() and producer.decode("ascii").isprintable()
    return head[2] in {0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42}


def _base_of(name: str) -> set[str]:
    """The names that the weight has which an adapter changes."""
    match = _ADAPTER.search(name)
    before = name[: match.start()] if match else name
    return {f"{before}.weight", f"{before}.base_layer.weight"}
