"""The paper: networks, loss, training step, scores, metrics, thresholds. Arrays in, arrays out."""
