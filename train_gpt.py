"""Train with PyTorch on CPU or CUDA, alone or under torchrun: python train_gpt.py [--config preset.toml] [key=value ...]

Writes runs/<run_id>/: config.json, run.json, train.log, metrics.jsonl, checkpoint.npz. Ctrl-C saves; resume=true continues.
--profile adds trace.json.gz (ui.perfetto.dev) and profile.txt of a few steps after the start.
"""

from trit.console import command


def main(arguments=None):
    with command():  # the array library takes seconds to import, and Ctrl-C may come then too
        from trit.launch import launch
        from trit.train.torch_compile import with_compile_report
        from trit.train.torch_profile import with_profile

        launch(arguments, __doc__, "torch", with_profile, with_compile_report)


if __name__ == "__main__":
    main()
