"""Two hosts that share neither a network interface nor a disk: namespaces of the kernel, joined by a virtual cable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("joined_run.py")
# Each host has a network, a name and an empty disk at /mnt of its own.
HOSTS = """
set -e
mount --make-rprivate /
mount --bind "$FOLDER/hosts" /etc/hosts
ip link set lo up
hostname hosta
ip link add va type veth peer name vb
unshare -n -m -u sleep 250 &
b=$!
sleep 1
trap "kill $b" EXIT
on_b="nsenter -t $b -n -m -u"
ip link set vb netns $b
ip addr add 10.77.0.1/24 dev va
ip link set va up
$on_b ip addr add 10.77.0.2/24 dev vb
$on_b ip link set vb up
$on_b ip link set lo up
$on_b hostname hostb
mount -t tmpfs none /mnt
$on_b mount -t tmpfs none /mnt
timeout 240 $on_b $RUN 1 /mnt/run $STEPS every=10 >"$FOLDER/b.txt" 2>&1 &
other=$!
timeout 240 $RUN 0 /mnt/run $STEPS every=10 >"$FOLDER/a.txt" 2>&1
wait $other
ls /mnt/run/checkpoints >"$FOLDER/steps.txt"
$on_b ls /mnt >"$FOLDER/other.txt"
"""


def can_separate() -> bool:
    if not all(shutil.which(program) for program in ("unshare", "nsenter", "ip", "mount")):
        return False
    tried = "ip link add va type veth peer name vb && mount -t tmpfs none /mnt"
    return subprocess.run(["unshare", "-n", "-m", "-u", "sh", "-c", tried], capture_output=True).returncode == 0


@pytest.mark.slow
def test_two_hosts_with_their_own_disks_train_together(tmp_path):
    if not can_separate():
        pytest.skip("needs the right to make namespaces, and the programs unshare, nsenter, ip and mount")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 hosta\n10.77.0.2 hostb\n")
    variables = os.environ | {
        "FOLDER": str(tmp_path),
        "RUN": f"{sys.executable} {SCRIPT} 10.77.0.1:4555 2",
        "STEPS": "20",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    done = subprocess.run(
        ["unshare", "-n", "-m", "-u", "bash", "-c", HOSTS], env=variables, capture_output=True, text=True, timeout=280
    )
    said = done.stderr + (tmp_path / "a.txt").read_text() + (tmp_path / "b.txt").read_text()
    assert done.returncode == 0, said
    assert (tmp_path / "steps.txt").read_text().split() == ["00000010", "00000020"]
    assert (tmp_path / "other.txt").read_text() == "", "the second host has written a file"
