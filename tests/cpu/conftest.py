"""What the emulator's tests start from."""

import pytest
from kvm_guests import boot

from vmlib.cpu import open_vm


@pytest.fixture
def vm():
    """A VM on the emulator."""
    with open_vm("unicorn", "1M") as vm:
        yield vm


@pytest.fixture
def guest(vm):
    """`guest(code, ...)` boots that VM's next vCPU: see `kvm_guests.boot`."""
    return lambda code, **options: boot(vm, code, **options)
