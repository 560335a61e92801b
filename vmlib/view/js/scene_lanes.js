// The lanes scene: who runs, and what makes it leave.
//
// Four lanes from the guest's user code down to the VMM; time runs to the right by steps. The past
// is drawn, the present is strong, the future is a row of dots that gives nothing away. Below it
// the listing with the current line, the registers and the bytes on the serial port.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, s } = vmView;
  const LANES = ["guest user", "guest kernel", "host kernel", "host user"];
  const PATTERNS = ["dots", "hatch", "bars", "solid"];
  const LABELS = ["guest user", "guest kernel", "host kernel", "host user|(VMM)"];
  const EMULATOR = "emulator|(in the kernel's|place)";
  const LANE = 40, GAP = 22, RULER = 26, TOP = 2, BLOCK = 16, LISTING = 16, PORT = 24;
  const WHOLE = 120; // up to this many steps the strip shows them all
  const TICKS = {
    instruction: ["plain", 0.3], entry: ["entry", 0.5], run: ["run", 0.62], exit: ["exit", 1],
    handled: ["handled", 0.62], return: ["return", 1], device: ["device", 0.62], end: ["end", 1],
  };
  // What a counter of the trace counts, where a step can tell; the others are known at the end only.
  const COUNTS = {
    instructions: (step) => step.event === "instruction",
    "exits to user space": (step) => step.event === "return",
    "finished in the kernel": (step) => step.event === "handled",
  };
  const counts = (name) => COUNTS[name] || (/^exits [A-Z_]+$/.test(name)
    ? (step) => step.event === "exit" && `exits ${step.state.exit.reason}` === name : null);

  let count = 0; // pattern ids must differ between figures

  vmView.scenes.lanes = ({ trace, strip, body, aside, go }) => {
    const steps = trace.steps;
    const emulated = trace.provenance.engine === "unicorn";
    const labels = LABELS.map((label, i) => (i === 2 && emulated ? EMULATOR : label));
    const laneOf = steps.map((step) => Math.max(0, LANES.indexOf(step.where)));
    const laneTop = (lane) => TOP + lane * LANE + (lane > 1 ? GAP : 0);
    const laneMid = (lane) => laneTop(lane) + LANE / 2;
    const floor = TOP + 4 * LANE + GAP;
    const border = TOP + 2 * LANE + GAP / 2;
    const id = `vm-lanes-${count++}`;
    let width = 0, left = 0, pitch = 8, from = 0, shown = steps.length;

    // ---- the strip: fixed parts once, five paths that follow the step ----------------------
    const pattern = (name, size, ...marks) => s("pattern", { id: `${id}-${name}`, width: size,
      height: size, patternUnits: "userSpaceOnUse", class: "vm-pattern" }, marks);
    const defs = s("defs", {},
      pattern("dots", 4, s("circle", { cx: 1.5, cy: 1.5, r: 1.05 })),
      pattern("hatch", 4, s("path", { d: "M-1 5 5-1M-1 1 1-1M3 5 5 3" })),
      pattern("bars", 4, s("path", { d: "M0 1.5h4" })));
    const band = s("rect", { class: "vm-band", x: 0, height: LANE, rx: 3 });
    const names = labels.map(() => s("text", { class: "vm-lane-name" }));
    const rules = s("path", { class: "vm-rules" });
    const dashed = s("path", { class: "vm-border" });
    const gate = s("text", { class: "vm-gate", x: 8, y: border + 3.5 }, "exit ↓ · entry ↑");
    const past = PATTERNS.map((name) => s("path", { class: `vm-past vm-past-${name}`,
      fill: name === "solid" ? null : `url(#${id}-${name})` }));
    const arrows = s("path", { class: "vm-arrows" });
    const heads = s("path", { class: "vm-heads" });
    const hair = s("path", { class: "vm-hair" });
    const now = s("rect", { class: "vm-now", height: BLOCK + 6, rx: 2 });
    const leap = s("path", { class: "vm-leap" });
    const tip = s("path", { class: "vm-tip" });
    const dots = s("path", { class: "vm-dots" });
    const ticks = s("path", { class: "vm-past-ticks" });
    const numbers = s("g", { class: "vm-ruler" });
    const note = s("text", { class: "vm-note" });
    const paper = s("rect", { class: "vm-paper", height: 18 });
    const svg = s("svg", { class: "vm-lanes", height: floor + RULER, "aria-hidden": "true" },
      defs, band, rules, dashed, names, gate, past, arrows, heads, hair, dots, ticks, numbers,
      leap, tip, now, paper, note);
    svg.addEventListener("click", (event) => {
      const x = event.clientX - svg.getBoundingClientRect().left;
      const i = from + Math.floor((x - left) / pitch);
      if (x >= left && i < from + shown && i < steps.length) go(i);
    });
    strip.append(svg);

    function resize(next) {
      width = next;
      const narrow = width < 520;
      left = narrow ? 104 : 144;
      const room = width - left - 42; // the last step leaves room for a short exit reason
      const all = steps.length <= WHOLE && room / steps.length >= 4;
      shown = all ? steps.length : vmView.clamp(Math.floor(room / 8), 24, 60);
      pitch = Math.min(14, room / shown);
      svg.setAttribute("width", width);
      svg.setAttribute("viewBox", `0 0 ${width} ${floor + RULER}`);
      band.setAttribute("width", width);
      names.forEach((name, lane) => {
        const [main, ...rest] = labels[lane].split("|");
        const lines = [main, ...(narrow || !rest.length ? rest : [rest.join(" ")])];
        name.replaceChildren(...lines.map((line, i) => s("tspan", { x: 8, class: i ? "vm-lane-sub" : null,
          y: laneMid(lane) + 4.5 + (i - (lines.length - 1) / 2) * (lines.length > 2 ? 11 : 13) }, line)));
      });
      rules.setAttribute("d", [0, 1, 2, 3].map((l) => `M${left} ${laneMid(l)}H${width}`).join(""));
      dashed.setAttribute("d", `M${left} ${border}H${width}`);
    }

    const columnX = (i) => left + (i - from) * pitch;

    function arrow(i, size) {
      const crossing = steps[i].state.crossing;
      if (!crossing) return null;
      const [a, b] = crossing.map((name) => LANES.indexOf(name));
      if (a < 0 || b < 0 || a === b) return null;
      const down = b > a ? 1 : -1;
      // An exit arrives with its step; an entry or a call leaves after it.
      const x = columnX(crossing[0] === steps[i].where ? i + 1 : i) - 0.5;
      const end = laneMid(b) - down * (BLOCK / 2 - 2);
      return {
        line: `M${x} ${laneMid(a)}V${end - down * size}`,
        head: `M${x} ${end}l${-size * 0.62} ${-down * size * 1.3}h${size * 1.24}z`,
      };
    }

    function drawStrip(i) {
      if (!width) return;
      from = vmView.clamp(i - Math.round(shown * 0.6), 0, Math.max(0, steps.length - shown));
      const until = Math.min(steps.length, from + shown);
      const lane = laneOf[i];
      const parts = ["", "", "", ""];
      let lines = "", points = "", ahead = "", behind = "";
      const wide = pitch >= 5 ? pitch - 1.2 : pitch;
      for (let k = from; k < until; k++) {
        const x = columnX(k);
        if (k < i) {
          parts[laneOf[k]] += `M${x} ${laneMid(laneOf[k]) - BLOCK / 2}h${wide}v${BLOCK}h${-wide}z`;
          const crossed = arrow(k, 3.2);
          if (crossed) [lines, points] = [lines + crossed.line, points + crossed.head];
          behind += `M${x + pitch / 2} ${floor + 3}v4`;
        } else if (k > i) ahead += `M${x + pitch / 2} ${floor + 5}h0`;
      }
      past.forEach((path, l) => path.setAttribute("d", parts[l]));
      arrows.setAttribute("d", lines);
      heads.setAttribute("d", points);
      dots.setAttribute("d", ahead);
      ticks.setAttribute("d", behind);
      const leaping = arrow(i, 6);
      leap.setAttribute("d", leaping ? leaping.line : "");
      tip.setAttribute("d", leaping ? leaping.head : "");
      const x = columnX(i), thick = Math.max(5, pitch - 1);
      now.setAttribute("x", x);
      now.setAttribute("y", laneMid(lane) - BLOCK / 2 - 3);
      now.setAttribute("width", thick);
      hair.setAttribute("d", `M${x + thick / 2} ${TOP}V${floor + 8}`);
      band.setAttribute("y", laneTop(lane));
      names.forEach((name, l) => name.classList.toggle("vm-acting", l === lane));
      drawNumbers(i, until);
      drawNote(i, x, thick);
    }

    function drawNumbers(i, until) {
      const every = [1, 2, 5, 10, 20, 50].find((n) => n * pitch >= 42) || 100;
      const at = [];
      for (let k = Math.ceil(from / every) * every; k < until; k += every) {
        if (Math.abs(k - i) * pitch > 22) at.push(k);
      }
      numbers.replaceChildren(...[...at, i].map((k) => s("text", { x: columnX(k) + pitch / 2,
        y: floor + 22, class: k === i ? "vm-ruler-now" : "" }, String(k))));
    }

    // Why it left, written into the lane that knows: right of the cursor, where nothing is yet.
    function drawNote(i, x, thick) {
      const exit = steps[i].state.exit;
      note.replaceChildren();
      paper.setAttribute("width", 0);
      if (!exit) return;
      const need = (text) => text.length * 7.3 + 8;
      const right = width - x - thick - 8;
      const whole = exit.detail && need(`${exit.reason} ${exit.detail}`) <= right;
      const size = need(whole ? `${exit.reason} ${exit.detail}` : exit.reason);
      const at = size <= right ? x + thick + 8 : x - 8 - size;
      note.setAttribute("x", at + 2);
      note.setAttribute("y", laneMid(laneOf[i]) + 4);
      paper.setAttribute("x", at - 2);
      paper.setAttribute("y", laneMid(laneOf[i]) - 9);
      paper.setAttribute("width", size);
      note.append(s("tspan", { class: "vm-reason" }, exit.reason));
      if (whole) note.append(s("tspan", { dx: 8 }, exit.detail));
    }

    // ---- the listing, the registers, the port ----------------------------------------------
    const rows = h("tbody");
    const listing = h("table", { class: "vm-listing" },
      h("caption", { class: "vm-hidden" }, "the guest's code; the current line is marked"), rows);
    const registers = h("ul", { class: "vm-registers", "aria-label": "registers" });
    const reason = h("p", { class: "vm-exit" });
    const port = h("p", { class: "vm-port" });
    body.append(h("div", { class: "vm-code", tabindex: "0", role: "region",
      "aria-label": "the guest's code" }, listing), registers);
    // A guest that nobody leaves, or that prints nothing, has no line for it.
    if (steps.some(({ state }) => state.exit)) aside.append(reason);
    if (steps.some(({ state }) => state.output)) aside.append(port);
    let codeKey = null, first = -1, lit = null, cells = new Map();

    function drawListing(state) {
      const code = state.code || [];
      const size = Math.min(LISTING, code.length);
      let start = Math.max(0, first);
      if (state.line >= 0 && (state.line < start + 2 || state.line > start + size - 3)) {
        start = state.line - Math.floor(size / 2);
      }
      start = vmView.clamp(start, 0, code.length - size);
      if (code !== codeKey || start !== first) {
        codeKey = code;
        first = start;
        rows.replaceChildren(...code.slice(start, start + size).map(([address, bytes, text]) =>
          h("tr", {}, h("td", { class: "vm-at" }, address), h("td", { class: "vm-bytes" }, bytes),
            h("td", { class: "vm-text" }, text))));
      }
      if (lit) lit.removeAttribute("aria-current");
      lit = state.line >= 0 ? rows.children[state.line - first] : null;
      if (lit) lit.setAttribute("aria-current", "true");
      listing.dataset.line = state.line;
    }

    function drawRegisters(step) {
      const fresh = new Set(step.changed.map(([name]) => name));
      const wanted = step.state.registers || [];
      if (wanted.length !== cells.size || wanted.some(([name]) => !cells.has(name))) {
        cells = new Map(wanted.map(([name]) => [name, h("span", { "data-register": name })]));
        registers.replaceChildren(...[...cells].map(([name, cell]) =>
          h("li", {}, h("span", {}, name), " ", cell)));
      }
      for (const [name, value] of wanted) {
        const cell = cells.get(name);
        if (cell.textContent !== value) cell.textContent = value;
        cell.classList.toggle("vm-new", fresh.has(name));
      }
    }

    function drawWires(step, i) {
      const { exit, output = "" } = step.state;
      const words = exit ? `${exit.reason} ${exit.detail || ""}`.trim() : "";
      reason.dataset.exit = words;
      reason.replaceChildren(h("span", { class: "vm-label" }, "exit reason"),
        exit ? h("code", {}, words) : h("span", { class: "vm-none" }, "none"));
      const before = i > 0 ? steps[i - 1].state.output || "" : output;
      const bytes = [...output];
      const fresh = output.startsWith(before) ? [...before].length : bytes.length;
      const cut = Math.max(0, bytes.length - PORT);
      port.dataset.output = output;
      port.replaceChildren(h("span", { class: "vm-label" }, "serial port"),
        bytes.length ? h("span", { class: "vm-sent" }, cut ? "…" : "", bytes.slice(cut).map((byte, k) =>
          h("code", { class: k + cut >= fresh ? "vm-new" : "" }, vmView.visible(byte))))
          : h("span", { class: "vm-none" }, "nothing yet"));
    }

    // ---- what the frame asks ---------------------------------------------------------------
    const totals = Object.entries(trace.counters);
    const sums = totals.map(([name]) => {
      const hit = counts(name);
      let sum = 0;
      return hit && Uint32Array.from(steps, (step) => (sum += hit(step) ? 1 : 0));
    });

    function tally(i) {
      if (i === steps.length - 1) return totals;
      return totals.map(([name], k) => [name, sums[k] ? sums[k][i]
        : name === "bytes on the serial port" ? (steps[i].state.output || "").length : 0])
        .filter(([, value], k) => value || k === 0);
    }

    return {
      resize,
      show(i) {
        const step = steps[i];
        const crossing = step.state.crossing;
        svg.dataset.lane = step.where;
        svg.dataset.crossing = crossing ? crossing.join(">") : "";
        drawStrip(i);
        drawListing(step.state);
        drawRegisters(step);
        drawWires(step, i);
      },
      name: (step) => (labels[LANES.indexOf(step.where)] || step.where).replaceAll("|", " "),
      value: (text) => [...text].map((c) => (c === " " ? c : vmView.visible(c))).join("") || "nothing",
      tick: (step) => TICKS[step.event] || TICKS.instruction,
      tally,
      columns: ["instruction", "registers", "exit reason", "serial port"],
      cells({ state }) {
        const line = state.line >= 0 && state.code[state.line];
        return [line ? `${line[0]} ${line[2]}` : "",
          (state.registers || []).map((pair) => pair.join(" ")).join(", "),
          state.exit ? `${state.exit.reason} ${state.exit.detail || ""}`.trim() : "",
          vmView.visible(state.output || "")];
      },
    };
  };
})();
