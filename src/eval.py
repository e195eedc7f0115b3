"""Score a run, a checkpoint or a weights file: `python src/eval.py source=outputs/.../`."""

import hydra
from omegaconf import DictConfig

from distill import command

command.offer()


@hydra.main(version_base="1.3", config_path="../conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    """One job of the command line."""

    def run() -> None:
        from distill.run.score import score

        score(cfg)

    command.speak(run)


if __name__ == "__main__":
    command.answer(main)
