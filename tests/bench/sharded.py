"""How much memory saving, loading and exporting a spread model takes, in each process.

    OMP_NUM_THREADS=1 python tests/bench/sharded.py               # 274 M parameters, four processes
    OMP_NUM_THREADS=1 python tests/bench/sharded.py --layers 2    # smaller, to see that it runs

The model is the base of muse-632m with fewer layers, spread over gloo processes on the CPU by
FSDP2, with random weights, and AdamW's state after two steps, for which the weights serve as
gradients. "Gathered" is how minimuse saved and exported before: all tensors in the first process,
in one file. Each number is the largest resident size (VmHWM) while it works, above that before it
began; of the first process, and of the one among the others that needs most. Pages of files that
are mapped for reading count, too. Linux only. It takes about 35 bytes of memory and 40 of disk for
each parameter.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from multiprocessing import Queue, get_context
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from minimuse.plumbing.checkpoint import optimizer_states, restore_checkpoint, save_checkpoint
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.files import save_tensors
from minimuse.plumbing.initial_weights import WithoutInitialWeights
from minimuse.plumbing.parts import build, save_part
from minimuse.runs.parallel import fit

TEXT_WIDTH = 4096  # T5-XXL's
PRESET = PRESETS["muse-632m"]
MIB = 2**20


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, or VmHWM at most since `measured` began."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """MiB that `work` takes at its peak, above what there was, and its seconds."""
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM again (man proc)
    before, begin = resident("VmRSS"), time.monotonic()
    work()
    return resident("VmHWM") - before, time.monotonic() - begin


def spread_model(layers: int) -> nn.Module:
    """The base model, spread, with random weights."""
    config = replace(PRESET, base=replace(PRESET.base, layers=layers))
    with WithoutInitialWeights():
        model = build("base", config, TEXT_WIDTH)
    fit(model, compile=False, recompute=False, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.to_local().normal_(std=0.02)
    return model


def trained(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW after two steps, with the weights as gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def gathered_checkpoint(path: Path, model: nn.Module, average: dict, optimizers: list) -> None:
    """What `save_checkpoint` did before."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for name, _, state in optimizer_states(model, optimizers):
        tensors |= {f"optimizer.{name}/{entry}": tensor for entry, tensor in state.items()}
    save_tensors(path, tensors, {"step": "1"}, before=path.with_suffix(".before"))


def work(rank: int, size: int, folder: Path, layers: int, results: Queue) -> None:
    """One process: all that is measured, by name."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    model = spread_model(layers)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizers = [trained(model)]
    path, key = folder / "base.checkpoint.safetensors", {}
    state = (model, average, optimizers)
    gathered = folder / "gathered.safetensors"
    works = {
        "save, sharded": partial(save_checkpoint, path, 1, *state, key),
        "resume, sharded": partial(restore_checkpoint, path, *state, key),
        "export, in pieces": partial(save_part, folder, "base", model),
        "export, gathered": partial(save_tensors, folder / "whole.safetensors", model.state_dict()),
        "save, gathered": partial(gathered_checkpoint, gathered, *state),
    }
    found = {name: measured(each) for name, each in works.items()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    results.put((rank, parameters, found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=15, help="15 are 274 M parameters")
    parser.add_argument("--processes", type=int, default=4)
    args = parser.parse_args()
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, closing(context.Queue()) as results:
        arguments = (args.processes, Path(folder), args.layers, results)
        processes = [
            context.Process(target=work, args=(rank, *arguments), daemon=True)
            for rank in range(args.processes)
        ]
        for process in processes:
            process.start()
        answers = sorted(results.get() for _ in processes)
        for process in processes:
            process.join()
    _, parameters, first = answers[0]
    weights = 4 * parameters / MIB
    print(f"{parameters / 1e6:.0f} M parameters: {weights:,.0f} MiB; {args.processes} processes")
    print(f"checkpoint (weights, average, two moments): {4 * weights:,.0f} MiB\n")
    print("| | first process, MiB | most of the others, MiB | seconds |\n|---|---|---|---|")
    for name, (peak, seconds) in first.items():
        others = max(found[name][0] for _, _, found in answers[1:])
        print(f"| {name} | {peak:,.0f} | {others:,.0f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
