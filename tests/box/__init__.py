"""KVM in a box: a Linux with a true `/dev/kvm`, on a host that has none.

QEMU's emulator emulates AMD's SVM with nested paging well enough for the kernel's own, unmodified
kvm-amd. A Debian kernel boots in it, sees this host's files read-only, and runs the same Python
and the same library on jobs. The kernel's trace events say what happened below: every VM exit,
also those of which user space never hears.

    with Box() as box:
        done = box.run([Job("aam", "box_jobs:run_flat", ["b8 64 00 d4 0a f4"])])
    done["aam"].value, done["aam"].count("kvm_exit", "hlt")

It is for truth and not for speed: a boot costs some seconds, an exit to user space about 0.2 ms.
Left out: Intel's VMX, which QEMU's emulator does not have.
"""

from box.image import Image, fetch, why_not
from box.run import Box, BoxError, Job, Result, run_box

__all__ = ["Box", "BoxError", "Image", "Job", "Result", "fetch", "run_box", "why_not"]
