"""One more process of a run: `python -m distill.rank FOLDER`, started by `distill.launch`."""

import os
import sys
import threading
import time
from pathlib import Path


def _leave_with_parent() -> None:
    """A killed first rank must not leave the others behind, waiting in a collective."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """Train as the rank that the environment names."""
    _leave_with_parent()
    from distill.errors import UserError
    from distill.run.train import train_rank

    try:
        train_rank(Path(sys.argv[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
