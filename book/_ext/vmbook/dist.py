"""``python -m vmbook.dist``: one zip of the built book, for those who only read."""

import sys
import zipfile
from pathlib import Path

from vmbook import records

NAME = "virtualization-inside-out"
SKIP = ("_sources", ".buildinfo", "objects.inv", "reports")


def pack(html: Path, target: Path) -> int:
    """Write the zip and return how many files are in it; the same book gives the same bytes."""
    count = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(html.rglob("*")):
            inside = path.relative_to(html)
            if path.is_dir() or inside.parts[0] in SKIP:
                continue
            info = zipfile.ZipInfo(f"{NAME}/{inside.as_posix()}", (2026, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
            count += 1
    return count


def main() -> int:
    """Pack ``_build/html``."""
    html = records.ROOT / "_build/html"
    if not (html / "index.html").is_file():
        print("There is no built book yet: run make book first.", file=sys.stderr)
        return 1
    target = records.ROOT / "_build" / f"{NAME}.zip"
    count = pack(html, target)
    size = target.stat().st_size / 1e6
    print(f"{target.relative_to(records.ROOT)}: {count} files, {size:.1f} MB.")
    print("Unpack it and open index.html: no server, no network.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
