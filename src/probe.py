"""A linear classifier on frozen features: `python src/probe.py data=tiny_imagenet networks=[outputs/.../RUN]`."""

import hydra
from omegaconf import DictConfig

from distill import command

command.offer()


@hydra.main(version_base="1.3", config_path="../conf", config_name="probe")
def main(cfg: DictConfig) -> None:
    """One job of the command line."""

    def run() -> None:
        from distill.run.probe import probe

        probe(cfg)

    command.speak(run)


if __name__ == "__main__":
    command.answer(main)
