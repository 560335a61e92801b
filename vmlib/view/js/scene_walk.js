// The walk scene: an address falls through the tables, one cell for each reference to memory.
//
// The guest's levels are the columns, under the fields of its own address; the nested levels are
// the rows, beside the fields of the address that is being translated. A cell is lit when it is
// read. Large pages take cells away, caches cover them with a short cut, a fault ends the fall.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, s } = vmView;
  const ROW = 44, PILL = 28, TOP = 26, SPACES = { GVA: "gva", GPA: "gpa", HPA: "hpa" };
  const TICKS = { start: ["run", 0.62], cached: ["device", 0.8], nested: ["nested", 0.45], guest: ["guest", 0.9],
    arrived: ["end", 1], fault: ["exit", 1], exit: ["exit", 1] };
  const key = ([column, row]) => `${column},${row}`;

  vmView.scenes.walk = ({ trace, strip, body, aside, go, set }) => {
    let steps = [], columns = [], rows = [], shape = "", width = 0, left = 72, pitch = 80, at = 0, order = new Map();

    // ---- fixed parts -----------------------------------------------------------------------
    const fields = h("div", { class: "vm-fields", role: "group", "aria-label": "the fields of the guest's address" });
    const drawing = s("g"), names = s("g");
    const svg = s("svg", { class: "vm-grid", "aria-hidden": "true" }, names, drawing);
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left - left) / pitch);
      const row = Math.floor((event.clientY - box.top - TOP) / ROW);
      const found = order.get(`${column},${row}`);
      if (found !== undefined) go(found);
      else if (column === columns.length - 1 && row === rows.length - 1) go(steps.length - 1);
    });
    strip.append(fields, svg);
    const entry = h("div", { class: "vm-entry" });
    const registers = h("ul", { class: "vm-spaces", "aria-label": "addresses" });
    body.append(entry);
    aside.append(registers);
    let knobs = [];

    // ---- one trace after another -------------------------------------------------------------
    function take(next) {
      steps = next.steps;
      const { state } = steps[0];
      columns = state.columns[state.columns.length - 1] === "data" ? state.columns : [...state.columns, "data"];
      rows = state.rows;
      order = new Map();
      for (const step of steps) if (step.state.cell) order.set(key(step.state.cell.place), step.i);
      const now = JSON.stringify([columns, rows, state.stage]);
      if (now !== shape) {
        shape = now;
        makeFields(state.bars[0][2]);
        if (width) resize(width);
      }
      return true;
    }

    // The fields stand over the columns; where an address may be chosen each is a slider.
    function makeFields(list) {
      knobs = list.map(([name, high, low]) => {
        const value = h("span", { class: "vm-index" });
        const label = h("span", {}, name);
        const box = h("div", { class: "vm-part" }, h("span", { class: "vm-part-name" }, label,
          h("span", { class: "vm-part-bits" }, ` ${high}:${low}`)), value);
        const knob = { name, high, low, box, label, value, span: 2 ** (high - low + 1) };
        if (set && list.length > 1) slide(knob);
        return knob;
      });
      fields.replaceChildren(h("span", { class: "vm-corner" }), ...knobs.map((knob) => knob.box));
    }

    function slide(knob) {
      const { box } = knob;
      for (const [name, value] of [["role", "slider"], ["tabindex", 0], ["aria-valuemin", 0], ["aria-valuemax", knob.span - 1],
        ["aria-orientation", "vertical"],
        ["aria-label", `${knob.name}${knob.name === "offset" ? "" : " index"}, bits ${knob.high} to ${knob.low} of the address`]]) box.setAttribute(name, value);
      box.title = "drag, or use the arrow keys";
      let from = null;
      box.addEventListener("pointerdown", (event) => {
        from = { x: event.clientX, y: event.clientY, index: indexOf(knob) };
        box.setPointerCapture(event.pointerId);
        box.focus({ preventScroll: true });
        event.preventDefault();
      });
      box.addEventListener("pointermove", (event) => {
        if (!from) return;
        const by = Math.round((event.clientX - from.x - (event.clientY - from.y)) / 6) * (knob.span > 512 ? 8 : 1);
        change(knob, from.index + by);
      });
      for (const over of ["pointerup", "pointercancel"]) box.addEventListener(over, () => { from = null; });
      box.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.altKey || event.metaKey) return;
        const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 16, PageDown: -16,
          Home: -knob.span, End: knob.span }[event.key];
        if (!by) return;
        change(knob, indexOf(knob) + by);
        event.preventDefault();
        event.stopPropagation();
      });
    }

    const address = () => BigInt(steps[at].state.bars[0][1]);
    const indexOf = (knob) => Number((address() >> BigInt(knob.low)) & BigInt(knob.span - 1));

    // Another index in one field; the bits above the top one follow it, so the address stays canonical.
    function change(knob, index) {
      const low = BigInt(knob.low), mask = BigInt(knob.span - 1) << low;
      let next = (address() & ~mask) | (BigInt(vmView.clamp(index, 0, knob.span - 1)) << low);
      const bits = BigInt(knobs[0].high + 1);
      next = BigInt.asUintN(64, BigInt.asIntN(Number(bits), next));
      if (next !== address()) set("gva", `0x${next.toString(16)}`);
    }

    // ---- the grid ----------------------------------------------------------------------------
    const x = (column) => left + column * pitch + pitch / 2;
    const y = (row) => TOP + row * ROW + ROW / 2;

    function resize(next) {
      width = next;
      const narrow = width < 520;
      left = narrow ? 50 : 84;
      pitch = (width - left) / columns.length;
      const height = TOP + (rows.length + (rows.includes("entry") ? 0 : 1)) * ROW + 8;
      svg.setAttribute("width", width);
      svg.setAttribute("height", height);
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      fields.style.gridTemplateColumns = `${left}px repeat(${columns.length}, minmax(0, 1fr))`;
      if (knobs.length === 1) knobs[0].box.style.gridColumn = `2 / span ${columns.length}`;
    }

    function drawNames(state) {
      const { cell, bars } = state, gpa = cell && bars[1];
      const data = rows.length - 1;
      names.replaceChildren(...rows.flatMap((name, row) => {
        const own = name === "entry"; // the guest's entries, under the nested levels that lead to them
        const acting = cell && cell.place[1] === row;
        const field = gpa && !own ? gpa[2][row] : null;
        const joined = cell && !own && state.gone.some(([c, r]) => c === cell.place[0] && r === row);
        const label = own ? "guest" : joined ? "offset" : name.replace(/E$/, "");
        return [s("text", { class: `vm-row ${acting ? "vm-acting" : ""}`, x: 4, y: y(row) + (field ? -2 : 4) }, label),
          field ? s("text", { class: "vm-row-index", x: 4, y: y(row) + 13 }, field[3]) : ""];
      }).filter(Boolean),
      s("text", { class: "vm-stage-name", x: 4, y: 14 }, state.stage ? `${state.stage} ↓` : ""),
      s("text", { class: "vm-stage-name vm-cr3", x: x(0) - 6, y: 14 }, state.guest && !state.saved.length ? "CR3" : ""),
      s("path", { class: "vm-grid-rule", d: state.stage && state.guest ? `M0 ${TOP + data * ROW}H${width}` : "" }));
    }

    const half = () => Math.min(pitch - 10, 62) / 2;

    // The way from the last cell of a column to the first of another: up in the gap between them.
    function way(from, to) {
      const [c, r] = from, [d, q] = to;
      if (c === d) return `M${x(c)} ${y(r)}V${y(q)}`;
      const gap = x(d) - pitch / 2, k = Math.min(6, pitch / 2 - half());
      if (r === q) return `M${x(c)} ${y(r)}H${x(d)}`;
      return `M${x(c)} ${y(r)}H${gap - k}Q${gap} ${y(r)} ${gap} ${y(r) - k}V${TOP + k - 14}Q${gap} ${TOP - 14} ${gap + k} ${TOP - 14}` +
        `H${x(d) - k}Q${x(d)} ${TOP - 14} ${x(d)} ${TOP - 14 + k}V${y(q)}`;
    }

    function draw(step) {
      const { lit, gone, saved, cell, end, guest } = step.state;
      const marks = new Map();
      gone.forEach((place) => marks.set(key(place), "gone"));
      saved.forEach((place) => marks.set(key(place), "saved"));
      lit.forEach((place, i) => marks.set(key(place), i + 1));
      const two = Boolean(step.state.stage), own = guest ? rows.length - 1 : -1;
      const goal = [columns.length - 1, guest ? own : rows.length];
      const arrived = step.event === "arrived";
      const parts = [];
      // the way so far
      lit.forEach((place, i) => {
        const before = lit[i - 1];
        // what travels: a guest-physical address until the second stage has it, then the host's
        const host = two && before && before[1] !== own;
        const fresh = i === lit.length - 1 && cell ? "vm-fresh" : "";
        if (before) parts.push(s("path", { class: `vm-way ${host ? "vm-to-host" : "vm-to-guest"} ${fresh}`, pathLength: 100, d: way(before, place) }));
        else if (!saved.length) parts.push(s("path", { class: `vm-way ${guest ? "vm-to-guest" : "vm-from-gva"}`, d: `M${x(place[0])} 2V${y(place[1])}` }));
      });
      if (saved.length) {
        const to = lit[0] || goal;
        const last = Math.max(...saved.map(([column]) => column));
        const down = `V${y(to[1])}`;
        parts.push(s("path", { class: "vm-shortcut", d: `M${x(0)} 2V8H${lit.length || last ? x(to[0]) : x(0)}${down}` }));
      }
      if (arrived && lit.length) {
        const from = lit[lit.length - 1];
        parts.push(s("path", { class: `vm-way ${two ? "vm-to-host" : "vm-to-guest"}`, d: way(from, goal) }));
      }
      columns.forEach((_, column) => rows.forEach((name, row) => {
        if (column === goal[0] && row === own && guest) return;
        if (!two && column === goal[0]) return;
        const mark = marks.get(`${column},${row}`);
        const nested = two && row !== own;
        const now = cell && cell.place[0] === column && cell.place[1] === row;
        const guilty = end && end.cell && end.cell.place[0] === column && end.cell.place[1] === row;
        const r = half(), kind = typeof mark === "number" ? "lit" : mark || "ahead";
        const box = { x: x(column) - r, y: y(row) - PILL / 2, width: 2 * r, height: PILL, rx: nested ? PILL / 2 : 3 };
        const group = s("g", { class: `vm-cell vm-${kind} ${nested ? "vm-nested" : "vm-own"} ${now ? "vm-here" : ""} ${guilty ? "vm-guilty" : ""}`,
          "data-cell": `${column},${row}` });
        if (kind === "gone") group.append(s("path", { d: `M${x(column) - 5} ${y(row)}h10` }));
        else {
          group.append(s("rect", box));
          if (kind === "lit") group.append(s("text", { x: x(column), y: y(row) + 4.5 }, guilty ? `✗ ${mark}` : String(mark)));
        }
        parts.push(group);
      }));
      // where it all leads to
      const gx = x(goal[0]), gy = y(goal[1]);
      parts.push(s("path", { class: `vm-goal ${arrived ? `vm-goal-${two ? "hpa" : "gpa"}` : ""}`, d: `M${gx} ${gy - 11}l11 11l-11 11l-11 -11z` }));
      if (arrived) parts.push(s("text", { class: "vm-goal-text", x: gx, y: gy + 4.5 }, "✓"));
      drawing.replaceChildren(...parts);
    }

    function drawFields(state) {
      state.bars[0][2].forEach(([, , , value, used], i) => {
        const knob = knobs[i];
        // what a large page leaves untranslated is part of the offset
        const joined = state.gone.some(([c, r]) => c === i && rows[r] === "entry");
        knob.label.textContent = joined ? "offset" : knob.name;
        knob.value.textContent = value;
        knob.box.classList.toggle("vm-used", used);
        if (!knob.box.hasAttribute("role")) return;
        knob.box.setAttribute("aria-valuenow", Number(value));
        knob.box.setAttribute("aria-valuetext", value);
      });
    }

    function drawEntry(step) {
      const { cell, end, registers: list, bars } = step.state;
      const space = ([name]) => SPACES[name];
      registers.replaceChildren(...[["GVA", bars[0][1]], ...list].map((pair) => h("li", { class: `vm-${space(pair)}` },
        h("span", { class: "vm-space" }, pair[0]), " ", pair[1] === "unknown" ? h("span", { class: "vm-none" }, "not known yet")
          : h("code", { "data-register": pair[0] === "GVA" ? null : pair[0] }, pair[1]))));
      const read = step.state.stage ? "HPA" : "GPA", mono = (text, space) => h("code", { class: `vm-${space}` }, text);
      const told = [];
      if (step.event === "arrived") {
        told.push(h("p", { class: "vm-reads" }, [["GVA", bars[0][1]], ...list].flatMap(([name, value], i) =>
          [i ? " → " : "", mono(`${name} ${value}`, SPACES[name])])));
      } else if (end) {
        const code = { "page fault": "error code", "general protection": "error code", "nested page fault": "EXITINFO1" }[end.kind];
        told.push(h("p", { class: "vm-reads" }, h("strong", {}, end.kind), ` · ${code || "exit qualification"} `, h("code", {}, end.code)));
      } else if (!cell) told.push(h("p", { class: "vm-reads" }, "No entry is read in this step."));
      const one = cell || (end && end.cell);
      entry.replaceChildren(...told, ...(one ? describe(one, step.state.stage, read, end) : []));
    }

    // An entry: where it was read, its value, its bits; the one that is to blame has a cross.
    function describe(cell, stage, read, end) {
      const into = cell.nested ? "hpa" : "gpa";
      const bits = end && /^bit /.test(end.bit) ? [[end.bit, "1"], ...cell.bits] : cell.bits;
      return [
        h("p", { class: "vm-reads" }, "table at ", h("code", { class: `vm-${SPACES[read]}` }, `${read} ${cell.table}`),
          " · entry ", h("code", {}, cell.index), " · read at ", h("code", { class: `vm-${SPACES[read]}` }, cell.at)),
        h("p", { class: "vm-reads" }, `${cell.nested ? `${stage} ` : "the guest's "}${cell.name} = `, h("code", { "data-entry": cell.entry }, cell.entry)),
        h("ul", { class: "vm-bits", "aria-label": "the bits of the entry" }, bits.map(([name, value]) => {
          const guilty = end && end.bit === name;
          return h("li", { class: guilty ? "vm-guilty-bit" : name === "address" ? `vm-wide vm-${into}` : value === "0" ? "vm-zero" : "" },
            h("span", {}, name === "address" ? `address (${into.toUpperCase()})` : guilty ? `✗ ${name}` : name), h("code", {}, value));
        }))];
    }

    take(trace);
    return {
      resize,
      renew: take,
      show(i) {
        at = i;
        const step = steps[i], { cell, lit } = step.state;
        svg.dataset.cell = cell ? key(cell.place) : "";
        svg.dataset.lit = lit.length;
        svg.dataset.end = step.state.end ? step.state.end.kind : "";
        drawFields(step.state);
        drawNames(step.state);
        draw(step);
        drawEntry(step);
      },
      name: (step) => step.where,
      value: (text) => text,
      tick: (step) => TICKS[step.event] || TICKS.nested,
      tally(i) {
        const { lit, gone, saved, possible } = steps[i].state;
        return [["references", `${lit.length} of ${possible}`],
          ...(gone.length ? [["not needed, by large pages", gone.length]] : []),
          ...(saved.length ? [["saved by caches", saved.length]] : [])];
      },
      columns: ["column, row", "reads", "entry", "bits", "addresses"],
      cells({ state: { cell, registers: list, columns: across, rows: down } }) {
        return [cell ? `${across[cell.place[0]]}, ${down[cell.place[1]]}` : "", cell ? cell.at : "", cell ? cell.entry : "",
          cell ? cell.bits.map((pair) => pair.join(" ")).join(", ") : "", list.map((pair) => pair.join(" ")).join(", ")];
      },
    };
  };
})();
