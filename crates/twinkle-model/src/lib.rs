//! Import path `model`: training runs, losses, optimizers, checkpoints
