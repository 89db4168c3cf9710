"""ImageNet weights from Hugging Face: pinned, verified, cached."""

from pathlib import Path
from typing import Any, NamedTuple

from rd_jax.system.errors import UserError, first_line
from rd_jax.weights.files import verified


class Pinned(NamedTuple):
    """model.safetensors of timm/BACKBONE.tv_in1k, torchvision's IMAGENET1K_V1, BSD-3."""

    revision: str
    sha256: str


IMAGENET = {
    "resnet18": Pinned(
        "bbd144b3e5565108aad885f145491d11bc6ce807",
        "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
    ),
    "resnet34": Pinned(
        "1b7b21cca82ff974d341713f777bf740c2db38c4",
        "0bb82595a564991a9d424708b33f5d843f5aaed7f6c0886ff10849ff97022235",
    ),
    "resnet50": Pinned(
        "78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
        "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    ),
    "wide_resnet50_2": Pinned(
        "343c5fa59ca8a131e0cdf42144a641b36a0387c2",
        "df6fb6c4824769769de18e14088475fd6ee94236849aa4e5d8022ba9d9a9a16c",
    ),
}


def download(backbone: str) -> Path:
    """The verified safetensors file, from the Hugging Face cache or the network.

    Raises UserError if it cannot be had, with the address to fetch it from, or is damaged.
    """
    if backbone not in IMAGENET:
        raise UserError(
            f"there are no ImageNet weights of {backbone}: choose one of {', '.join(IMAGENET)}, or "
            "set --config.teacher_weights=FILE (resnet10 has --config.teacher_weights=embedded)"
        )
    pinned = IMAGENET[backbone]
    repository, file = f"timm/{backbone}.tv_in1k", "model.safetensors"
    try:
        path = _found_or_downloaded(repository, file, pinned.revision)
    except Exception as error:  # the hub's HTTP client, and so its errors, vary by version
        raise UserError(
            f"cannot download the ImageNet weights of {backbone} ({first_line(error)}): fetch "
            f"https://huggingface.co/{repository}/resolve/{pinned.revision}/{file} where there is "
            "a network and set --config.teacher_weights=FOLDER/model.safetensors, or take the "
            "small teacher that comes along, --config.backbone=resnet10 "
            "--config.teacher_weights=embedded"
        ) from error
    return verified(path, pinned.sha256, "delete that file and start again")


def _found_or_downloaded(repository: str, file: str, revision: str) -> Path:
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    where: Any = {"repo_id": repository, "filename": file, "revision": revision}
    try:
        return Path(hub.hf_hub_download(**where, local_files_only=True))
    except LocalEntryNotFoundError:
        # The download itself retries for half a minute where there is no network.
        hub.get_hf_file_metadata(hub.hf_hub_url(**where), timeout=5)
        return Path(hub.hf_hub_download(**where))
