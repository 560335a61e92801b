"""The lanes trace of a guest that changes its page table: what reaches the hypervisor, and why.

`record_shadow` plays a list of things that the guest does, each one instruction, and tells what
each of them came to: nothing, if the processor did it alone; or a VM exit, what the hypervisor
did about it, and the entry. In place of registers stand three facts: what the guest's entry says
of the page in question, where the processor would go, and whether the table can be written unseen.
"""

import platform
from collections.abc import Mapping, Sequence

from vmlib.errors import BadInput
from vmlib.given import names_bad_input
from vmlib.memory.shadow.guest import LETTERS, NESTED, ShadowGuest
from vmlib.memory.shadow.strategy import Forget, Strategy
from vmlib.trace import Provenance, Recorder, Trace

GUEST, KERNEL = "guest kernel", "host kernel"
Deed = tuple[str, int, str]
"""What the guest does (a name that `ShadowGuest.do` knows), to which page, with which letter."""

_SAID = {
    "read": "The guest reads page {page}.",
    "write": "The guest writes to page {page}.",
    "move": "The guest writes the entry of page {page}: it shall be frame {letter}.",
    "unmap": "The guest writes the entry of page {page}: it shall not be there.",
    "invlpg": "The guest invalidates page {page}.",
    "load cr3": "The guest loads CR3.",
}
_CODE = {
    "read": "mov al, [page {page}]",
    "write": "mov [page {page}], '{letter}'",
    "move": "mov [entry {page}], frame {letter}",
    "unmap": "mov [entry {page}], 0",
    "invlpg": "invlpg [page {page}]",
    "load cr3": "mov cr3, rax",
}
_HANDLED = {
    "filled": "It finds the page by the guest's own tables, and makes the shadow entry.",
    "dirty": "It was the first write to a clean page: D is set, and the shadow entry lets it pass.",
    "emulated": "The table is write-protected. It writes the entry for the guest, and drops the "
    "shadow entry.",
    "unsync": "It marks the table as unsync and makes it writable: the next writes are not seen.",
    "injected": "The guest's tables say no: the fault is the guest's own, and it is given back.",
    "mmio": "There is no memory: a device is asked.",
    "invlpg": "It drops what the shadow has for this page.",
    "cr3": "It compares what is unsync with the guest's table, and write-protects it again.",
}
_FORGOTTEN = {
    ("emulated", "write"): "It writes the entry for the guest, and leaves the shadow as it was.",
    ("invlpg", "invlpg"): "It goes on: what the shadow has for this page stays.",
    ("cr3", "cr3"): "It goes on: nothing is compared, and what is unsync stays so.",
}
"""What is said of a trap whose duty is left undone, by trap and duty."""
_REASON = {"invlpg": "INVLPG", "cr3": "write CR3"}
_WHY = {
    "filled": "the shadow has no entry for this page.",
    "dirty": "the shadow entry does not allow a write.",
    "emulated": "the page that holds the table may not be written.",
    "unsync": "the page that holds the table may not be written.",
    "injected": "the shadow has no entry for this page.",
    "mmio": "the shadow has no entry for this page.",
    "invlpg": "INVLPG is intercepted.",
    "cr3": "a load of CR3 is intercepted: it must never reach the real one.",
}
_AGAIN = ("filled", "dirty", "unsync")


@names_bad_input
def batch(pages: int, *, each: bool = False) -> tuple[Deed, ...]:
    """Return what a guest does that gives so many pages another frame, and then reads them.

    The translations are invalidated one by one (`each`), or all at once by a load of CR3. Raises
    `BadInput` for more pages than half of the guest's frames.
    """
    if not 1 <= pages <= len(LETTERS) // 2:
        raise BadInput("pages", f"are 1 to {len(LETTERS) // 2}, not {pages}")
    deeds: list[Deed] = []
    for page in range(pages):
        deeds.append(("move", page, LETTERS[page + pages]))
        if each:
            deeds.append(("invlpg", page, ""))
    if not each:
        deeds.append(("load cr3", 0, ""))
    return (*deeds, *(("read", page, "") for page in range(pages)))


@names_bad_input
def record_shadow(
    strategy: Strategy, deeds: Sequence[Deed], *, forget: Forget | None = None
) -> Trace:
    """Return the trace of a guest's deeds under a strategy (`NESTED` is one).

    `forget` is the duty that its hypervisor leaves undone. Raises `BadInput` for no deeds, and for
    what a guest does not do.
    """
    if not deeds:
        raise BadInput("deeds", "must be something that the guest does")
    scribe = _Scribe(ShadowGuest(strategy, forget=forget), deeds, forget)
    for line in range(len(deeds)):
        scribe.play(line)
    origin = Provenance(
        "vmlib.memory",
        {"Python": platform.python_version()},
        f"{platform.system()} {platform.machine()}",
    )
    return scribe.recorder.finish(origin)


class _Scribe:
    """Plays the deeds and writes down what came of each."""

    def __init__(self, guest: ShadowGuest, deeds: Sequence[Deed], forget: Forget | None) -> None:
        self.guest = guest
        self._forget = forget
        title = (
            f"Who hears of it, under {guest.strategy.name}, when a guest changes its page table?"
        )
        self.recorder = Recorder("lanes", title)
        for counter in ("instructions", "finished in the kernel"):
            self.recorder.count(counter, 0)
        # Where the processor goes by itself; without shadow tables, that is all there is to say.
        self._way = "processor" if guest.strategy is NESTED else "shadow"
        self._deeds = deeds
        self._code = [[str(n), "", _words(_CODE, deed)] for n, deed in enumerate(deeds)]
        self._page = deeds[0][1]
        self._line = -1
        self._read = ""
        text = "The hypervisor's kernel enters the guest, which has used all its pages before."
        self._note(KERNEL, "entry", text, self._facts(), (KERNEL, GUEST))

    def play(self, line: int) -> None:
        """Let the guest do one thing."""
        deed = self._deeds[line]
        what, page, letter = deed
        self._line = line
        if what != "load cr3":
            self._page = page
        before, traps = self._facts(), self.guest.pager.traps.copy()
        got, _ = self.guest.do(what, page, letter)
        after, trapped = self._facts(), self.guest.pager.traps - traps
        self.recorder.count("instructions")
        result = f" It gets {got}." if got else ""
        if not trapped:
            self._read += got if len(got) == 1 else ""
            self._note(GUEST, "instruction", _words(_SAID, deed) + result, self._facts())
            return
        [trap] = trapped
        reason = _REASON.get(trap, "page fault")
        self.recorder.count("finished in the kernel")
        self._note(GUEST, "instruction", f"{_words(_SAID, deed)} It is stopped.", before)
        text = f"VM exit: {_WHY[trap]}"
        self._note(KERNEL, "exit", text, before, (GUEST, KERNEL), reason)
        # A page fault that was mended is tried again, and only then does the write happen.
        mended = [before[0], *after[1:]] if trap == "unsync" else after
        done = _FORGOTTEN.get((trap, self._forget or ""), _HANDLED[trap])
        self._note(KERNEL, "handled", done, mended)
        self._read += got if len(got) == 1 else ""
        again = " The instruction is tried again, and passes." if trap in _AGAIN else ""
        text = f"The guest is entered.{again}{result}"
        self._note(KERNEL, "entry", text, self._facts(), (KERNEL, GUEST))

    def _facts(self) -> list[list[str]]:
        page = self._page
        return [
            [f"entry {page}", self.guest.guest_says(page)],
            [f"{self._way} {page}", self.guest.shadow_says(page)],
            ["table", "writable" if self.guest.table_is_writable(page) else "protected"],
            ["read", self._read or "–"],
        ]

    def _note(
        self,
        where: str,
        event: str,
        text: str,
        facts: list[list[str]],
        crossing: tuple[str, str] | None = None,
        reason: str = "",
    ) -> None:
        state = {
            "crossing": list(crossing) if crossing else None,
            "registers": facts,
            "code": self._code,
            "line": self._line,
            "exit": {"reason": reason, "detail": ""} if reason else None,
            "output": "",
        }
        self.recorder.step(where, event, text, state)


def _words(table: Mapping[str, str], deed: Deed) -> str:
    what, page, letter = deed
    if what not in table:
        raise BadInput("deeds", f"{what!r} is nothing that this guest does")
    return table[what].format(page=page, letter=letter)
