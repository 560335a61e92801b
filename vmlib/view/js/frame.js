// The frame around every scene: title, panel, controls, scrubber, counters, table, provenance.
//
// `vmView.frame(player)` builds it once in the player's element and returns
// { load(trace), show(i), trouble(text), hush(on), setPlaying(on), setSpeed(x), close() }.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, s } = vmView;
  const INSET = 7; // half the width of the range's thumb: where its first and last value stand
  const TALL = 26;

  const ICONS = {
    first: "M4 3v10M13 3 6.5 8l6.5 5z",
    back: "M11 3 4.5 8l6.5 5z",
    play: "M4.5 2.5 13 8l-8.5 5.5z",
    pause: "M5.5 3v10M10.5 3v10",
    forward: "M5 3l6.5 5L5 13z",
    last: "M12 3v10M3 3l6.5 5L3 13z",
  };

  function icon(name) {
    const solid = name === "pause" ? "vm-bars" : "";
    return s(
      "svg",
      { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true", class: solid },
      s("path", { d: ICONS[name] }),
    );
  }

  function button(name, label, act) {
    return h("button", { type: "button", class: `vm-button vm-${name}`, "aria-label": label,
      title: label, onclick: act }, icon(name));
  }

  // Engine, versions, host, date, guest. The same words as `_origin` in player.py.
  function provenance({ provenance: from }) {
    const verb = from.engine.startsWith("vmlib") ? "computed by" : "recorded on";
    const versions = Object.entries(from.versions).map(([name, version]) =>
      (name === "engine" ? version : `${name} ${version}`));
    const guest = from.guest_sha256 ? `guest ${from.guest_sha256.slice(0, 8)}` : "";
    if (!versions[0]?.toLowerCase().startsWith(from.engine)) versions.unshift(from.engine);
    return [`${verb} ${versions.join(", ")}`, from.host, from.recorded, guest]
      .filter(Boolean).join(" · ");
  }

  // A date isn't broken at its hyphens.
  const whole = (text) => text.split(/(\d{4}-\d\d-\d\d)/).map((part, i) =>
    (i % 2 ? h("span", { class: "vm-date" }, part) : part));

  vmView.frame = (player) => {
    const { element, data } = player;
    const script = element.querySelector("script.vm-data");
    const checks = element.querySelector(".vm-checks") ||
      h("span", { class: "vm-checks", "data-checks": (data.checks || []).join(" ") });
    const hintId = `${player.name}-keys`;

    // ---- parts -----------------------------------------------------------------------------
    const title = h("figcaption", { class: "vm-title" });
    const number = h("span", { class: "vm-number" });
    const where = h("span", { class: "vm-where" });
    const sentence = h("p", { class: "vm-sentence", "aria-live": "polite" });
    const changed = h("ul", { class: "vm-changed", "aria-label": "what changed" });
    const panel = h("div", { class: "vm-panel" },
      h("p", { class: "vm-step" }, number, where), sentence, changed);
    const aside = h("div", { class: "vm-aside" });
    panel.append(aside);
    const strip = h("div", { class: "vm-strip" });
    const body = h("div", { class: "vm-body" });
    const wrong = h("p", { class: "vm-refused", role: "alert", hidden: true });

    const buttons = {
      first: button("first", "First step (Home)", () => player.go(0, "reader")),
      back: button("back", "One step back (←)", () => player.go(player.index - 1, "reader")),
      play: button("play", "Play (Space)", () => player.toggle()),
      forward: button("forward", "One step forward (→)", () => player.go(player.index + 1, "reader")),
      last: button("last", "Last step (End)", () => player.go(player.length - 1, "reader")),
    };
    const speed = h("button", { type: "button", class: "vm-button vm-speed",
      onclick: () => player.faster() });
    const ticks = s("svg", { class: "vm-ticks", "aria-hidden": "true", height: TALL + 6 });
    const range = h("input", { type: "range", class: "vm-range", min: 0, step: 1,
      "aria-label": "step", oninput: () => player.go(Number(range.value), "reader") });
    const scrubber = h("div", { class: "vm-scrubber" }, ticks, range);
    const controls = h("div", { class: "vm-controls" },
      h("div", { class: "vm-buttons" }, Object.values(buttons)), scrubber, speed);

    const counters = h("p", { class: "vm-counters" });
    const origin = h("span", { class: "vm-origin" });
    const foot = h("p", { class: "vm-foot" }, origin, " ", checks);
    const holder = h("div", { class: "vm-rows", tabindex: "0", role: "region",
      "aria-label": "steps as a table" });
    const details = h("details", { class: "vm-table", ontoggle: () => details.open && table() },
      h("summary", {}, "Steps as a table"), holder);

    element.tabIndex = 0;
    element.setAttribute("role", "group");
    element.setAttribute("aria-roledescription", "step player");
    element.setAttribute("aria-keyshortcuts", "Space ArrowLeft ArrowRight Home End");
    element.setAttribute("aria-describedby", hintId);
    element.setAttribute("data-lm-suppress-shortcuts", "true");
    const experiment = vmView.experiment ? vmView.experiment(player) : null;
    element.replaceChildren(...[script].filter(Boolean), h("div", { class: "vm-frame" },
      title, experiment && experiment.form,
      wrong, h("div", { class: "vm-stage" }, strip, controls, panel, body), counters, foot, details,
      h("p", { id: hintId, class: "vm-hidden" },
        "Keys: Space plays, left and right arrows step, Home and End, digits jump to tenths.")));

    // ---- state -----------------------------------------------------------------------------
    let trace, scene, rows, marked, following, cursor, width = 0;

    function load(next) {
      trace = next;
      title.replaceChildren(...vmView.inline(data.title || trace.title));
      element.setAttribute("aria-label", data.title || trace.title);
      origin.replaceChildren(...whole(trace.computed || provenance(trace)));
      range.max = trace.steps.length - 1;
      // A scene that can take another trace of its kind keeps what the reader has in hand.
      if (!(scene && scene.renew && scene.renew(trace))) {
        strip.replaceChildren();
        body.replaceChildren();
        aside.replaceChildren();
        scene = vmView.scenes[trace.kind]({ trace, strip, body, aside, given: data.given, go: (i) => player.go(i, "reader"),
          set: experiment && experiment.set });
      }
      rows = marked = null;
      holder.replaceChildren();
      if (details.open) table();
      width = 0;
      fit();
    }

    function fit() {
      const now = Math.round(scrubber.clientWidth);
      if (!now || now === width) return;
      width = now;
      drawTicks();
      scene.resize(strip.clientWidth);
      if (cursor) show(player.index);
    }

    const tickX = (i) =>
      INSET + (trace.steps.length > 1 ? (i / (trace.steps.length - 1)) * (width - 2 * INSET) : 0);

    // One path per kind of event. Where steps outnumber pixels they share a tick, the taller the
    // larger the share of its kind.
    function drawTicks() {
      const crowded = trace.steps.length > width;
      const kinds = new Map();
      const sharing = new Map();
      trace.steps.forEach((step, i) => {
        const [kind, height] = scene.tick(step);
        const x = (crowded ? Math.floor(tickX(i) / 3) * 3 : Math.round(tickX(i))) + 0.5;
        if (!kinds.has(kind)) kinds.set(kind, { height, at: new Map() });
        const { at } = kinds.get(kind);
        at.set(x, (at.get(x) || 0) + 1);
        sharing.set(x, (sharing.get(x) || 0) + 1);
      });
      const path = (name, height, at) => s("path", { class: `vm-tick vm-tick-${name}`,
        d: [...at].map(([x, n]) => {
          const share = crowded ? Math.sqrt(n / sharing.get(x)) : 1;
          return `M${x} ${TALL + 3}v${-Math.max(3, Math.round(height * share * TALL))}`;
        }).join("") });
      cursor = s("path", { class: "vm-cursor", d: `M0 0V${TALL + 6}` });
      ticks.setAttribute("width", width);
      ticks.replaceChildren(
        s("g", { class: "vm-kinds" }, [...kinds].map(([name, k]) => path(name, k.height, k.at))),
        path("veiled", 0.3, sharing),
        cursor,
      );
    }

    function show(i) {
      const step = trace.steps[i];
      const last = trace.steps.length - 1;
      element.dataset.step = i;
      number.textContent = `step ${i} of ${last}`;
      where.textContent = scene.name(step);
      sentence.replaceChildren(...vmView.inline(step.text));
      changed.replaceChildren(...step.changed.map(([name, old, now]) =>
        h("li", {}, h("span", {}, name), ` ${scene.value(old)} → `, h("strong", {}, scene.value(now)))));
      for (const [name, off] of [["first", i === 0], ["back", i === 0], ["forward", i === last],
        ["last", i === last]]) {
        buttons[name].setAttribute("aria-disabled", off);
      }
      range.value = i;
      range.setAttribute("aria-valuetext", `step ${i} of ${last}: ${scene.name(step)}`);
      if (cursor) cursor.setAttribute("transform", `translate(${tickX(i)} 0)`);
      const tally = scene.tally(i).map(([name, value]) =>
        h("span", {}, `${name} `, h("b", {}, String(value))));
      counters.hidden = !tally.length;
      counters.replaceChildren(h("span", { class: "vm-sofar" }, i === last ? "in all" : "so far"),
        ...tally);
      scene.show(i);
      mark(i);
    }

    // ---- the table: every state in words, built when it is first opened --------------------
    function table() {
      if (rows) return;
      const columns = ["step", "where", "event", "what happens", "changed", ...scene.columns];
      const tbody = h("tbody");
      rows = trace.steps.map((step) => {
        const cells = [scene.name(step), step.event, step.text,
          step.changed.map(([name, old, now]) => `${name} ${scene.value(old)} → ${scene.value(now)}`).join(", "),
          ...scene.cells(step)];
        const row = h("tr", { "data-row": step.i },
          h("th", { scope: "row" }, h("a", { href: `#${player.name}-step-${step.i}` }, String(step.i))),
          cells.map((text) => h("td", {}, text)));
        tbody.append(row);
        return row;
      });
      tbody.addEventListener("click", (event) => {
        const row = event.target.closest("tr");
        if (!row) return;
        if (event.target.closest("a") && (event.ctrlKey || event.metaKey || event.shiftKey)) return;
        event.preventDefault();
        player.go(Number(row.dataset.row), "reader");
      });
      holder.replaceChildren(h("table", {}, h("caption", { class: "vm-hidden" }, "Every step, in words"),
        h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))), tbody));
      mark(player.index);
    }

    function mark(i) {
      if (!rows || !details.open) return;
      if (marked) marked.removeAttribute("aria-current");
      marked = rows[i];
      marked.setAttribute("aria-current", "step");
      cancelAnimationFrame(following);
      following = requestAnimationFrame(() => {
        const top = marked.offsetTop - holder.clientHeight / 2;
        if (Math.abs(holder.scrollTop - top) > holder.clientHeight / 3) holder.scrollTop = top;
      });
    }

    function setPlaying(on) {
      const label = on ? "Pause (Space)" : "Play (Space)";
      buttons.play.replaceChildren(icon(on ? "pause" : "play"));
      buttons.play.setAttribute("aria-label", label);
      buttons.play.title = label;
      element.classList.toggle("vm-playing", on);
      sentence.setAttribute("aria-live", on ? "off" : "polite");
    }

    function setSpeed(x) {
      speed.textContent = `${x}×`;
      const label = `Speed ${x}×; press for the next`;
      speed.setAttribute("aria-label", label);
      speed.title = label;
    }
    setSpeed(player.speed);

    function trouble(text) {
      if (wrong.textContent !== text) wrong.textContent = text;
      wrong.hidden = !text;
    }

    const hush = (on) => {
      if (!player.playing) sentence.setAttribute("aria-live", on ? "off" : "polite");
    };

    // What nobody sees doesn't play: a figure that is scrolled away, or in a tab behind another.
    const resized = new ResizeObserver(fit);
    const seen = new IntersectionObserver((changes) => {
      if (!changes.at(-1).isIntersecting) player.pause();
    });
    const away = () => document.hidden && player.pause();
    resized.observe(element);
    seen.observe(element);
    document.addEventListener("visibilitychange", away);
    function close() {
      resized.disconnect();
      seen.disconnect();
      document.removeEventListener("visibilitychange", away);
    }
    return { load, show, trouble, hush, setPlaying, setSpeed, close };
  };
})();
