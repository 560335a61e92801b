"""An AMD processor's MMU with its caches: ASIDs instead of VPIDs.

An ASID names a guest with all it has: what its nested tables say is cached under it as well, and
a change of nested tables is made known by flushing the ASID. VMRUN does that itself, as the field
TLB_CONTROL of the VMCB asks. AMD APM vol. 2, 15.16. The instructions of any machine are those of
`Mmu`, by Intel's list, which is the shorter one: AMD's also drops everything where CR4.PAE or PSE
changes, CR0.PG is set, or CR4.PKE (5.5.3).

Left out: INVLPGB, SMM, and what VMRUN checks of the VMCB beside ASID and TLB_CONTROL.
"""

from typing import Literal

from vmlib.errors import SpecViolation
from vmlib.given import names_bad_input
from vmlib.memory.caches.mmu import Context, Mmu
from vmlib.memory.paging import word
from vmlib.memory.second_stage import Npt
from vmlib.numbers import whole


class SvmMmu(Mmu):
    """One logical processor of AMD's. It starts as the host, which has ASID 0."""

    @names_bad_input
    def vmrun(
        self,
        *,
        asid: int,
        cr0: int,
        cr3: int,
        cr4: int,
        efer: int,
        tlb_control: Literal[0, 1, 3, 7] = 0,
        second: Npt | None = None,
    ) -> None:
        """Enter a guest. TLB_CONTROL: 0 drops nothing, 1 all, 3 the ASID, 7 it but global pages."""
        self._as_host("VMRUN", "AMD APM vol. 2, 15.5.1")
        if not whole(asid, "asid", 0, (1 << 32) - 1):
            raise SpecViolation("AMD APM vol. 2, 15.5.1", "ASID 0 is the host's: VMEXIT_INVALID")
        if whole(tlb_control, "tlb_control") not in (0, 1, 3, 7):
            raise SpecViolation("AMD APM vol. 2, 15.16.1", f"TLB_CONTROL {tlb_control} is reserved")
        self._enter(Context(cr0, cr3, cr4, efer, asid, second))
        if tlb_control == 1:
            self._drop(lambda tag: True)
            self._drop_physical(lambda tag: True)
        elif tlb_control:
            self._drop(lambda tag: tag.vpid == asid and (tlb_control == 3 or tag.pcid is not None))
            self._drop_physical(lambda tag: tag.vpid == asid)

    def vm_exit(self) -> None:
        """#VMEXIT: leave the guest. Nothing is dropped."""
        self._leave()

    @names_bad_input
    def invlpga(self, gva: int, asid: int) -> None:
        """INVLPGA: drop a page of an ASID, and the tables on its way. 15.16.2."""
        word(gva, "gva")
        whole(asid, "asid", 0, (1 << 32) - 1)
        self._drop(lambda tag: tag.vpid == asid, gva)
