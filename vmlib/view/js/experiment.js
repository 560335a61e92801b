// The experiment: change an operand or a switch, commit a guess, and only then see the answer.
//
// Used by a player whose data name a model (`vmView.models`) with inputs, questions to ask, or
// both. The model computes the whole trace in the browser from the recorded one.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, inline } = vmView;
  const MODEL_NOTE = "computed in this page by the model";

  // ✓ or ✗ with its word, so that neither shape nor colour stands alone.
  vmView.mark = (right) => h("span", { class: "vm-mark" },
    h("span", { "aria-hidden": "true" }, right ? "✓" : "✗"),
    h("span", { class: "vm-hidden" }, right ? " (right)" : " (not so)"));

  const plain = (text) => String(text).trim().replace(/\s+/g, " ").toLowerCase();

  // Numbers may be written 0x10, 1 000 or 3,5; text is compared without case and outer blanks.
  vmView.number = (text) => {
    const tidy = String(text).trim().replace(/[\s_\u2009\u202f]/g, "").replace(/^(-?\d+),(\d+)$/, "$1.$2");
    return tidy === "" ? NaN : Number(tidy);
  };
  vmView.agrees = (guess, truth, tolerance = 0) => typeof truth === "number"
    ? Math.abs(vmView.number(guess) - truth) <= tolerance
    : plain(guess) === plain(truth);

  vmView.experiment = (player) => {
    const { data } = player;
    const model = data.model ? vmView.models[data.model] : null;
    if (data.model && !model) throw new Error(`no model is called “${data.model}”`);
    const inputs = (data.inputs || []).map((input) => ({ ...(model ? model.inputs[input.key] : {}), ...input }));
    const ask = data.ask || [];
    if (!inputs.length && !ask.length) return null;
    const template = vmView.unpack(data.trace);
    let answers = null, open = false;

    const help = h("p", { class: "vm-help", role: "alert" });
    const verdict = h("div", { class: "vm-verdict", "aria-live": "polite" });
    const commit = h("button", { type: "submit", class: "vm-commit" }, "Commit");
    const tell = h("button", { type: "button", class: "vm-quiet", onclick: () => reveal(false) }, "show me");

    // A number, one of several (`kind: "select"`, with options), a switch (`kind: "toggle"`), an
    // address in hexadecimal (`kind: "address"`, with places worth a visit), a slider (`kind: "range"`),
    // or what the reader picks in the picture (`kind: "pick"`: the scene sets it).
    function control(input, id) {
      if (input.kind === "select") {
        return h("select", { id, onchange: change }, input.options.map(([value, label]) =>
          h("option", { value, selected: value === input.value }, label)));
      }
      if (input.kind === "toggle") return h("input", { id, type: "checkbox", checked: Boolean(input.value), onchange: change });
      if (input.kind === "address") return h("input", { id, type: "text", class: "vm-address", value: input.value,
        autocomplete: "off", autocapitalize: "off", spellcheck: "false", oninput: change });
      if (input.kind === "pick") return h("input", { id, type: "hidden", value: input.value });
      if (input.kind === "range") return h("input", { id, type: "range", min: input.min, max: input.max,
        step: input.step, value: input.value, oninput: change });
      return h("input", { id, type: "number", inputmode: "numeric", min: input.min,
        max: input.max, step: 1, value: input.value, autocomplete: "off", oninput: change });
    }
    const valueOf = ({ input, box }) => input.kind === "toggle" ? box.checked
      : ["select", "address"].includes(input.kind) ? box.value : Number(box.value);

    const knobs = inputs.map((input) => {
      const id = `${player.name}-in-${input.key}`;
      const box = control(input, id);
      const label = h("label", { for: id }, inline(input.label || input.key));
      if (input.kind === "pick") return { input, box, label, field: box };
      const shown = input.kind === "range" ? h("output", { for: id }, String(input.value)) : null;
      const places = (input.places || []).map(([name, value]) => h("button", { type: "button", class: "vm-quiet",
        onclick: () => set(input.key, value) }, name));
      return { input, box, label, shown, field: h("p", { class: "vm-field" },
        input.kind === "toggle" ? [box, label] : [label, box, shown],
        places.length ? h("span", { class: "vm-places", role: "group", "aria-label": "addresses worth a visit" }, places) : null) };
    });
    const guesses = ask.map((question) => {
      const id = `${player.name}-ask-${question.key}`;
      const box = h("input", { id, type: "text", autocomplete: "off", spellcheck: "false",
        inputmode: question.kind === "number" ? "numeric" : "text", oninput: () => help.replaceChildren() });
      return { question, box, field: h("p", { class: "vm-field" }, h("label", { for: id },
        inline(question.question)), box) };
    });
    const form = h("form", { class: "vm-experiment", novalidate: true, onsubmit: (event) => {
      event.preventDefault();
      reveal(true);
    } },
      knobs.length ? h("fieldset", { class: "vm-inputs" }, h("legend", {}, "Try"), knobs.map((k) => k.field)) : null,
      ask.length ? h("fieldset", { class: "vm-ask" }, h("legend", {}, "Predict"),
        guesses.map((g) => g.field), h("p", { class: "vm-acts" }, commit, tell)) : null,
      help, verdict);

    // Say what is wrong with an input and what would be right; null when nothing is.
    function trouble({ input, box }) {
      if (input.check) {
        const said = input.check(box.value);
        if (said) box.setAttribute("aria-invalid", "true");
        else box.removeAttribute("aria-invalid");
        return said;
      }
      if (input.kind) return null;
      const value = box.value.trim() === "" ? NaN : Number(box.value);
      const wrong = !Number.isInteger(value) || value < input.min || value > input.max;
      box.toggleAttribute("aria-invalid", wrong);
      if (wrong) box.setAttribute("aria-invalid", "true");
      return wrong ? `${input.label || input.key} must be a whole number from ${input.min} to ${input.max}; ` +
        "the figure still shows the last one that was." : null;
    }

    // A new setting closes the verdict; a slider that is dragged on after it was told keeps it up to date.
    function change(event) {
      const said = knobs.map(trouble).find(Boolean);
      help.textContent = said || "";
      for (const { box, shown } of knobs) if (shown) shown.textContent = box.value;
      if (said) return;
      const sliding = open && knobs.some(({ shown }) => shown) && (!event || event.target.type === "range");
      if (!sliding) close();
      compute(true);
      verdict.setAttribute("aria-live", sliding ? "off" : "polite"); // the sentence of the step speaks
      if (sliding) verdict.replaceChildren(...told(false));
    }

    // What a scene may do to an input, or to several at once: the same as the reader's own hand.
    function set(key, value) {
      const values = typeof key === "object" ? key : { [key]: value };
      for (const { input, box } of knobs) {
        if (!(input.key in values)) continue;
        if (input.kind === "toggle") box.checked = values[input.key];
        else box.value = values[input.key];
      }
      change();
    }

    function compute(redraw) {
      if (!model) return;
      const values = Object.fromEntries(knobs.map((knob) => [knob.input.key, valueOf(knob)]));
      const recorded = knobs.every((knob) => valueOf(knob) === (knob.input.kind ? knob.input.value : Number(knob.input.value)));
      let result;
      try {
        result = model.run(template, values, data.given);
      } catch (error) {
        help.textContent = `The model can't compute this: ${error.message}. The figure still shows the last setting that it could.`;
        return;
      }
      answers = result.answers;
      for (const { input, label } of knobs) {
        const name = result.labels && result.labels[input.key];
        if (name) label.replaceChildren(...inline(name));
      }
      const live = result.live ? { live: result.live } : {}; // what the scene draws beside the trace
      if (!redraw) {
        player.trace = { ...template, ...live };
        return;
      }
      const trace = recorded ? { ...template, ...live }
        : { ...result.trace, ...live, computed: `${MODEL_NOTE} “${data.model}”, from a trace of ${template.provenance.engine}` };
      // Whoever looks at an end, and has nothing to guess any more, looks at the next one.
      const stay = (open || !ask.length) && player.index === player.length - 1;
      player.setTrace(trace, stay ? trace.steps.length - 1 : result.start ?? data.start ?? 0);
    }

    const truth = ({ question }) =>
      answers && question.key in answers ? answers[question.key] : question.answer;

    // An answer as the reader should see it: a printed text shows its newline.
    const say = (value) => h("code", {}, typeof value === "number" ? String(value) : vmView.visible(value));

    // The verdict: each question with its answer, beside the guess if there was one.
    function told(committed) {
      const answered = guesses.map((guess) => {
        const right = vmView.agrees(guess.box.value, truth(guess), guess.question.tolerance);
        return h("p", {}, committed ? vmView.mark(right) : null, h("span", { class: "vm-asked" }, inline(guess.question.question)),
          committed ? [" You said ", say(guess.box.value.trim()), " · it is "] : " It is ", say(truth(guess)), ".");
      });
      return [...answered, h("p", { class: "vm-acts" }, h("button", { type: "button", class: "vm-quiet", onclick: () => {
        player.go(0, "reader");
        player.play();
      } }, "watch it from the start"))];
    }

    function close() {
      open = false;
      verdict.replaceChildren();
      player.element.classList.toggle("vm-veiled", ask.length > 0);
    }

    function reveal(committed) {
      const bad = knobs.find((knob) => trouble(knob));
      if (bad) {
        help.textContent = trouble(bad);
        return bad.box.focus();
      }
      const missing = committed && guesses.find((g) => g.box.value.trim() === "" ||
        (g.question.kind === "number" && Number.isNaN(vmView.number(g.box.value))));
      if (missing) {
        help.textContent = missing.question.kind === "number"
          ? "Write a number as your guess; any number will do, it only has to be yours."
          : "Write down your guess first; it only has to be yours.";
        return missing.box.focus();
      }
      help.textContent = "";
      open = true;
      player.element.classList.remove("vm-veiled");
      verdict.replaceChildren(...told(committed));
      player.go(player.length - 1, "reader");
    }

    compute(false);
    if (ask.length) player.element.classList.add("vm-veiled");
    return { form, set, get open() { return open; } };
  };
})();
