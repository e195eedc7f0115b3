"""This project's ways to carry out `-m`, where Hydra looks for such. Imports next to nothing: Tab waits for it."""

import logging
import sys
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from distill.errors import UserError

logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna imports it, and it announces each of its parts


class Runs(Sweeper):
    """Many runs, each once: what is finished is skipped, what is begun goes on, what fails stops no other."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        # of the sweep alone: its runs are composed without the experiment that may have chosen another sweeper
        words = config.hydra.overrides.hydra
        config.hydra.overrides.hydra = [w for w in words if not w.startswith(("hydra.sweeper", "hydra/sweeper"))]
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        try:
            return self.carry_out(arguments)
        except UserError as error:
            print(error, file=sys.stderr)
            raise

    def carry_out(self, words: list[str]) -> Any:
        """Run what the words of the command line ask for."""
        from distill.sweep.table import carry_out

        assert self.hydra_context is not None
        assert self.config is not None
        return carry_out(self.hydra_context, self.config, self.launcher, words)


class Search(Runs):
    """Optuna's search, so that it can be stopped and repeated; takes the keys of `hydra/sweeper=optuna`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def carry_out(self, words: list[str]) -> Any:
        """Search as the words of the command line ask."""
        from distill.sweep.search import search

        assert self.hydra_context is not None
        assert self.config is not None
        return search(self.hydra_context, self.config, self.launcher, words, **self.settings)
