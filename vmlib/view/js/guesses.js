// Guesses: what a figure asks, whether the reader's answer is one, and the verdict on it.
//
// Used by the experiment, by the choices and by Predict, so that a guess is read, missed and judged
// in the same words wherever the reader makes one.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, inline } = vmView;

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

  // Say what a text lacks to be a guess; an empty string when it is one.
  vmView.lacking = (text, isNumber) => {
    if (isNumber) return Number.isNaN(vmView.number(text)) ? "Write a number as your guess; a rough one will do." : "";
    return text.trim() ? "" : "Write down your guess first; a wrong one teaches more than none.";
  };

  // An answer as the reader should see it: a printed text shows its newline.
  const say = (value) => h("code", {}, typeof value === "number" ? String(value) : vmView.visible(value));

  // The questions of a player. `truth(question)` is the answer as things stand now, `reveal(committed)`
  // what happens at *Commit* and at *show me*.
  vmView.guesses = (player, truth, reveal) => {
    const ask = player.data.ask || [];
    const help = h("p", { class: "vm-help", role: "alert" });
    const verdict = h("div", { class: "vm-verdict", "aria-live": "polite" });
    const fields = ask.map((question) => {
      const id = `${player.name}-ask-${question.key}`;
      const box = h("input", { id, type: "text", autocomplete: "off", spellcheck: "false",
        inputmode: question.kind === "number" ? "numeric" : "text", oninput: () => help.replaceChildren() });
      return { question, box, field: h("p", { class: "vm-field" }, h("label", { for: id },
        inline(question.question)), box) };
    });
    const asking = ask.length ? h("fieldset", { class: "vm-ask" }, h("legend", {}, "Predict"),
      fields.map(({ field }) => field), h("p", { class: "vm-acts" },
        h("button", { type: "submit", class: "vm-commit" }, "Commit"),
        h("button", { type: "button", class: "vm-quiet", onclick: () => reveal(false) }, "show me"))) : null;

    // The figure's form: what can be tried, what is asked, and what is said about both.
    const form = (trying) => h("form", { class: "vm-experiment", novalidate: true, onsubmit: (event) => {
      event.preventDefault();
      reveal(true);
    } }, trying, asking, help, verdict);

    const veil = () => player.element.classList.toggle("vm-veiled", ask.length > 0);

    // Whether every question has a guess; the first that has none is named and gets the focus.
    function complete() {
      for (const { question, box } of fields) {
        help.textContent = vmView.lacking(box.value, question.kind === "number");
        if (!help.textContent) continue;
        box.focus();
        return false;
      }
      return true;
    }

    // Each question with its answer, beside the guess if there was one, and the reason where one is given.
    function tell(committed, because = "") {
      player.element.classList.remove("vm-veiled");
      verdict.replaceChildren(...fields.map(({ question, box }) => h("p", {},
        committed ? vmView.mark(vmView.agrees(box.value, truth(question), question.tolerance)) : null,
        h("span", { class: "vm-asked" }, inline(question.question)),
        committed ? [" You said ", say(box.value.trim()), " · it is "] : " It is ", say(truth(question)), ".")),
      because ? h("p", {}, inline(because)) : "",
      h("p", { class: "vm-acts" }, h("button", { type: "button", class: "vm-quiet", onclick: () => {
        player.go(0, "reader");
        player.play();
      } }, "watch it from the start")));
    }

    // The answers are another setting's now.
    function close() {
      verdict.replaceChildren();
      veil();
    }

    const forget = () => fields.forEach(({ box }) => { box.value = ""; });

    veil();
    return { form, help, verdict, complete, tell, close, forget };
  };
})();
