// Choices: one figure, several recordings, and the reader picks which one it plays.
//
// Used by a player whose data has `choices`: a label, a start and the answers for each recording.
// The recording that the figure opens on is `data.trace`; its entry here has none of its own. A
// guess comes before the answer, and a new choice closes it again.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, inline } = vmView;
  const otherwise = vmView.experiment;

  vmView.experiment = (player) => (player.data.choices || []).length ? choose(player) : otherwise(player);

  function choose(player) {
    const { data, name } = player;
    const ask = data.ask || [];
    let at = Math.max(0, data.choices.findIndex((choice) => !choice.trace));

    const picker = h("select", { id: `${name}-choice`, onchange: () => pick(Number(picker.value)) },
      data.choices.map((choice, i) => h("option", { value: i, selected: i === at }, choice.label)));
    const help = h("p", { class: "vm-help", role: "alert" });
    const verdict = h("div", { class: "vm-verdict", "aria-live": "polite" });
    const guesses = ask.map((question) => {
      const id = `${name}-ask-${question.key}`;
      const box = h("input", { id, type: "text", autocomplete: "off", spellcheck: "false",
        inputmode: question.kind === "number" ? "numeric" : "text", oninput: () => help.replaceChildren() });
      return { question, box, field: h("p", { class: "vm-field" }, h("label", { for: id },
        inline(question.question)), box) };
    });
    const form = h("form", { class: "vm-experiment", novalidate: true, onsubmit: (event) => {
      event.preventDefault();
      reveal(true);
    } },
      h("fieldset", { class: "vm-inputs" }, h("legend", {}, "Try"), h("p", { class: "vm-field" },
        h("label", { for: `${name}-choice` }, inline(data.choose || "recording")), picker)),
      ask.length ? h("fieldset", { class: "vm-ask" }, h("legend", {}, "Predict"),
        guesses.map((guess) => guess.field), h("p", { class: "vm-acts" },
          h("button", { type: "submit", class: "vm-commit" }, "Commit"),
          h("button", { type: "button", class: "vm-quiet", onclick: () => reveal(false) }, "show me"))) : null,
      help, verdict);

    const truth = ({ question }) => (data.choices[at].answers || {})[question.key] ?? question.answer;

    function close() {
      help.replaceChildren();
      verdict.replaceChildren();
      for (const { box } of guesses) box.value = "";
      player.element.classList.toggle("vm-veiled", ask.length > 0);
    }

    function pick(i) {
      at = i;
      close();
      const choice = data.choices[i];
      player.setTrace(choice.trace || data.trace, choice.start || 0);
    }

    function reveal(committed) {
      const missing = committed && guesses.find(({ question, box }) => box.value.trim() === "" ||
        (question.kind === "number" && Number.isNaN(vmView.number(box.value))));
      if (missing) {
        help.textContent = missing.question.kind === "number"
          ? "Write a number as your guess; any number will do, it only has to be yours."
          : "Write down your guess first; it only has to be yours.";
        return missing.box.focus();
      }
      help.replaceChildren();
      player.element.classList.remove("vm-veiled");
      const say = (value) => h("code", {}, String(value));
      verdict.replaceChildren(...guesses.map((guess) => h("p", {},
        committed ? vmView.mark(vmView.agrees(guess.box.value, truth(guess))) : null,
        h("span", { class: "vm-asked" }, inline(guess.question.question)),
        committed ? [" You said ", say(guess.box.value.trim()), " · it is "] : " It is ", say(truth(guess)), ".")),
      data.choices[at].because ? h("p", {}, inline(data.choices[at].because)) : "",
      h("p", { class: "vm-acts" }, h("button", { type: "button", class: "vm-quiet", onclick: () => {
        player.go(0, "reader");
        player.play();
      } }, "watch it from the start")));
      player.go(player.length - 1, "reader");
    }

    if (ask.length) player.element.classList.add("vm-veiled");
    return { form };
  }
})();
