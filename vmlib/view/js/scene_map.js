// The map scene: a hierarchy that decides.
//
// An icicle from the root to the devices, as wide as they weigh. Between its floors hang the straws:
// each item of the bucket that draws has one, the longest wins. What was turned down is listed with
// its reason. Where the map was changed (`trace.live`, from the model), the placements that move are
// ribbons from where they were to where they are, beside those of a table with hash % lines.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, s } = vmView;
  const LEFT = 40, FLOOR = 22, STRAWS = 46, TITLE = 15, NAMES = 17, MARKS = 17, RIBBON = 96, RAIL = 7;
  const ZOOM = 9, ROWS = 12, BEST = 8, THIN = 2.5, MOST_RIBBONS = 1500;
  const TICKS = { draw: ["plain", 0.35], refuse: ["return", 1], place: ["handled", 0.62], step: ["entry", 0.5], end: ["end", 1] };
  const kg = (weight) => (weight / 65536).toFixed(2);
  const box = (x, y, w, height) => `M${x.toFixed(1)} ${y}h${w.toFixed(1)}v${height}h${(-w).toFixed(1)}z`;
  let count = 0; // pattern ids must differ between figures

  // A name, else the number at its end, else nothing: whatever fits.
  function fitting(name, room, size = 6.4) {
    const number = /\d+$/.exec(name);
    return [name, number ? number[0] : ""].find((text) => text.length * size + 3 <= room) || "";
  }

  // How long a straw is drawn: u^(w/weight), w the heaviest. That keeps the order that CRUSH decides by.
  function lengths(draws) {
    const heaviest = Math.max(...draws.map((draw) => draw[4]), 1);
    return draws.map(([, , u, , weight]) => (weight ? ((u + 1) / 65536) ** (heaviest / weight) : 0));
  }

  vmView.scenes.map = ({ trace: first, strip, body, aside, given, set }) => {
    const id = `vm-map-${count++}`;
    let trace = first, steps = trace.steps, tree = null, width = 0;

    // ---- the tree, laid out from the map or, without one, from the draws of the trace ----------
    function plant() {
      const live = trace.live;
      const map = live ? live.map : given ? vmView.crush.open(given) : null;
      const floors = [];
      const cells = new Map();
      const add = (cell) => {
        (floors[cell.depth] ||= []).push(cell);
        cells.set(cell.name, cell);
        return cell;
      };
      if (map) {
        const lay = (item, depth, from, to, weight) => {
          const bucket = map.buckets.get(item);
          const type = map.types.get(bucket ? bucket.type : 0);
          const cell = add({ item, name: vmView.crush.nameOf(map, item), depth, from, to, weight, type, below: [],
            out: map.out.get(item) === 0 });
          const sum = bucket ? bucket.weights.reduce((a, b) => a + b, 0) : 0;
          let x = from;
          (bucket ? bucket.items : []).forEach((child, i) => {
            const share = sum ? ((to - from) * bucket.weights[i]) / sum : 0;
            cell.below.push(lay(child, depth + 1, x, x + share, bucket.weights[i]));
            x += share;
          });
          return cell;
        };
        const root = map.steps.find((step) => step.op === "take").arg1;
        lay(root, 0, 0, 1, map.buckets.get(root).weights.reduce((a, b) => a + b, 0));
      } else {
        const seen = new Map(steps.filter((step) => step.event === "draw").map((step) => [step.where, step.state.draws]));
        const lay = (item, itemName, depth, from, to, weight) => {
          const cell = add({ item, name: itemName, depth, from, to, weight, type: "", below: [], out: false });
          const draws = seen.get(itemName) || [];
          const sum = draws.reduce((a, draw) => a + draw[4], 0);
          let x = from;
          for (const draw of draws) {
            const share = sum ? ((to - from) * draw[4]) / sum : 0;
            cell.below.push(lay(draw[0], draw[1], depth + 1, x, x + share, draw[4]));
            x += share;
          }
          return cell;
        };
        const draw = steps.find((step) => step.event === "draw");
        if (draw) lay(null, draw.where, 0, 0, 1, 0);
      }
      const devices = floors.at(-1) || [];
      return { map, floors, cells, devices, byItem: new Map(devices.map((cell) => [cell.item, cell])) };
    }

    // ---- parts ---------------------------------------------------------------------------------
    const svg = s("svg", { class: "vm-map", "aria-hidden": "true" });
    const handle = set ? h("div", { class: "vm-hand", role: "slider", tabindex: "0", "aria-label":
      "the OSD that is changed: left and right choose, up and down change its weight", "aria-valuemin": 0 }) : null;
    strip.classList.add("vm-holds-map");
    strip.append(...[svg, handle].filter(Boolean));
    const draws = h("div", { class: "vm-draws", tabindex: "0", role: "region", "aria-label": "the numbers drawn" });
    const ribbons = h("div", { class: "vm-ribbons" });
    body.append(ribbons);
    const copies = h("p", { class: "vm-copies" });
    const turned = h("div", { class: "vm-turned" });
    aside.append(draws, copies, turned);

    const X = (share) => LEFT + share * (width - LEFT - 2);
    const straws = () => TITLE + STRAWS + NAMES + ZOOM;
    const floorY = (depth) => depth * (FLOOR + straws());
    const height = () => floorY(tree.floors.length - 1) + FLOOR + MARKS;

    // ---- the icicle: one path for the cells of a floor, one for what is too thin to tell apart ---
    function drawFloor(cells, depth) {
      const y = floorY(depth);
      let plain = "", dense = "", from = -1, to = -1;
      const labels = [];
      for (const cell of cells) {
        const x0 = X(cell.from), x1 = X(cell.to), wide = x1 - x0;
        if (wide <= 0) continue;
        if (wide >= THIN) {
          plain += box(x0, y, wide - 0.8, FLOOR);
          const text = fitting(cell.name, wide - 2);
          if (text) labels.push(s("text", { x: (x0 + x1) / 2, y: y + FLOOR / 2 + 4, "data-cell": cell.name }, text));
        } else if (x0 <= to + 0.5) to = x1;
        else {
          if (to > from) dense += box(from, y, to - from, FLOOR);
          [from, to] = [x0, x1];
        }
      }
      if (to > from) dense += box(from, y, to - from, FLOOR);
      const crowd = dense && !labels.length
        ? s("text", { x: (X(0) + X(1)) / 2, y: y + FLOOR / 2 + 4, class: "vm-crowd" },
          `${cells.length.toLocaleString("en")} ${cells[0].type || "item"}s`) : null;
      return s("g", {}, s("path", { class: "vm-cells", d: plain }),
        s("path", { class: "vm-dense", d: dense, fill: `url(#${id}-dense)` }), labels, crowd,
        s("text", { class: "vm-floor", x: 0, y: y + FLOOR / 2 + 4 }, cells[0].type || ""));
    }

    // Light up a cell; what is thinner than a finger's breadth gets one all the same.
    function lit(cell, kind) {
      const x0 = X(cell.from), wide = Math.max(3, X(cell.to) - x0 - 0.8);
      const x = Math.min(x0, X(1) - wide);
      const text = fitting(cell.name, wide - 2);
      return s("g", { class: `vm-lit vm-lit-${kind}` },
        s("rect", { x, y: floorY(cell.depth), width: wide, height: FLOOR }),
        text ? s("text", { x: x + wide / 2, y: floorY(cell.depth) + FLOOR / 2 + 4 }, text) : null);
    }

    // The last draw of each bucket on the way to this step: those are the straws that are shown.
    // Between the choices there is no way, and the last one stays.
    function drawsOnTheWay(i) {
      const found = new Map();
      let from = i;
      while (from > 0 && !steps[from].state.path.length) from--;
      const { path } = steps[from].state;
      for (let k = from; k >= 0 && found.size < path.length; k--) {
        const { event, where } = steps[k];
        if (event === "draw" && path.includes(where) && !found.has(where)) found.set(where, steps[k]);
      }
      return path.map((bucket) => found.get(bucket)).filter(Boolean);
    }

    // Which copy a step is about: below a chosen item the replicas are counted anew.
    function copyOf({ i, state }) {
      let k = i;
      while (k > 0 && steps[k].state.leaf) k--;
      return (steps[k].state.rep ?? state.rep) + 1;
    }

    function drawStraws(step, now) {
      const cell = tree.cells.get(step.where);
      if (!cell || cell.depth >= tree.floors.length - 1) return null;
      const { draws: rows, winner, r } = step.state;
      const top = floorY(cell.depth) + FLOOR;
      const base = top + TITLE + ZOOM + STRAWS;
      const long = lengths(rows);
      const left = X(0), right = X(1), pitch = (right - left) / rows.length;
      // At the root each straw stands over its own cell; further down the cell is magnified.
      const own = cell.depth === 0 && cell.below.length === rows.length;
      const middle = (k) => (own ? X((cell.below[k].from + cell.below[k].to) / 2) : left + (k + 0.5) * pitch);
      const thick = vmView.clamp(pitch * 0.62, 0.6, 18);
      let others = "";
      const parts = [];
      rows.forEach((row, k) => {
        const tall = Math.max(row[4] ? 1 : 0, long[k] * STRAWS);
        const bar = box(middle(k) - thick / 2, base - tall, thick, tall);
        if (row[0] !== winner) others += bar;
        else {
          const wide = Math.max(thick, 2.4);
          parts.push(s("path", { class: "vm-straw-won", d: box(middle(k) - wide / 2, base - tall, wide, tall) }));
        }
      });
      // The winner's whole name, and those of the others that leave it room.
      const best = rows.findIndex((row) => row[0] === winner);
      const half = rows[best][1].length * 3.4;
      const spot = vmView.clamp(middle(best), left + half, right - half);
      parts.push(s("text", { class: "vm-won-name", x: spot, y: base + 12 }, rows[best][1]));
      rows.forEach((row, k) => {
        const text = k === best ? "" : fitting(row[1], pitch);
        if (text && Math.abs(middle(k) - spot) > half + text.length * 3.4 + 3) {
          parts.push(s("text", { x: middle(k), y: base + 12 }, text));
        }
      });
      const x0 = X(cell.from), x1 = Math.max(X(cell.to), x0 + 2);
      const wedge = cell.depth ? `M${x0} ${top}L${left} ${top + ZOOM}M${x1} ${top}L${right} ${top + ZOOM}` : "";
      return s("g", { class: `vm-straws${now ? " vm-straws-now" : ""}` },
        s("path", { class: "vm-wedge", d: `${wedge}M${left} ${base + 0.5}H${right}` }),
        s("text", { class: "vm-straws-title", x: left, y: top + ZOOM + 9 }, `${step.where} · copy ${copyOf(step)} · r = ${r}`),
        s("path", { class: "vm-straw", d: others }), parts);
    }

    function drawMarks(result) {
      const y = height() - 3;
      const spots = result.map((device, k) => [tree.cells.get(device), k]).filter(([cell]) => cell);
      return spots.map(([cell, k]) => {
        const x = vmView.clamp((X(cell.from) + X(cell.to)) / 2, LEFT + 5, width - 7);
        return s("g", { class: "vm-copy" }, s("path", { d: `M${x} ${y - 13}l3.5 5h-7z` }), s("text", { x, y: y + 2 }, String(k + 1)));
      });
    }

    function drawMap(i) {
      if (!width || !tree.floors.length) return;
      const step = steps[i], { state } = step;
      const path = state.path.map((bucket) => tree.cells.get(bucket)).filter(Boolean);
      const shown = drawsOnTheWay(i);
      const winner = state.draws.length || step.event === "refuse"
        ? [...tree.cells.values()].find((cell) => cell.item === state.winner) : null;
      const taken = new Set(takenAt(i));
      const changed = trace.live && tree.byItem.get(trace.live.osd);
      svg.setAttribute("width", width);
      svg.setAttribute("height", height());
      svg.setAttribute("viewBox", `0 0 ${width} ${height()}`);
      svg.replaceChildren(
        s("defs", {}, s("pattern", { id: `${id}-dense`, width: 3, height: 3, patternUnits: "userSpaceOnUse", class: "vm-pattern" },
          s("path", { d: "M1 0v3" }))),
        ...tree.floors.map(drawFloor),
        ...[...taken].map((device) => tree.cells.get(device)).filter(Boolean).map((cell) => lit(cell, "taken")),
        ...path.map((cell) => lit(cell, "path")),
        ...(winner ? [lit(winner, step.event === "refuse" ? "refused" : "won")] : []),
        ...tree.devices.filter((cell) => cell.out).map((cell) => cross(cell)),
        ...(step.event === "refuse" && winner ? [cross(winner)] : []),
        ...(changed ? [frameOf(changed)] : []),
        ...shown.map((draw) => drawStraws(draw, draw === step)).filter(Boolean),
        ...drawMarks([...taken]));
      if (handle) placeHandle(changed);
    }

    function cross(cell) {
      const x0 = X(cell.from), x1 = Math.max(X(cell.to) - 0.8, x0 + 5), y = floorY(cell.depth);
      return s("path", { class: "vm-cross", d: `M${x0} ${y}L${x1} ${y + FLOOR}M${x1} ${y}L${x0} ${y + FLOOR}` });
    }

    function frameOf(cell) {
      const x0 = X(cell.from), wide = Math.max(X(cell.to) - x0 - 0.8, 3);
      return s("rect", { class: "vm-changed-cell", x: x0 - 1.5, y: floorY(cell.depth) - 2.5, width: wide + 3, height: FLOOR + 5, rx: 2 });
    }

    // The devices that are sure at this step: the answer so far, and what this choice has placed.
    function takenAt(i) {
      const { event, state } = steps[i];
      const isDevice = (itemName) => (tree.cells.get(itemName)?.item ?? -1) >= 0;
      if (event === "step" || event === "end") return [...state.result, ...state.working.filter(isDevice)];
      const sure = [];
      for (let k = i; k >= 0 && steps[k].event !== "step"; k--) {
        if (steps[k].event === "place" && steps[k].state.winner >= 0) sure.unshift(steps[k].where);
      }
      return [...state.result, ...sure];
    }

    // ---- the hand on the picture ---------------------------------------------------------------
    function placeHandle(cell) {
      const last = tree.floors.length - 1;
      Object.assign(handle.style, { left: `${LEFT}px`, right: "0", top: `${floorY(last) - 3}px`, height: `${FLOOR + 6}px` });
      handle.setAttribute("aria-valuemax", tree.devices.length - 1);
      if (!cell) return;
      handle.setAttribute("aria-valuenow", tree.devices.indexOf(cell));
      handle.setAttribute("aria-valuetext", `${cell.name}, weight ${kg(cell.weight)}${cell.out ? ", out" : ""}`);
    }

    const original = (item) => vmView.crush.weightIn(trace.live.before, item) / vmView.crush.ONE;
    const pick = (cell) => cell && cell.item !== trace.live.osd && set({ osd: cell.item, weight: original(cell.item), out: false });
    const weigh = (weight) => set({ weight: vmView.clamp(Math.round(weight * 4) / 4, 0, 4) });

    if (handle) {
      let from = null;
      handle.addEventListener("pointerdown", (event) => {
        const share = (event.clientX - handle.getBoundingClientRect().left) / handle.clientWidth;
        pick(tree.devices.find((cell) => share >= cell.from && share < cell.to));
        from = { x: event.clientX, weight: trace.live.weight };
        handle.setPointerCapture(event.pointerId);
      });
      handle.addEventListener("pointermove", (event) => {
        if (!from) return;
        const weight = vmView.clamp(from.weight + Math.round((event.clientX - from.x) / 14) / 4, 0, 4);
        if (weight !== trace.live.weight) weigh(weight);
      });
      for (const end of ["pointerup", "pointercancel"]) handle.addEventListener(end, () => { from = null; });
      handle.addEventListener("keydown", (event) => {
        const here = tree.devices.findIndex((cell) => cell.item === trace.live.osd);
        const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: tree.devices.length - 1 }[event.key];
        if (to !== undefined) pick(tree.devices[vmView.clamp(to, 0, tree.devices.length - 1)]);
        else if (event.key === "ArrowUp" || event.key === "ArrowDown") weigh(trace.live.weight + (event.key === "ArrowUp" ? 0.25 : -0.25));
        else return;
        event.preventDefault();
        event.stopPropagation();
      });
    }

    // ---- ribbons: from where copies were (above) to where they are (below) ----------------------
    function drawRibbons() {
      const live = trace.live;
      ribbons.hidden = !live;
      if (!live || !ribbons.clientWidth) return;
      ribbons.replaceChildren(...live.ways.map(([way, result], k) => {
        const share = vmView.crush.percent(result.moved, result.placed), least = vmView.crush.percent(result.needed, result.placed);
        return h("div", { class: "vm-way", "data-way": way, "data-moved": result.moved, "data-needed": result.needed },
          h("p", {}, h("b", {}, way), h("span", { class: "vm-told" }, ` moves ${share} %${k ? "" : `; the least would be ${least} %`}`),
            h("span", { class: "vm-untold" }, " moves … what do you say?")),
          ribbon(result, ribbons.clientWidth));
      }));
    }

    function ribbon(result, wide) {
      const at0 = (share) => share * wide;
      const parentOf = new Map();
      for (const cell of tree.floors.at(-2) || []) for (const child of cell.below) parentOf.set(child.item, cell);
      const devices = result.moves.length <= MOST_RIBBONS;
      const old = new Map(layBefore());
      const unit = (item) => (devices ? item : parentOf.get(item)?.item);
      const flows = new Map();
      for (const [from, to, many] of result.moves) {
        if (from === vmView.crush.NONE || to === vmView.crush.NONE) continue;
        const key = `${unit(from)} ${unit(to)}`;
        flows.set(key, (flows.get(key) || 0) + many);
      }
      const sums = result.counts.map((tally) => {
        const sum = new Map();
        for (const [item, many] of tally) sum.set(unit(item), (sum.get(unit(item)) || 0) + many);
        return sum;
      });
      const place = (item, after) => {
        const cell = after ? (devices ? tree.byItem.get(item) : (tree.floors.at(-2) || []).find((one) => one.item === item)) : old.get(item);
        return cell ? [at0(cell.from), at0(cell.to)] : [0, 0];
      };
      const used = [new Map(), new Map()];
      const end = (side, item, many) => {
        const [a, b] = place(item, side === 1);
        const total = sums[side].get(item) || 1, done = used[side].get(item) || 0;
        used[side].set(item, done + many);
        return [a + ((b - a) * done) / total, Math.max(((b - a) * many) / total, 0.8)];
      };
      const top = RAIL, bottom = RIBBON - RAIL, mid = RIBBON / 2;
      let path = "";
      for (const [key, many] of [...flows].sort()) {
        const [from, to] = key.split(" ").map(Number);
        const [x0, w0] = end(0, from, many), [x1, w1] = end(1, to, many);
        const f = (x) => x.toFixed(1);
        path += `M${f(x0)} ${top}C${f(x0)} ${mid} ${f(x1)} ${mid} ${f(x1)} ${bottom}h${f(w1)}C${f(x1 + w1)} ${mid} ${f(x0 + w0)} ${mid} ${f(x0 + w0)} ${top}z`;
      }
      const rail = (cells, y) => [...cells].map(({ from, to }) => box(at0(from), y, Math.max(at0(to - from) - 0.8, 0.2), RAIL - 2)).join("");
      return s("svg", { width: wide, height: RIBBON, viewBox: `0 0 ${wide} ${RIBBON}`, "aria-hidden": "true" },
        s("path", { class: "vm-rail", d: rail(old.values(), 0) + rail(devices ? tree.devices : tree.floors.at(-2), bottom + 2) }),
        s("path", { class: "vm-ribbon", d: path }));

      function* layBefore() {
        const map = trace.live.before;
        const weightOf = (item) => (map.buckets.has(item) ? map.buckets.get(item).weights.reduce((a, b) => a + b, 0) : 0);
        const root = map.steps.find((step) => step.op === "take").arg1;
        const stop = devices ? tree.floors.length - 1 : tree.floors.length - 2;
        const todo = [[root, 0, 0, 1]];
        while (todo.length) {
          const [item, depth, from, to] = todo.shift();
          if (depth === stop) {
            yield [item, { from, to }];
            continue;
          }
          const bucket = map.buckets.get(item), sum = weightOf(item);
          let x = from;
          (bucket ? bucket.items : []).forEach((child, i) => {
            const part = sum ? ((to - from) * bucket.weights[i]) / sum : 0;
            todo.push([child, depth + 1, x, x + part]);
            x += part;
          });
        }
      }
    }

    // ---- the numbers of this draw, the copies so far, and what was turned down -------------------
    function drawNumbers(i) {
      const shown = drawsOnTheWay(i).at(-1);
      draws.replaceChildren();
      if (!shown) return;
      const { draws: rows, winner } = shown.state;
      const long = lengths(rows);
      const order = rows.map((row, k) => k);
      const many = rows.length > ROWS;
      if (many) order.sort((a, b) => long[b] - long[a]);
      const listed = many ? order.slice(0, BEST) : order;
      draws.append(h("table", {}, h("caption", {}, `${shown.where} draws (straws in millions)`),
        h("thead", {}, h("tr", {}, ["item", "hash", "weight", "straw"].map((head) => h("th", { scope: "col" }, head)))),
        h("tbody", {}, listed.map((k) => {
          const [item, itemName, u, , weight, straw] = rows[k];
          return h("tr", { "aria-current": item === winner ? "true" : null }, h("th", { scope: "row" }, itemName),
            [u, kg(weight), weight ? (Number(straw) / 1e6).toFixed(1).replace("-", "−") : "none"].map((text) => h("td", {}, String(text))));
        }))), many ? h("p", {}, `and ${rows.length - BEST} shorter ones`) : "");
    }

    function drawSide(i) {
      const sure = takenAt(i);
      copies.dataset.copies = sure.join(" ");
      copies.replaceChildren(h("span", { class: "vm-label" }, "the copies so far"),
        sure.length ? h("code", {}, sure.join(", ")) : h("span", { class: "vm-none" }, "none yet"));
      const down = steps.slice(0, i + 1).filter((step) => step.event === "refuse");
      turned.replaceChildren(h("span", { class: "vm-label" }, "turned down"),
        down.length ? h("ol", {}, down.slice(-6).map((step) =>
          h("li", {}, h("code", {}, step.state.winner === null ? step.where : nameOf(step.state.winner)), `, copy ${copyOf(step)}: ${step.state.reason}`)))
          : h("span", { class: "vm-none" }, "nothing yet"));
    }

    const nameOf = (item) => (tree.map ? vmView.crush.nameOf(tree.map, item)
      : [...tree.cells.values()].find((cell) => cell.item === item)?.name ?? String(item));

    // ---- what the frame asks --------------------------------------------------------------------
    const COUNTS = [["draws", (step) => step.state.draws.length], ["turned down", (step) => step.event === "refuse"],
      ["placed", (step) => step.event === "place" && !step.state.leaf]];
    let sums = [];

    function update(next) {
      trace = next;
      steps = trace.steps;
      tree = plant();
      sums = COUNTS.map(([, hit]) => {
        let sum = 0;
        return steps.map((step) => (sum += Number(hit(step))));
      });
      drawRibbons();
    }
    update(first);

    return {
      renew(next) { // another input or map: what is in the reader's hand stays there
        if (next.kind !== "map") return false;
        update(next);
        return true;
      },
      resize(next) {
        width = next;
        drawRibbons();
      },
      show(i) {
        const { state, where } = steps[i];
        Object.assign(svg.dataset, { where, path: state.path.join(" "), reason: state.reason || "", result: state.result.join(" "),
          winner: state.winner === null ? "" : nameOf(state.winner), straws: state.draws.length });
        drawMap(i);
        drawNumbers(i);
        drawSide(i);
      },
      name: (step) => step.where,
      value: (text) => text.replace(/^\[|\]$/g, "").replaceAll("'", "") || "nothing",
      tick: (step) => TICKS[step.event] || TICKS.draw,
      tally: (i) => COUNTS.map(([label], k) => [label, sums[k][i]]).filter(([, value], k) => value || k === 0),
      columns: ["rule’s step", "copy", "straws", "answer"],
      cells(step) {
        const { state } = step;
        return [state.step, state.rep === null ? "" : `copy ${copyOf(step)}${state.r === null ? "" : `, r = ${state.r}`}`,
          state.draws.map(([, itemName, u, , weight, straw]) => `${itemName} hash ${u} weight ${kg(weight)} straw ${straw}`).join("; "),
          state.result.join(", ")];
      },
    };
  };
})();
