"""Shadow paging: tables of the hypervisor's, made from the guest's, as true as they must be.

`pager.py` is the hypervisor, `strategy.py` how it keeps its tables, `tables.py` makes and drops
entries of `pages.py`, in the format of `entry.py`. `nested_pager.py` is its counterpart with nested
paging. `guest.py` is a guest for the reader, recorded by `trace.py`; `problems.py` asks.
"""
