"""TLB and paging-structure caches: what a processor remembers of its walks, and when it forgets.

`tlb.py` keeps entries, `walk.py` and `nested.py` walk with their help, `mmu.py` is a processor with
the instructions that invalidate. `vmx_mmu.py` (Intel) and `svm_mmu.py` (AMD) run guests on it.
`problems.py` asks.
"""
