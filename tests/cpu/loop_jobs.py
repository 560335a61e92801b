"""What the tests of the chapter on the vCPU loop run inside the box, and here in the same words."""

import re
import threading
from contextlib import contextmanager
from pathlib import Path

from vmlib.cpu import Budget, Halt, IoIn, IoOut, Mmio, open_vm
from vmlib.cpu.loop import DOORBELL, ENDING, LINE, RAM, VECTOR, loop_guest
from vmlib.devices import PicPair, pic
from vmlib.loop_trace import BLANK, READY

KVM_RUN = 0xAE80
IOCTL = 16  # the system call's number on x86-64


def sleeps(tid: int) -> int:
    """How often a thread of this process has gone to sleep, if it sleeps inside KVM_RUN, or 0."""
    thread = Path(f"/proc/self/task/{tid}")
    count = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", (thread / "status").read_text(), re.M)
    syscall = (thread / "syscall").read_text().split()
    asleep = syscall[0] == str(IOCTL) and int(syscall[2], 16) == KVM_RUN
    return int(count[1]) if asleep else 0


@contextmanager
def waking(vm, tid: int, times: int = 1):
    """Send an edge on the line each time that thread is found asleep in its guest anew."""
    over = threading.Event()

    def wake() -> None:
        woken = 0
        for _ in range(times):
            while not (now := sleeps(tid)) or now == woken:
                if over.wait(0.002):
                    return
            woken = now
            vm.set_irq(LINE, True)
            vm.set_irq(LINE, False)

    thread = threading.Thread(target=wake)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def run_loop(tries: str, irqchip: bool, ioeventfd: bool) -> dict:
    """Run the guest on KVM to its end; return its exits, its registers then, and the rings."""
    loop = loop_guest(tries)
    with open_vm("kvm", RAM) as vm:
        if irqchip:
            vm.create_irqchip()
        bell = vm.doorbell(DOORBELL, 2) if ioeventfd else None
        vcpu = vm.vcpu()
        vcpu.set_budget(Budget(seconds=20))
        vm.ram.write(loop.guest.at, loop.guest.code)
        vcpu.start_real_mode(loop.guest.at)
        with waking(vm, threading.get_native_id()):
            exits = run_to_the_end(vcpu)
        registers = vcpu.registers()
        return {
            "exits": [f"{one.reason} {one.detail}".strip() for one in exits],
            "registers": {n: registers.show(n) for n in ("EAX", "EBX", "ECX", "EDX", "IP")},
            "rang": bell.take() if bell else 0,
        }


def run_to_the_end(vcpu) -> list:
    """The outer loop, until the guest writes to the debug exit; return every exit."""
    controller, exits = PicPair(), []
    while not exits or getattr(exits[-1], "port", None) != ENDING:
        exits.append(vcpu.run())
        match exits[-1]:
            case IoOut(port=port, data=data) if port in (pic.PRIMARY, pic.PRIMARY + 1):
                controller.write(port, 1, data[0])
            case IoIn(size=size, count=count):
                vcpu.complete(READY * size * count)
            case Mmio(size=size, data=None):
                vcpu.complete(BLANK[:size])
            case Halt() if vcpu.registers().rflags & 1 << 9:
                controller.set_irq(LINE, True)
                vcpu.inject(controller.acknowledge())
            case IoOut() | Mmio() | Halt():
                pass
            case other:
                raise AssertionError(f"{other} after {exits}")
    return exits


# --- one instruction at a time ----------------------------------------------------------------

TOUCH = "a2 00 06"  # mov [0x600], al: the page of vectors and stack is there from now on
PIC_INIT = "b0 11 e6 20 b0 20 e6 21 b0 04 e6 21 b0 03 e6 21 b0 fe e6 21 fb"  # own EOI; sti
UNDEFINED = bytes.fromhex("55 89 e5 83 46 02 02 5d cf")  # handler: skip two bytes, iret
HANDLERS = 0x700  # on the same page
TIMES = 5

# What a guest does once, and what it does again and again.
INSTRUCTIONS = {
    "OUT to a port": ("ba f8 03", "ee"),
    "IN from a port": ("ba fd 03", "ec"),
    "REP OUTSB of three bytes": ("ba f8 03", "b9 03 00 f3 6e"),
    "OUT to a doorbell (ioeventfd)": ("ba 10 c0", "ef"),
    "OUT to the interrupt controller, irqchip": ("", "b0 fe e6 21"),
    "store where no RAM is (MMIO)": ("b8 00 b8 8e c0", "26 a3 00 00"),
    "load where no RAM is (MMIO)": ("b8 00 b8 8e c0", "26 8b 1e 00 00"),
    "HLT, no irqchip": ("fa", "f4"),
    "HLT, irqchip": (PIC_INIT, "f4"),
    "CPUID": ("", "66 31 c0 66 31 c9 0f a2"),
    "RDMSR of EFER": ("66 b9 80 00 00 c0", "0f 32"),
    "WRMSR of EFER": ("66 b9 80 00 00 c0 66 31 c0 66 31 d2", "0f 30"),
    "VMMCALL, unknown number": ("", "66 b8 16 20 00 00 0f 01 d9"),
    "UD2, handled by the guest": ("", "0f 0b"),
    "INT 0x21, handled by the guest": ("", "cd 21"),
    "MOV to CR3": ("66 b8 00 30 00 00", "0f 22 d8"),
    "first store to a page of RAM": ("", None),
    "store to RAM": ("", TOUCH),
}


def program(name: str, times: int) -> bytes:
    """The guest that does this so many times, and then says that it is over."""
    once, again = INSTRUCTIONS[name]
    if again is None:  # mov [0x4000], al; mov [0x5000], al; …
        again = " ".join(f"a2 00 {0x40 + 16 * k:02x}" for k in range(times))
        times = 1 if times else 0
    return bytes.fromhex(f"{TOUCH} {once} {again * times} e6 f4")


def repeat(engine: str, name: str, times: int) -> list[str]:
    """Run it; return the reasons for which KVM_RUN returned, the last one left out."""
    with open_vm(engine, RAM) as vm:
        if name.endswith(" irqchip") and "no" not in name:
            vm.create_irqchip()
        if "ioeventfd" in name:
            vm.doorbell(DOORBELL, 2)
        vcpu = vm.vcpu()
        vcpu.set_budget(Budget(seconds=20))
        vm.ram.write(0x1000, program(name, times))
        vm.ram.write(HANDLERS, UNDEFINED)
        for vector, handler in ((6, HANDLERS), (0x21, HANDLERS + 8), (VECTOR, HANDLERS + 8)):
            vm.ram.write(4 * vector, handler.to_bytes(4, "little"))
        vcpu.start_real_mode(0x1000)
        with waking(vm, threading.get_native_id(), times):
            return [one.reason for one in run_to_the_end(vcpu)[:-1]]
