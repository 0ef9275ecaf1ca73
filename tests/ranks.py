"""The ranks of a launch, forked from a process that has imported what they need: ten seconds of a core saved each.

All that `accelerate launch` does before it starts processes is its own. How it starts and ends them is what the tests
see that type its command (test_docs.py, test_bad_input.py, test_resume.py, test_launch.py).
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path
from unittest.mock import patch

import torch.distributed.run
from accelerate.commands.launch import launch_command, launch_command_parser

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["deepspeed", "peft", "train_sft", "train_grpo"])


def launch_forked(words: list[str]) -> str:
    """Do what `accelerate launch` with these words does; what the ranks print, in an AssertionError if one fails."""
    printed: list[str] = []
    with patch.object(torch.distributed.run, "run", lambda args: printed.append(run_ranks(args))):
        launch_command(launch_command_parser().parse_args(words))
    return printed[0]


def run_ranks(args) -> str:
    """Run a script on `args.nproc_per_node` ranks of one machine; one that fails ends the others."""
    size = int(args.nproc_per_node)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    meeting |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    with tempfile.NamedTemporaryFile("r") as printed:
        ranks = []
        for rank in range(size):
            environment = os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            given = args.training_script, args.training_script_args, environment, os.getcwd(), printed.name
            ranks.append(FORKS.Process(target=run_rank, args=given))
            ranks[-1].start()
        while any(rank.exitcode is None for rank in ranks) and not any(rank.exitcode for rank in ranks):
            wait([rank.sentinel for rank in ranks if rank.exitcode is None])
        for rank in ranks:
            rank.kill()
            rank.join()
        text = printed.read()
    assert [rank.exitcode for rank in ranks] == [0] * size, text[-4000:]
    return text


def run_rank(script: str, arguments: list[str], environment: dict[str, str], folder: str, printed: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with Path(printed).open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
