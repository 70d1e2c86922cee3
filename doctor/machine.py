"""Checks of ``cocoseg doctor`` on the machine: GPUs, cores, memory, folders.

torch is imported inside them: one that cannot be imported is a finding, too.
"""

import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..figures import bytes_text
from ..model.config import ModelConfig
from ..storage import locate
from ..train.config import TrainConfig
from .finding import Finding, ok, problem, warning

if TYPE_CHECKING:
    import torch

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_SHM = "/dev/shm"  # noqa: S108 - where the loader's batches pass through
_PREFETCH = 2  # batches that PyTorch's loader keeps ready for each worker
# Measured: what libraries take in a worker, and in a training process with some batches.
_WORKER_BYTES, _PROCESS_BYTES = 300_000_000, 600_000_000


def gpu(config: TrainConfig, device: "torch.device | None" = None) -> Iterator[Finding]:
    """Look at what PyTorch sees of GPUs, against what the machine has.

    Parameters
    ----------
    device
        Of this rank among several: no other GPU is tried. None tries all of them.
    """
    import torch

    driver = _nvidia_driver()
    build = torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else None)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.cuda.is_available():
        if device is None:
            yield from map(_one_gpu, range(torch.cuda.device_count()))
        elif device.type == "cuda":
            yield _one_gpu(device.index)
        yield ok(f"driver {driver or 'unknown'}, torch {torch.__version__} for CUDA {build}")
    elif driver and build is None:
        yield problem(
            f"there is an NVIDIA driver ({driver}), but torch {torch.__version__} is a CPU build",
            "install torch for CUDA: https://pytorch.org/get-started/locally",
        )
    elif driver and hidden in ("", "-1"):
        yield warning(f"CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU", "unset it")
    elif driver:
        yield problem(
            f"driver {driver}, torch for CUDA {build}, and yet no GPU: {_why_no_cuda()}",
            "update the driver, or install torch for an older CUDA",
        )
    else:
        yield ok(f"none; torch {torch.__version__} runs on the CPU")
    if device is None and config.device != "auto":
        from ..model.device import pick_device

        yield ok(f"train.device is {pick_device(config.device)}")


def _one_gpu(number: int) -> Finding:
    import torch

    about = torch.cuda.get_device_properties(number)
    text = f"cuda:{number} {about.name}, {bytes_text(about.total_memory)}"
    try:
        with torch.cuda.device(number):
            free, total = torch.cuda.mem_get_info()
            if float((torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum()):
                native = torch.cuda.is_bf16_supported(including_emulation=False)
                text += ", bfloat16" if native else ", no bfloat16"
    except RuntimeError as error:
        return problem(
            f"{text}: {str(error).splitlines()[0]}",
            "free it of other processes ('nvidia-smi' lists them), or install a torch for it",
        )
    if free < total / 2:
        used = bytes_text(total - free)
        return warning(f"{text}: {used} are taken by others", "'nvidia-smi' lists who")
    return ok(f"{text}, {bytes_text(free)} free")


def collectives() -> Iterator[Finding]:
    """Try what connects the processes of a run, in this process; see `ranks` for several."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        yield warning("torch is built without them", "train with one process, or another torch")
        return
    names = [name for name in ("gloo", "nccl") if getattr(dist, f"is_{name}_available")()]
    try:
        dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
        try:
            dist.all_reduce(torch.ones(1))
        finally:
            dist.destroy_process_group()
    except (RuntimeError, ValueError, OSError) as error:
        yield warning(
            f"gloo does not start: {str(error).splitlines()[0]}",
            "does the host's own name resolve? GLOO_SOCKET_IFNAME=lo names a network",
        )
        return
    if torch.cuda.device_count() > 1 and "nccl" not in names:
        yield problem("several GPUs, and torch is built without NCCL", "install torch for CUDA")
        return
    yield ok(" and ".join(names))


def cores(config: TrainConfig, processes: int = 1) -> Iterator[Finding]:
    """Count cores, and what of them the training processes of this machine may use."""
    present = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    quota = cpu_quota()
    text = f"{present} present, {allowed} usable"
    if quota is not None and quota < allowed:
        text += f", and a limit of {quota:g} by the container"
    usable = min(float(allowed), quota or allowed)
    if config.workers == 0:
        yield warning(
            f"{text}; train.workers is 0: the training process decodes images itself",
            "train.workers=1 or more",
        )
    elif processes * config.workers > usable:
        yield warning(
            f"{text}; train.workers is {config.workers} for {_each_of(processes)}",
            f"train.workers={max(1, int(usable / processes))} or less",
        )
    else:
        yield ok(f"{text}; train.workers is {config.workers}")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if quota is not None and quota < allowed and not threads:
        yield warning(
            f"libraries start {allowed} threads for {quota:g} cores",
            f"OMP_NUM_THREADS={max(1, int(quota))} in the environment",
        )


def memory(config: TrainConfig, processes: int = 1) -> Iterator[Finding]:
    """Compare free memory with what processes take before they hold a network."""
    free, limit = free_memory(), memory_limit()
    need = processes * (_PROCESS_BYTES + config.workers * _WORKER_BYTES)
    told = f"{bytes_text(free)} free{'' if limit is None else ' within the limit of the container'}"
    who = "a training process" if processes == 1 else _each_of(processes)
    if free < need:
        yield warning(
            f"{told}; {who} with {config.workers} workers takes about "
            f"{bytes_text(need // processes)} beside its network",
            "fewer train.workers",
        )
    else:
        yield ok(told)


def shared_memory(config: TrainConfig, model: ModelConfig, processes: int = 1) -> Iterator[Finding]:
    """Compare the shared memory with the batches that loaders keep ready in it."""
    if not os.path.isdir(_SHM):
        yield ok("not by files")
        return
    status = os.statvfs(_SHM)
    free = status.f_bavail * status.f_frsize
    bytes_a_pixel = 4  # RGB and a mask
    batch = config.batch_size * model.input_size**2 * bytes_a_pixel
    need = processes * config.workers * (_PREFETCH + 1) * batch
    text = f"{bytes_text(free)} free in {_SHM}, loaders keep {bytes_text(need)} ready there"
    remedy = "docker run --shm-size=2g (or --ipc=host), fewer train.workers, or train.workers=0"
    if need > free:
        yield problem(f"{text}: workers would die of a bus error", remedy)
    elif 2 * need > free:
        yield warning(text + ", for each training process" * (processes == 1), remedy)
    else:
        yield ok(text)


def open_files() -> Iterator[Finding]:
    """Look at the limit of open files: batches from workers take one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024:
        yield warning(f"at most {soft} (hard limit {hard})", "ulimit -n 4096")
    else:
        yield ok(f"at most {soft}")


def folders(config: TrainConfig) -> Iterator[Finding]:
    """Check that the folders to write to can be written to, and have room."""
    temporary = tempfile.gettempdir()
    with tempfile.TemporaryFile() as file:
        file.write(bytes(2**20))
        file.flush()
        os.fsync(file.fileno())
    yield _room("temporary files", temporary, 1e9, "set TMPDIR to a folder with more room")
    if any(locate(one).remote for one in (*config.shards, *config.val_shards)):
        folder = os.path.expanduser(config.cache_dir)
        yield _room("train.cache_dir", folder, 10e9, "name another train.cache_dir")
    if config.save_dir is not None and not locate(config.save_dir).remote:
        remedy = "another --output; train.keep_last says how many checkpoints stay"
        yield _room("train.save_dir", config.save_dir, 5e9, remedy)


def _room(what: str, folder: str, enough: float, remedy: str) -> Finding:
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK):
        return problem(f"{what}: {folder} cannot be written to", remedy)
    free = shutil.disk_usage(there).free
    text = f"{what}: {bytes_text(free)} free in {folder}"
    return warning(text, remedy) if free < enough else ok(text)


def hub(model: ModelConfig) -> Iterator[Finding]:
    """Return whether the network's weights are at hand, or have to be fetched first."""
    from huggingface_hub import constants, try_to_load_from_cache

    from ..model.registry import is_random

    name = model.name
    if is_random(name) or os.path.exists(name):
        yield ok(f"{name} needs no network")
        return
    if locate(name).remote:
        yield ok(f"{name} is fetched from its store")
        return
    files = ("model.safetensors", "pytorch_model.bin")
    cached = [isinstance(try_to_load_from_cache(name, file), str) for file in files]
    offline = constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "") in ("1", "ON")
    where = f"{name} is not in {constants.HF_HUB_CACHE}"
    if any(cached):
        yield ok(f"{name} is in {constants.HF_HUB_CACHE}")
    elif offline:
        yield problem(
            f"{where}, and HF_HUB_OFFLINE forbids to fetch it",
            f"'hf download {name}' where there is a network, or model.name=segformer-b0 (random)",
        )
    else:
        yield warning(f"{where}: the first run fetches it", f"'hf download {name}' fetches it now")


def cpu_quota() -> float | None:
    """Return the cores that control groups grant this process, None without a limit.

    Source: Linux, "Control Group v2", cpu.max; "CFS Bandwidth Control" for version 1.
    """
    found = []
    for text in _limits("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            found.append(int(quota) / int(period or 100_000))
    for folder in ("cpu", "cpu,cpuacct"):
        microseconds = _read(_CGROUP / folder / "cpu.cfs_quota_us")
        of = _read(_CGROUP / folder / "cpu.cfs_period_us")
        if microseconds and of and int(microseconds) > 0:
            found.append(int(microseconds) / int(of))
    return min(found, default=None)


def free_memory() -> int:
    """Return the bytes that this process may still take."""
    content = (_PROC / "meminfo").read_text()
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", content, re.MULTILINE))
    free, limit = int(kilobytes["MemAvailable"]) * 1024, memory_limit()
    return free if limit is None else min(free, limit)


def memory_limit() -> int | None:
    """Return the bytes that control groups still grant this process, None without a limit."""
    found = []
    for limit, used in zip(_limits("memory.max"), _limits("memory.current"), strict=False):
        if limit != "max":
            found.append(int(limit) - int(used))
    most = _read(_CGROUP / "memory" / "memory.limit_in_bytes")
    if most and int(most) < 2**60:  # no limit is a number near 2^63
        found.append(int(most) - int(_read(_CGROUP / "memory" / "memory.usage_in_bytes") or 0))
    return max(0, min(found)) if found else None


def _each_of(processes: int) -> str:
    return "each training process" if processes == 1 else f"each of {processes} processes"


def _limits(name: str) -> Iterator[str]:
    """Yield a file of version 2, of this process's group and of all groups above it."""
    lines = (_read(_PROC / "self" / "cgroup") or "").splitlines()
    group = next((line[3:] for line in lines if line.startswith("0::")), "/").strip("/")
    folder = _CGROUP / group
    while True:
        text = _read(folder / name)
        if text is not None:
            yield text
        if folder == _CGROUP or _CGROUP not in folder.parents:
            return
        folder = folder.parent


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver; None where there is none."""
    told = _read(_PROC / "driver" / "nvidia" / "version") or ""
    if match := re.search(r"\b\d{3,}\.[\d.]+", told):
        return match[0]
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    ran = subprocess.run(query, capture_output=True, text=True, timeout=60)  # noqa: S603
    return ran.stdout.split("\n")[0].strip() or None if ran.returncode == 0 else None


def _why_no_cuda() -> str:
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "torch does not say why"
