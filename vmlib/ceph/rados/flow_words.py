"""The sentences of a recorded write, one for each thing that can happen in it.

What happens is found out in `vmlib.ceph.rados.flow`; here it is only said.
"""

from vmlib.ceph.rados import messages as m
from vmlib.ceph.rados.engine import Node


def title(kill: str | None, erasure: bool) -> str:
    """What the whole recording shows."""
    if kill == "replica":
        return "A replica dies with the write in its memory: the client waits, no more"
    if kill == "primary":
        return "The primary dies before it could answer: its replicas know what it knew"
    parts = "six chunks" if erasure else "three copies"
    return f"One write becomes {parts}, and the client hears of it last"


def write(event: str, target: Node, *, again: bool, done: bool) -> str:
    """The client's request; `done`: it stands in the log already."""
    if event == "sent":
        if again:
            return f"The client has a new map and sends the same request to {target}."
        return f"The client sends the write to {target}: its map says whom to ask."
    if done:
        return f"{target} finds this very request in its log: it is done already."
    return f"{target} is the primary and has the write."


def copy(event: str, target: Node, part: str) -> str:
    """What the primary sends on."""
    if event == "sent":
        return f"The primary sends {part} to {target}."
    return f"{target} has {part} in memory and hands it to its journal."


def reported(event: str, source: Node, target: Node, *, heard: bool, left: int) -> str:
    """A member says that it is on disk; the primary waits for `left` more."""
    if event == "arrived":
        rest = f"{left} to go" if left else "that was the last"
        return f"The primary hears from {source}: {rest}."
    if not heard:
        return f"{source} tells {target} that it is on disk. Nobody hears it."
    return f"{source} tells the primary that it is on disk."


def ack(event: str, source: Node) -> str:
    """The answer to the client."""
    if event == "sent":
        return f"Every member has it on disk. Now, and not before, {source} answers."
    return "The client has its ack: what it wrote is on every disk that serves."


def safe(osd: Node, part: str, *, leads: bool) -> str:
    """A journal has it."""
    extra = " It counts itself as one." if leads else ""
    return f"{osd} has {part} on disk: a crash can no longer take it.{extra}"


def talk(kind: type, source: Node, target: Node, dead: Node) -> str:
    """What is said while the cluster finds out who is left."""
    return {
        m.Failure: f"{source} reports {dead}: silent for longer than the grace.",
        m.Query: f"Peering: {source} leads now and asks {target} what it knows.",
        m.Notify: f"{target} learns what {source} has in its log.",
        m.Activate: f"{target} gets the history that all will go on from.",
        m.Activated: f"{source} has that history on disk.",
    }[kind]


def news(target: Node, epoch: int, dead: Node, leads: Node, *, first: bool) -> str:
    """A new map: the first without the dead, or the one that notes who is alive."""
    if first:
        return f"{target} gets a new map, epoch {epoch}: {dead} is down."
    return (
        f"{target} gets epoch {epoch}: the monitors have noted that {leads} is alive "
        "(`up_thru`). Without that it may not go on."
    )


def active(state: str, members: int) -> str:
    """The PG serves again, or is about to."""
    if "wait" in state:
        return (
            "The PG is active and waits: whoever does not know yet that he is out "
            "may read until his lease ends."
        )
    return f"The PG is {state.replace('+', ', ')}: requests go on with {members} members."
