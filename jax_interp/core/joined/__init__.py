"""The processes of one run find each other, and end together.

    hub.py        a thread of process 0 that every process is connected to
    member.py     the connection of one process to the hub
    relay.py      a small program beside each process, through which JAX reaches its coordinator
    cluster.py    what the environment of a cluster says: the coordinator, the number of processes, the own index
    join.py       `join_processes`, which puts them together

JAX has a coordinator of its own. If it dies, or if a process dies, JAX aborts the other processes from a C++ thread,
with a stack trace. With the hub they end before that, each with one line that says why and what to do.
"""

from jax_interp.core.joined.member import Ended, Member, joined

__all__ = ["Ended", "Member", "joined"]
