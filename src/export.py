"""Export a run's student: `python src/export.py source=outputs/.../`."""

import hydra
from omegaconf import DictConfig

from distill import command

command.offer()


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
def main(cfg: DictConfig) -> None:
    """One job of the command line."""

    def run() -> None:
        from distill.run.export import export

        export(cfg)

    command.speak(run)


if __name__ == "__main__":
    command.answer(main)
