// The player's heart: the registries of scenes and models, and one Player per figure.
//
// A Player holds a trace and the number of the step it stands on, and nothing else that a reader
// could see: the frame (frame.js) and the scene (scene_*.js) draw what it says. Classic script,
// one global, no module and no fetch: both are refused on file://.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const SCHEMA = 1;
  const SPEEDS = [0.5, 1, 2, 4];
  const BASE_MS = 900;

  const earlier = globalThis.vmView; // JupyterLab runs all of this once for each kind of widget
  const vmView = (globalThis.vmView = {
    scenes: {},
    models: {},
    frame: null,
    predict: null,
    players: earlier ? earlier.players : new Set(),
  });

  // ---- small helpers every file uses -------------------------------------------------------

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    for (const child of children.flat()) if (child != null && child !== "") node.append(child);
    return node;
  }
  vmView.h = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes, children);
  vmView.s = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);
  vmView.calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  vmView.clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // `code` between backticks, *emphasis* between asterisks; everything else is text, never markup.
  // The same rule as `inline` in html.py.
  const EMPHASIS = /\*([^\s*](?:[^*]*[^\s*])?)\*/;
  const alternate = (text, by, tag, rest) =>
    text.split(by).flatMap((part, i) => (i % 2 ? vmView.h(tag, {}, part) : rest(part)));
  vmView.inline = (text) => alternate(String(text), "`", "code", (plain) =>
    alternate(plain, EMPHASIS, "em", (words) => words));

  // ⏎ for a newline, and Unicode's control pictures for the rest, so that every byte is seen.
  const visible = (char) => {
    const code = char.charCodeAt(0);
    if (char === "\n") return "⏎";
    if (char === " ") return "␣";
    if (code === 127) return "␡";
    return code < 32 ? String.fromCharCode(0x2400 + code) : char;
  };
  vmView.visible = (text) => [...String(text)].map(visible).join("");

  // Traces travel with the state that did not change left out; put it back (see player.py).
  vmView.unpack = (trace) => {
    const { packed, ...rest } = trace;
    if (!packed) return trace;
    const last = {};
    rest.steps = trace.steps.map((step) => {
      const state = {};
      for (const key of packed) {
        if (key in step.state) last[key] = step.state[key];
        state[key] = last[key];
      }
      return { ...step, state: { ...state, ...step.state } };
    });
    return rest;
  };

  vmView.refusal = (trace) => {
    if (trace === null || typeof trace !== "object") return "no trace";
    if (trace.schema !== SCHEMA) return `a trace of schema ${trace.schema}; this player reads ${SCHEMA}`;
    if (!vmView.scenes[trace.kind]) return `a trace of kind “${trace.kind}”, and no scene here draws it`;
    return Array.isArray(trace.steps) && trace.steps.length ? null : "a trace without a single step";
  };

  // ---- one player --------------------------------------------------------------------------

  class Player {
    constructor(element, data, links) {
      this.element = element;
      this.data = data;
      this.name = data.name;
      this.links = links;
      this.index = 0;
      this.speed = 1;
      this.playing = false;
      this.timer = 0;
      this.listeners = new Set();
      this.trace = vmView.unpack(data.trace);
      this.frame = vmView.frame(this);
      this.index = vmView.clamp(data.start || 0, 0, this.length - 1);
      try {
        this.frame.load(this.trace);
        this.frame.show(this.index);
      } catch (error) {
        this.frame.close();
        throw error;
      }
      element.addEventListener("keydown", (event) => this.key(event));
      element.addEventListener("keyup", (event) => {
        if (event.key === " " && this.swallow) event.preventDefault();
        this.swallow = false;
      });
      element.addEventListener("pointerdown", (event) => {
        this.pressed = event.target.closest("button");
      });
    }

    get length() {
      return this.trace.steps.length;
    }

    get step() {
      return this.trace.steps[this.index];
    }

    setTrace(trace, index = this.index) {
      this.pause();
      this.trace = vmView.unpack(trace);
      this.index = vmView.clamp(index, 0, this.length - 1);
      this.frame.load(this.trace);
      this.go(this.index);
    }

    // `by` says who asked: "reader" is an explicit act, "play" the clock, "code" everything else.
    go(index, by = "code") {
      this.index = vmView.clamp(Math.round(index) || 0, 0, this.length - 1);
      if (by === "reader") this.pause();
      this.frame.hush(by === "linked"); // of players that move together one speaks
      try {
        this.frame.show(this.index);
        this.frame.trouble("");
      } catch (error) {
        this.pause();
        this.frame.trouble(`Step ${this.index} can't be drawn: ${error.message}.`);
        console.warn(`vmView: ${this.name}, step ${this.index}: ${error.message}`);
      }
      if (by === "reader") this.remember();
      for (const listen of this.listeners) listen(this.index);
      if (by === "linked" || !this.data.link) return;
      for (const other of vmView.players) {
        if (other !== this && other.data.link === this.data.link) other.go(this.index, "linked");
      }
    }

    play() {
      if (this.playing) return;
      if (this.index === this.length - 1) this.go(0, "play");
      this.playing = true;
      this.frame.setPlaying(true);
      this.wait();
    }

    wait() {
      this.timer = setTimeout(() => {
        this.go(this.index + 1, "play");
        if (this.index < this.length - 1) this.wait();
        else this.pause();
      }, BASE_MS / this.speed);
    }

    pause() {
      clearTimeout(this.timer);
      if (!this.playing) return;
      this.playing = false;
      this.frame.setPlaying(false);
      this.remember();
    }

    // The figure is gone, or another one stands in its place.
    close() {
      this.pause();
      this.frame.close();
      vmView.players.delete(this);
    }

    toggle() {
      if (this.playing) this.pause();
      else this.play();
    }

    faster() {
      this.speed = SPEEDS[(SPEEDS.indexOf(this.speed) + 1) % SPEEDS.length];
      this.frame.setSpeed(this.speed);
      if (!this.playing) return;
      clearTimeout(this.timer);
      this.wait();
    }

    // The address bar follows the reader's own acts, so that a step can be sent to a friend.
    // Browsers ration replaceState, hence the pause; a host that refuses it loses only the link.
    remember() {
      if (!this.links) return;
      clearTimeout(this.noting);
      this.noting = setTimeout(() => {
        try {
          history.replaceState(history.state, "", `#${this.name}-step-${this.index}`);
        } catch (refused) {
          this.links = false;
        }
      }, 250);
    }

    key(event) {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const target = event.target;
      const typing = target.closest("input:not(.vm-range), textarea, select, [contenteditable]");
      if (typing) return event.stopPropagation();
      // What has more to show than fits is scrolled with these keys, as everywhere else.
      const scrolls = target.closest("[role=region]");
      const across = /^Arrow(Left|Right)$/.test(event.key) && scrolls && scrolls.scrollWidth > scrolls.clientWidth;
      const along = /^(Home|End| )$/.test(event.key) && scrolls && scrolls.scrollHeight > scrolls.clientHeight;
      if (target === scrolls && (across || along)) return event.stopPropagation();
      const last = this.length - 1;
      // Space on a button reached by keyboard presses that button, as everywhere else; one that
      // was only clicked with the mouse has no claim on the next key.
      const button = target.closest("button, summary, a");
      if ((event.key === " " || event.key === "Enter") && button && button !== this.pressed) {
        return event.stopPropagation();
      }
      if (event.key === " ") {
        this.swallow = true;
        if (!event.repeat) this.toggle();
      } else if (event.key === "ArrowLeft") this.go(this.index - 1, "reader");
      else if (event.key === "ArrowRight") this.go(this.index + 1, "reader");
      else if (event.key === "Home") this.go(0, "reader");
      else if (event.key === "End") this.go(last, "reader");
      else if (/^[0-9]$/.test(event.key)) this.go((Number(event.key) / 10) * last, "reader");
      else return;
      event.preventDefault();
      event.stopPropagation();
    }
  }

  // ---- mounting ----------------------------------------------------------------------------

  // Say in the figure's place what is wrong with it, below what can be read without a script.
  vmView.refuse = (element, why) => {
    element.append(vmView.h("p", { class: "vm-refused", role: "alert" }, why));
    return null;
  };

  // Turn `element` (a figure.vm-player, empty or with its server-side fallback) into a player.
  vmView.mount = (element, data, { links = true } = {}) => {
    const why = vmView.refusal(data.trace);
    if (why) return vmView.refuse(element, `This figure holds ${why}.`);
    const fallback = [...element.childNodes];
    let player;
    try {
      player = new Player(element, data, links);
    } catch (error) {
      element.replaceChildren(...fallback);
      console.warn(`vmView: ${data.name}: ${error.message}`);
      return vmView.refuse(element, `This figure can't be drawn: ${error.message}.`);
    }
    element.vmPlayer = {
      go: (i) => player.go(i),
      play: () => player.play(),
      pause: () => player.pause(),
      setTrace: (trace) => player.setTrace(trace),
      get index() { return player.index; },
      get trace() { return player.trace; },
      get length() { return player.length; },
      get playing() { return player.playing; },
    };
    vmView.players.add(player);
    return player;
  };

  vmView.find = (name) => [...vmView.players].find((p) => p.name === name && p.element.isConnected);

  vmView.hydrate = (root = document) => {
    for (const element of root.querySelectorAll(".vm-player, .vm-predict")) {
      const script = element.querySelector("script.vm-data");
      if (!script || element.dataset.vmReady) continue;
      element.dataset.vmReady = "yes";
      try {
        const data = JSON.parse(script.textContent);
        if (data.type === "predict") vmView.predict(element, data);
        else vmView.mount(element, data);
      } catch (error) {
        console.warn(`vmView: ${element.id}: ${error.message}`);
        vmView.refuse(element, `This figure's data can't be read: ${error.message}.`);
      }
    }
  };

  function follow() {
    let wanted;
    try {
      wanted = /^#(.+)-step-(\d+)$/.exec(decodeURIComponent(location.hash));
    } catch (malformed) {
      return;
    }
    const player = wanted && vmView.find(wanted[1]);
    if (!player || !player.links) return;
    player.go(Number(wanted[2]));
    player.element.scrollIntoView({ block: "nearest", behavior: vmView.calm() ? "auto" : "smooth" });
  }

  // The anywidget entry point (JupyterLab and friends): one figure per view, no deep links.
  vmView.render = ({ model, el }) => {
    const data = model.get("data");
    if (data.type === "predict") {
      const element = vmView.h("section", { class: "vm-predict" });
      el.append(element);
      vmView.predict(element, data);
      return () => {};
    }
    let player = null;
    const build = () => {
      if (player) player.close();
      const element = vmView.h("figure", { class: "vm-player" });
      el.replaceChildren(element);
      player = vmView.mount(element, model.get("data"), { links: false });
      if (!player) return;
      player.listeners.add((i) => {
        if (model.get("index") === i) return;
        model.set("index", i);
        model.save_changes();
      });
      player.go(model.get("index"));
    };
    const move = () => {
      if (player && player.index !== model.get("index")) player.go(model.get("index"));
    };
    build();
    model.on("change:data", build);
    model.on("change:index", move);
    return () => {
      model.off("change:data", build);
      model.off("change:index", move);
      if (player) player.close();
    };
  };

  if (typeof document === "undefined" || earlier) return;
  const start = () => {
    vmView.hydrate(document);
    follow();
  };
  addEventListener("hashchange", follow);
  // The scenes of a page are scripts of their own, and all of them are in when its content is.
  if (document.readyState === "complete") queueMicrotask(start);
  else document.addEventListener("DOMContentLoaded", start);
})();
