"""The fast engine: batches of scenes to images in torch, on any device, in float32 or float64."""
