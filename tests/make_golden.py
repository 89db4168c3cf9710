"""Makes the golden files with PyTorch: python -m tests.make_golden (needs the extra `parity`)."""

import json
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from benchmarks import torch_reference as reference
from tests.reference_weights import draw_images, draw_state_dict, sample

GOLDEN = Path(__file__).parent / "golden"


def load_drawn(module: nn.Module) -> dict[str, list[int]]:
    """Puts drawn weights into a module and returns the shapes by name."""
    shapes = {
        name: list(value.shape)
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    drawn = {name: torch.from_numpy(value) for name, value in draw_state_dict(shapes).items()}
    module.load_state_dict(drawn, strict=False)
    return shapes


def networks(backbone: str) -> tuple[dict[str, nn.Module], dict[str, dict[str, list[int]]]]:
    """Teacher, bottleneck and student with drawn weights, in inference mode, and their shapes."""
    modules: dict[str, nn.Module] = {
        "teacher": reference.Teacher(backbone),
        "bottleneck": reference.Bottleneck(backbone),
        "student": reference.Student(backbone),
    }
    shapes = {name: load_drawn(module.eval()) for name, module in modules.items()}
    return modules, shapes


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def inference(backbone: str) -> dict[str, np.ndarray]:
    """Everything between the image and the map, on two images of 64 pixels."""
    modules, shapes = networks(backbone)
    images = torch.from_numpy(draw_images(2, 64))
    features = modules["teacher"](reference.normalize(images))
    embedding = modules["bottleneck"](features)
    student_features = modules["student"](embedding)
    maps = reference.upsampled_map(features, student_features, 64).numpy()
    blurred = np.stack([gaussian_filter(m, 4) for m in maps])
    outputs = {"embedding": sample(channels_last(embedding)), "maps": sample(blurred)}
    for i in range(3):
        outputs[f"teacher{i}"] = sample(channels_last(features[i]))
        outputs[f"student{i}"] = sample(channels_last(student_features[i]))
    outputs["per_position"] = reference.per_position_loss(features, student_features).numpy()
    outputs["flattened"] = reference.flattened_loss(features, student_features).numpy()
    outputs["shapes"] = np.array(json.dumps(shapes))
    return outputs


def training(loss_name: str) -> dict[str, np.ndarray]:
    """Losses of 3 steps of Adam with ResNet-10, and a running variance after the first."""
    modules, _ = networks("resnet10")
    teacher, bottleneck, student = modules.values()
    bottleneck.train()
    student.train()
    loss_of = getattr(reference, f"{loss_name}_loss")
    parameters = [*bottleneck.parameters(), *student.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.005, betas=(0.5, 0.999))
    losses = []
    for step in range(3):
        with torch.no_grad():
            images = torch.from_numpy(draw_images(4, 64, seed=step))
            features = teacher(reference.normalize(images))
        loss = loss_of(features, student(bottleneck(features)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 0:
            variance = bottleneck.bn_layer[0].bn1.running_var.numpy().copy()
    return {"losses": np.array(losses), "running_var": variance}


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for backbone in reference.STAGES:
        np.savez_compressed(GOLDEN / f"{backbone}.npz", **inference(backbone))
    for loss in ("per_position", "flattened"):
        np.savez_compressed(GOLDEN / f"adam_{loss}.npz", **training(loss))


if __name__ == "__main__":
    main()
