"""How a script ends: errors that a user can mend become one line on stderr and exit status 2."""

import contextlib
import errno
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

LOST = "another rank has ended: its message says why"
GRACE = 10.0  # seconds that a rank waits, which has lost another or failed beside it, for its launcher to end it


def run_script(main: Callable[[], None]) -> None:
    """Run `main()`; an error that a user can mend becomes one line on stderr and exit status 2.

    Those are ValueError, OSError, memory that ran out, and the loss of another rank; `--debug true` adds the traceback.
    """
    debug = "--debug" in sys.argv and sys.argv[sys.argv.index("--debug") + 1 :][:1] != ["false"]
    if not debug:  # a thread of TensorBoard's that cannot write says so in the main thread too
        threading.excepthook = lambda it: in_a_line(it.exc_value) or threading.__excepthook__(it)
    try:
        main()
    except Exception as error:
        message = in_a_line(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        if rank != "0" or message == LOST:
            # What rank 0 fails of too, it says, and a rank that is lost what has happened to it; the launcher ends the
            # others as soon as one has gone.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(GRACE)
        message = message if rank == "0" else f"rank {rank}: {message}"
        tqdm.write(f"error: {message}", file=sys.stderr)
        _tell_launcher(message)
        _leave_group()
        sys.exit(2)


def end_without_peers(peers: Sequence[int]) -> None:
    """Watch, once a handled signal has come, whether the processes `peers` of this machine live; end when one has gone.

    A rank that waits for another inside NCCL is in C, where no handler of Python's runs, and it would wait for the
    time-out of the group: the handler's note is never read. The wake-up descriptor of `signal` is written to all the
    same, and a thread reads it. While all peers live, the note is enough, since they meet at the end of the step.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(told, peers), daemon=True).start()


def _watch(told: int, peers: Sequence[int]) -> None:
    os.read(told, 1)
    while all(map(_lives, peers)):
        time.sleep(0.5)
    time.sleep(GRACE)
    tqdm.write(f"error: rank {os.environ.get('RANK', '0')}: {LOST}", file=sys.stderr)
    os._exit(2)


def _lives(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie, which is there until its parent asks for it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):  # only Linux has it
        return ") Z " not in status.read_text()
    return True


def _tell_launcher(message: str) -> None:
    """Let the launcher's report, the last thing on a user's terminal, end in this line (torch.distributed.elastic)."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": f"error: {message}", "timestamp": int(time.time())}))


def _leave_group() -> None:
    """Close gloo's connections: its threads, left running, now and then abort a process that exits."""
    distributed = sys.modules.get("torch.distributed")  # not imported for this alone: it takes seconds
    if distributed and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed, on a GPU or on a CPU (where torch has no class of error for it)."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):  # to import torch takes seconds
        return True
    failed = "DefaultCPUAllocator|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    return isinstance(error, RuntimeError) and re.search(failed, str(error)) is not None


def in_a_line(error: Exception) -> str | None:
    """The one line for an error that a user can mend; None for any other."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        remedy = "lower micro_batch_tokens, or set gradient_checkpointing true; a run with checkpoints goes on with "
        return f"out of memory: {remedy}--resume_from latest ({text[:200]})"
    lost = "onnection (closed|reset) by peer|onnection refused|remote process exit"  # gloo's words, and NCCL's
    if isinstance(error, RuntimeError) and re.search(lost, text):
        return LOST
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        place = error.filename or ("output_dir or logging_dir" if full else "a file")
        return f"{place}: {error.strerror or text}{'; make room, or name another place' if full else ''}"
    return str(error) if isinstance(error, ValueError) else None
