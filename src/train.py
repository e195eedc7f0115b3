"""Train a student: `python src/train.py distiller=mcld teacher=resnet32x4 student=resnet8x4`."""

import hydra
from omegaconf import DictConfig

from distill import command

command.offer()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """One job of the command line."""

    def run() -> float:
        from distill.run.train import train

        return train(cfg)

    return command.speak(run)


if __name__ == "__main__":
    command.answer(main)
