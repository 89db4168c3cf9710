"""The scorer as one ONNX file, which needs a runtime for ONNX and neither JAX nor this package.

The networks of `models` are walked by the names of their variables; channels come first, as ONNX
has it. jax2onnx 0.17, the converter there is, fails at max pooling with explicit padding.
"""

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from itertools import count, takewhile
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from rd_jax.method.models import Model
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.models.blocks import Resize
from rd_jax.method.models.bottleneck import Kind
from rd_jax.method.models.teacher import IMAGENET_MEAN, IMAGENET_STD
from rd_jax.method.score import blur_matrix, upsampling_matrix
from rd_jax.method.size import Size, height_and_width
from rd_jax.system.errors import UserError

OPSET, IR_VERSION = 18, 8  # of 2022: runtimes need not be new
FLOAT = 1  # onnx.TensorProto.FLOAT; the package is optional

_float32 = partial(np.asarray, dtype=np.float32)


class Graph:
    """Nodes and constants in the order in which they are added; values go by their names."""

    def __init__(self, variables: Mapping[str, np.ndarray]):
        self.variables = variables
        self.nodes: list[dict[str, Any]] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(
        self, operator: str, *inputs: str | np.ndarray, name: str = "", **attributes: Any
    ) -> str:
        """Adds a node; arrays become constants. Returns the name of its output."""
        name = name or f"{operator}_{len(self.nodes)}"
        arrays = {f"{name}/{i}": x for i, x in enumerate(inputs) if not isinstance(x, str)}
        names = [x if isinstance(x, str) else f"{name}/{i}" for i, x in enumerate(inputs)]
        self.constants |= arrays
        node = dict(op_type=operator, inputs=names, outputs=[name], name=name)
        self.nodes.append(node | attributes)
        return name

    def conv(self, x: str, name: str, resize: Resize = "same") -> str:
        """A convolution, for "up" a transposed one, and the BatchNorm that is folded into it."""
        norm = f"{name[:-1]}1" if name.endswith("sample_0") else name.replace("conv", "bn")
        kernel, bias = self.variables[f"{name}/kernel"], self.variables[f"{norm}/bias"]
        if resize == "up":
            kernel = kernel.transpose(0, 3, 1, 2)  # (in, out, h, w)
            return self.add("ConvTranspose", x, kernel, bias, name=name, strides=[2, 2])
        kernel = kernel.transpose(3, 2, 0, 1)  # (out, in, h, w)
        strides, padding = [2, 2] if resize == "down" else [1, 1], kernel.shape[2] // 2
        return self.add("Conv", x, kernel, bias, name=name, strides=strides, pads=4 * [padding])

    def conv_relu(self, x: str, name: str, resize: Resize = "same") -> str:
        """As `conv`, and what is negative becomes 0."""
        return self.add("Relu", self.conv(x, name, resize))


def to_onnx(
    model: Model,
    teacher_variables: Any,
    student_variables: Any,
    *,
    size: Size,
    sigma: float = 4.0,
    reduction: str = "max",
    fusion: str = "sum",
    threshold: float | None = None,
    resize: str = "stretch",
    known: Mapping[str, str] | None = None,
) -> bytes:
    """The scorer of `make_scorer` in float32, with its variables, as an ONNX model.

    Its input is "images", uint8 [B, H, W, 3] of this `size`, any B; its outputs are "map" float32
    [B, H, W], "score" float32 [B] and, with a threshold, "anomalous" bool [B]: the score is
    above it. By `resize` "fit" there is a second input, "regions", int32 [B, 4]: where in each
    image the picture lies (top, left, height, width); outside maps are 0. `known` becomes the
    model's metadata. Raises UserError if the package onnx is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise UserError("ONNX files need the package onnx: pip install onnx") from error

    def declared(name: str, dtype: int, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, dtype, ["batch", *shape])

    teacher, student = map(fold_batch_norm, (teacher_variables, student_variables))
    joined = model.joined(teacher, student)
    # "student/layer1_0/conv1/kernel" and so on
    leaves = flatten_dict({"teacher": teacher["params"], **joined["params"]}, sep="/")
    graph = Graph({name: _float32(value) for name, value in leaves.items()})
    is_fitted = resize == "fit"
    _map(graph, _distances(graph, model), size, sigma, fusion, "everywhere" if is_fitted else "map")
    if is_fitted:
        graph.add("Mul", "everywhere", _inside(graph, size), name="map")
    operator = {"max": "ReduceMax", "sum": "ReduceSum"}[reduction]
    graph.add(operator, "map", np.array([1, 2]), name="score", keepdims=0)
    outputs = [declared("map", FLOAT, *height_and_width(size)), declared("score", FLOAT)]
    if threshold is not None:
        graph.add("Greater", "score", _float32(threshold), name="anomalous")
        outputs.append(declared("anomalous", TensorProto.BOOL))
    nodes = [helper.make_node(**node) for node in graph.nodes]
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    inputs = [declared("images", TensorProto.UINT8, *height_and_width(size), 3)]
    if is_fitted:
        inputs.append(declared("regions", TensorProto.INT32, 4))
    file = helper.make_model(
        helper.make_graph(nodes, "rd_jax", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rd_jax",
    )
    helper.set_model_props(file, dict(known or {}))
    return file.SerializeToString()


def _distances(graph: Graph, model: Model) -> dict[int, str]:
    """From "images" to the distances of each scale, as `make_distances` does."""
    images = _scaled(graph, model.normalize)
    teacher = _encoder(graph, images, "teacher")
    if model.direction == "forward":
        student = _encoder(graph, images, "student")
    else:
        student = _decoder(graph, _bottleneck(graph, teacher, model.bottleneck), min(model.scales))
    return {
        scale: _cosine_distance(graph, teacher[scale], student[scale]) for scale in model.scales
    }


def _inside(graph: Graph, size: Size) -> str:
    """From "regions" [B, 4] to 1 within them and 0 outside, [B, H, W], as `size.inside` does."""
    top, left, height, width = (
        graph.add("Gather", "regions", np.array([[i]]), axis=1)
        for i in range(4)  # [B, 1, 1]
    )
    num_rows, num_columns = height_and_width(size)
    y, x = np.arange(num_rows, dtype=np.int32)[:, None], np.arange(num_columns, dtype=np.int32)
    within = [
        graph.add("And", graph.add("GreaterOrEqual", at, start), graph.add("Less", at, end))
        for at, start, end in (
            (y, top, graph.add("Add", top, height)),
            (x, left, graph.add("Add", left, width)),
        )
    ]
    return graph.add("Cast", graph.add("And", *within), to=FLOAT)


def _map(
    graph: Graph,
    distances: Mapping[int, str],
    size: Size,
    sigma: float,
    fusion: str,
    name: str,
) -> None:
    """To the map of this name (paper, equation 3), as `fused_map` does."""

    def resampled(x: str, axes: Sequence[np.ndarray], name: str = "") -> str:
        rows, columns = map(_float32, axes)
        return graph.add("MatMul", graph.add("MatMul", rows, x), columns.T, name=name)

    lengths = height_and_width(size)
    blurs = [blur_matrix(length, sigma) for length in lengths]
    upsampling = {
        scale: [upsampling_matrix(length, length // 2 ** (scale + 1)) for length in lengths]
        for scale in distances
    }
    if fusion == "sum":
        maps = [
            resampled(x, [b @ u for b, u in zip(blurs, upsampling[scale], strict=True)])
            for scale, x in distances.items()
        ]
        graph.add("Sum", *maps, name=name)
    else:
        maps = [resampled(x, upsampling[scale]) for scale, x in distances.items()]
        resampled(reduce(partial(graph.add, "Mul"), maps), blurs, name=name)


def _cosine_distance(graph: Graph, a: str, b: str) -> str:
    """As `loss.cosine_distance`, over channels: [B, C, H, W] -> [B, H, W]."""

    def dot(a: str, b: str) -> str:
        return graph.add("ReduceSum", graph.add("Mul", a, b), np.array([1]), keepdims=0)

    def squared_norm(a: str) -> str:
        return graph.add("Max", dot(a, a), _float32(1e-16))

    norms = graph.add("Sqrt", graph.add("Mul", squared_norm(a), squared_norm(b)))
    return graph.add("Sub", _float32(1), graph.add("Div", dot(a, b), norms))


def _scaled(graph: Graph, normalize: bool) -> str:
    """As `models.normalize` or `rescale`, channels first."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalize else ((0.0,), (1.0,))
    x = graph.add("Transpose", graph.add("Cast", "images", to=FLOAT), perm=[0, 3, 1, 2])
    x = graph.add("Sub", x, 255 * _float32(mean).reshape(-1, 1, 1))
    return graph.add("Div", x, 255 * _float32(std).reshape(-1, 1, 1))


def _encoder(graph: Graph, x: str, name: str) -> dict[int, str]:
    """As `models.Teacher`: the feature of each scale."""
    x = graph.conv_relu(x, f"{name}/conv1", "down")
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    features = {}
    for scale in (1, 2, 3):
        resize: Resize = "same" if scale == 1 else "down"
        features[scale] = x = _stage(graph, x, f"{name}/layer{scale}", resize)
    return features


def _decoder(graph: Graph, x: str, last_scale: int) -> dict[int, str]:
    """As `models.Student`: the feature of each scale from the deepest to the last."""
    features = {}
    for scale in range(3, last_scale - 1, -1):
        features[scale] = x = _stage(graph, x, f"student/layer{4 - scale}", "up")
    return features


def _bottleneck(graph: Graph, features: dict[int, str], kind: Kind) -> str:
    """As `models.Bottleneck`: the embedding."""
    shallow, middle, fused = features.values()
    if kind == "mff_oce":
        for i in (1, 2):
            shallow = graph.conv_relu(shallow, f"bottleneck/conv{i}", "down")
        middle = graph.conv_relu(middle, "bottleneck/conv3", "down")
        fused = graph.add("Concat", shallow, middle, fused, axis=1)
    name = "bottleneck/layer4" if kind == "pre" else "bottleneck/bn_layer"
    return _stage(graph, fused, name, "down")


def _stage(graph: Graph, x: str, name: str, resize: Resize) -> str:
    """Blocks as `blocks.BasicBlock` or, with three convolutions, `blocks.BottleneckBlock`."""
    blocks = (f"{name}_{i}" for i in count())
    for block in takewhile(lambda block: f"{block}/conv1/kernel" in graph.variables, blocks):
        last = 3 if f"{block}/conv3/kernel" in graph.variables else 2
        y = x
        for i in range(1, last):
            y = graph.conv_relu(y, f"{block}/conv{i}", resize if i == last - 1 else "same")
        y = graph.conv(y, f"{block}/conv{last}")
        sample = f"{block}/{'upsample' if resize == 'up' else 'downsample'}_0"
        if f"{sample}/kernel" in graph.variables:
            x = graph.conv(x, sample, resize)
        x = graph.add("Relu", graph.add("Add", y, x))
        resize = "same"
    return x
