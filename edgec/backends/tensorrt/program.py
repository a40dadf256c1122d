"""An engine in TensorRT-RTX's hands: load it, bind its tensors, execute it, and put what fails into words.

Source: NVIDIA TensorRT-RTX 1.7 API reference, `IRuntime`, `ICudaEngine` and `IExecutionContext`.
"""

from pathlib import Path
from typing import Any

from edgec.backends.onnx_cpu.cache import Slot
from edgec.backends.tensorrt.engine import Engine
from edgec.backends.tensorrt.log import make_logger
from edgec.errors import BundleError, EdgecError, MissingRuntimeError, UsageError

PREFILL, DECODE = 0, 1
"""The optimization profiles, in the order of `profiles.profiles`."""

TOKEN_INPUTS = ("input_ids", "position_ids", "attention_mask")
_LARGEST = 2  # of the smallest, usual and largest shape in a profile
_DRIVER_TOO_OLD = "driver version is insufficient"
_NO_MEMORY = ("out of memory", "outofmemory")


class Program:
    """An engine that can run on the current CUDA context.

    Args:
        artifact: the folder that the engine is in.
        engine: what the artifact says about it.

    Attributes:
        path: its file.
        slots: the tensors of its cache.
        token_inputs: those of `TOKEN_INPUTS` that it takes.
        vocab_size: logits of one token.
        prompt_tokens: the most tokens that it takes at once.

    Raises:
        BundleError: the engine is damaged, another TensorRT-RTX made it, or it is no decoder of edgec's.
        MissingRuntimeError: TensorRT-RTX is missing, or the driver is too old for it.
        UsageError: the GPU's memory is full.
    """

    def __init__(self, artifact: Path, engine: Engine) -> None:
        self.path, content = read_engine(artifact, engine)
        trt = _bindings()
        self._made = f"{engine.compiler} made the engine, TensorRT-RTX {trt.__version__} runs it"
        self._logger = make_logger(trt)
        try:
            self._runtime = trt.Runtime(self._logger)
        except (RuntimeError, TypeError) as error:  # what pybind11 makes of a null pointer
            raise self._failure("start", MissingRuntimeError) from error
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._failure("load the engine", BundleError)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure("prepare the engine", EdgecError)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.slots = [self._slot(name, trt) for name in names if name.startswith("past_key_values.")]
        cache = {name for slot in self.slots for name in (slot.past, slot.present)}
        if not {"input_ids", "logits"} <= set(names) - cache <= {*TOKEN_INPUTS, "logits"} or not cache <= set(names):
            raise BundleError("the engine is no decoder of edgec's", where=str(self.path), hint="build it again")
        self.token_inputs = tuple(name for name in TOKEN_INPUTS if name in names)
        self.vocab_size = int(self._engine.get_tensor_shape("logits")[2])
        self.prompt_tokens = int(self._engine.get_tensor_profile_shape("input_ids", PREFILL)[_LARGEST][1])

    def choose(self, profile: int, stream: int) -> None:
        """Choose an optimization profile; then all inputs are bound anew."""
        self._must(self._context.set_optimization_profile_async(profile, stream), f"choose profile {profile}")

    def bind(self, name: str, address: int, shape: tuple[int, ...] | None = None) -> None:
        """Say where a tensor is; inputs have a shape, which outputs follow."""
        if shape is not None:
            self._must(self._context.set_input_shape(name, shape), f"take '{name}' with shape {shape}")
        self._must(self._context.set_tensor_address(name, address), f"take the place of '{name}'")

    def execute(self, stream: int) -> None:
        """Put the engine into the stream."""
        # The graph says that there is one token's logits, the engine only when it knows its inputs.
        shape = tuple(self._context.get_tensor_shape("logits"))
        self._must(shape == (1, 1, self.vocab_size), f"give the last token's logits alone, but {shape}")
        self._must(self._context.execute_async_v3(stream), "execute the engine")

    def close(self) -> None:
        """Let TensorRT free what it has: what is made from another before it."""
        self._context = self._engine = self._runtime = None

    def _slot(self, past: str, trt: Any) -> Slot:
        _, heads, _, head_dim = tuple(self._engine.get_tensor_shape(past))
        dtypes = {trt.DataType.HALF: "float16", trt.DataType.INT8: "int8"}
        present = past.replace("past_key_values", "present")
        return Slot(past, present, heads, head_dim, dtypes.get(self._engine.get_tensor_dtype(past), "float32"))

    def _must(self, done: bool, doing: str) -> None:
        if not done:
            raise self._failure(doing, EdgecError)

    def _failure(self, doing: str, otherwise: type[EdgecError]) -> EdgecError:
        said = "; ".join(self._logger.errors) or "it does not say why"
        what, where = f"TensorRT-RTX cannot {doing}: {said}", f"{self.path} ({self._made})"
        if _DRIVER_TOO_OLD in said:
            return MissingRuntimeError(what, where=where, hint="update the NVIDIA driver: CUDA 13 takes 580 or newer")
        if any(words in said.lower() for words in _NO_MEMORY):
            return UsageError(what, where=where, hint="free memory on the GPU, or ask for fewer tokens")
        return otherwise(what, where=where, hint="build the bundle again with the TensorRT-RTX that is installed here")


def read_engine(artifact: Path, engine: Engine) -> tuple[Path, bytes]:
    """Return an engine's path and content; engines are code, and come from the artifact's own folder alone.

    Raises:
        BundleError: it is not there, or not of the size that the artifact says.
    """
    name = engine.file or ""
    path = artifact / name
    if name in {"", ".", ".."} or set(name) & set("/\\\0") or path.is_symlink():
        raise BundleError(
            f"'{name}' is no file in the artifact's own folder; an engine from elsewhere is not run",
            where=str(artifact),
            hint="take the bundle from where it was built, or build it again",
        )
    try:
        found = path.stat().st_size
        if found == engine.size_bytes:
            return path, path.read_bytes()
    except OSError as error:
        raise BundleError(f"the engine cannot be read: {error}", where=str(path), hint="copy it again") from error
    raise BundleError(
        f"the engine has {found} bytes, the one that was built {engine.size_bytes}",
        where=str(path),
        hint="copy it again",
    )


def _bindings() -> Any:
    try:
        import tensorrt_rtx_bindings
    except (ImportError, OSError) as error:
        raise MissingRuntimeError(
            f"an engine for this GPU is here, but not TensorRT-RTX: {error}", hint='pip install "edgec[tensorrt]"'
        ) from error
    return tensorrt_rtx_bindings
