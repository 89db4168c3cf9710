"""The scorer as one ONNX file, which needs a runtime for ONNX and neither JAX nor this package.

The networks of `models` are walked by the names of their variables; channels come first, as ONNX
has it. jax2onnx 0.17, the converter there is, fails at max pooling with explicit padding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from rd_jax.method.models import Model
from rd_jax.method.models.blocks import Resize
from rd_jax.method.models.bottleneck import Kind, join_variables
from rd_jax.method.models.folding import fold_batch_norm
from rd_jax.method.models.teacher import BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from rd_jax.method.score import blur_matrix, upsampling_matrix
from rd_jax.system.errors import UserError

OPSET, IR_VERSION = 18, 8  # of 2022: runtimes need not be new
FLOAT = 1  # onnx.TensorProto.FLOAT; the package is optional


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
        names = []
        for i, value in enumerate(inputs):
            if isinstance(value, str):
                names.append(value)
            else:
                names.append(f"{name}/{i}")
                self.constants[names[-1]] = value
        self.nodes.append(
            dict(op_type=operator, inputs=names, outputs=[name], name=name, **attributes)
        )
        return name

    def conv(self, x: str, name: str, norm: str, resize: Resize = "same") -> str:
        """A convolution, for "up" a transposed one, and the BatchNorm that is folded into it."""
        kernel, bias = self.variables[f"{name}/kernel"], self.variables[f"{norm}/bias"]
        if resize == "up":
            kernel = kernel.transpose(0, 3, 1, 2)  # (in, out, h, w)
            return self.add("ConvTranspose", x, kernel, bias, name=name, strides=[2, 2])
        kernel = kernel.transpose(3, 2, 0, 1)  # (out, in, h, w)
        strides, padding = [2, 2] if resize == "down" else [1, 1], kernel.shape[2] // 2
        return self.add("Conv", x, kernel, bias, name=name, strides=strides, pads=4 * [padding])


def to_onnx(
    model: Model,
    teacher_variables: Any,
    student_variables: Any,
    *,
    size: int,
    sigma: float = 4.0,
    reduction: str = "max",
    threshold: float | None = None,
) -> bytes:
    """The scorer of `make_scorer` in float32, with its variables, as an ONNX model.

    Its input is "images", uint8 [B, size, size, 3], any B; its outputs are "map" float32
    [B, size, size], "score" float32 [B] and, with a threshold, "anomalous" bool [B]: the score is
    above it. Raises UserError if the package onnx is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise UserError("ONNX files need the package onnx: pip install onnx") from error

    shapes: dict[str, tuple[int, list[int]]] = {
        "map": (FLOAT, [size, size]),
        "score": (FLOAT, []),
    }
    teacher, student = map(fold_batch_norm, (teacher_variables, student_variables))
    joined = join_variables(model.bottleneck, teacher, student)
    graph = Graph(_by_name("teacher/", teacher) | _by_name("", joined))
    _score(graph, model, size, sigma, reduction)
    if threshold is not None:
        graph.add("Greater", "score", _float32(threshold), name="anomalous")
        shapes["anomalous"] = (TensorProto.BOOL, [])

    def declared(name: str, dtype: int, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, dtype, ["batch", *shape])

    file = helper.make_model(
        helper.make_graph(
            [helper.make_node(**node) for node in graph.nodes],
            "rd_jax",
            [declared("images", TensorProto.UINT8, [size, size, 3])],
            [declared(name, *shape) for name, shape in shapes.items()],
            [
                numpy_helper.from_array(np.ascontiguousarray(v), k)
                for k, v in graph.constants.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rd_jax",
    )
    return file.SerializeToString()


def _by_name(prefix: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The parameters: "student/layer1_0/conv1/kernel" and so on."""
    leaves = flatten_dict(variables["params"], sep="/")
    return {f"{prefix}{name}": _float32(value) for name, value in leaves.items()}


def _score(graph: Graph, model: Model, size: int, sigma: float, reduction: str) -> None:
    """From "images" to "map" and "score" (paper, section 3.4), as `make_scorer` does."""
    backbone = model.backbone
    teacher = _teacher(graph, _scaled(graph, model.normalize), backbone)
    embedding = _bottleneck(graph, teacher, backbone, model.bottleneck)
    student = _student(graph, embedding, backbone, min(model.scales))
    maps = []
    for scale in model.scales:
        distance = _cosine_distance(graph, teacher[scale], student[scale])
        upsampling = upsampling_matrix(size, size // 2 ** (scale + 1))
        matrix = _float32(blur_matrix(size, sigma) @ upsampling)
        maps.append(graph.add("MatMul", graph.add("MatMul", matrix, distance), matrix.T))
    graph.add("Sum", *maps, name="map")
    operator = {"max": "ReduceMax", "sum": "ReduceSum"}[reduction]
    graph.add(operator, "map", np.array([1, 2]), name="score", keepdims=0)


def _scaled(graph: Graph, normalize: bool) -> str:
    """As `models.normalize` or `rescale`, with the channels brought to the front."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalize else ((0.0,), (1.0,))
    x = graph.add("Transpose", graph.add("Cast", "images", to=FLOAT), perm=[0, 3, 1, 2])
    x = graph.add("Sub", x, 255 * _float32(mean).reshape(-1, 1, 1))
    return graph.add("Div", x, 255 * _float32(std).reshape(-1, 1, 1))


def _cosine_distance(graph: Graph, a: str, b: str) -> str:
    """As `loss.cosine_distance`, over channels: [B, C, H, W] -> [B, H, W]."""

    def dot(a: str, b: str) -> str:
        return graph.add("ReduceSum", graph.add("Mul", a, b), np.array([1]), keepdims=0)

    squared_norms = graph.add("Mul", dot(a, a), dot(b, b))
    norms = graph.add("Sqrt", graph.add("Max", squared_norms, _float32(1e-16)))
    return graph.add("Sub", _float32(1), graph.add("Div", dot(a, b), norms))


def _teacher(graph: Graph, x: str, backbone: str) -> dict[int, str]:
    """As `models.Teacher`: the feature of each scale."""
    x = graph.add("Relu", graph.conv(x, "teacher/conv1", "teacher/bn1", "down"))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    features = {}
    for scale in (1, 2, 3):
        num_blocks = BACKBONES[backbone].stage_sizes[scale - 1]
        resize: Resize = "same" if scale == 1 else "down"
        features[scale] = x = _stage(graph, x, f"teacher/layer{scale}", num_blocks, resize)
    return features


def _bottleneck(graph: Graph, features: dict[int, str], backbone: str, kind: Kind) -> str:
    """As `models.Bottleneck`: the embedding."""

    def halve(x: str, i: int) -> str:
        return graph.add("Relu", graph.conv(x, f"bottleneck/conv{i}", f"bottleneck/bn{i}", "down"))

    fused = features[3]
    if kind == "mff_oce":
        shallow, middle = halve(halve(features[1], 1), 2), halve(features[2], 3)
        fused = graph.add("Concat", shallow, middle, fused, axis=1)
    name = "bottleneck/layer4" if kind == "pre" else "bottleneck/bn_layer"
    return _stage(graph, fused, name, BACKBONES[backbone].stage_sizes[3], "down")


def _student(graph: Graph, x: str, backbone: str, shallowest: int) -> dict[int, str]:
    """As `models.Student`: the feature of each scale from the deepest to the last one needed."""
    features = {}
    for scale in range(3, shallowest - 1, -1):
        num_blocks = BACKBONES[backbone].stage_sizes[3 - scale]
        features[scale] = x = _stage(graph, x, f"student/layer{4 - scale}", num_blocks, "up")
    return features


def _stage(graph: Graph, x: str, name: str, num_blocks: int, resize: Resize) -> str:
    for i in range(num_blocks):
        x = _block(graph, x, f"{name}_{i}", resize if i == 0 else "same")
    return x


def _block(graph: Graph, x: str, name: str, resize: Resize) -> str:
    """As `blocks.BasicBlock` or, with three convolutions, `blocks.BottleneckBlock`."""
    num_convs = 3 if f"{name}/conv3/kernel" in graph.variables else 2
    y, shortcut = x, x
    for i in range(1, num_convs + 1):
        resize_here = resize if i == num_convs - 1 else "same"
        y = graph.conv(y, f"{name}/conv{i}", f"{name}/bn{i}", resize_here)
        if i < num_convs:
            y = graph.add("Relu", y)
    sample = f"{name}/upsample" if resize == "up" else f"{name}/downsample"
    if f"{sample}_0/kernel" in graph.variables:
        shortcut = graph.conv(x, f"{sample}_0", f"{sample}_1", resize)
    return graph.add("Relu", graph.add("Add", y, shortcut))


def _float32(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)
