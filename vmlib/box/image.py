"""What the box boots: a Debian kernel, the modules it needs, busybox, and an initramfs of them.

`fetch()` gets the two packages by apt from the sources this host already trusts; nothing else here
fetches. They are opened without being installed, and kept in the user's cache under the kernel's
version. A version that is there is used again; remove the folder to get a newer one. No root is
needed: where apt's lists are missing or outlived, a second try keeps lists of its own.

The initramfs is a `newc` archive (Linux `Documentation/driver-api/early-userspace/
buffer-format.rst`).
"""

import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vmlib.errors import HostUnavailable

QEMU = "qemu-system-x86_64"
# In load order. What a kernel has built in, or has merged into another module, is not there.
MODULES = ["irqbypass", "ccp", "kvm", "kvm-amd", "virtio_ring", "virtio", "virtio_pci_legacy_dev"]
MODULES += ["virtio_pci_modern_dev", "virtio_pci", "netfs", "fscache", "9pnet", "9p"]
MODULES += ["9pnet_virtio"]
NEEDED = {"kvm", "kvm-amd", "virtio_pci", "9p", "9pnet_virtio"}
_FIX = "The box takes its kernel from Debian: run where apt reaches a Debian mirror"
_SECONDS = 300  # for one command of apt


@dataclass(frozen=True, slots=True)
class Image:
    """The files a box is made of; `version` is the kernel's, as `uname -r` gives it there."""

    folder: Path

    @property
    def version(self) -> str:
        """Version and flavour of the kernel."""
        return self.folder.name

    @property
    def kernel(self) -> Path:
        """The kernel, as QEMU's `-kernel` takes it."""
        return self.folder / "vmlinuz"

    @property
    def modules(self) -> list[str]:
        """Names of the modules, in load order."""
        return [name for name in MODULES if (self.folder / f"{name}.ko").is_file()]

    def initramfs(self, init: str) -> bytes:
        """Return an archive with busybox, the modules and the script `init`."""
        files = {"init": init.encode(), "busybox": (self.folder / "busybox").read_bytes()}
        for name in self.modules:
            files[f"{name}.ko"] = (self.folder / f"{name}.ko").read_bytes()
        return newc(["dev", "host"], files)


def newc(folders: list[str], files: dict[str, bytes]) -> bytes:
    """Return a cpio archive of executable files and of folders, all at its root."""
    entries = [(name, 0o040755, b"") for name in folders]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    entries += [("TRAILER!!!", 0, b"")]
    archive = bytearray()
    for number, (name, mode, data) in enumerate(entries, 1):
        path = name.encode() + b"\0"
        # ino, mode, uid, gid, nlink, mtime, filesize, 4 device numbers, namesize, check
        header = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08x" % one for one in header)
        archive += _padded(path, len(archive)) + _padded(data, 0)
    return bytes(archive)


def _padded(data: bytes, before: int) -> bytes:
    return data + bytes(-(before + len(data)) % 4)


def cache() -> Path:
    """Return the folder that keeps kernels, one folder a version."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "vmlib-box"


def kept() -> Image | None:
    """Return the newest kernel in the cache, if there is one."""
    there = [path for path in cache().glob("[0-9]*") if path.is_dir()]
    if not there:
        return None
    return Image(max(there, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)]))


def ready() -> Image:
    """Return what a box can boot at once; `HostUnavailable` if QEMU or the kernel is missing."""
    if not shutil.which(QEMU):
        raise HostUnavailable(f"{QEMU} is not installed", "apt install qemu-system-x86")
    image = kept()
    if image is None:
        how = "vmlib.box.fetch() downloads two packages of Debian's, and installs none"
        raise HostUnavailable(f"there is no kernel for the box in {cache()}", how)
    return image


def fetch() -> Image:
    """Return the newest kernel in the cache; when there is none, download Debian's present one."""
    if image := kept():
        return image
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if not shutil.which(tool):
            raise HostUnavailable(f"{tool} is not there to get the box's kernel", _FIX)
    try:
        cache().mkdir(parents=True, exist_ok=True)
        # Beside the goal and with a name that is no version: a half-made one is never taken.
        with tempfile.TemporaryDirectory(prefix="new-", dir=cache()) as work:
            return _make(Path(work))
    except OSError as error:
        raise HostUnavailable(f"the box's kernel cannot be kept: {error}", _FIX) from error


def _make(work: Path) -> Image:
    try:
        kernel, busybox = _download(work, [])
    except HostUnavailable:
        # No lists on a fresh machine, or lists so old that the package is gone from the mirror.
        own = ["-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
        for name in ("lists/partial", "cache/archives/partial"):
            (work / name).mkdir(parents=True)
        _apt(work, ["apt-get", "-qq", *own, "update"])
        kernel, busybox = _download(work, own)
    made = work / "image"
    made.mkdir()
    names = {f"{name}.ko": f"{name}.ko" for name in MODULES}
    names |= {f"{name}.ko.xz": f"{name}.ko" for name in MODULES}
    _extract(kernel, names, made)
    version = kernel.name.removeprefix("linux-image-").split("_")[0]
    _extract(kernel, {f"vmlinuz-{version}": "vmlinuz"}, made)
    _extract(busybox, {"bin/busybox": "busybox"}, made)
    wanted = {"vmlinuz", "busybox", *(f"{name}.ko" for name in NEEDED)}
    missing = sorted(wanted - {path.name for path in made.iterdir()})
    if missing:
        raise HostUnavailable(f"{kernel.name} has no {', '.join(missing)}", _FIX)
    try:
        made.rename(cache() / version)
    except OSError:  # another process was first, and its copy is as good
        if not (cache() / version).is_dir():
            raise
    return Image(cache() / version)


def _download(work: Path, options: list[str]) -> tuple[Path, Path]:
    """Fetch kernel and busybox into `work`; return the two package files."""
    about = _apt(work, ["apt-cache", *options, "show", "--no-all-versions", "linux-image-amd64"])
    depends = re.search(r"^Depends:.*?(linux-image-\d[^\s,]*)", about, re.MULTILINE)
    if not depends:
        raise HostUnavailable("apt knows no linux-image-amd64 for the box", _FIX)
    packages = (depends[1], "busybox-static")
    # As root, apt would download as another user, who may not write here.
    options = [*options, "-o", "APT::Sandbox::User=root"]
    _apt(work, ["apt-get", "-qq", *options, "download", *packages])
    kernel, busybox = (next(work.glob(f"{package}_*.deb")) for package in packages)
    return kernel, busybox


def _apt(work: Path, command: list[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise HostUnavailable(f"apt did not get the box's kernel in {_SECONDS} s", _FIX) from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise HostUnavailable(f"apt cannot get the box's kernel: {said[0]}", _FIX)
    return done.stdout


def _extract(package: Path, names: dict[str, str], folder: Path) -> None:
    """Write files of a package to `folder`; `names` maps the end of a path to a new name."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as unpacker,
        tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive,
    ):
        for member in archive:
            ends = [end for end in names if member.name.endswith(f"/{end}")]
            if ends and (content := archive.extractfile(member)):
                data = content.read()
                if member.name.endswith(".xz"):
                    data = lzma.decompress(data)
                (folder / names[ends[0]]).write_bytes(data)
