"""CRUSH: from an input to devices, with nothing stored and nobody asked.

`facts.py` is what a map says, and `crush_map.py` the way in. `mapper.py` runs a rule, with
`firstn.py`, `indep.py` and `msr.py`, the three ways to choose; `run.py` and `knobs.py` are what
they share. `buckets.py` draws, from `hashing.py` and `ln.py`; `fast.py` and `draws.py` do the same
on arrays. `read_json.py`, `read_text.py` (words: `text_words.py`), `write_json.py` and
`write_text.py` are the formats, `validate.py` says what a map may be, `shadows.py` makes the trees
of device classes, `build.py` and `change.py` make maps. `explain.py` tells each draw by way of
`watch.py`, `compare.py` counts what moves, `studies.py` has the CRUSH paper's, `browser.py` hands a
map to a page, and `straw_problems.py` asks.
"""
