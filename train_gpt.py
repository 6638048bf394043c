"""Train with PyTorch on CPU or CUDA, alone or under torchrun: python train_gpt.py [--config preset.toml] [key=value ...]

Writes runs/<run_id>/: config.json, run.json, train.log, metrics.jsonl, checkpoint.npz. Ctrl-C saves; resume=true continues.
"""

from trit.launch import launch
from trit.ops import torch_ops
from trit.train.torch_backend import make_backend, start_process


def main(arguments=None):
    launch(arguments, __doc__, torch_ops, start_process, make_backend)


if __name__ == "__main__":
    main()
