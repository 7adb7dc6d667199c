"""A Slurm cluster of one node on loopback, from Debian's packages, in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
CONF = """
ClusterName=lego
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 SocketsPerBoard=1 CoresPerSocket=2 RealMemory=4000
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


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
    """`with Cluster(folder) as cluster: cluster.run(["squeue"])`; what it started, it stops."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self.started: list[subprocess.Popen] = []
        self.environment = dict(
            os.environ, SLURM_CONF=str(folder / "slurm.conf"), PATH=search_path()
        )

    def __enter__(self) -> Cluster:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        # munged wants no folder above its socket that others may write to
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        ports = {"controller_port": free_port(), "node_port": free_port()}
        conf = CONF.format(folder=self.folder, host=self.host, **ports)
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
            self._start(["slurmd", "-D", "-N", self.host])
            self._wait(self._idle, "slurmd")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, line: Sequence[str]) -> None:
        with open(self.folder / f"{line[0]}.out", "wb") as output:
            self.started.append(
                subprocess.Popen(line, stdout=output, stderr=output, env=self.environment)
            )

    def _idle(self) -> bool:
        result = self.run(["sinfo", "-h", "-o", "%T"], check=False)
        return result.returncode == 0 and result.stdout.strip() == "idle"

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

    def wait_for(self, job: str, seconds: float = 300) -> dict[str, str]:
        """Wait until all of a job's tasks have ended -> their states."""
        end = time.monotonic() + seconds
        while True:
            mine = {name: s for name, s in self.states().items() if name.split("_")[0] == job}
            if mine and not set(mine.values()) & {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"}:
                return mine
            if time.monotonic() > end:
                raise TimeoutError(f"job {job} has not ended: {mine}")
            time.sleep(0.3)
