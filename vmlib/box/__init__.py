"""KVM in a box: a Linux with a true `/dev/kvm`, on a host that has none.

QEMU's emulator emulates AMD's SVM with nested paging well enough for the kernel's own, unmodified
kvm-amd. A Debian kernel boots in it, sees this host's files read-only, and runs the same Python
and the same library on jobs. The kernel's trace events say what happened below: every VM exit,
also those of which user space never hears.

    with Box() as box:
        done = box.run([Job("id", "vmlib.box.jobs:run_flat", ["0f a2 e6 f4"])])
    done["id"].value, done["id"].count("kvm_exit", "cpuid")

It is for truth and not for speed: a boot costs some seconds, an exit to user space about 0.2 ms.
Nothing is downloaded unasked: `Box` takes the kernel that `fetch()` has put into the user's cache,
and raises `HostUnavailable` where there is none. Left out: Intel's VMX, which QEMU's emulator does
not have.
"""

from vmlib.box.image import Image, cache, fetch, kept, ready
from vmlib.box.run import Box, BoxError, Job, Result

__all__ = ["Box", "BoxError", "Image", "Job", "Result", "cache", "fetch", "kept", "ready"]
