// The model "crush": CRUSH as vmlib.ceph maps, for straw2 buckets and today's tunables.
//
// `run` explains one input on a changed map, draw by draw, and maps a thousand more on the old and
// the new one to see what moves. Map, logarithm and words come with the page (vmlib/ceph/crush/browser.py).
// That all of it equals the Python is held by tests/view/test_model_crush.py.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const NONE = 0x7fffffff, UNSET = NONE - 1, ONE = 0x10000, TOP = 2 ** 48, SHIFT = 2 ** 24;
  const SEED = 1315423911, FILL_X = 231232, FILL_Y = 1232;
  const WORST = "-9223372036854775808";
  const LINE = ONE / 4; // the weight that is worth one line of the modulo table
  const MODULO = "hash % lines";
  const COLUMNS = ["item", "name", "u", "ln", "weight", "straw"];

  // ---- the hash: Jenkins' mix; the three words come back in A, B and C ------------------------

  let A = 0, B = 0, C = 0;
  function mix(a, b, c) {
    a = (a - b - c) ^ (c >>> 13); b = (b - c - a) ^ (a << 8); c = (c - a - b) ^ (b >>> 13);
    a = (a - b - c) ^ (c >>> 12); b = (b - c - a) ^ (a << 16); c = (c - a - b) ^ (b >>> 5);
    a = (a - b - c) ^ (c >>> 3); b = (b - c - a) ^ (a << 10); c = (c - a - b) ^ (b >>> 15);
    A = a | 0;
    B = b | 0;
    C = c | 0;
  }

  function hash1(a) {
    mix(a, FILL_X, SEED ^ a);
    mix(FILL_Y, a, C);
    return C >>> 0;
  }

  function hash2(a, b) {
    mix(a, b, SEED ^ a ^ b);
    const mixed = B;
    mix(FILL_X, A, C);
    mix(mixed, FILL_Y, C);
    return C >>> 0;
  }

  function hash3(a, b, c) {
    mix(a, b, SEED ^ a ^ b ^ c);
    const a1 = A, b1 = B;
    mix(c, FILL_X, C);
    const c1 = A, x1 = B;
    mix(FILL_Y, a1, C);
    const y1 = A;
    mix(b1, x1, C);
    mix(y1, c1, C);
    return C >>> 0;
  }

  // ---- the logarithm: 2^48 - crush_ln(u) for every u ------------------------------------------

  const logarithms = new WeakMap();
  function logarithm(ln) {
    if (logarithms.has(ln)) return logarithms.get(ln);
    const [inverse, coarse, fine] = ln;
    const table = new Float64Array(ONE);
    for (let u = 0; u < ONE; u++) {
      const exponent = Math.min(31 - Math.clz32(u + 1), 15);
      const normal = (u + 1) * 2 ** (15 - exponent);
      const k = Math.floor(normal / 256) - 128;
      // normal * inverse has up to 65 bits: multiplied in two halves, each of them exact.
      const high = Math.floor(inverse[k] / SHIFT), low = inverse[k] % SHIFT;
      const rest = Math.floor((normal * high + Math.floor((normal * low) / SHIFT)) / SHIFT) % 256;
      table[u] = TOP - exponent * 2 ** 44 - Math.floor((coarse[k] + fine[rest]) / 16);
    }
    logarithms.set(ln, table);
    return table;
  }

  // ---- the map --------------------------------------------------------------------------------

  const opened = new WeakMap();
  function open(given) {
    if (opened.has(given)) return opened.get(given);
    const buckets = new Map(given.buckets.map(([id, name, type, items, weights]) => [id, { id, name, type, items,
      weights: Array.isArray(weights) ? weights : items.map(() => weights) }]));
    const map = { given, buckets, out: new Map(), ln: logarithm(given.ln), types: new Map(given.types),
      names: new Map(given.names), rule: given.rule[0],
      steps: given.rule[1].map(([op, arg1, arg2]) => ({ op, arg1, arg2 })) };
    opened.set(given, map);
    return map;
  }

  const nameOf = (map, item) => item === NONE ? "none"
    : item < 0 ? map.buckets.get(item)?.name ?? String(item) : map.names.get(item) ?? `osd.${item}`;

  const weightIn = (map, item) => {
    for (const bucket of map.buckets.values()) {
      const at = bucket.items.indexOf(item);
      if (at >= 0) return bucket.weights[at];
    }
    return 0;
  };

  // The map with another weight of one device, up through all that hold it, and perhaps out.
  function change(map, osd, weight, out) {
    const buckets = new Map(map.buckets);
    const weigh = (holder, item, value) => {
      const old = buckets.get(holder), weights = [...old.weights];
      weights[old.items.indexOf(item)] = value;
      buckets.set(holder, { ...old, weights });
      const sum = weights.reduce((a, b) => a + b, 0);
      for (const above of [...buckets.values()]) if (above.items.includes(holder)) weigh(above.id, holder, sum);
    };
    for (const holder of map.buckets.values()) {
      const at = holder.items.indexOf(osd);
      if (at >= 0 && weight !== holder.weights[at]) weigh(holder.id, osd, weight);
    }
    return { ...map, buckets, out: out ? new Map([[osd, 0]]) : new Map() };
  }

  // ---- the mapper; `watch`, if given, is told of everything -----------------------------------

  function doRule(map, x, n, watch = null) {
    const { buckets, ln } = map;
    let tries = map.given.tries, leafTries = 0;
    const typeOf = (item) => (item >= 0 ? 0 : buckets.get(item).type);
    const isOut = (item) => {
      const weight = map.out.get(item) ?? ONE;
      return weight < ONE && (weight <= 0 || (hash2(x, item) & 0xffff) >= weight);
    };
    const refuse = (...what) => watch && watch.refused(...what);

    function pick(bucket, rep, r, leaf) {
      const { items, weights } = bucket;
      const draws = watch ? [] : null;
      let best = 0, winner = -1;
      for (let i = 0; i < items.length; i++) {
        const u = hash3(x, items[i], r) & 0xffff, weight = weights[i];
        const straw = weight ? -Math.floor(ln[u] / weight) : -Infinity;
        if (draws) {
          draws.push([items[i], nameOf(map, items[i]), u, String(weight ? -ln[u] : 0), weight,
            weight ? String(straw) : WORST]);
        }
        if (winner < 0 || straw > best) [best, winner] = [straw, i];
      }
      if (watch) watch.drew(bucket, rep, r, draws, items[winner], leaf);
      return items[winner];
    }

    // firstn: a list; when one fails, later ones move up
    function firstn(start, numrep, room, kind, toLeaf) {
      const items = [], leaves = toLeaf ? [] : null;
      for (let rep = 0; rep < numrep && items.length < room; rep++) {
        const item = place(start, rep, 0, kind, items, leaves, tries, false);
        if (item !== null) items.push(item);
      }
      return leaves ? leaves.slice(0, items.length) : items;
    }

    function place(start, rep, parentR, kind, taken, leaves, most, leaf) {
      const position = taken.length;
      let bucket = start, failed = 0;
      for (;;) {
        let item = null, why = "";
        if (!bucket.items.length) why = "empty";
        else {
          const r = rep + parentR + failed;
          item = pick(bucket, rep, r, leaf);
          const found = typeOf(item);
          if (found !== kind) {
            if (item >= 0) {
              refuse(bucket, rep, item, "bad type", "skip", leaf);
              return null;
            }
            bucket = buckets.get(item);
            continue;
          }
          if (taken.includes(item)) why = "collision";
          else if (leaves && !addLeaf(item, r, leaves, position)) why = "leaf failed";
          else if (found === 0 && isOut(item)) why = "out";
          if (!why) {
            if (watch) watch.placed(rep, item, failed, leaf);
            return item;
          }
        }
        failed++;
        refuse(bucket, rep, item, why, failed < most ? "from the top" : "skip", leaf);
        if (failed >= most) return null;
        bucket = start;
      }
    }

    function addLeaf(item, r, leaves, position) {
      leaves.length = position;
      const device = item < 0 ? place(buckets.get(item), 0, r, 0, leaves, null, leafTries || 1, true) : item;
      if (device === null) return false;
      leaves.push(device);
      return true;
    }

    // indep: fixed places; a failure leaves a hole and moves nobody
    function indep(start, numrep, places, kind, toLeaf) {
      const items = Array(places).fill(UNSET), leaves = toLeaf ? Array(places).fill(UNSET) : null;
      fill(start, items, leaves, 0, places, numrep, 0, kind, false);
      return leaves || items;
    }

    function fill(start, items, leaves, first, end, numrep, parentR, kind, leaf) {
      const most = leaf ? leafTries || 1 : tries;
      const rows = leaves ? [items, leaves] : [items];
      for (const row of rows) row.fill(UNSET, first, end);
      let failed = 0;
      while (failed < most && items.slice(first, end).includes(UNSET)) {
        for (let rep = first; rep < end; rep++) {
          if (items[rep] === UNSET) fillOne(start, items, leaves, first, end, rep, numrep, parentR, failed, kind, leaf);
        }
        failed++;
      }
      for (const row of rows) for (let k = first; k < end; k++) if (row[k] === UNSET) row[k] = NONE;
    }

    function fillOne(start, items, leaves, first, end, rep, numrep, parentR, failed, kind, leaf) {
      let bucket = start, item, found, why = "";
      const r = rep + parentR + numrep * failed;
      for (;;) {
        if (!bucket.items.length) return refuse(bucket, rep, null, "empty", "next round", leaf);
        item = pick(bucket, rep, r, leaf);
        found = typeOf(item);
        if (found === kind) break;
        if (item >= 0) {
          refuse(bucket, rep, item, "bad type", "hole", leaf);
          items[rep] = NONE;
          if (leaves) leaves[rep] = NONE;
          return null;
        }
        bucket = buckets.get(item);
      }
      if (items.slice(first, end).includes(item)) why = "collision";
      else if (leaves) {
        if (item < 0) {
          fill(buckets.get(item), leaves, null, rep, rep + 1, numrep, r, 0, true);
          if (leaves[rep] === NONE) why = "leaf failed";
        } else leaves[rep] = item;
      }
      if (!why && found === 0 && isOut(item)) why = "out";
      if (why) return refuse(bucket, rep, item, why, "next round", leaf);
      items[rep] = item;
      return watch && watch.placed(rep, item, failed, leaf);
    }

    function choose({ op, arg1, arg2 }, working) {
      const numrep = arg1 > 0 ? arg1 : arg1 + n, leaf = op.startsWith("chooseleaf");
      const chosen = [];
      for (const item of working) {
        if (numrep <= 0 || !buckets.has(item)) continue;
        const room = n - chosen.length, start = buckets.get(item);
        chosen.push(...(op.endsWith("firstn") ? firstn(start, numrep, room, arg2, leaf)
          : indep(start, numrep, Math.min(numrep, room), arg2, leaf)));
      }
      return chosen;
    }

    let result = [], working = [];
    for (const step of map.steps) {
      if (watch) watch.begin(step);
      if (step.op === "take") working = [step.arg1];
      else if (step.op === "emit") {
        result = [...result, ...working.slice(0, n - result.length)];
        working = [];
      } else if (step.op === "set_choose_tries") tries = step.arg1 > 0 ? step.arg1 : tries;
      else if (step.op === "set_chooseleaf_tries") leafTries = step.arg1 > 0 ? step.arg1 : leafTries;
      else if (working.length) working = choose(step, working);
      if (watch) watch.ran(step, working, result);
    }
    return result;
  }

  // ---- the explanation: the mapper with a watch that writes down what it is told ---------------

  function explain(map, x, n, template) {
    const { reasons, then: after } = map.given;
    const say = (item) => nameOf(map, item);
    const steps = [], counters = {};
    const list = (names) => `[${names.map((name) => `'${name}'`).join(", ")}]`;
    const count = (name, by = 1) => { counters[name] = (counters[name] || 0) + by; };
    let path = [], won = null, result = [], working = [], stepText = "", seen = null;

    function write(where, event, text, more = {}) {
      const now = [["working", list(working)], ["result", list(result)]];
      const changed = (seen || now).map(([name, old], i) => [name, old, now[i][1]]).filter(([, old, value]) => old !== value);
      seen = now;
      count(event);
      steps.push({ i: steps.length, where, event, text, changed, state: { x, rule: map.rule, n, step: stepText,
        working: [...working], path: [...path], leaf: false, rep: null, r: null, columns: [...COLUMNS],
        draws: [], winner: null, reason: null, then: null, result: [...result], ...more } });
    }

    const answer = doRule(map, x, n, {
      begin({ op, arg1, arg2 }) {
        path = [];
        const kind = op.startsWith("choose") ? ` type ${map.types.get(arg2)}` : "";
        stepText = op === "emit" ? op : `${op} ${op === "take" ? say(arg1) : arg1}${kind}`;
      },
      ran({ op }, items, devices) {
        path = [];
        working = items.map(say);
        result = devices.map(say);
        const now = (op === "emit" ? result : working).join(", ") || "nothing";
        write("rule", "step", op === "take" ? `The rule starts at ${now}.`
          : op === "emit" ? `The answer is now ${now}.` : `${stepText}: the rule goes on with ${now}.`);
      },
      drew(bucket, rep, r, draws, winner, leaf) {
        if (bucket.id === won) path.push(bucket.name);
        else if (path.includes(bucket.name)) path.length = path.indexOf(bucket.name) + 1;
        else path = [bucket.name];
        won = winner;
        count("draws", draws.length);
        write(bucket.name, "draw", `${bucket.name} draws for replica ${rep}, attempt ${r}: ${say(winner)} wins.`,
          { leaf, rep, r, draws, winner });
      },
      refused(bucket, rep, item, why, next, leaf) {
        count(why);
        write(bucket.name, "refuse", `${item === null ? bucket.name : say(item)} does not do: ${reasons[why]}. ${after[next]}`,
          { leaf, rep, winner: item, reason: why, then: next });
      },
      placed(rep, item, failed, leaf) {
        write(say(item), "place", `${say(item)} is taken for replica ${rep}${failed ? ` after ${failed} failures` : ""}.`,
          { leaf, rep, winner: item });
      },
    });
    [result, path, working, stepText] = [answer.map(say), [], [], ""];
    write("rule", "end", `Input ${x} is on ${result.join(", ") || "nothing"}.`);
    return { ...template, title: `Where ${map.rule} puts input ${x}`, steps, counters };
  }

  // ---- what moves -----------------------------------------------------------------------------

  const inputsOf = (map) => Array.from({ length: map.given.inputs }, (_, x) => x);
  const placements = (map) => inputsOf(map).map((x) => doRule(map, x, map.given.n));

  // The other way to place: a table with a line for each quarter of weight; line number hash % lines.
  function modulo(map) {
    const lines = [];
    const devices = new Map();
    for (const bucket of map.buckets.values()) {
      bucket.items.forEach((item, i) => { if (item >= 0) devices.set(item, bucket.weights[i]); });
    }
    for (const [osd, weight] of [...devices].sort(([a], [b]) => a - b)) {
      const many = map.out.get(osd) === 0 ? 0 : Math.round(weight / LINE);
      for (let k = 0; k < many; k++) lines.push(osd);
    }
    return inputsOf(map).map((x) => (lines.length ? [lines[hash1(x) % lines.length]] : []));
  }

  // Both ways of counting are those of vmlib.ceph.crush.compare; the order in a row is not regarded.
  function compare(before, after) {
    const moves = new Map(), counts = [new Map(), new Map()];
    const width = Math.max(...before.map((row) => row.length), ...after.map((row) => row.length));
    let placed = 0, moved = 0, needed = 0;
    const count = (tally, item) => tally.set(item, (tally.get(item) || 0) + 1);
    const move = (from, to) => {
      const key = `${from} ${to}`;
      moves.set(key, (moves.get(key) || 0) + 1);
      moved++;
    };
    before.forEach((old, x) => {
      const [a, b] = [old, after[x]].map((row) => [...row, ...Array(width - row.length).fill(NONE)]);
      a.forEach((item) => count(counts[0], item));
      b.forEach((item) => count(counts[1], item));
      placed += old.filter((item) => item !== NONE).length;
      if (a.every((item, k) => item === b[k])) return;
      const left = a.filter((item) => item === NONE || !b.includes(item));
      const came = b.filter((item) => item === NONE || !a.includes(item));
      const both = Math.min(left.length, came.length);
      for (let k = 0; k < both; k++) if (left[k] !== came[k]) move(left[k], came[k]);
      for (const item of left.slice(both)) if (item !== NONE) move(item, NONE);
      for (const item of came.slice(both)) if (item !== NONE) move(NONE, item);
    });
    for (const [item, many] of counts[1]) needed += Math.max(0, many - (counts[0].get(item) || 0));
    return { placed, moved, needed, counts, moves: [...moves].map(([key, many]) => [...key.split(" ").map(Number), many]) };
  }

  const percent = (part, whole) => Math.round((1000 * part) / (whole || 1)) / 10;

  // Dragging maps a thousand inputs again and again: what has not changed is kept.
  const kept = new WeakMap();
  function moving(given, key, make) {
    if (!kept.has(given)) kept.set(given, new Map());
    const known = kept.get(given);
    if (!known.has(key)) {
      if (known.size > 40) known.clear();
      known.set(key, make());
    }
    return known.get(key);
  }

  function run(template, { x, osd, weight, out }, given) {
    const before = open(given);
    const key = `${osd} ${weight} ${out}`;
    const live = moving(given, key, () => {
      const map = change(before, osd, Math.round(weight * ONE), out);
      const old = moving(given, "before", () => [placements(before), modulo(before)]);
      return { before, map, osd, weight, out, ways: [["CRUSH", compare(old[0], placements(map))],
        [MODULO, compare(old[1], modulo(map))]] };
    });
    const trace = explain(live.map, x, given.n, template);
    const start = trace.steps.map((step) => step.event).lastIndexOf("draw");
    const [crush, other] = live.ways.map(([, way]) => way);
    const labels = { weight: `weight of ${nameOf(before, osd)}`, out: `${nameOf(before, osd)} is out` };
    return { trace, live, labels, start: Math.max(0, start), answers: { moved: percent(crush.moved, crush.placed),
      least: percent(crush.needed, crush.placed), modulo: percent(other.moved, other.placed) } };
  }

  vmView.crush = { open, change, doRule, explain, placements, modulo, compare, nameOf, weightIn, percent, NONE, ONE };
  vmView.models.crush = {
    inputs: { x: { min: 0, max: 65535 }, osd: { kind: "pick" }, weight: { kind: "range", min: 0, max: 4, step: 0.25 },
      out: { kind: "toggle" } },
    run,
  };
})();
