"""Find teachers by name: ImageNet's on Hugging Face, and the embedded one."""

import hashlib
from pathlib import Path

from rd_jax.system.errors import UserError, first_line

# Revision and sha256 of timm/BACKBONE.tv_in1k: torchvision's IMAGENET1K_V1, BSD-3.
IMAGENET = {
    "resnet18": (
        "bbd144b3e5565108aad885f145491d11bc6ce807",
        "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
    ),
    "resnet34": (
        "1b7b21cca82ff974d341713f777bf740c2db38c4",
        "0bb82595a564991a9d424708b33f5d843f5aaed7f6c0886ff10849ff97022235",
    ),
    "resnet50": (
        "78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
        "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
    ),
    "wide_resnet50_2": (
        "343c5fa59ca8a131e0cdf42144a641b36a0387c2",
        "df6fb6c4824769769de18e14088475fd6ee94236849aa4e5d8022ba9d9a9a16c",
    ),
}
EMBEDDED = "resnet10"  # docs/embedded_teacher.md says how it was made


def embedded(backbone: str, layer4: bool) -> Path:
    """Return the file of the embedded teacher. Raise UserError for another backbone."""
    if backbone != EMBEDDED or layer4:
        raise UserError(
            f"the embedded teacher is a {EMBEDDED} without its fourth stage: set "
            f"--config.backbone={EMBEDDED} and a bottleneck other than 'pre', or other "
            "teacher_weights"
        )
    return Path(__file__).with_name(f"{EMBEDDED}.safetensors")


def download(backbone: str) -> Path:
    """Return the verified safetensors file, from the Hugging Face cache or the network.

    Raises UserError, with the address of the file, if it cannot be downloaded or is damaged.
    """
    if backbone not in IMAGENET:
        raise UserError(
            f"there are no ImageNet weights of {backbone}: choose one of {', '.join(IMAGENET)}, or "
            "set --config.teacher_weights=FILE (resnet10 has --config.teacher_weights=embedded)"
        )
    revision, sha256 = IMAGENET[backbone]
    where = (f"timm/{backbone}.tv_in1k", "model.safetensors")
    try:
        import huggingface_hub as hub

        path = hub.try_to_load_from_cache(*where, revision=revision)
        if not isinstance(path, str):
            # Ask first: without a network, the download itself retries for half a minute.
            hub.get_hf_file_metadata(hub.hf_hub_url(*where, revision=revision), timeout=5)
            path = hub.hf_hub_download(*where, revision=revision)
    except Exception as error:  # the hub's HTTP client, and so its errors, vary by version
        raise UserError(
            f"cannot download the ImageNet weights of {backbone} ({first_line(error)}): fetch "
            f"https://huggingface.co/{where[0]}/resolve/{revision}/{where[1]} where there is "
            "a network and set --config.teacher_weights=FOLDER/model.safetensors, or use the "
            "small teacher of this package, --config.backbone=resnet10 "
            "--config.teacher_weights=embedded"
        ) from error
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        problem = f"{Path(path).resolve()} has sha256 {found}, expected {sha256}"
        raise UserError(f"{problem}: delete that file and start again")
    return Path(path)
