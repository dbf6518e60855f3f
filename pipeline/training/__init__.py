"""The parts of the training loop: samples, schedule, augmentation, averaging, checkpoints."""
