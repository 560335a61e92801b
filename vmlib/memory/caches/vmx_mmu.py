"""An Intel processor's MMU with its caches: VPIDs, and what VMX adds to the list of who drops what.

Each virtual processor that runs has a VPID, under which its mappings are kept; 0 is the host's
own, and what a guest has without one. What comes from EPT alone belongs to no VPID. Intel SDM
vol. 3C, 29.4.3 (VM entry and exit, INVVPID, INVEPT) and 26.1.2.

Left out: VMFUNC, and what VM entry and these instructions check of their operands beside the
numbers: a linear address that is not canonical, an EPTP that VM entry would refuse.
"""

from vmlib.errors import BadInput, SpecViolation
from vmlib.given import names_bad_input
from vmlib.memory.caches.mmu import Context, Mmu
from vmlib.memory.paging import (
    ADDRESS,
    word,
)
from vmlib.memory.second_stage import Ept
from vmlib.numbers import whole

_IN_A_GUEST = "Intel SDM vol. 3C, 26.1.2"


class CachedMmu(Mmu):
    """One logical processor of Intel's. It starts as the host.

    `SpecViolation` where it refuses an instruction, `BadInput` where no guest runs that could exit.
    """

    @names_bad_input
    def vm_entry(
        self,
        *,
        cr0: int,
        cr3: int,
        cr4: int,
        efer: int,
        vpid: int = 0,
        second: Ept | None = None,
    ) -> None:
        """Enter a guest. `vpid` 0: the control "enable VPID" is off, and VPID 0 loses all."""
        if not 0 <= vpid < 1 << 16:
            raise BadInput("vpid", f"has 16 bits, not {vpid:#x}")
        self._as_host("VM entry", _IN_A_GUEST)
        self._enter(Context(cr0, cr3, cr4, efer, vpid, second))
        if vpid == 0:
            self._drop(lambda tag: tag.vpid == 0)

    def vm_exit(self) -> None:
        """Leave the guest. Without VPIDs that drops what VPID 0 has; the host's too."""
        without_vpid = self._now.vpid == 0
        self._leave()
        if without_vpid:
            self._drop(lambda tag: tag.vpid == 0)

    @names_bad_input
    def invvpid(self, type: int, vpid: int = 0, gva: int = 0) -> None:
        """INVVPID: 0 an address, 1 a VPID, 2 all VPIDs but 0, 3 a VPID but its global pages."""
        for name, operand in (("type", type), ("vpid", vpid)):
            whole(operand, name)
        word(gva, "gva")
        self._as_host("INVVPID", _IN_A_GUEST)
        if type not in (0, 1, 2, 3) or (type != 2 and not 0 < vpid < 1 << 16):
            raise SpecViolation(
                "Intel SDM vol. 3C, INVVPID", "no such type, or VPID 0: VMfailValid(28)"
            )
        if type == 2:
            self._drop(lambda tag: tag.vpid != 0)
        elif type == 3:
            self._drop(lambda tag: tag.vpid == vpid and tag.pcid is not None)
        else:
            self._drop(lambda tag: tag.vpid == vpid, gva if type == 0 else None)

    @names_bad_input
    def invept(self, type: int, eptp: int = 0) -> None:
        """INVEPT: guest-physical and combined mappings of 1 one EP4TA, 2 all."""
        whole(type, "type")
        word(eptp, "eptp")
        self._as_host("INVEPT", _IN_A_GUEST)
        if type not in (1, 2):
            raise SpecViolation("Intel SDM vol. 3C, INVEPT", "no such type: VMfailValid(28)")
        root = eptp & ADDRESS
        self._drop(lambda tag: tag.ep4ta is not None and (type == 2 or tag.ep4ta == root))
        self._drop_physical(lambda tag: type == 2 or tag.ep4ta == root)
