"""What the guests do whose faults are counted in the box: each script is one idea."""

WARM = """
read IDT                       # what delivery of a fault needs, so that it is there
write STACK 0
read HANDLER
"""


def _moved(invlpg=False, cr3=False):
    """Eight pages, used and written, get other frames; then they are read."""
    lines = ["write PT2 DATA|7"]  # the page with the table is seen, and D set in its entry
    lines += [f"write SECOND+0x1000*{n} 1" for n in range(8)]
    lines += ["cr3 PML4"]
    for n in range(8):
        lines += [f"write PT2+8*{n} DATA+0x1000*{n + 8}|7"]
        lines += [f"invlpg SECOND+0x1000*{n}"] if invlpg else []
    lines += ["cr3 PML4"] if cr3 else []
    lines += [f"read SECOND+0x1000*{n}" for n in range(8)] if invlpg or cr3 else []
    return "\n".join(lines)


SCRIPTS = {
    "first touches": """
        read SECOND
        read SECOND
        read SECOND+0x1000
        write SECOND+0x2000 1
        write SECOND 5         # clean until now
        write SECOND 6
    """,
    "entries made present, no invalidation": """
        write PT2+0x40 0
        read SECOND+0x8000     # not present: the guest's own fault
        write PT2+0x40 DATA+0x3000|7
        read SECOND+0x8000
        write SECOND+0x8000 1
        write PT2+0x48 DATA+0x4000|7
        read SECOND+0x9000
    """,
    "an entry changed, and INVLPG": """
        read SECOND
        write PT2 DATA+0x1000|7    # the table goes out of sync
        write PT2+8 DATA+0x2000|7
        invlpg SECOND
        read SECOND
        write SECOND 7
        write PT2 DATA+0x3000|0x27 # A is set already: filled by INVLPG itself
        invlpg SECOND
        read SECOND
        write SECOND 8
    """,
    "entries changed, and CR3": """
        read SECOND
        read SECOND+0x1000
        write SECOND+0x2000 1
        write PT2 DATA+0x5000|0x27
        write PT2+8 DATA+0x1000|0x25   # now read-only
        write PT2+0x10 0
        cr3 PML4
        read SECOND
        read SECOND+0x1000
        write SECOND+0x1000 3          # refused
        read SECOND+0x2000             # gone
        write PT2 DATA+7
        cr3 PML4
        write SECOND 3
    """,
    "two address spaces": """
        read SECOND
        write SECOND+0x1000 1
        cr3 PML4_B             # shares all tables below its root
        read SECOND
        write PT2+0x18 DATA+0x5000|7
        read SECOND+0x3000
        cr3 PML4
        read SECOND+0x3000
        cr3 PML4_B
        read SECOND+0x3000
        cr3 PML4
    """,
    "upper tables": """
        read SECOND
        write PD+8 PT|7        # the second 2 MiB are the first: the entry and its shadow go
        read SECOND+0x20000
        write PD+8 PT2|7       # and back: the old shadow page is found again
        read SECOND
        read SECOND+0x1000
        write PDPT+8 PD|7      # nothing had been there
        read 0x40020000
    """,
    "an upper table written again and again": """
        write PD2 PT2|7
        write PDPT+8 PD2|7
        read 0x40000000        # PD2 gets a shadow page
        write PD2+8 PT2|7
        write PD2+16 PT2|7
        write PD2+24 PT2|7     # three in a row: the shadow page is given up
        read 0x40000000
        read 0x40600000
        write PD2+32 PT2|7     # and the count begins anew
        read 0x40800000
    """,
    "an upper table given up, one below it out of sync": """
        write PD2 PT2|7
        write PDPT+8 PD2|7
        read 0x40000000
        write PT2 DATA+0x1000|7    # out of sync
        write PD2+8 PT2|7
        write PD2+16 PT2|7
        write PD2+24 PT2|7         # the shadow page is given up, and with it the one below
        read 0x40000000
        read SECOND
    """,
    "a table out of sync becomes an upper one": """
        read SECOND
        write DATA DATA+0x1000|7
        write PT2 DATA|7           # out of sync
        write PDPT+8 PT2|7         # what was a page is a table now
        read 0x40000000
        write PT2 DATA|0x27        # seen
        read 0x40000000
        read SECOND
    """,
    "INVLPG, and an address space that was left": """
        write DATA+0x1000 DATA+0x2000|7
        write DATA PD2|7
        write PD2 PT|7
        write PD2+8 DATA+0x1000|7
        write PML4_B DATA|7
        cr3 PML4_B
        read SECOND                # by tables of its own
        write DATA+0x1000 DATA+0x3000|0x27
        cr3 PML4
        invlpg SECOND              # in the other one too
        cr3 PML4_B
        read SECOND
    """,
    "neighbours": """
        read SECOND
        read SECOND+0x1000
        read SECOND+0x2000
        read SECOND+0x3000
        write SECOND+0x4000 1
        write PD+24 PT2|5      # the same table by another way, read-only: a second shadow page
        read 0x602000          # fills all five at once
        read 0x600000
        read 0x604000
        read 0x605000          # but not what was never used
        write 0x604000 2       # refused
    """,
    "a large page": """
        read LARGE
        read LARGE+0x1000
        read LARGE+0x9000
        write LARGE 1          # dirty from now on: other rights, another shadow page
        write LARGE+0x1000 1
        read LARGE+0x9000
        write LARGE+0x100000 1
    """,
    "a table in a large page": """
        write LARGE+0x100000 0x300000|7
        write LARGE+0x101000 DATA|7
        write PD+24 0x301000|7     # a table in the large page: what maps it is protected
        read 0x600000
        write LARGE+0x101008 DATA+0x1000|7
        read 0x601000
        write LARGE+0x101000 0
        cr3 PML4
        read 0x600000
    """,
    "accessed and dirty taken back": """
        write SECOND 1
        read SECOND+0x1000
        write PT2 DATA|7           # A and D cleared
        write PT2+8 DATA+0x1000|7
        invlpg SECOND
        invlpg SECOND+0x1000
        read SECOND
        write SECOND 2
        write SECOND+0x1000 3
        read PT2
    """,
    "a table that maps itself": """
        write PML4+0x7f8 PML4|7
        read 0x00007fbfdfeff7f8    # the entry of index 255, read as a page
    """,
    "rights": """
        write PT2 DATA|0x8000000000000001
        write PT2+8 DATA+0x1000|1
        read SECOND
        write SECOND 1             # refused: CR0.WP is set
        write SECOND+0x1000 1
        write PD+8 PT2|1           # all of them read-only from above
        read SECOND+0x2000
        write SECOND+0x2000 1
    """,
    "eight entries moved, nothing else": _moved(),
    "eight entries moved, INVLPG after each": _moved(invlpg=True),
    "eight entries moved, then CR3 once": _moved(cr3=True),
    "a reserved bit": """
        read SECOND
        write PT2 DATA|7|1<<51
        invlpg SECOND
        read SECOND
    """,
}
