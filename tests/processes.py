"""Functions run in new processes, alone or as the ranks of a run under any of accelerate's engines, on the CPU."""

import faulthandler
import json
import multiprocessing
import os
import socket
import threading
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm

ENGINES = ("ddp", "fsdp2", "zero2", "zero3")
FILES = Path(__file__).parents[1] / "recipes" / "accelerate"
PRELOADED = ["rmtrl.ppo.trainer", "rmtrl.reward.trainer", "datasets", "rmtrl.tiny"]
if find_spec("deepspeed"):
    PRELOADED.append("deepspeed")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def engine_environment(engine, n_processes=2, n_machines=1):
    """What `accelerate launch` tells the processes it starts with a file of `recipes/accelerate`, in float32."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    given = f"--config_file {FILES / engine}.yaml --main_process_port {free_port()} --num_processes {n_processes} "
    given += f"--num_machines {n_machines} --mixed_precision no train.py"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it assumes for settings that the file leaves out
        args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(given.split()))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    env = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    return {name: value for name, value in env.items() if os.environ.get(name) != value}


def take_cpu_for_accelerator():
    """Makes accelerate enter FSDP and DeepSpeed without an accelerator: backend and device alone are replaced."""
    from accelerate import state
    from accelerate.utils import DistributedType

    initialise = state.PartialState.__init__

    def __init__(self, cpu=False, **settings):
        initialise(self, False, **{**settings, "backend": None})

    state.PartialState.__init__ = __init__
    state.PartialState._prepare_backend = lambda self, *given, **named: ("gloo", DistributedType.MULTI_GPU)
    state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    if find_spec("deepspeed"):
        # it would be compiled at first use, behind a lock that a killed run leaves behind
        import_module("deepspeed.comm.torch").build_shm_op = lambda: None


def _run(function, settings, out, environment, timeout, gpus):
    os.environ.update(environment)
    error = os.open(out + ".stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(error, 1)
    os.dup2(error, 2)
    faulthandler.dump_traceback_later(0.9 * timeout, file=error)  # where a run hangs
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # accelerate warns where it is not set
    tqdm.set_lock(threading.RLock())  # its own is one of processes, which a kill would leave behind
    if not gpus and ("ACCELERATE_USE_FSDP" in environment or "ACCELERATE_USE_DEEPSPEED" in environment):
        take_cpu_for_accelerator()
    Path(out).write_text(json.dumps(function(**settings)))


def run(out, function, *, n_processes=1, n_machines=1, engine=None, timeout=120, gpus=False, **settings):
    """Returns what new processes made of a function: exit codes, results and what they printed, one each.

    They are forked from one that has imported everything and done nothing. With an engine they are its ranks, on the
    CPU or each on a GPU of its own.
    """
    context = multiprocessing.get_context("forkserver")
    if not gpus:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read where deepspeed is imported
    context.set_forkserver_preload([*PRELOADED, function.__module__])
    alone = {"CUDA_VISIBLE_DEVICES": "0"} if gpus else {}
    shared = engine_environment(engine, n_processes, n_machines) if engine else alone
    port = free_port()
    outs = [Path(f"{out}.{rank}") for rank in range(n_processes)]
    started = []
    for rank, own in enumerate(outs):
        own.unlink(missing_ok=True)
        world = dict(WORLD_SIZE=n_processes, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank)
        world["LOCAL_RANK"] = rank % (n_processes // n_machines)
        world = {name: str(value) for name, value in world.items()} if n_processes > 1 else {}
        given = (function, settings, str(own), shared | world, timeout, gpus)
        started.append(context.Process(target=_run, args=given))
        started[-1].start()
    for process in started:
        process.join(timeout)
    late = [process for process in started if process.is_alive()]
    for process in late:
        process.kill()
    printed = [Path(f"{own}.stderr").read_text() for own in outs]
    assert not late, f"still running after {timeout} s: {printed}"
    results = [json.loads(own.read_text()) if own.is_file() else None for own in outs]
    return [process.exitcode for process in started], results, printed
