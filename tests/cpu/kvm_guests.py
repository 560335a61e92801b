"""Guests for the tests of KVM: tables in RAM made by Python, code of a few bytes."""

import struct
from contextlib import contextmanager
from dataclasses import replace

from vmlib.cpu import Budget, Registers, Segment, SystemRegisters, Table, open_vm

CODE, REAL_CODE, HANDLERS, STACK = 0x10000, 0x1000, 0x20000, 0x30000
TABLES, GDT, IDT, TSS = 0x2000, 0x6000, 0x7000, 0x8000
CODE0, DATA0, DATA3, CODE3, TASK = 0x08, 0x10, 0x1B, 0x23, 0x28
IOPL3, IF = 0x3000, 0x200


def identity_map(ram):
    """Page tables for the first gigabyte, in pages of 2 MiB that every ring may use."""
    ram.write_u64(TABLES, TABLES + 0x1000 | 7)
    ram.write_u64(TABLES + 0x1000, TABLES + 0x2000 | 7)
    for number in range(512):
        ram.write_u64(TABLES + 0x2000 + 8 * number, number << 21 | 0x87)


def write_tables(ram, bits, gates):
    """A GDT for rings 0 and 3, a TSS with a stack for ring 0, and gates that ring 3 may use."""
    code = 0x00AF9B000000FFFF if bits == 64 else 0x00CF9B000000FFFF
    data, ring3 = 0x00CF93000000FFFF, 3 << 45
    ram.write(GDT, struct.pack("<6Q", 0, code, data, data | ring3, code | ring3, 0))
    stack = struct.pack("<Q", STACK) if bits == 64 else struct.pack("<II", STACK, DATA0)
    ram.write(TSS + 4, stack)
    ram.write(TSS + 0x66, struct.pack("<H", 0x68))  # no bitmap of ports
    for vector, handler in gates.items():
        gate = struct.pack("<HHBBH", handler & 0xFFFF, CODE0, 0, 0xEE, handler >> 16)
        ram.write(IDT + vector * bits // 4, gate + bytes(8 if bits == 64 else 0))


def system_with_tables(bits, ring):
    """System registers that use the tables above."""
    base = SystemRegisters.long_mode(TABLES) if bits == 64 else SystemRegisters.protected_mode()
    limit = 256 * bits // 4 - 1
    tables = {"gdt": Table(GDT, 0x2F), "idt": Table(IDT, limit)}
    base = replace(base, tr=Segment(TASK, TSS, 0x67, 0x8B), **tables)
    if ring == 0:
        return base
    data = Segment(DATA3, 0, 0xFFFFFFFF, 0xC0F3)
    code = Segment(CODE3, 0, 0xFFFFFFFF, 0xA0FB if bits == 64 else 0xC0FB)
    return replace(base, cs=code, ss=data, ds=data, es=data)


def boot(vm, code, bits=16, ring=0, gates=None, flags=0):
    """Put `code` (hex) and the handlers of `gates` (vector to hex) into RAM; return a vCPU there.

    `flags` are set in RFLAGS. The guest's time is limited to two seconds.
    """
    first, room = (0x2000, 0x100) if bits == 16 else (HANDLERS, 0x100)
    places = {}
    for number, (vector, handler) in enumerate((gates or {}).items()):
        places[vector] = first + room * number
        vm.ram.write(places[vector], bytes.fromhex(handler))
    vcpu = vm.vcpu()
    if bits == 16:
        vm.ram.write(REAL_CODE, bytes.fromhex(code))
        for vector, place in places.items():
            vm.ram.write(4 * vector, struct.pack("<HH", place, 0))
        vcpu.start_real_mode(REAL_CODE)
        vcpu.set_registers(replace(vcpu.registers(), rflags=flags | 2))
    else:
        vm.ram.write(CODE, bytes.fromhex(code))
        if bits == 64:
            identity_map(vm.ram)
        write_tables(vm.ram, bits, places)
        vcpu.set_system(system_with_tables(bits, ring))
        vcpu.set_registers(Registers(rip=CODE, rsp=STACK - 0x1000, rflags=flags | 2))
    vcpu.set_budget(Budget(seconds=2))
    return vcpu


@contextmanager
def guest(code, **options):
    """A vCPU of KVM's that stands at `code`, see `boot`; closed in the end."""
    with open_vm("kvm", "1M") as vm:
        yield boot(vm, code, **options)


def take(vcpu, count):
    """Return the next exits."""
    return [vcpu.run() for _ in range(count)]
