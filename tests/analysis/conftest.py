"""Results made by hand."""

import json
import os

import pytest


@pytest.fixture
def write(tmp_path):
    count = iter(range(1000))

    def write(
        best_top1,
        last_top1,
        *,
        distiller="mcld",
        student="resnet20",
        teacher="resnet56",
        seed=0,
        epochs=240,
        age=0,
        folder=None,
        variant="",
        curve=None,
        **changes,
    ):
        number = next(count)
        teacher = "none" if distiller == "none" else teacher
        content = {
            "format": 1,
            "status": "finished",
            "names": {"data": "cifar100", "teacher": teacher, "student": student, "distiller": distiller},
            "variant": variant,
            "seed": seed,
            "epochs": epochs,
            "evaluated_on": "test",
            "best": {"epoch": 200, "top1": best_top1, "top5": best_top1 + 20},
            "last": {"epoch": epochs, "top1": last_top1, "top5": 92.0, "nll": 1.0, "ece": 5.0, "agreement": 80.0},
            "teacher": None if teacher == "none" else {"top1": 72.34, "top5": 91.0, "weights": "w"},
            "parameters": {"student": 1, "deployed": 1, "extra": 0},
            "seconds": 10.0,
            "images_per_second": 1000.0,
            "hash": f"h{number}",
        }
        path = (folder or tmp_path / f"run{number:03}") / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content | changes))
        os.utime(path, (1e9 - age, 1e9 - age))
        if curve:
            lines = ["epoch,step,train/ce,test/top1", *(f"{e},{9 * e},1.0,{top1}" for e, top1 in curve.items())]
            (path.parent / "metrics.csv").write_text("\n".join(lines) + "\n")
        return path

    return write
