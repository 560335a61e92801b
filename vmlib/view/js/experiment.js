// The experiment: change an operand or a switch, commit a guess, and only then see the answer.
//
// Used by a player whose data name a model (`vmView.models`) with inputs, questions to ask, or
// both. The model computes the whole trace in the browser from the recorded one.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, inline } = vmView;
  const MODEL_NOTE = "computed in this page by the model";

  vmView.experiment = (player) => {
    const { data } = player;
    const model = data.model ? vmView.models[data.model] : null;
    if (data.model && !model) throw new Error(`no model is called “${data.model}”`);
    const inputs = (data.inputs || []).map((input) => ({ ...(model ? model.inputs[input.key] : {}), ...input }));
    const ask = data.ask || [];
    if (!inputs.length && !ask.length) return null;
    const template = vmView.unpack(data.trace);
    let answers = null, open = false;
    const { form, help, verdict, complete, tell, close: shut } = vmView.guesses(player, truth, reveal);

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
    // Say what is wrong with an input and what would be right; null when nothing is.
    function trouble({ input, box }) {
      const said = input.check ? input.check(box.value) : input.kind ? null : notWhole(input, box.value);
      if (said) box.setAttribute("aria-invalid", "true");
      else box.removeAttribute("aria-invalid");
      return said;
    }

    function notWhole({ key, label, min, max }, text) {
      const value = text.trim() === "" ? NaN : Number(text);
      if (Number.isInteger(value) && value >= min && value <= max) return null;
      return `“${label || key}” must be a whole number from ${min} to ${max}; the figure still shows the last one that was.`;
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
      if (sliding) tell(false);
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

    function truth(question) {
      return answers && question.key in answers ? answers[question.key] : question.answer;
    }

    function close() {
      open = false;
      shut();
    }

    function reveal(committed) {
      const bad = knobs.find((knob) => trouble(knob));
      if (bad) {
        help.textContent = trouble(bad);
        return bad.box.focus();
      }
      if (committed && !complete()) return;
      help.textContent = "";
      open = true;
      tell(committed);
      player.go(player.length - 1, "reader");
    }

    compute(false);
    const trying = knobs.length ? h("fieldset", { class: "vm-inputs" }, h("legend", {}, "Try"),
      knobs.map((knob) => knob.field)) : null;
    return { form: form(trying), set };
  };
})();
