"""Data sets with the numbers of their YAML files."""

from hydra.utils import get_class

from harness import CONF, yaml


def build(name, root, **numbers):
    """A data set on files of a test's own, not yet prepared; seed and batches are small numbers."""
    node = yaml(CONF / "data" / f"{name}.yaml")
    own = {"root": str(root), "batch_size": 4, "eval_batch_size": 4, "seed": 3, "download": False, "workers": 0}
    kept = {key: value for key, value in own.items() if key in node}
    return get_class(node.pop("_target_"))(**{**node, **kept, **numbers})


def ready(data):
    """A data set that has loaders."""
    data.prepare_data()
    data.setup()
    return data
