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
    let at = Math.max(0, data.choices.findIndex((choice) => !choice.trace));

    const picker = h("select", { id: `${name}-choice`, onchange: () => pick(Number(picker.value)) },
      data.choices.map((choice, i) => h("option", { value: i, selected: i === at }, choice.label)));
    const { form, help, complete, tell, close, forget } = vmView.guesses(player, truth, reveal);

    function truth(question) {
      return (data.choices[at].answers || {})[question.key] ?? question.answer;
    }

    function pick(i) {
      at = i;
      help.replaceChildren();
      forget();
      close();
      const choice = data.choices[i];
      player.setTrace(choice.trace || data.trace, choice.start || 0);
    }

    function reveal(committed) {
      if (committed && !complete()) return;
      help.replaceChildren();
      tell(committed, data.choices[at].because);
      player.go(player.length - 1, "reader");
    }

    return { form: form(h("fieldset", { class: "vm-inputs" }, h("legend", {}, "Try"), h("p", { class: "vm-field" },
      h("label", { for: `${name}-choice` }, inline(data.choose || "recording")), picker))) };
  }
})();
