"""A made-up trace of any length, for tests of how traces are drawn."""

from vmlib.trace import Provenance, Recorder, Trace

LISTING = [[f"0x{0x1000 + 2 * k:04x}", f"{k:02x} 90", f"mov ax, {k}"] for k in range(40)]


def make_trace(n: int = 42, *, engine: str = "kvm", kind: str = "lanes") -> Trace:
    """A loop that runs four instructions, leaves, is served and comes back; no guest behind it."""
    recorder = Recorder(kind, "A loop leaves the guest only to print", watch=("output",))
    beats = (
        ("run", "host user", ["host user", "host kernel"]),
        ("entry", "host kernel", ["host kernel", "guest kernel"]),
        *[("instruction", "guest kernel", None)] * 4,
        ("exit", "host kernel", ["guest kernel", "host kernel"]),
        ("handled", "host kernel", None),
        ("return", "host user", ["host kernel", "host user"]),
        ("device", "host user", None),
    )
    output = ""
    for i in range(n):
        event, where, crossing = beats[i % len(beats)]
        if event in ("instruction", "exit"):
            recorder.count({"instruction": "instructions", "exit": "exits IO"}[event])
        if event == "device":
            output += "\n" if i % 30 == 29 else chr(48 + i // 10 % 10)
        left = event in ("exit", "return", "device")
        state = {
            "crossing": crossing,
            "registers": [["AX", f"0x{i // 2:04x}"], ["IP", f"0x{0x1000 + 2 * (i % 40):04x}"]],
            "code": LISTING,
            "line": i % 40 if event == "instruction" else -1,
            "exit": {"reason": "IO", "detail": f"OUT 0x3f8 ← {i}"} if left else None,
            "output": output,
        }
        recorder.step(where, event, f"This is what step {i} says.", state)
    origin = Provenance(engine, {"Linux": "6.1"}, "a host", "ab" * 32, "2026-01-01")
    return recorder.finish(origin)
