"""What a run leaves behind in a process that goes on to the next. Imports no torch: it frees what others have used."""

import gc
import sys
import traceback


def release(error: BaseException | None = None) -> None:
    """Free a run's networks, data and compiled code.

    A Trainer and its module know each other, so that only the collector of cycles frees them, and it may wait for
    hundreds of megabytes; an error that is kept for a sweep's end holds all that its frames saw; compiled code is kept
    for ever, and after the eighth run none would be compiled.

    Args:
        error: What ended the run.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    torch = sys.modules.get("torch")
    if torch is not None and "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
