"""Other formats for an exported model's network: how each is written, and how it answers.

Each needs packages of its own, which are imported when they are asked for and not before.
"""

import contextlib
import importlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from regraft.errors import RegraftError

Prepared = Mapping[str, NDArray[Any]]
Answer = Callable[[Prepared], NDArray[np.float32]]

OPSET = 17  # of ONNX; the newest that every runtime of the last years knows


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: What users call it.
        modules: Python modules it needs.
        file: Name of the file that is written, beside which there may be others.
        write: Writes the network to a path, given the loaded SavedModel and some prepared training examples.
        load: Returns the function that answers with what was written.
    """

    name: str
    modules: tuple[str, ...]
    file: str
    write: Callable[[Any, Path, Prepared], None]
    load: Callable[[Path], Answer]

    def check_installed(self) -> None:
        """Raise RegraftError if one of `modules` is not installed."""
        for module in self.modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise RegraftError(
                    f"--format {self.name} needs a package that is not installed ({error}). "
                    f'Install it: pip install "regraft[{self.name}]", or in a checkout pip install -e ".[{self.name}]".'
                ) from None


def network_of(loaded: Any) -> Any:
    """Return the function of a registered SavedModel from prepared inputs, as keyword arguments, to answers."""
    [network] = loaded.answer.concrete_functions
    return network


def _write_onnx(loaded: Any, path: Path, _: Prepared) -> None:
    import tf2onnx

    network = network_of(loaded)
    specifications = list(network.structured_input_signature[1].values())
    names = [specification.name for specification in specifications]

    def answer(*prepared: tf.Tensor) -> Any:
        return network(**dict(zip(names, prepared, strict=True)))

    compiled = tf.function(answer, autograph=False)
    tf2onnx.convert.from_function(compiled, input_signature=specifications, opset=OPSET, output_path=str(path))


def _load_onnx(path: Path) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    names = [one.name for one in session.get_inputs()]

    def answer(prepared: Prepared) -> NDArray[np.float32]:
        given = {name: prepared[name.partition(":")[0]] for name in names}
        return np.asarray(session.run(None, given)[0], np.float32)

    return answer


@contextlib.contextmanager
def _saved_network(loaded: Any) -> Iterator[str]:
    """Yield the folder of a SavedModel of the network alone."""
    module = tf.Module()
    module.loaded = loaded
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": network_of(loaded)})
        yield folder


def _write_openvino(loaded: Any, path: Path, _: Prepared) -> None:
    import openvino

    with _saved_network(loaded) as folder:
        try:
            model = openvino.convert_model(folder)
        except openvino.frontend.OpConversionFailure as error:
            raise ValueError(str(error)) from error
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _load_openvino(path: Path) -> Answer:
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU")
    called = {
        port: {name.partition(":")[0].removeprefix("serving_default_") for name in port.get_names()}
        for port in compiled.inputs
    }

    def answer(prepared: Prepared) -> NDArray[np.float32]:
        given = {port: next(prepared[name] for name in names if name in prepared) for port, names in called.items()}
        return np.asarray(compiled(given)[0], np.float32)

    return answer


def _write_litert(loaded: Any, path: Path, examples: Prepared) -> None:
    with _saved_network(loaded) as folder:
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if all(np.issubdtype(values.dtype, np.floating) for values in examples.values()):
            # Activations become integers too, in the range that these examples take. Numbers of tokens have none.
            count = len(next(iter(examples.values())))
            converter.representative_dataset = lambda: (
                {name: values[row : row + 1] for name, values in examples.items()} for row in range(count)
            )
        path.write_bytes(converter.convert())


def _load_litert(path: Path) -> Answer:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner()

    def answer(prepared: Prepared) -> NDArray[np.float32]:
        return np.asarray(next(iter(runner(**prepared).values())), np.float32)

    return answer


FORMATS = {
    one.name: one
    for one in (
        Format("onnx", ("tf2onnx", "onnxruntime"), "model.onnx", _write_onnx, _load_onnx),
        Format("openvino", ("openvino",), "model.xml", _write_openvino, _load_openvino),
        Format("litert", ("ai_edge_litert",), "model.tflite", _write_litert, _load_litert),
    )
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what converters print and log of their own accord, warnings too."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
