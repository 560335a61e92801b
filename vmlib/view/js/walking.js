// Walks in BigInt: a guest's address through its tables, each of them behind the host's, or alone.
//
// The same rules as vmlib.memory has them, entry for entry and fault for fault, for guests in long
// mode with 4 or 5 levels or with paging off, and for EPT and nested tables. That they are the same
// is held by a test on thousands of inputs. model_walk.js makes the trace of it.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const NAMES = ["", "PTE", "PDE", "PDPTE", "PML4E", "PML5E"];
  const P = 1n, RW = 2n, US = 4n, PS = 128n, NX = 1n << 63n;
  const TOP = 1n << 52n, ADDRESS = TOP - 4096n;
  const DOES = { read: "reads", write: "writes", fetch: "fetches" };
  const NEED = { read: 1n, write: 2n, fetch: 4n };

  const hex = (value, digits = 1) => `0x${value.toString(16).padStart(digits, "0")}`;
  const shiftOf = (level) => BigInt(12 + 9 * (level - 1));
  const sizeOf = (level) => 1n << shiftOf(level);
  const lowest = (bits) => {
    let n = 0;
    while (!((bits >> BigInt(n)) & 1n)) n++;
    return n === 63 ? "NX" : `bit ${n}`;
  };
  const outside = (level, at) => new Error(`the level-${level} table entry at ${hex(at)} lies outside guest RAM`);

  // ---- paging: levels, rules, one dimension ------------------------------------------------

  function levelsOf(n, maxphyaddr, nxe) {
    const high = TOP - (1n << BigInt(maxphyaddr)) | (nxe ? 0n : NX);
    return Array.from({ length: n }, (_, i) => {
      const number = n - i, large = number === 2 || number === 3;
      return { number, leaf: number === 1 ? P : large ? PS : 0n,
        fixed: P | high | (number >= 4 ? PS : 0n),
        leafFixed: P | high | (large ? sizeOf(number) - 8192n : 0n) };
    });
  }

  function modeOf({ cr0, cr4, efer, maxphyaddr }) {
    if (!((cr0 >> 31n) & 1n)) return null;
    if (!(cr4 & 32n) || !(efer & 0x500n)) throw new Error("the model walks in long mode only");
    const n = cr4 & 0x1000n ? 5 : 4;
    return { levels: levelsOf(n, maxphyaddr, Boolean(efer & 0x800n)), sign: n === 5 ? 56 : 47 };
  }

  function rulesOf({ cr0, cr4, efer }, access, cpl) {
    const user = cpl === 3, write = access === "write", fetch = access === "fetch";
    const nx = Boolean(efer & 0x800n && cr4 & 32n), wp = Boolean((cr0 >> 16n) & 1n);
    const smep = Boolean((cr4 >> 20n) & 1n), smap = Boolean((cr4 >> 21n) & 1n);
    return {
      needs: (write && (user || wp) ? RW : 0n) | (user ? US : 0n),
      refuses: !user && (fetch ? smep : smap) ? US : 0n,
      bars: fetch && nx ? NX : 0n,
      code: (write ? 2 : 0) | (user ? 4 : 0) | (fetch && (nx || smep) ? 16 : 0),
    };
  }

  // Walk tables whose entries `read(at)` gives; null from it: there is no memory at `at`.
  function follow(read, address, root, levels, rules) {
    const cells = [];
    let table = root & ADDRESS, granted = RW | US, barred = 0n, entry = 0n, level = null, leaf = 0n;
    const fault = (code) => ({ cells, fault: { vector: 14, code, level: level.number } });
    for (level of levels) {
      const at = table + (((address >> shiftOf(level.number)) & 511n) << 3n);
      entry = read(at, level, cells.length);
      if (entry === null) throw outside(level.number, at);
      cells.push({ level: level.number, at, entry });
      leaf = entry & level.leaf;
      if ((entry & (leaf ? level.leafFixed : level.fixed)) !== P) return fault(rules.code | (entry & P ? 9 : 0));
      granted &= entry;
      barred |= entry;
      if (leaf) break;
      table = entry & ADDRESS;
    }
    if ((granted & rules.needs) !== rules.needs || granted & rules.refuses || barred & rules.bars) return fault(rules.code | 1);
    const size = sizeOf(level.number);
    return { cells, fault: null, out: (entry & ADDRESS & -size) | (address & (size - 1n)), size };
  }

  // ---- the second stage --------------------------------------------------------------------

  const tableAccess = (second) => (second.kind === "NPT" || (second.pointer >> 6n) & 1n ? "write" : "read");
  const nestedRules = (access) => rulesOf({ cr0: 1n << 16n, cr4: 32n, efer: 0x800n }, access, 3);

  function reserved(second, level, leaf) {
    const high = TOP - (1n << BigInt(second.maxphyaddr));
    if (level >= 4) return high | 0xf8n;
    return leaf ? high | (sizeOf(level) - 4096n) : high | 0x78n;
  }

  function translate(memory, second, gpa, access, table) {
    const exit = (kind, code, level, passed) => ({ passed, out: null, exit: { kind, gpa, code, level } });
    const n = second.levels;
    if (second.kind === "NPT") {
      const where = table ? 1n << 33n : 1n << 32n;
      const rules = nestedRules(access);
      if (gpa >> BigInt(12 + 9 * n)) return exit("nested page fault", BigInt(rules.code) | where, 0, []);
      const found = follow((at) => memory.read(at), gpa, second.pointer, levelsOf(n, second.maxphyaddr, true), rules);
      if (!found.fault) return { passed: found.cells, out: found.out, exit: null };
      return exit("nested page fault", BigInt(found.fault.code) | where, found.fault.level, found.cells);
    }
    const passed = [];
    let rights = 7n, root = second.pointer & ADDRESS, level = n, entry = 0n;
    const violation = (at) => exit("violation", NEED[access] | (table && (second.pointer >> 6n) & 1n ? 1n : 0n) |
      ((rights & 7n) << 3n) | 128n | (table ? 0n : 256n), at, passed);
    if (gpa >> BigInt(12 + 9 * n)) {
      rights = 0n;
      return violation(0);
    }
    for (; level > 0; level--) {
      const at = root + (((gpa >> shiftOf(level)) & 511n) << 3n);
      entry = memory.read(at);
      if (entry === null) throw outside(level, at);
      passed.push({ level, at, entry });
      rights &= entry;
      const granted = entry & 7n;
      if (!granted) return violation(level);
      const leaf = level === 1 || (level <= 3 && Boolean(entry & PS));
      if ((granted & 3n) === 2n || (granted === 4n && !second.executeOnly) || entry & reserved(second, level, leaf) ||
        (leaf && (0x8cn >> ((entry >> 3n) & 7n)) & 1n)) return exit("misconfiguration", 0n, level, passed);
      if (leaf) break;
      root = entry & ADDRESS;
    }
    if (!(rights & NEED[access])) return violation(level);
    const size = sizeOf(level);
    return { passed, out: (entry & ADDRESS & -size) | (gpa & (size - 1n)), exit: null };
  }

  // ---- both ---------------------------------------------------------------------------------

  // The whole walk: cells with their places, and what became of it.
  function walk(memory, second, regs, gva, access, cpl) {
    const mode = modeOf(regs), rules = rulesOf(regs, access, cpl);
    const levels = mode ? mode.levels : [];
    const done = { gva, mode, rules, levels, cells: [], gpa: null, hpa: null, fault: null, exit: null };
    const nested = (gpa, kind, column) => {
      const table = column < levels.length;
      const found = translate(memory, second, gpa, kind, table);
      found.passed.forEach(({ level, at, entry }, row) => done.cells.push({ column, row, nested: true, level,
        index: (gpa >> shiftOf(level)) & 511n, gpa, at, entry }));
      if (found.exit) throw found.exit;
      return found.out;
    };
    try {
      if (!mode) done.gpa = gva & 0xffffffffn;
      else {
        const upper = gva >> BigInt(mode.sign);
        if (upper && upper !== (1n << BigInt(64 - mode.sign)) - 1n) {
          done.fault = { vector: 13, code: 0, level: 0 };
          return done;
        }
        const found = follow((gpa, level, column) => {
          const at = second ? nested(gpa, tableAccess(second), column) : gpa;
          const entry = memory.read(at);
          if (entry !== null) done.cells.push({ column, row: second ? second.levels : 0, nested: false, level: level.number,
            index: (gva >> shiftOf(level.number)) & 511n, gpa, at, entry });
          return entry;
        }, gva, regs.cr3, levels, rules);
        if (found.fault) {
          done.fault = found.fault;
          return done;
        }
        done.gpa = found.out;
      }
      if (second) done.hpa = nested(done.gpa, access, levels.length);
    } catch (left) {
      if (left instanceof Error) throw left;
      done.exit = left;
    }
    return done;
  }

  // ---- which bit was it? ----------------------------------------------------------------------

  function pageFaultCause(passed, code, rules, whose) {
    const last = passed.length - 1, { level, entry } = passed[last];
    const name = (i) => `${whose}${NAMES[passed[i].level.number]}`;
    if (!(code & 1)) return { step: last, bit: "P", says: `P is 0 in the ${name(last)}` };
    if (code & 8) {
      const which = lowest(entry & (entry & level.leaf ? level.leafFixed : level.fixed) & ~P);
      return { step: last, bit: which, says: `${which} is reserved in this ${name(last)}, and it is 1` };
    }
    for (const [right, bitName, what] of [[US, "US", "the access is a user's"], [RW, "RW", "the access writes"]]) {
      const i = rules.needs & right ? passed.findIndex((one) => !(one.entry & right)) : -1;
      if (i >= 0) return { step: i, bit: bitName, says: `${bitName} is 0 in the ${name(i)}, and ${what}` };
    }
    const i = passed.findIndex((one) => rules.bars & one.entry & NX);
    if (i >= 0) return { step: i, bit: "NX", says: `NX is 1 in the ${name(i)}, and the access fetches` };
    const guard = rules.code & 16 ? "SMEP" : "SMAP";
    return { step: last, bit: "US", says: `US is 1 in every entry, and ${guard} keeps the kernel out` };
  }

  function exitCause(second, passed, left, access, table) {
    if (!passed.length) return { step: -1, bit: "GPA", says: "the address has more bits than the second stage translates" };
    const done = table ? tableAccess(second) : access;
    if (second.kind === "NPT") {
      const levels = levelsOf(second.levels, second.maxphyaddr, true);
      const entries = passed.map(({ level, entry }) => ({ level: levels[second.levels - level], entry }));
      return pageFaultCause(entries, Number(left.code & 0xffffffffn), nestedRules(done), "nested ");
    }
    const last = passed.length - 1, { level, entry } = passed[last];
    const name = `EPT ${NAMES[level]}`, granted = entry & 7n;
    if (left.kind === "misconfiguration") {
      const leaf = level === 1 || (level <= 3 && Boolean(entry & PS));
      if ((granted & 3n) === 2n) return { step: last, bit: "R", says: `the ${name} says writable and not readable` };
      if (granted === 4n && !second.executeOnly) {
        return { step: last, bit: "R", says: `the ${name} says executable only, which this CPU has not` };
      }
      const bits = entry & reserved(second, level, leaf);
      if (bits) return { step: last, bit: lowest(bits), says: `${lowest(bits)} is reserved in this ${name}, and it is 1` };
      return { step: last, bit: "type", says: `memory type ${(entry >> 3n) & 7n} in the ${name} means nothing` };
    }
    if (!granted) return { step: last, bit: "R", says: `R, W and X are 0 in the ${name}: nothing is there` };
    const i = passed.findIndex((one) => !(one.entry & NEED[done]));
    const letter = { read: "R", write: "W", fetch: "X" }[done];
    return { step: i, bit: letter, says: `${letter} is 0 in the EPT ${NAMES[passed[i].level]}, and ` +
      `${table ? "the walk of a guest's table" : "the access"} ${DOES[done]}` };
  }

  vmView.walking = { NAMES, PS, ADDRESS, hex, shiftOf, sizeOf, walk, pageFaultCause, exitCause };
})();
