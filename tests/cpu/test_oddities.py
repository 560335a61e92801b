"""Where this host's KVM is not what the manual says. An entry that heals fails, to be removed."""

import pytest

from vmlib.cpu import open_vm, probe

# mov ax, 100; aam; hlt: AL = 0, AH = 10.
AAM = bytes.fromhex("b8 64 00 d4 0a f4")


def zero_flag(engine):
    with open_vm(engine) as vm:
        vm.ram.write(0x1000, AAM)
        vcpu = vm.vcpu()
        vcpu.start_real_mode(0x1000)
        vcpu.run()
        registers = vcpu.registers()
        assert registers.show("AX") == "0x0a00"
        return registers.show("ZF")


@pytest.mark.needs("unicorn")
def test_aam_sets_zf_from_al():
    """SDM vol. 2A, AAM: SF, ZF and PF are set according to the result in AL."""
    assert zero_flag("unicorn") == "1"


@pytest.mark.needs("kvm")
def test_kvm_that_emulates_ring_0_sets_zf_from_ax():
    """KVM's instruction emulator looks at AX. Only a software-backed host runs AAM through it."""
    assert zero_flag("kvm") == ("0" if "kvm_pvm" in probe("kvm").version else "1")
