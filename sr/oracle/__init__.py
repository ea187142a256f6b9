"""The physical ceiling: how well the true parametric model, fitted to an LR image, tells what the HR image is."""
