"""What can be seen to be wrong in a resolved configuration before anything is read or built."""

import torch
from torch import nn

from distill import launch
from distill.build import build, check_arguments, check_method
from distill.errors import UserError
from distill.mistake import nearest_first
from distill.run.config import Config

OF_A_RUN = (
    *("data", "recipe", "teacher", "student", "distiller", "optimizer", "trainer", "logger"),
    *("seed", "score_test", "resume", "checkpoint", "names"),
)
OF_THE_RECORD = ("variant", "hash")
# each rank is a process with the whole student; others would need other checkpoints
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
# arguments of the Trainer that a run sets itself
SAID_ELSEWHERE = {
    "max_epochs": "recipe.epochs",
    "accumulate_grad_batches": "recipe.accumulate",
    "logger": "logger=NAME",
    "default_root_dir": "hydra.run.dir",
}
OF_OUR_OWN = (
    *SAID_ELSEWHERE,
    *("callbacks", "plugins", "use_distributed_sampler", "inference_mode"),
    *("num_sanity_val_steps", "enable_model_summary"),
)
OF_CHECKPOINT = ("epochs", "minutes", "steps")
OF_PRECISION = ("precision", "compile")  # read here, and no arguments of the Trainer
COMPILE = ("auto", True, False)
KEEP = ("off", "memory", "disk")
COUNTS, RATES = ("epochs", "batch_size", "accumulate"), ("lr", "weight_decay")
OF_RECIPE = (*COUNTS, *RATES, "schedule")


def check(config: Config) -> None:
    """Refuse what the command line, or a third party's file, got wrong.

    Raises:
        UserError: If a key is unknown or missing, or a value is out of range.
    """
    check_keys({k: v for k, v in config.items() if k not in OF_THE_RECORD}, OF_A_RUN, "the configuration", "")
    check_keys(config["checkpoint"], OF_CHECKPOINT, "checkpoint", "checkpoint.")
    if not isinstance(every := config["checkpoint"].get("epochs", 1), int) or every < 1:
        raise UserError(f"checkpoint.epochs={every} must be a whole number of at least 1.")
    recipe = config["recipe"]
    check_recipe(recipe)
    if not isinstance(config["seed"], int):
        raise UserError(f"seed={config['seed']} must be a whole number.")
    if recipe["batch_size"] % recipe["accumulate"]:
        raise UserError(
            f"recipe.batch_size={recipe['batch_size']} does not divide into recipe.accumulate={recipe['accumulate']}"
            " micro-batches: choose a divisor."
        )
    trainer = {k: v for k, v in config["trainer"].items() if k not in OF_PRECISION}
    if other := next((key for key in trainer if key in SAID_ELSEWHERE), None):
        raise UserError(f"trainer.{other} is not read: say {SAID_ELSEWHERE[other]} instead.")
    check_arguments(trainer, what="trainer", given=OF_OUR_OWN)
    if trainer["strategy"] not in STRATEGIES:
        raise UserError(f"trainer.strategy={trainer['strategy']} is none of {', '.join(STRATEGIES)}.")
    if trainer["log_every_n_steps"] < 1:
        raise UserError(f"trainer.log_every_n_steps={trainer['log_every_n_steps']} must be at least 1.")
    if trainer["num_nodes"] > 1 and not launch.started_by_another():
        raise UserError(
            "trainer.num_nodes needs a launcher that starts one process per device, such as torchrun or srun."
        )
    if (asked := config["trainer"].get("compile", "auto")) not in COMPILE:
        raise UserError(f"trainer.compile={asked} is unknown: choose auto, true or false.")
    if (keep := (config.get("teacher") or {}).get("keep", "off")) not in KEEP:
        raise UserError(f"teacher.keep={keep} is unknown: choose one of {', '.join(KEEP)}.")
    check_method(config["distiller"])
    build(recipe["schedule"], what="recipe.schedule")
    optimizer = build({**config["optimizer"], "_partial_": True}, what="optimizer", given=("params",))
    try:
        optimizer([nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError) as error:
        raise UserError(f"The optimizer refuses its numbers: {error}.") from error


def check_recipe(recipe: Config) -> None:
    """Refuse a recipe that lacks a number, or has one out of range.

    Raises:
        UserError: Names the first.
    """
    if missing := [key for key in OF_RECIPE if key not in recipe]:
        raise UserError(f"recipe lacks {', '.join(missing)}: it needs {', '.join(OF_RECIPE)}.")
    for key in COUNTS:
        if not isinstance(recipe[key], int) or recipe[key] < 1:
            raise UserError(f"recipe.{key}={recipe[key]} must be a whole number of at least 1.")
    for key in RATES:
        if not isinstance(recipe[key], int | float) or recipe[key] < 0:
            raise UserError(f"recipe.{key}={recipe[key]} must be a number of at least 0.")


def check_keys(node: Config, known: tuple[str, ...], name: str, prefix: str) -> None:
    """Refuse keys that are not known.

    Args:
        node: Whose keys are looked at.
        known: Those that it may have.
        name: What it is, for the message.
        prefix: How its keys begin on the command line.

    Raises:
        UserError: Names the first, and those that look like it.
    """
    if strange := next((key for key in node if key not in known), None):
        raise UserError(f"There is no key {prefix}{strange}: {name} has {nearest_first(strange, known)}.")
