// The rulers scene: one address on four rulers, one under the other.
//
// A ruler is a row of segments, not to scale between them: what the guest maps, the memory slots
// with their holes, their places in the process, the host's memory. The address is a mark on each
// ruler that it has reached; between two rulers stands who leads from one to the other.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, s } = vmView;
  const ROW = 92, TOP = 34, BAR = 22, FOOT = 14, GAP = 8, LETTER = 7;
  const SPACES = { GVA: "gva", GPA: "gpa", HVA: "hva", HPA: "hpa" };
  const NAMES = { GVA: "guest-virtual", GPA: "guest-physical", HVA: "host-virtual", HPA: "host-physical" };
  const OWNERS = ["the guest's page tables", "memory slots", "the host's page tables"];
  const TICKS = { start: ["run", 0.62], guest: ["guest", 0.8], slot: ["device", 0.8], arrived: ["end", 1],
    later: ["exit", 1], mmio: ["exit", 1], fault: ["exit", 1] };

  vmView.scenes.rulers = ({ trace, strip, body, set }) => {
    let steps = [], at = 0, width = 0, left = 0, placed = [];
    const fixed = s("g"), moving = s("g");
    const svg = s("svg", { class: "vm-rulers", "aria-hidden": "true" }, fixed, moving);
    const list = h("ul", { class: "vm-spaces vm-four", "aria-label": "addresses" });
    strip.append(svg);
    body.append(list);

    // A click on the first ruler chooses the address there.
    if (set) {
      svg.classList.add("vm-choosable");
      svg.addEventListener("click", (event) => {
        const box = svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
        if (y > TOP + BAR + 8) return;
        const hit = placed[0].find((one) => x >= one.x && x < one.x + one.width);
        if (!hit) return;
        const part = BigInt(Math.floor(((x - hit.x) / hit.width) * 65536));
        const address = hit.first + ((hit.size * part) / 65536n & ~0xfffn) + 0x123n;
        set("gva", `0x${address.toString(16)}`);
      });
    }

    const top = (row) => TOP + row * ROW;

    function take(next) {
      steps = next.steps;
      if (width) resize(width);
      return true;
    }

    const short = (text) => text.split(",")[0];
    const wide = (text) => text.length * LETTER + 12;
    const sum = (numbers) => numbers.reduce((all, one) => all + one, 0);

    // Room for each name first, where there is so much; then wide segments for much memory.
    function place(segments, room) {
      const parts = segments.map(([label, first, size]) => ({ label, first: BigInt(first), size: BigInt(size) }));
      const weight = parts.map((one) => Math.sqrt(Number(one.size >> 12n)) + 8);
      const space = room - GAP * (parts.length - 1);
      let least = parts.map((one) => wide(short(one.label)));
      if (sum(least) > space) least = parts.map(() => 0);
      const rest = space - sum(least), all = sum(weight);
      let x = left;
      return parts.map((one, i) => {
        const found = { ...one, x, width: least[i] + (rest * weight[i]) / all };
        x += found.width + GAP;
        return found;
      });
    }

    function resize(next) {
      width = next;
      left = 4;
      const rulers = steps[0].state.rulers;
      placed = rulers.map(([, segments]) => place(segments, width - left - 4));
      const height = top(3) + BAR + FOOT;
      svg.setAttribute("width", width);
      svg.setAttribute("height", height);
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      fixed.replaceChildren(...rulers.flatMap(([name], row) => [
        s("text", { class: `vm-ruler-name vm-ink-${SPACES[name]}`, x: left, y: top(row) - 8 }, name),
        s("text", { class: "vm-ruler-words", x: left + 38, y: top(row) - 8 }, width < 420 ? "" : NAMES[name]),
        ...placed[row].map((one) => s("rect", { x: one.x, y: top(row), width: one.width, height: BAR, rx: 2,
          class: `vm-segment ${one.label === "hole" ? "vm-hole" : `vm-in-${SPACES[name]}`}` })),
      ]));
    }

    // Where an address stands on a ruler; null where no segment has it.
    function spot(row, value) {
      const address = BigInt(value);
      const one = placed[row].find((segment) => address >= segment.first && address < segment.first + segment.size);
      if (!one) return null;
      return one.x + (Number(((address - one.first) * 65536n) / one.size) / 65536) * one.width;
    }

    // The name of a segment, beside the mark where they would meet; the shorter one where it is narrow.
    function label(one, row, mark) {
      const fits = (text, room) => wide(text) - 2 <= room;
      const names = [one.label, short(one.label)];
      const inside = mark !== null && mark >= one.x && mark < one.x + one.width;
      const after = inside ? mark - one.x + 6 : 0;
      let shown = names.find((text) => fits(text, inside ? mark - one.x - 4 : one.width));
      if (shown) return s("text", { class: "vm-segment-name", x: one.x + 5, y: top(row) + 15 }, shown);
      shown = inside && names.find((text) => fits(text, one.width - after));
      return shown ? s("text", { class: "vm-segment-name", x: one.x + after + 3, y: top(row) + 15 }, shown) : "";
    }

    function draw(step) {
      const { registers, end } = step.state, parts = [], words = []; // words lie over lines
      registers.forEach(([, value], row) => {
        const mark = value === "unknown" ? null : spot(row, value);
        placed[row].forEach((one) => parts.push(label(one, row, mark)));
      });
      let before = null;
      registers.forEach(([name, value], row) => {
        if (row) words.push(s("text", { class: "vm-owner", x: left + 2, y: top(row) - 40 }, `↓ ${OWNERS[row - 1]}`));
        if (value === "unknown") return;
        const space = SPACES[name], x = spot(row, value), y = top(row);
        const shown = x === null ? (before === null ? width / 2 : before) : x;
        if (row) {
          const from = before === null ? shown : before, bottom = top(row - 1) + BAR + 4;
          parts.push(s("path", { class: `vm-drop vm-line-${space}`,
            d: `M${from} ${bottom}C${from} ${bottom + 34} ${shown} ${y - 40} ${shown} ${y - 4}` }));
        }
        const inHole = x !== null && placed[row].some((one) => one.label === "hole" && x >= one.x && x < one.x + one.width);
        const lost = x === null || inHole;
        parts.push(s("path", { class: `vm-pin vm-fill-${space}`, "data-space": name, d: `M${shown} ${y - 5}v${BAR + 10}` }),
          s("circle", { class: `vm-dot vm-fill-${space} ${lost ? "vm-lost" : ""}`, cx: shown, cy: y + BAR / 2, r: 5.5 }));
        const right = shown > width * 0.55;
        words.push(s("text", { class: `vm-ruler-value vm-ink-${space}`, x: shown + (right ? -9 : 9), y: y + BAR + 13,
          "text-anchor": right ? "end" : "start" }, `${lost ? "✗ " : ""}${value}`));
        before = shown;
      });
      const last = registers.filter(([, value]) => value !== "unknown").length - 1;
      if (end && end !== "HPA" && last < 3) {
        parts.push(s("text", { class: "vm-stop", x: width - 4, y: top(last + 1) - 40, "text-anchor": "end" }, `✗ ${end}`));
      }
      moving.replaceChildren(...parts.filter(Boolean), ...words);
    }

    // The bits that a page leaves as they are stand apart in each address.
    function shown(value, kept) {
      const digits = Math.floor(Number(kept || 0) / 4), cut = value.length - digits;
      if (!digits || cut <= 2) return h("code", {}, value);
      return h("code", {}, value.slice(0, cut), h("b", { class: "vm-kept" }, value.slice(cut)));
    }

    take(trace);
    return {
      resize,
      renew: take,
      show(i) {
        at = i;
        const step = steps[at], { registers, kept, end } = step.state;
        svg.dataset.end = end;
        if (width) draw(step);
        list.replaceChildren(...registers.map(([name, value]) => h("li", { class: `vm-${SPACES[name]}` },
          h("span", { class: "vm-space" }, name), " ", h("span", { class: "vm-words" }, NAMES[name]), " ", value === "unknown" ? h("span", { class: "vm-none" }, "not known")
            : h("span", { "data-register": name }, shown(value, name === "HVA" || name === "HPA" ? "12" : kept || "0")))));
      },
      name: (step) => step.where,
      value: (text) => text,
      tick: (step) => TICKS[step.event] || TICKS.guest,
      tally(i) {
        return [["addresses known", `${steps[i].state.registers.filter(([, value]) => value !== "unknown").length} of 4`]];
      },
      columns: ["addresses", "ends in"],
      cells: ({ state: { registers, end } }) => [registers.map((pair) => pair.join(" ")).join(", "), end],
    };
  };
})();
