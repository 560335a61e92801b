// The model "walk": any address through the recorded tables, in one dimension or in two.
//
// Given a host's memory as the words that are not zero, the registers of a guest and an EPT pointer
// or nested CR3, it walks (walking.js) and records the same trace as vmlib.memory does: sentences,
// grid, bits and addresses. That it is the same is held by a test on the Python side.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { NAMES, PS, ADDRESS, hex, shiftOf, sizeOf, walk, pageFaultCause, exitCause } = vmView.walking;
  const FIELDS = ["", "PT", "PD", "PDPT", "PML4", "PML5"];
  const ERROR_BITS = ["P", "W", "U", "RSVD", "I", "PK"];
  const bit = (value, n) => String((value >> BigInt(n)) & 1n);
  const plural = (word, n) => (n === 1 ? word : `${word}s`);
  const format = (level) => ["", "4K", "2M", "1G"][level];

  function record(template, second, done, access, caches) {
    const { gva, mode, levels, cells } = done;
    const n = levels.length, m = second ? second.levels : 0;
    const whose = !second ? "" : second.kind === "EPT" ? "EPT" : "nested";
    const physical = second ? "HPA" : "GPA";
    const columns = [...levels.map((level) => NAMES[level.number]), ...(second ? ["data"] : [])];
    const rows = [...Array.from({ length: m }, (_, i) => NAMES[m - i]), ...(n ? ["entry"] : [])];
    const possible = (n + 1) * (m + 1) - 1;
    const arrived = (second ? done.hpa : done.gpa) !== null;
    const where = () => hex(second ? done.hpa : done.gpa);
    const guests = cells.filter((cell) => !cell.nested);
    const place = (cell) => [cell.column, cell.row];
    const target = (column) => (column < n ? `the guest's ${columns[column]}` : "the data");
    const isLeaf = (cell) => cell.nested ? cell.level === 1 || (cell.level <= 3 && Boolean(cell.entry & PS))
      : Boolean(cell.entry & levels[cell.column].leaf);
    const frame = (cell, address) => {
      const size = sizeOf(cell.level);
      return (cell.entry & ADDRESS & -size) | (address & (size - 1n));
    };
    const steps = [], lit = [];
    let gone = [], saved = [], gpa = "unknown", hpa = "unknown", seen = null;

    function bits(cell) {
      const { entry, level } = cell, leaf = isLeaf(cell);
      const large = level === 2 || level === 3 ? [["PS", 7]] : [];
      const show = (names) => names.map(([name, at]) => [name, bit(entry, at)]);
      const address = ["address", hex(entry & ADDRESS)];
      if (cell.nested && second.kind === "EPT") {
        return [address, ...show([...(leaf ? [["D", 9], ["A", 8]] : [["A", 8]]), ...large]),
          ...(leaf ? [["type", String((entry >> 3n) & 7n)]] : []), ...show([["X", 2], ["W", 1], ["R", 0]])];
      }
      return [["NX", bit(entry, 63)], address, ...show([...(leaf ? [["G", 8]] : []), ...large,
        ...(leaf ? [["D", 6]] : []), ["A", 5], ["US", 2], ["RW", 1], ["P", 0]])];
    }

    const shown = (cell) => ({ place: place(cell), nested: cell.nested, name: NAMES[cell.level], index: hex(cell.index, 3),
      table: hex(cell.at & ~4095n), at: hex(cell.at), entry: hex(cell.entry), bits: bits(cell) });

    function bars(cell) {
      const fields = mode ? levels.map(({ number }, i) => [FIELDS[number], 20 + 9 * (number - 1), 12 + 9 * (number - 1),
        hex((gva >> shiftOf(number)) & 511n, 3), Boolean(cell) && cell.column === i]) : [];
      const all = [["GVA", hex(gva), mode ? [...fields, ["offset", 11, 0, hex(gva & 4095n, 3), false]]
        : [["linear address", 31, 0, hex(gva & 0xffffffffn, 8), false]]]];
      if (second && cell) {
        all.push(["GPA", hex(cell.gpa), [...Array.from({ length: m }, (_, row) => {
          const low = 12 + 9 * (m - 1 - row);
          return [FIELDS[m - row], low + 8, low, hex((cell.gpa >> BigInt(low)) & 511n, 3), cell.nested && row === cell.row];
        }), ["offset", 11, 0, hex(cell.gpa & 4095n, 3), !cell.nested]]]);
      }
      return all;
    }

    function note(at, event, text, cell = null, end = null) {
      const registers = [["GPA", gpa], ...(second ? [["HPA", hpa]] : [])];
      const changed = (seen || registers).map(([name, old], i) => [name, old, registers[i][1]])
        .filter(([, old, now]) => old !== now);
      seen = registers;
      steps.push({ i: steps.length, where: at, event, text, changed, state: { columns, rows, guest: n, possible,
        stage: whose, bars: bars(cell), lit: lit.slice(), gone: gone.slice(), saved: saved.slice(), registers,
        cell: cell && shown(cell), end } });
    }

    function start() {
      const asks = `The guest asks for ${hex(gva)}.`, first = cells[0];
      if (!first) return note("start", "start", asks);
      if (!n) return note("start", "start", `Paging is off in the guest: ${hex(gva)} is guest-physical as it is, 32 bits of it.`);
      const top = hex(first.gpa & ~4095n);
      return note("start", "start", second ? `${asks} Its CR3 tells where its top table is: at GPA ${top}. Where that is in ` +
        "the host's memory, the second stage must say." : `${asks} CR3 tells where the top table is: at GPA ${top}.`);
    }

    function knowEnd() {
      gpa = hex(done.gpa);
      if (second) hpa = hex(done.hpa);
    }

    // What an earlier access has left; returns the references that remain.
    function fromCache() {
      if (caches === "again") {
        saved = cells.map(place);
        knowEnd();
        note("caches", "cached", `The TLB has this page: ${physical} ${where()}. All ${saved.length} references are saved.`);
        return [];
      }
      const last = guests[guests.length - 1], keeper = guests[guests.length - 2], keep = cells.indexOf(last);
      saved = cells.slice(0, keep).map(place);
      gpa = hex(last.gpa);
      hpa = second ? hex(last.at) : "unknown";
      note("caches", "cached", `An access next door has left the ${NAMES[keeper.level]} in the paging-structure caches: the ` +
        `next table is at ${physical} ${hex(last.at & ~4095n)}. ${saved.length} ${plural("reference", saved.length)} saved.`);
      return cells.slice(keep);
    }

    // Whether the last entry is good in itself, and the rights are what is missing.
    function judgedLate(cell) {
      if (!isLeaf(cell)) return false;
      if (done.fault) return (done.fault.code & 9) === 1;
      if (!done.exit || done.exit.kind === "misconfiguration") return false;
      return done.exit.kind === "violation" ? Boolean(cell.entry & 7n) : (done.exit.code & 9n) === 1n;
    }

    function large(cell) {
      if (cell.level === 1) return "";
      const found = [];
      if (cell.nested) for (let row = cell.row + 1; row < m; row++) found.push([cell.column, row]);
      else for (let column = cell.column + 1; column < n; column++) for (let row = 0; row <= m; row++) found.push([column, row]);
      gone = [...gone, ...found];
      return ` A page of ${format(cell.level)}: ${found.length} ${plural("cell", found.length)} need not be read.`;
    }

    function reference(cell) {
      lit.push(place(cell));
      gpa = hex(cell.gpa);
      const leaf = isLeaf(cell), stops = cell === cells[cells.length - 1] && !arrived && !judgedLate(cell);
      const to = target(cell.column), name = NAMES[cell.level];
      let text;
      if (cell.nested) {
        const what = `${whose} ${name} ${hex(cell.index, 3)}`;
        hpa = "unknown";
        if (stops) text = `On the way to ${to}: ${what} holds ${hex(cell.entry)}.`;
        else if (leaf) {
          hpa = hex(frame(cell, cell.gpa));
          text = `${what} maps a page: ${to} is at HPA ${hpa}.${large(cell)}`;
        } else text = `On the way to ${to}: ${what} leads to the table at HPA ${hex(cell.entry & ADDRESS)}.`;
        return note(`${whose} ${name}, for ${to}`, "nested", text, cell);
      }
      const what = `The guest's ${name} ${hex(cell.index, 3)}`;
      if (second) hpa = hex(cell.at);
      if (stops) text = `${what} holds ${hex(cell.entry)}.`;
      else if (leaf) text = `${what} maps a page: the data is at GPA ${hex(frame(cell, gva))}.${large(cell)}`;
      else text = `${what} leads to the table at GPA ${hex(cell.entry & ADDRESS)}.`;
      return note(`the guest's ${name}`, "guest", text, cell);
    }

    function finish() {
      const end = { kind: "", code: "", bit: "", cell: null };
      const blame = (cause, among) => {
        end.bit = cause.bit;
        if (cause.step >= 0) end.cell = shown(among[cause.step]);
        return cause.says;
      };
      if (arrived) {
        knowEnd();
        end.kind = physical;
        const many = `${lit.length} ${plural("reference", lit.length)}`;
        const instead = saved.length ? ` instead of ${lit.length + saved.length}` : "";
        return note("the data", "arrived", `Arrived: the byte is at ${physical} ${where()}, after ${many}${instead}.`, null, end);
      }
      if (done.fault) {
        const { vector, code } = done.fault;
        end.code = hex(code);
        let text;
        if (vector === 13) {
          end.kind = "general protection";
          text = `General protection fault: bits 63 to ${mode.sign + 1} do not repeat bit ${mode.sign}, and ${n} levels know no such address.`;
        } else {
          const passed = guests.map((cell) => ({ level: levels[cell.column], entry: cell.entry }));
          const says = blame(pageFaultCause(passed, code, done.rules, "guest's "), guests);
          end.kind = "page fault";
          const names = ERROR_BITS.filter((_, i) => (code >> i) & 1);
          text = `Page fault, error code ${hex(code)} (${names.join(" ") || "no bit set"}): ${says}. It is the guest's own kernel that hears of it.`;
        }
        return note("the guest's kernel", "fault", text, null, end);
      }
      const left = done.exit, column = cells.length ? cells[cells.length - 1].column : 0;
      const passed = left.level ? cells.filter((cell) => cell.nested && cell.column === column) : [];
      const says = blame(exitCause(second, passed, left, access, column < n), passed);
      end.kind = second.kind === "EPT" ? `EPT ${left.kind}` : left.kind;
      end.code = hex(left.code);
      return note("the hypervisor", "exit", `${end.kind[0].toUpperCase()}${end.kind.slice(1)} at GPA ${hex(left.gpa)}: ${says}. ` +
        "The guest is left; its kernel hears of nothing.", null, end);
    }

    const kept = caches === "again" ? arrived && cells.length > 0 : caches === "next door" && guests.length > 1;
    start();
    (kept ? fromCache() : cells).forEach(reference);
    finish();
    const counters = { references: lit.length, "of at most": possible, "saved by large pages": gone.length,
      "saved by caches": saved.length };
    const title = second ? "Each of the guest's entries lies behind the host's tables"
      : "One reference for each level of the tables, and then the data";
    const provenance = { ...template.provenance, engine: `vmlib.memory.walk${second ? "_nested" : ""}` };
    return { ...template, title, provenance, steps, counters };
  }

  // ---- what the page asks -----------------------------------------------------------------------

  const memories = new WeakMap(); // the words of a host as a Map, made once
  function memoryOf(host) {
    if (!memories.has(host)) {
      const words = new Map();
      for (let i = 0; i < host.words.length; i += 2) words.set(host.words[i], BigInt(`0x${host.words[i + 1]}`));
      const size = BigInt(`0x${host.size}`);
      memories.set(host, { read: (at) => (at < size ? words.get(at.toString(16)) ?? 0n : null) });
    }
    return memories.get(host);
  }

  const big = (text) => BigInt(`0x${text}`);

  function run(template, { gva, guest, host, access }, given) {
    const at = Object.fromEntries(given.hosts)[host];
    const regs = Object.fromEntries(Object.entries(Object.fromEntries(given.guests)[guest]).map(([name, value]) => [name, big(value)]));
    const [kind, cpl, caches] = Object.fromEntries(given.accesses)[access];
    const second = at.second && { executeOnly: true, maxphyaddr: given.maxphyaddr, ...at.second, pointer: big(at.second.pointer) };
    const done = walk(memoryOf(at), second, { ...regs, maxphyaddr: given.maxphyaddr }, parse(gva), kind, cpl);
    const trace = record(template, second, done, kind, caches);
    const start = Math.max(0, trace.steps.findIndex((step) => step.event === "guest" || step.event === "cached"));
    return { trace, start, answers: { references: trace.counters.references } };
  }

  // An address as people write them: 0x7fff_ffff_d008, 7fffffffd008, ffff`81000000, blanks anywhere.
  const tidy = (text) => String(text).trim().replace(/[\s_'`]/g, "").replace(/^0x/i, "");
  const parse = (text) => big(tidy(text));
  const check = (text) => /^[0-9a-f]{1,16}$/i.test(tidy(text)) ? null
    : "An address is up to 16 hexadecimal digits, 0x5555_5555_4123 for one; the figure still shows the last one that was.";

  vmView.models.walk = { inputs: { gva: { kind: "address", check } }, run };
})();
