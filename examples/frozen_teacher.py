"""Compute features of a frozen teacher, and a map of where two images differ for it.

python -m examples.frozen_teacher
"""

import jax
import numpy as np

import rd_jax
from rd_jax.data.synthetic import weave

size = 96
teacher = rd_jax.load_teacher("resnet10", "embedded")
features_of = jax.jit(rd_jax.models.Teacher("resnet10").apply)

good, _ = weave(np.random.default_rng(0), size)
stained, mask = weave(np.random.default_rng(0), size, "stain")  # the same cloth, with a stain
good_features, stained_features = (
    features_of(teacher, rd_jax.normalize(image[None])) for image in (good, stained)
)
for feature in stained_features:
    print("feature", feature.shape)
(anomaly_map,) = np.asarray(rd_jax.anomaly_map(good_features, stained_features, size, sigma=2.0))
inside, outside = anomaly_map[mask].mean(), anomaly_map[~mask].mean()
print(f"map {anomaly_map.shape}: {inside:.4f} in the stain, {outside:.4f} elsewhere")
