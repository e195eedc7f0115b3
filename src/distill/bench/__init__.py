"""How fast a step is, beside the usual recipe and a plain loop: what `scripts/bench.py` measures.

Four variants take turns, in blocks of at least 20 steps, within one process:

- `usual`: what users' repositories do: float32, eager, contiguous NCHW, torchvision's transforms of PIL images in two
  worker processes, the teacher under `no_grad`; the same loss code.
- `plain`: this project's kernels, precision, layout and teacher on batches that lie on the device; without framework
  or log.
- `real`: the training path of the command line, with its Trainer, callbacks and loggers.
- `kept`: the same, with the teacher's answers already kept.
"""
