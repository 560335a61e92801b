import threading

import pytest

from vmlib.__main__ import main
from vmlib.cpu import (
    ENGINES,
    BudgetSpent,
    Guest,
    Halt,
    IoIn,
    IoOut,
    Kicked,
    Mmio,
    add_guest,
    load_guest,
)
from vmlib.errors import BadInput
from vmlib.machine import COM1, Board, Machine
from vmlib.trace import Trace

pytestmark = pytest.mark.needs("unicorn")
engines = pytest.mark.parametrize(
    "engine", [pytest.param(x, marks=pytest.mark.needs(x)) for x in ENGINES]
)


def test_a_machine_runs_a_guest_to_its_end():
    with Machine() as machine:
        outcome = machine.load(add_guest(7, 5)).run()
    assert outcome.output == b"12\n"
    assert outcome.last == Halt()
    assert outcome.counts == {"IO": 3, "HLT": 1}


def test_it_can_be_loaded_again():
    with Machine() as machine:
        for a, printed in ((1, b"2\n"), (99, b"100\n"), (3, b"4\n")):
            assert machine.load(add_guest(a, 1)).run().output == printed


def test_a_recording_shows_the_output_of_its_own_guest_alone():
    with Machine() as machine:
        machine.load(add_guest(200, 100)).run()
        trace = machine.load(add_guest(2, 2)).record()
    assert trace.steps[-1].state["output"] == "4\n"


@engines
def test_loading_sets_the_interrupt_controller_back(engine):
    """mov al, 0xfe; out 0x21, al; out 0xf4, al. Then in al, 0x21; out 0xf4, al: the mask."""
    with Machine(engine, irqchip=True) as machine:
        assert machine.load(bytes.fromhex("b0 fe e6 21 e6 f4")).run().status == 0xFD
        assert machine.load(bytes.fromhex("e4 21 e6 f4")).run().status == 1


def test_labs_have_a_budget_by_default():
    with Machine(budget="50ms") as machine:
        assert isinstance(machine.load(b"\xeb\xfe").run().last, BudgetSpent)
    assert Machine()._budget.seconds == 2


def test_nothing_loaded():
    with Machine() as machine, pytest.raises(BadInput, match="no guest yet; call load"):
        machine.run()


def test_other_ports_are_nobodys():
    code = bytes.fromhex("e4 60 ba f8 03 ee e6 80 f4")  # in al, 0x60; out 0x3f8; out 0x80; hlt
    with Machine() as machine:
        assert machine.load(code).run().output == b"\xff"


def test_a_recording_stands_on_its_own():
    with Machine() as machine:
        trace = machine.load(add_guest(200, 100)).record("Title.")
    assert Trace.from_json(trace.to_json()) == trace
    assert trace.provenance.guest_sha256 == add_guest().sha256
    assert trace.counters["exits to user space"] == 4
    last = trace.steps[-1]
    assert (last.where, last.event, last.state["output"]) == ("host user", "return", "44\n")
    assert last.state["exit"] == {"reason": "HLT", "detail": ""}
    assert all(step.text.endswith((".", "?")) for step in trace.steps)


def test_a_recording_that_would_not_end():
    with Machine() as machine:
        trace = machine.load(b"\xeb\xfe").record(limit=40)
    assert len(trace.steps) == 41
    assert trace.steps[-1].event == "end"
    assert trace.steps[-1].text == "The recording ends after 40 steps."


def test_a_recording_ends_with_the_guest_that_misbehaves():
    with Machine() as machine:
        trace = machine.load(bytes.fromhex("b8 00 f0 8e d8 a2 00 00")).record()
    assert trace.steps[-1].state["exit"]["reason"] == "MMIO"


def test_a_guest_goes_where_it_wants_to_be():
    with Machine() as machine:
        assert machine.load(load_guest("modes")).run().output == b"RPLfF\n"
        with pytest.raises(BadInput, match=r"modes runs at 0x1000 only, not at 0x2000"):
            machine.load(load_guest("modes"), at=0x2000)


def test_a_multiboot_guest_is_loaded_as_one():
    with Machine(ram="8M") as machine:
        ran = machine.load(load_guest("multiboot")).run()
        assert ran.status == 33
        assert ran.output.endswith(b"RAM in KiB: 8192\n")
        again = machine.load_multiboot(load_guest("multiboot").code).run()
        assert (again.status, again.output) == (33, ran.output)


def test_a_multiboot_kernel_from_a_file(tmp_path):
    path = tmp_path / "kernel.elf"
    path.write_bytes(load_guest("multiboot").code)
    with Machine(ram="2M") as machine:
        assert machine.load_multiboot(path).run().status == 33
        assert (machine.guest.name, machine.guest.sha256) == (
            "kernel.elf",
            load_guest("multiboot").sha256,
        )


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("fa f4", 0),
        ("fb f4", None),
        ("eb fe", 125),
        ("b0 03 e6 f4 eb fe", 7),
        ("0f 01 1e 00 20 0f 20 c0 0c 01 0f 22 c0 0f 0b", 124),
        ("b8 00 f0 8e d8 a2 00 00", None),
    ],
)
def test_the_status_says_how_it_ended(code, status):
    with Machine(budget="50ms") as machine:
        ran = machine.load(bytes.fromhex(code)).run()
        assert ran.status == status
        assert machine.last == ran.last


def test_the_debug_exit_of_one_guest_is_not_that_of_the_next():
    with Machine() as machine:
        assert machine.load(bytes.fromhex("b0 03 e6 f4")).run().status == 7
        assert machine.load(b"\xfa\xf4").run().status == 0


def test_the_exits_guest_makes_one_of_each():
    with Machine(open_bus=True) as machine:
        exits = list(machine.load(load_guest("exits")).exits())
        assert exits[-1] == Halt()
        ports = [one for one in exits if one.reason == "IO"]
        assert IoIn(0x3FD, 1) in ports
        assert b"".join(one.data for one in ports if not isinstance(one, IoIn))[:5] == b"OUTS "
        written = (0x0741).to_bytes(2, "little")
        assert [one for one in exits if isinstance(one, Mmio)] == [
            Mmio(0xB8000, 2, written),
            Mmio(0xB8000, 2, None),
        ]
        machine.vcpu.inject(0x20)
        assert [one.reason for one in machine.exits()] == ["IO", "IO", "IO", "HLT"]


def test_memory_where_nobody_is_ends_the_run_or_reads_as_ones():
    code = bytes.fromhex("b8 00 b8 8e d8 a0 00 00 ba f8 03 ee f4")
    with Machine() as machine:
        assert machine.load(code).run().last == Mmio(0xB8000, 1, None)
    with Machine(open_bus=True) as machine:
        assert machine.load(code).run().output == b"\xff"
        assert machine.board.memory.stray_reads == 1


class Screen:
    """Remembers what is written to it."""

    name, widest = "the screen", 2

    def __init__(self):
        self.cells = {}

    def read(self, offset, size):
        return self.cells.get(offset, 0)

    def write(self, offset, size, value):
        self.cells[offset] = value

    def reset(self):
        self.cells.clear()


def test_a_reader_may_attach_a_device():
    screen = Screen()
    with Machine() as machine:
        machine.board.memory.attach(screen, 0xB8000, 4000)
        machine.load(load_guest("exits")).run()
        assert screen.cells == {0: 0x0741}


def test_string_output_in_items_of_two_bytes():
    # mov si, 0x100d; mov dx, 0x80; mov cx, 2; cld; rep outsw; hlt; the words
    code = bytes.fromhex("be 0d 10 ba 80 00 b9 02 00 fc f3 6f f4 11 22 33 44")
    seen = []

    class Port(Screen):
        def write(self, offset, size, value):
            seen.append((size, value))

    with Machine() as machine:
        machine.board.ports.attach(Port(), 0x80, 2)
        machine.load(code).run()
    assert seen == [(2, 0x2211), (2, 0x4433)]


@engines
def test_string_input_of_several_items_in_one_exit_or_more(engine):
    """mov dx, 0x510; out dx, ax (AX is 0); inc dx; mov di, 0x2000; mov cx, 4; rep insb; hlt.

    fw_cfg's item 0 is its signature. KVM asks for all four bytes at once.
    """
    with Machine(engine) as machine:
        machine.load(bytes.fromhex("ba 10 05 ef 42 bf 00 20 b9 04 00 f3 6c fa f4"))
        assert machine.run().status == 0
        assert machine.ram.read(0x2000, 5) == b"QEMU\0"


def test_a_board_serves_the_items_of_one_exit_in_order():
    sent = bytearray()
    board = Board(0x10000, sent.extend)
    assert board.serve(IoOut(0x510, 2, b"\5\0\0\0")) is None  # NB_CPUS, then the signature
    assert board.serve(IoIn(0x511, 1, 4)) == b"QEMU"
    assert board.serve(IoOut(COM1, 1, b"abc")) is None
    assert sent == b"abc"


def test_what_arrives_waits_until_the_guests_access_is_done():
    """One access after the other at the serial port, whichever thread makes it."""

    def console(_):
        arriving.start()
        arriving.join(0.2)  # as long as it could take: it has to wait for this very access
        waits.append(arriving.is_alive())

    waits = []
    board = Board(0x10000, console)
    arriving = threading.Thread(target=board.receive, args=(b"x",))
    board.serve(IoOut(COM1, 1, b"a"))
    arriving.join()
    assert waits == [True]
    assert board.serve(IoIn(COM1, 1)) == b"x"


def test_an_irqchip_keeps_the_controllers_ports_and_the_halt_inside():
    """The same guest: without, HLT and each OUT to the controller are exits; with, none is."""
    with Machine(irqchip=True, open_bus=True, budget="20s") as machine:
        machine.load(load_guest("exits"))
        over = threading.Event()

        def timer():  # a PC's timer, quicker
            while not over.wait(0.002):
                machine.set_irq(0, True)
                machine.set_irq(0, False)

        ticking = threading.Thread(target=timer)
        ticking.start()
        heard = b""
        for one in machine.exits():
            heard += one.data if getattr(one, "port", 0) == 0x3F8 else b""
            if heard.endswith(b"\n"):
                machine.vcpu.kick()  # the last HLT would sleep for ever
        over.set()
        ticking.join()
        assert machine.last == Kicked()
        assert heard == b"OUTS !\n"
        assert machine.vcpu.exits["HLT"] == 0
        assert machine.vcpu.exits["IO"] == 8  # seven letters and the line status


@engines
def test_an_msr_that_was_asked_for_and_is_not_modelled_is_refused(engine):
    """RDMSR faults, and the handler of vector 13 halts."""
    with Machine(engine) as machine:
        machine.load(bytes.fromhex("66 b9 80 00 00 c0 0f 32 eb fe"))
        machine.ram.write(0x100, b"\xfa\xf4")
        machine.ram.write(13 * 4, (0x100).to_bytes(4, "little"))
        machine.vcpu.intercept("msr")
        ran = machine.run()
        assert [one.reason for one in ran.exits] == ["X86_RDMSR", "HLT"]


@pytest.mark.parametrize("asked", [True, False])
def test_a_hypercall_gets_kvms_answer_whoever_gives_it(asked):
    """vmmcall; hlt: nobody knows the call, -KVM_ENOSYS (linux/kvm_para.h)."""
    with Machine() as machine:
        machine.load(bytes.fromhex("0f 01 d9 fa f4"))
        if asked:
            machine.vcpu.intercept("hypercall")
        assert machine.run().counts == ({"HYPERCALL": 1, "HLT": 1} if asked else {"HLT": 1})
        assert machine.vcpu.registers().rax == (1 << 64) - 1000


def test_a_machine_that_is_asked_by_cpuid_announces_nothing():
    """or eax, -1; mov ebx, eax; mov edx, eax; xor ecx, ecx; cpuid; hlt."""
    with Machine() as machine:
        machine.load(bytes.fromhex("66 83 c8 ff 66 89 c3 66 89 c2 66 31 c9 0f a2 fa f4"))
        machine.vcpu.intercept("cpuid")
        assert machine.run().counts == {"CPUID": 1, "HLT": 1}
        after = machine.vcpu.registers()
    assert (after.rax, after.rbx, after.rcx, after.rdx) == (0, 0, 0, 0)


def test_a_console_gets_the_bytes_as_they_come():
    heard = []
    with Machine(console=heard.append) as machine:
        assert machine.load(add_guest()).run().output == b""
    assert heard == [b"4", b"4", b"\n"]


def test_a_stopped_machine_can_go_on():
    with Machine() as machine:
        machine.load(bytes.fromhex("fb f4 b0 41 ba f8 03 ee fa f4"))
        machine.ram.write(0x20 * 4, (0x500).to_bytes(4, "little"))
        machine.ram.write(0x500, b"\xcf")  # iret
        assert machine.run().status is None
        machine.vcpu.inject(0x20)
        ran = machine.run()
        assert (ran.output, ran.status) == (b"A", 0)


def test_a_recording_names_the_device_and_shows_an_in_unfinished():
    code = bytes.fromhex("ba fd 03 ec ba 80 00 ee f4")  # in al, 0x3fd; out 0x80, al; hlt
    with Machine() as machine:
        steps = machine.load(code).record(registers=("AX",)).steps
    told = {step.text for step in steps if step.event == "device"}
    assert told == {
        "The VMM plays the serial port: it answers 0x60 '`' and calls KVM_RUN.",
        "The VMM finds no device at this port and calls KVM_RUN.",
    }
    by_event = [(step.event, dict(step.state["registers"])["AX"]) for step in steps]
    assert ("return", "0x0000") in by_event
    assert by_event[by_event.index(("device", "0x0000")) + 1] == ("entry", "0x0060")


def test_a_recording_shows_rings_and_no_data():
    with Machine() as machine:
        trace = machine.load(load_guest("rings")).record(registers=("RAX",), limit=4000)
    user = [step.text for step in trace.steps if step.where == "guest user"]
    at = 0x400000 + 0x1000 + load_guest("rings").line("user").offset
    assert user == [f"The guest executes the instruction at {at + k:#x}." for k in (0, 2)]
    assert trace.steps[-1].state["output"] == "S3G\n"
    shown = {text for _, _, text in trace.steps[0].state["code"]}
    assert "iretq" in shown
    assert not any(line.text in shown for line in load_guest("rings").listing if line.data)


def test_a_recording_shows_what_is_finished_inside():
    code = bytes.fromhex("b0 11 e6 20 fa b0 10 e6 f4")  # out 0x20, al; then the debug exit
    with Machine(irqchip=True) as machine:
        trace = machine.load(code).record()
        assert machine.last is not None
    handled = [step for step in trace.steps if step.event == "handled"]
    assert len(handled) == trace.counters["finished in the kernel"] == 1
    assert trace.counters["exits to user space"] == 1


def test_a_recording_of_memory_that_a_device_answers():
    with Machine() as machine:
        machine.board.memory.attach(Screen(), 0xB8000, 4000)
        trace = machine.load(bytes.fromhex("b8 00 b8 8e d8 a3 00 00 f4")).record()
    (device,) = (step for step in trace.steps if step.event == "device")
    assert device.text == "The VMM plays the screen: it takes 0xb800 and calls KVM_RUN."


def test_guests_without_a_listing_run_too():
    with Machine() as machine:
        assert machine.load(Guest("bare", b"\xfa\xf4", ())).record().counters["instructions"] == 2


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "unicorn  yes  Unicorn 2.1" in said
    assert "Tools for outside checks" in said


def test_a_recording_needs_room_for_a_step():
    with Machine() as machine:
        machine.load(add_guest(1, 2))
        with pytest.raises(BadInput, match="limit: is 2; it must be from 3"):
            machine.record("Title.", limit=2)
        machine.record("Title.", limit=3)
