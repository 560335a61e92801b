// The model "four": one address on four rulers, for any address and any place of the slots.
//
// Given the words of a guest's tables, its slots and where the host has put their pages, it records
// the same trace as vmlib.memory.record_four. That it is the same is held by a test on the Python
// side. The walk is that of walking.js.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { hex, sizeOf, walk } = vmView.walking;
  const PAGE = 4096n, SPACES = ["GVA", "GPA", "HVA", "HPA"];
  const DOES = { read: "loads from", write: "stores to" };
  const big = (text) => BigInt(`0x${text}`);
  const pairs = (list) => Array.from({ length: list.length / 2 }, (_, i) => [list[2 * i], list[2 * i + 1]]);

  function fault({ vector, code, level }) {
    if (vector === 13) {
      return "General protection fault: no address of so many bits. The guest's own kernel hears of it, and nobody below.";
    }
    const why = code & 1 ? "the entries are there and forbid it" : "nothing there";
    return `Page fault at level ${level}, error code ${hex(code)}: ${why}. The guest's own kernel hears of it, and nobody below.`;
  }

  function record(template, { gva, access, registers, memory, slots, rulers, pages }) {
    const steps = [], known = [hex(gva), "unknown", "unknown", "unknown"];
    let kept = "", seen = null;
    function note(where, event, text, end = "") {
      const now = SPACES.map((name, i) => [name, known[i]]);
      const changed = (seen || now).map(([name, old], i) => [name, old, now[i][1]]).filter(([, old, value]) => old !== value);
      seen = now;
      steps.push({ i: steps.length, where, event, text, changed, state: { rulers, registers: now, kept, end } });
    }
    function down() {
      note("the guest", "start", `The guest ${DOES[access]} ${known[0]}. It knows no other address.`);
      const done = walk(memory, null, registers, gva, access, 0);
      if (done.gpa === null) return note("the guest's page tables", "fault", fault(done.fault), "page fault");
      const { gpa, cells } = done, level = cells[cells.length - 1].level;
      known[1] = hex(gpa);
      kept = String(sizeOf(level).toString(2).length - 1);
      note("the guest's page tables", "guest", `${cells.length} entries lead to a page of ${["", "4K", "2M", "1G"][level]}. ` +
        `Its address replaces the upper bits, the lower ${kept} stay: GPA ${known[1]}.`);

      const slot = slots.find((one) => gpa >= one.gpa && gpa < one.gpa + one.size);
      if (!slot || (access === "write" && slot.readonly)) {
        const why = slot ? `Slot ${slot.number} holds GPA ${known[1]} and is read-only: a store there`
          : `No slot holds GPA ${known[1]}: an access there`;
        return note("the memory slots", "mmio", `${why} is MMIO. The guest is left, and the VMM plays a device.`, "MMIO");
      }
      const hva = slot.hva + gpa - slot.gpa;
      known[2] = hex(hva);
      note("the memory slots", "slot", `Slot ${slot.number} begins at GPA ${hex(slot.gpa)} and at HVA ${hex(slot.hva)}. One ` +
        `subtraction and one addition: HVA ${known[2]}.`);

      const page = pages.get((hva & -PAGE).toString(16));
      if (page === undefined) {
        return note("the host's page tables", "later",
          "The host's tables give no number: no page yet: the host gives one at the first access.", "no HPA");
      }
      const hpa = page | (hva & (PAGE - 1n));
      known[3] = hex(hpa);
      return note("the host's page tables", "arrived", `The host's kernel has put this page at HPA ${hex(page)}; ` +
        `the lower 12 bits stay: HPA ${known[3]}.`, "HPA");
    }
    down();
    const addresses = known.filter((value) => value !== "unknown").length;
    return { ...template, steps, counters: { addresses } };
  }

  const tidy = (text) => String(text).trim().replace(/[\s_'`]/g, "").replace(/^0x/i, "");
  const check = (text) => /^[0-9a-f]{1,16}$/i.test(tidy(text)) ? null
    : "An address is up to 16 hexadecimal digits, 0x7fff_ffff_d123 for one; the figure still shows the last one that was.";

  function run(template, { gva, position, access }, given) {
    const words = new Map(pairs(given.words).map(([at, value]) => [at, big(value)]));
    const size = big(given.size);
    const trace = record(template, {
      gva: big(tidy(gva)), access,
      registers: { ...Object.fromEntries(Object.entries(given.registers).map(([name, value]) => [name, big(value)])), maxphyaddr: 52 },
      memory: { read: (at) => (at < size ? words.get(at.toString(16)) ?? 0n : null) },
      slots: Object.fromEntries(given.slots)[position].map(([number, gpa, bytes, hva, readonly]) =>
        ({ number, gpa: big(gpa), size: big(bytes), hva: big(hva), readonly })),
      rulers: Object.fromEntries(given.rulers)[position],
      pages: new Map(pairs(given.pages).map(([hva, hpa]) => [hva, big(hpa)])),
    });
    return { trace, start: Math.max(0, trace.steps.length - 2), answers: { addresses: trace.counters.addresses } };
  }

  vmView.models.four = { inputs: { gva: { kind: "address", check } }, run };
})();
