"""A Slurm cluster on loopback, of a node or more, from Debian's packages, in its own folder."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from egogen import layout

PROJECT = Path(__file__).resolve().parents[1]
SMALL_JOBS = {
    "LEGO_GPUS": "0",
    "LEGO_CPUS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHON": sys.executable,
}
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
CONF = """
ClusterName=lego
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
FirstJobId={first_job}
KillWait=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
ACTIVE = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"}
# Every node is this machine, at a port of its own.
NODE = (
    "NodeName={name} NodeAddr=127.0.0.1 Port={port}"
    " CPUs={cores} SocketsPerBoard=1 CoresPerSocket={cores} RealMemory={memory}\n"
)


def missing() -> str | None:
    """Why no cluster can be started here; None when one can."""
    absent = [name for name in NEEDED if shutil.which(name, path=search_path()) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)} missing)"
    return None if os.geteuid() == 0 else "starting Slurm needs root"


def search_path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """`with Cluster(folder) as cluster: cluster.run(["squeue"])`; what it started, it stops.

    Two CPUs and 4,000 MB are shared by the nodes. The first node has a name that resolves, as on a
    cluster: the processes of a job meet there.
    """

    def __init__(self, folder: Path, nodes: int = 1):
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self.nodes = [self.host, *(f"{self.host}-{number}" for number in range(2, nodes + 1))]
        self.started: list[subprocess.Popen] = []
        self.environment = dict(
            os.environ, SLURM_CONF=str(folder / "slurm.conf"), PATH=search_path()
        )

    def __enter__(self) -> Cluster:
        (self.folder / "state").mkdir()
        # munged wants no folder above its socket that others may write to
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        # Logs are named by jobs and kept: no job has the number of an earlier cluster's.
        numbers = {"controller_port": free_port(), "first_job": int(time.time()) % 60_000_000 + 1}
        conf = CONF.format(folder=self.folder, host=self.host, **numbers)
        count = len(self.nodes)
        shares = {"cores": max(1, 2 // count), "memory": 4000 // count}
        conf += "".join(NODE.format(name=n, port=free_port(), **shares) for n in self.nodes)
        (self.folder / "slurm.conf").write_text(conf)
        version = subprocess.check_output(["slurmd", "-V"], env=self.environment, text=True)
        if int(re.search(r"\d+", version)[0]) >= 24:  # asks for cgroups, which a container may lack
            (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
        for flag, name in (("socket", "munge.socket"), ("pid-file", "munge.pid")):
            munge.append(f"--{flag}={self.folder / name}")
        munge += [f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed"]
        try:
            self._start(munge)
            self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start(["slurmctld", "-D"])
            for name in self.nodes:
                self._start(["slurmd", "-D", "-N", name])
            self._wait(self._idle, "slurmd")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        try:  # jobs of a test that failed would outlive the cluster
            self.run(["scancel", "--me"])
            self._wait(lambda: not set(self.states().values()) & ACTIVE, "the end of the jobs")
        finally:
            self._stop()

    def _stop(self) -> None:
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, line: Sequence[str]) -> None:
        with open(self.folder / f"{line[0]}.out", "ab") as output:
            self.started.append(
                subprocess.Popen(line, stdout=output, stderr=output, env=self.environment)
            )

    def _idle(self) -> bool:
        result = self.run(["sinfo", "-h", "-N", "-o", "%T"], check=False)
        return result.returncode == 0 and result.stdout.split() == ["idle"] * len(self.nodes)

    def _wait(self, there, what: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not there():
            ended = [process.args[0] for process in self.started if process.poll() is not None]
            if ended or time.monotonic() > end:
                logs = "\n".join(
                    f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}"
                    for path in sorted(self.folder.glob("*.log"))
                )
                raise RuntimeError(f"{what} does not come up (ended: {ended})\n{logs}")
            time.sleep(0.1)

    def run(self, line: Sequence[str], check: bool = True, **environment: str):
        """Run a command of the cluster's, or one that submits to it."""
        return subprocess.run(
            line,
            env=self.environment | environment,
            check=check,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def states(self) -> dict[str, str]:
        """Job (or JOB_TASK) -> state, of all jobs that Slurm still knows."""
        shown = self.run(["squeue", "-h", "-t", "all", "-r", "-o", "%i %T"]).stdout
        return dict(line.split() for line in shown.splitlines())

    def places(self, job: str) -> dict[str, str]:
        """JOB, or JOB_TASK -> the nodes that it is or was on; "" while it waits."""
        shown = self.run(["squeue", "-h", "-t", "all", "-r", "-o", "%i %N", "-j", job]).stdout
        return dict(line.split(" ") for line in shown.splitlines())

    def wait_for(self, job: str, seconds: float = 1500) -> dict[str, str]:
        """Wait until all of a job's tasks have ended -> their states."""
        end = time.monotonic() + seconds
        while True:
            mine = {name: s for name, s in self.states().items() if name.split("_")[0] == job}
            if mine and not set(mine.values()) & ACTIVE:
                return mine
            if time.monotonic() > end:
                raise TimeoutError(f"job {job} has not ended: {mine}")
            time.sleep(0.3)


def describe_words(root: Path, model: Path, out: Path) -> list[object]:
    """The script that describes split val of `root` by `model` into `out`, as an array job."""
    return [
        *("vllm/scripts/sbatch_inference.sh", "--model_path", model),
        *("--image_dir", layout.frame_folder(root, "ego4d", "val")),
        *("--action_label", layout.action_file(root, "ego4d", "val")),
        *("--save_path", out / "described" / "val"),
        *("--save_image_feature_path", out / "image"),
        *("--save_text_feature_path", out / "text"),
    ]


def describe_alone(root: Path, out: Path) -> Path:
    """Describe the same split by the model in `root/vllm`, in one process; -> its file."""
    result = subprocess.run(
        [sys.executable, "-m", "llava.eval.run_llava_in_loop", "--model-path", root / "vllm"]
        + ["--image-dir", layout.frame_folder(root, "ego4d", "val"), "--batch-size", "8"]
        + ["--action-label", layout.action_file(root, "ego4d", "val"), "--dataset", "ego4d"]
        + ["--save-path", out / "x" / "val", "--max-new-tokens", "30"]
        + ["--save-image-feature-path", out / "image"]
        + ["--save-text-feature-path", out / "text"],
        env=dict(os.environ, PYTHONPATH=f"{PROJECT}:{PROJECT / 'vllm'}"),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (written,) = (out / "x" / "val").glob("*_1.json")
    return written


def logs(kind: str, job: str) -> str:
    """What the tasks of a job said: "describe", "merge" or "tune", "generate" or "train"."""
    folder = PROJECT / ("logs/out" if kind in ("generate", "train") else "vllm/out/logs")
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"{kind}_{job}*.log")))
