"""TLB and paging-structure caches: what a processor remembers of its walks, and when it forgets.

`tlb.py` keeps entries, `walk.py` and `nested.py` walk with their help, `mmu.py` is a processor of
Intel's with the instructions that invalidate, `svm_mmu.py` one of AMD's. `problems.py` asks.
"""
