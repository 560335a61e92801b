"""The batch guest: thousands of single instructions in a row in ring 3, one exit at the end.

Every trial has a record in guest RAM. The guest loads all registers from it, jumps to the trial's
instruction, stores all registers back and goes to the next record. An instruction that faults comes
back through the guest's own IDT: ring 0 notes vector, error code, RIP and CR2, and returns behind
the instruction. Both engines run the same bytes at the same addresses, so that to compare them is
to compare RAM.

x87, MMX and SSE go in and out by FXRSTOR64 and FXSAVE64, as their area lies in the record. Left
out: segment registers; AVX and what lies above SSE in a vector register.
"""

import struct
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vmlib.cpu import Budget, Mmio, Registers, Segment, SystemRegisters, Table, Vm, open_vm

PAGE, WORD = 1 << 21, 8
# Guest-physical: ring 0's own, code that nobody may write, data that nobody may execute.
CODE_GPA, DATA_GPA, RAM = PAGE, 2 * PAGE, 7 * PAGE
# Guest-virtual, out of the way of small numbers; below 2 GiB, so that a disp32 reaches it.
CODE, DATA, DOOR = 0x10200000, 0x10400000, 0x11400000
SLOTS, SLOT = CODE + 0x1000, 64
RECORDS, RECORD = DATA + 0x1000, 0x400
BATCH = 8192

# A slot: a pad, the instruction with a jump behind it, another pad. A pad says that it was reached.
INSTRUCTION, PADS, BEHIND = 0x10, (0x00, 0x30), b"\xf4"  # HLT, which ring 3 may not
# A record: where things are in it. GPRs stand first, in the processor's order.
FLAGS, TARGET, VECTOR, ERROR, FAULT_RIP, CR2, PAD = range(0x80, 0xB8, WORD)
# Then the area of FXSAVE64 (Intel SDM vol. 1, 10.5.1): FCW, FSW and tags in its first word.
X87, POINTERS, MXCSR, ST, XMM, AREA_END, MEMORY = 0x100, 0x108, 0x118, 0x120, 0x1A0, 0x2A0, 0x300
_OLD = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
GPRS = (*_OLD, *(f"r{number}" for number in range(8, 16)))
NONE = (1 << 64) - 1
"""What stands for no exception, and in its fields for nothing."""

# The guest's variables, in the first page of its data.
_CURRENT, _END, _JUMP, _RBX, _BACK, _NOTES, _STACK = (DATA + 8 * k for k in (0, 1, 2, 3, 4, 8, 248))
_NOTED = (VECTOR, ERROR, FAULT_RIP, CR2, PAD)  # in this order from _NOTES on
_GDT, _IDT, _TSS, _TABLES, _KERNEL_STACK, _HANDLERS = 0x1000, 0x2000, 0x3000, 0x4000, 0x9000, 0xA000
_WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17)
_CODE0, _DATA0, _DATA3, _CODE3, _TASK = 0x08, 0x10, 0x1B, 0x23, 0x28
_NXE, _OSFXSR, _OSXMMEXCPT = 1 << 11, 1 << 9, 1 << 10
RAX, RBX, RSP = 0, 3, 4
DATA_END = DATA + RAM - DATA_GPA


class Code:
    """Machine code at a known address: the few forms of instructions that the guest is made of."""

    def __init__(self, at: int) -> None:
        self.at, self.code = at, b""

    @property
    def here(self) -> int:
        return self.at + len(self.code)

    def raw(self, text: str) -> None:
        self.code += bytes.fromhex(text)

    def at_rbx(self, opcode: int, reg: int, offset: int) -> None:
        """An instruction on 64 bits with `reg` and [rbx + offset]."""
        rex = 0x48 | (reg >> 3) << 2
        self.code += struct.pack("<BBBi", rex, opcode, 0x83 | (reg & 7) << 3, offset)

    def at_rip(self, opcode: int, reg: int, address: int, imm: bytes = b"") -> None:
        """An instruction on 64 bits with `reg` and what lies at `address`, RIP-relative."""
        end = self.here + 7 + len(imm)
        rex = 0x48 | (reg >> 3) << 2
        self.code += struct.pack("<BBBi", rex, opcode, 0x05 | (reg & 7) << 3, address - end) + imm

    def jump(self, address: int, opcode: str = "e9") -> None:
        opening = bytes.fromhex(opcode)
        self.code += opening + struct.pack("<i", address - self.here - len(opening) - 4)


LOAD, STORE = 0x8B, 0x89


def ring3() -> tuple[bytes, int]:
    """The loop over the records; returns its bytes and the address where a trial ends."""
    code = Code(CODE)
    code.at_rip(STORE, RBX, _CURRENT)
    for number in range(len(_NOTED)):  # nothing is noted yet
        code.at_rip(0xC7, 0, _NOTES + WORD * number, b"\xff" * 4)
    code.at_rbx(LOAD, RAX, TARGET)
    code.at_rip(STORE, RAX, _JUMP)
    code.raw("48 0f ae 8b" + struct.pack("<i", X87).hex())  # fxrstor64 [rbx + X87]
    code.at_rip(LOAD, RSP, _STACK)
    code.at_rbx(0xFF, 6, FLAGS)  # push [rbx + FLAGS]
    code.raw("9d")  # popfq; from here on nothing changes a flag
    for number in range(16):
        if number != RBX:
            code.at_rbx(LOAD, number, WORD * number)
    code.at_rbx(LOAD, RBX, WORD * RBX)
    code.at_rip(0xFF, 4, _JUMP)  # jmp [_JUMP]
    done = code.here
    code.at_rip(STORE, RBX, _RBX)
    code.at_rip(LOAD, RBX, _CURRENT)
    for number in range(16):
        if number != RBX:
            code.at_rbx(STORE, number, WORD * number)
    code.at_rip(LOAD, RSP, _STACK)
    code.raw("9c")  # pushfq
    code.at_rbx(0x8F, 0, FLAGS)  # pop [rbx + FLAGS]
    code.at_rip(LOAD, RAX, _RBX)
    code.at_rbx(STORE, RAX, WORD * RBX)
    code.raw("48 0f ae 83" + struct.pack("<i", X87).hex())  # fxsave64 [rbx + X87]
    for number, offset in enumerate(_NOTED):
        code.at_rip(LOAD, RAX, _NOTES + WORD * number)
        code.at_rbx(STORE, RAX, offset)
    code.raw("48 81 c3" + struct.pack("<i", RECORD).hex())  # add rbx, RECORD
    code.at_rip(0x3B, RBX, _END)  # cmp rbx, [_END]
    code.jump(CODE, "0f 85")  # jne: the next record
    code.at_rip(STORE, RBX, DOOR)  # outside RAM: leaves the guest
    return code.code, done


RING3, DONE = ring3()
# From a handler the way leads through an indirect jump: the emulator clears RF no sooner, and would
# show it in PUSHF (Intel SDM vol. 2B, PUSHF: the stored image has RF clear).
_FAULTED = CODE + len(RING3)
_landing = Code(_FAULTED)
_landing.at_rip(0xFF, 4, _BACK)


def ring0(vector: int) -> bytes:
    """The handler of a vector, which touches no register: note what came, go on behind it."""
    code = Code(_HANDLERS + 64 * vector)
    if vector not in _WITH_ERROR_CODE:
        code.raw("6a ff")  # push -1: no error code
    if vector == 14:
        code.raw("50 0f 20 d0")  # push rax; mov rax, cr2
        code.at_rip(STORE, RAX, _NOTES + WORD * _NOTED.index(CR2))
        code.raw("58")  # pop rax
    code.raw(f"6a {vector:02x}")  # push VECTOR
    for number in range(3):
        code.at_rip(0x8F, 0, _NOTES + WORD * number)  # pop: vector, error code, RIP
    code.raw("68" + struct.pack("<i", _FAULTED).hex() + "48 cf")  # push _FAULTED; iretq
    assert len(code.code) <= 64
    return code.code


def slot(number: int, instruction: bytes) -> bytes:
    """The code of a trial, 64 bytes."""
    start = SLOTS + SLOT * number
    filled = bytearray(BEHIND * SLOT)
    for which, offset in enumerate(PADS):
        pad = Code(start + offset)
        noted = _NOTES + WORD * _NOTED.index(PAD)
        # mov dword [rip + ...], which pad; the upper half stays -1
        pad.code = struct.pack("<BBiI", 0xC7, 0x05, noted - pad.here - 10, which)
        pad.jump(DONE)
        filled[offset : offset + len(pad.code)] = pad.code
    body = Code(start + INSTRUCTION)
    body.code = instruction
    body.jump(DONE)
    filled[INSTRUCTION : INSTRUCTION + len(body.code)] = body.code
    return bytes(filled)


def slots(instructions: list[bytes]) -> bytes:
    """The code of all trials: as `slot` makes it, many at once."""
    count = len(instructions)
    code = np.frombuffer(slot(0, b"") * count, np.uint8).reshape(count, SLOT).copy()
    back = -SLOT * np.arange(count)  # jumps and addresses are relative to where they stand
    for offset, which in ((PADS[0], 2), (PADS[0], 11), (PADS[1], 2), (PADS[1], 11)):
        at = offset + which
        first = np.frombuffer(code[0, at : at + 4].tobytes(), "<i4")[0]
        code[:, at : at + 4] = (first + back).astype("<i4").view(np.uint8).reshape(count, 4)
    code[:, INSTRUCTION : PADS[1]] = BEHIND[0]
    out = bytearray(code.tobytes())
    for number, instruction in enumerate(instructions):
        at = SLOT * number + INSTRUCTION
        end = at + len(instruction)
        relative = DONE - (SLOTS + end + 5)
        out[at : end + 5] = instruction + struct.pack("<Bi", 0xE9, relative)
    return bytes(out)


@dataclass(frozen=True)
class Batch:
    """Instructions and the records with which they begin, (count, RECORD / 8) words of 64 bits."""

    instructions: list[bytes]
    records: npt.NDArray[np.uint64]


class Runner:
    """One engine, ready to run batch after batch."""

    def __init__(self, engine: str) -> None:
        self.vm: Vm = open_vm(engine, RAM)
        ram = self.vm.ram
        _write_tables(self.vm)
        ram.write(CODE_GPA, RING3 + _landing.code)
        self._vcpu = self.vm.vcpu()
        self._vcpu.set_system(_system())

    def run(self, batch: Batch) -> npt.NDArray[np.uint64]:
        """Run a batch; return the records as they are afterwards."""
        ram, count = self.vm.ram, len(batch.instructions)
        assert 0 < count <= BATCH
        ram.write(CODE_GPA + SLOTS - CODE, slots(batch.instructions))
        ram.write(DATA_GPA + RECORDS - DATA, batch.records.tobytes())
        variables = {_END: RECORDS + RECORD * count, _STACK: _STACK, _BACK: DONE}
        for address, value in variables.items():
            ram.write_u64(DATA_GPA + address - DATA, value)
        self._vcpu.set_registers(Registers(rip=CODE, rbx=RECORDS, rflags=0x202))
        self._vcpu.set_budget(Budget(seconds=60))
        end = self._vcpu.run()
        assert isinstance(end, Mmio), f"{end} {self._where()}"
        self._vcpu.registers()  # which finishes the store
        raw = ram.read(DATA_GPA + RECORDS - DATA, RECORD * count)
        records = np.frombuffer(bytearray(raw), "<u8").reshape(count, RECORD // WORD)
        records[:, MXCSR // WORD] &= np.uint64(0xFFFFFFFF)  # MXCSR_MASK tells of the CPU
        records[:, X87 // WORD] &= np.uint64(0xFFFFFFFFFFFF)  # FOP; then FIP and FDP
        records[:, POINTERS // WORD : MXCSR // WORD] = 0
        return records

    def _where(self) -> str:
        current = self.vm.ram.read_u64(DATA_GPA + _CURRENT - DATA)
        return f"in trial {(current - RECORDS) // RECORD}"

    def close(self) -> None:
        self.vm.close()


def _write_tables(vm: Vm) -> None:
    """Page tables, GDT, TSS, IDT and handlers."""
    ram = vm.ram
    present, writable, user, large, no_execute = 1, 2, 4, 0x80, 1 << 63
    ram.write_u64(_TABLES, _TABLES + 0x1000 | 7)
    ram.write_u64(_TABLES + 0x1000, _TABLES + 0x2000 | 7)
    pages = {0: present | writable, CODE: CODE_GPA | present | user}
    for offset in range(0, RAM - DATA_GPA, PAGE):
        pages[DATA + offset] = DATA_GPA + offset | present | writable | user | no_execute
    pages[DOOR] = RAM | present | writable | user | no_execute
    for address, entry in pages.items():
        ram.write_u64(_TABLES + 0x2000 + WORD * (address // PAGE), entry | large)
    code, data, ring3 = 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 3 << 45
    ram.write(_GDT, struct.pack("<5Q", 0, code, data, data | ring3, code | ring3))
    ram.write(_TSS + 4, struct.pack("<Q", _KERNEL_STACK))
    ram.write(_TSS + 0x66, struct.pack("<H", 0x68))  # no bitmap of ports
    for vector in range(32):
        at = _HANDLERS + 64 * vector
        ram.write(at, ring0(vector))
        gate = struct.pack("<HHBBHQ", at & 0xFFFF, _CODE0, 0, 0xEE, at >> 16, 0)
        ram.write(_IDT + 16 * vector, gate)


def _system() -> SystemRegisters:
    base = SystemRegisters.long_mode(_TABLES)
    data = Segment(_DATA3, 0, 0xFFFFFFFF, 0xC0F3)
    return replace(
        base,
        cs=Segment(_CODE3, 0, 0xFFFFFFFF, 0xA0FB),
        ss=data,
        ds=data,
        es=data,
        fs=data,
        gs=data,
        tr=Segment(_TASK, _TSS, 0x67, 0x8B),
        gdt=Table(_GDT, 0x27),
        idt=Table(_IDT, 32 * 16 - 1),
        cr4=base.cr4 | _OSFXSR | _OSXMMEXCPT,
        efer=base.efer | _NXE,
    )
