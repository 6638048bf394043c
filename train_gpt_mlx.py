"""Train with MLX on Apple GPUs or any CPU, alone or under mlx.launch: python train_gpt_mlx.py [--config preset.toml] [key=value ...]

Writes runs/<run_id>/: config.json, run.json, train.log, metrics.jsonl, checkpoint.npz. Ctrl-C saves; resume=true continues.
"""

from trit.console import command


def main(arguments=None):
    with command():  # the array library takes seconds to import, and Ctrl-C may come then too
        from trit.launch import launch

        launch(arguments, __doc__, "mlx")


if __name__ == "__main__":
    main()
