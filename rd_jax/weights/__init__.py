"""Where a teacher comes from: the hub, files, PyTorch's names, the authors' checkpoints."""
