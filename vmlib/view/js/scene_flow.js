// The flow scene: one thing passing through many hands.
//
// A group is an owner (a client, a node): its boxes hold the thing or not, in memory or for good,
// and under it stands what came in and went out. Between groups the messages: dashed while under
// way, with a head where they arrive, crossed out where nobody hears them. Groups stand in rows;
// whoever leads stands above those who follow.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, s } = vmView;
  const BOX = 22, STEP = 26, LINE = 14, PAD = 8, GAP = 46, WIDEST = 158;
  const TICKS = {
    start: ["plain", 0.3], sent: ["plain", 0.34], arrived: ["run", 0.5], "on disk": ["return", 0.85],
    crash: ["exit", 1], talk: ["handled", 0.34], state: ["entry", 0.85],
  };
  const MODES = { new: "in memory only", safe: "on disk", "": "" };
  let count = 0; // pattern ids must differ between figures

  vmView.scenes.flow = ({ trace, strip, body }) => {
    const steps = trace.steps;
    const id = `vm-flow-${count++}`;
    const first = steps[0].state.groups;
    const rows = [...new Set(first.map(([, , , row]) => row))].sort();
    const defs = s("defs", {}, s("pattern", { id: `${id}-hatch`, width: 5, height: 5,
      patternUnits: "userSpaceOnUse", class: "vm-pattern" }, s("path", { d: "M-1 6 6-1M-1 1 1-1M4 6 6 4" })));
    const wires = s("g", { class: "vm-wires" });
    const nodes = s("g", {});
    const labels = s("g", {}); // over the groups, where a wire passes behind one
    const svg = s("svg", { class: "vm-flow", "aria-hidden": "true" }, defs, wires, nodes, labels);
    strip.append(svg);
    const acks = h("p", { class: "vm-acks" });
    const clock = h("p", { class: "vm-clock" });
    body.append(h("div", { class: "vm-known" }, acks, clock));
    let width = 0;
    const place = new Map(); // id -> { x, y, w, h, row }

    const height = (group) => PAD + 2 * LINE + 4 + group[5].length * STEP + group[6].length * LINE + 4;

    function resize(next) {
      width = next;
      let y = 2;
      for (const row of rows) {
        const here = first.filter((group) => group[3] === row);
        const gap = width < 520 ? 6 : 26;
        const w = Math.min(WIDEST, (width - 4 - gap * (here.length - 1)) / here.length);
        const tall = Math.max(...here.map(height));
        const left = (width - here.length * w - (here.length - 1) * gap) / 2;
        here.forEach((group, k) => place.set(group[0], { x: left + k * (w + gap), y, w, h: tall, row }));
        y += tall + GAP;
      }
      svg.setAttribute("width", width);
      svg.setAttribute("height", y - GAP + 2);
      svg.setAttribute("viewBox", `0 0 ${width} ${y - GAP + 2}`);
    }

    // A wire's way: its line, its end with the direction it comes in, and where its label stands.
    // Down goes a little to the left, up to the right. Between neighbours it goes over their row,
    // in the top row under it: beside each other there is no room for words.
    function way(from, to) {
      const a = place.get(from), b = place.get(to);
      if (a.row === b.row) {
        const over = a.row !== rows[0];
        const edge = over ? a.y : a.y + a.h, turn = edge + (over ? -1 : 1) * GAP * 0.55;
        const towards = b.x > a.x ? 9 : -9;
        const x1 = a.x + a.w / 2 + towards, x2 = b.x + b.w / 2 - towards;
        return { line: `M${x1} ${edge}V${turn}H${x2}V${edge}`, end: [x2, edge], u: [0, over ? 1 : -1],
          label: [(x1 + x2) / 2, turn] };
      }
      const down = b.row > a.row;
      const shift = down ? -9 : 9;
      const x1 = a.x + a.w / 2 + shift, y1 = down ? a.y + a.h : a.y;
      const x2 = b.x + b.w / 2 + shift, y2 = down ? b.y : b.y + b.h;
      // The label stands where wires are farthest apart: near the end that has most neighbours, and
      // of a wire that passes a row, below that row.
      const crowd = first.filter((group) => group[3] === (down ? b : a).row).length > 3;
      const passes = Math.abs(rows.indexOf(a.row) - rows.indexOf(b.row)) > 1;
      const near = passes ? 1 - GAP / 2 / Math.abs(y2 - y1) : crowd ? 0.84 : 0.62;
      const far = down ? near : 1 - near;
      const long = Math.hypot(x2 - x1, y2 - y1) || 1;
      return { line: `M${x1} ${y1}L${x2} ${y2}`, end: [x2, y2], u: [(x2 - x1) / long, (y2 - y1) / long],
        label: [x1 + (x2 - x1) * far, y1 + (y2 - y1) * far] };
    }

    const short = (box, w) => (w < 100 && box.length > 4 ? box.slice(0, 3) : box);

    function wire([from, to, label, mode]) {
      const { line, end: [x2, y2], u: [ux, uy], label: [x, y] } = way(from, to);
      const head = `M${x2} ${y2}L${x2 - ux * 9 - uy * 4.5} ${y2 - uy * 9 + ux * 4.5}L${x2 - ux * 9 + uy * 4.5} ${y2 - uy * 9 - ux * 4.5}Z`;
      const wide = label.length * 6.4 + (mode === "lost" ? 30 : 14);
      const at = vmView.clamp(x, wide / 2 + 1, width - wide / 2 - 1);
      const kind = `vm-wire vm-wire-${mode.replace(" ", "-")}`;
      wires.append(s("g", { class: kind, "data-wire": [from, to, label, mode].join("|") },
        s("path", { class: "vm-wire-line", d: line }),
        mode === "arrived" ? s("path", { class: "vm-wire-head", d: head }) : null));
      labels.append(s("g", { class: kind }, s("rect", { class: "vm-wire-paper", x: at - wide / 2, y: y - 8, width: wide, height: 16, rx: 8 }),
      s("text", { x: at, y: y + 3.8 }, mode === "lost" ? `✕ ${label}` : label)));
    }

    function node(group, acting, rank) {
      const [name, title, role, , mode, boxes, counters] = group;
      const { x, y, w, h: tall } = place.get(name);
      const line = (text, k, kind) => s("text", { class: kind, x: x + PAD, y: y + PAD + 10 + k * LINE }, text);
      let top = y + PAD + 2 * LINE + 2;
      const parts = boxes.map(([box, holds, how]) => {
        const at = top, label = short(box, w);
        top += STEP;
        return s("g", { class: `vm-box vm-box-${how || "plain"}`, "data-box": `${name}/${box}`,
          "data-mode": how, "data-holds": holds },
        s("rect", { x: x + PAD - 2, y: at, width: w - 2 * PAD + 4, height: BOX, rx: 3,
          fill: how === "new" ? `url(#${id}-hatch)` : null }),
        s("rect", { class: "vm-box-paper", x: x + PAD + 1, y: at + 3, width: label.length * 7.4 + 6, height: BOX - 6, rx: 2 }),
        s("text", { x: x + PAD + 4, y: at + 15 }, label),
        s("rect", { class: "vm-box-paper", x: x + w - PAD - holds.length * 7 - 7, y: at + 3,
          width: holds.length * 7 + 6, height: BOX - 6, rx: 2 }),
        s("text", { class: "vm-holds", x: x + w - PAD - 4, y: at + 15 }, holds));
      });
      return s("g", { class: ["vm-group", mode === "down" ? "vm-down" : "", acting ? "vm-acting" : ""].join(" ").trim(),
        "data-group": name, "data-role": role, "data-mode": mode },
      s("rect", { class: "vm-group-frame", x, y, width: w, height: tall, rx: 5 }),
      line(mode === "down" ? `✕ ${title}` : title, 0, "vm-group-name"),
      rank ? s("text", { class: "vm-rank", x: x + w - PAD + 2, y: y + PAD + 10 + (w < 100 ? LINE : 0) }, rank) : null,
      role ? line(role, 1, "vm-group-role") : null, parts,
      counters.map((text, k) => s("text", { class: "vm-group-count", x: x + PAD,
        y: top + 11 + k * LINE }, text)));
    }

    const rankOf = (state, name) => {
      const at = state.acks.indexOf(name);
      return at < 0 ? "" : String.fromCharCode(0x2460 + at); // ①②③
    };

    return {
      resize,
      show(i) {
        if (!width) return;
        const { state, where } = steps[i];
        svg.dataset.where = where;
        nodes.replaceChildren(...state.groups.map((group) => node(group, group[0] === where, rankOf(state, group[0]))));
        // What moves now is drawn last, over what is only under way.
        const order = { "under way": 0, lost: 1, arrived: 2 };
        wires.replaceChildren();
        labels.replaceChildren();
        [...state.wires].sort((a, b) => order[a[3]] - order[b[3]]).forEach(wire);
        acks.dataset.acks = state.acks.join(" ");
        acks.replaceChildren(h("span", { class: "vm-label" }, "known to be on disk, in this order"),
          ...(state.acks.length ? state.acks.map((name) => h("span", { class: "vm-ack" }, `${rankOf(state, name)} ${name}`))
            : [h("span", { class: "vm-none" }, "nowhere yet")]));
        clock.dataset.time = state.time;
        clock.replaceChildren(h("span", { class: "vm-label" }, "since the client sent"), h("code", {},
          state.time < 1 ? `${Math.round(state.time * 1000)} ms` : `${state.time.toFixed(1)} s`));
      },
      name: (step) => step.where,
      value: (text) => text,
      tick: (step) => TICKS[step.event] || TICKS.sent,
      tally: (i) => steps[i].state.sofar,
      columns: ["what each holds", "messages", "known to be on disk", "seconds"],
      cells({ state }) {
        return [state.groups.map(([, title, role, , mode, boxes]) =>
          `${title}${role ? ` (${role})` : ""}${mode ? ` ${mode}` : ""}: ${boxes.map(([box, holds, how]) =>
            `${box} ${holds}${MODES[how] && how === "new" ? " (in memory only)" : ""}`).join(", ")}`).join("; "),
        state.wires.map(([from, to, label, mode]) => `${from} → ${to}: ${label}, ${mode}`).join("; "),
        state.acks.join(", "), String(state.time)];
      },
    };
  };
})();
