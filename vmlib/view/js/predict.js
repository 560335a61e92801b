// Predict: a question, a guess that is the reader's own, and a verdict that waits for it.
//
// The guess is kept in localStorage; where that is refused it is kept for the life of the page.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const { h, inline } = vmView;
  const page = new Map();

  const store = {
    get(key) {
      try {
        const text = localStorage.getItem(key);
        return text === null ? page.get(key) : JSON.parse(text);
      } catch (refused) {
        return page.get(key);
      }
    },
    set(key, value) {
      page.set(key, value);
      try {
        localStorage.setItem(key, JSON.stringify(value));
      } catch (refused) { /* the page remembers */ }
    },
    forget(key) {
      page.delete(key);
      try {
        localStorage.removeItem(key);
      } catch (refused) { /* the page forgot */ }
    },
  };

  vmView.predict = (element, data) => {
    const key = `vm-predict:${data.id}`;
    const base = element.id || `predict-${data.id.replace(/[^\w-]/g, "-")}`;
    const choose = Array.isArray(data.options);
    const script = element.querySelector("script.vm-data");
    element.setAttribute("data-lm-suppress-shortcuts", "true");

    const boxes = choose
      ? data.options.map((_, i) => h("input", { type: "radio", name: base, value: i, id: `${base}-${i}` }))
      : [h("input", { type: "text", id: `${base}-0`, autocomplete: "off", spellcheck: "false",
        "aria-labelledby": `${base}-question`,
        inputmode: typeof data.answer === "number" ? "decimal" : "text" })];
    const marks = boxes.map(() => h("span", { class: "vm-place" }));
    const fields = choose
      ? h("div", { class: "vm-options" }, data.options.map((text, i) => h("label", { for: `${base}-${i}` },
        boxes[i], h("span", {}, inline(text)), marks[i])))
      : h("p", { class: "vm-field" }, boxes[0], data.unit ? h("span", { class: "vm-unit" }, data.unit) : null);

    const help = h("p", { class: "vm-help", role: "alert" });
    const verdict = h("div", { class: "vm-verdict", tabindex: "-1" }); // read when it gets the focus
    const commit = h("button", { type: "submit", class: "vm-commit" }, "Commit");
    const tell = h("button", { type: "button", class: "vm-quiet", onclick: () => settle(null, true) }, "show me");
    const forget = h("button", { type: "button", class: "vm-quiet", hidden: true, onclick: reset }, "forget my guess");
    const form = h("form", { novalidate: true, onsubmit: (event) => {
      event.preventDefault();
      const guess = read();
      if (guess !== null) settle(guess, true);
    } },
      h("fieldset", {}, h("legend", {}, h("span", { class: "vm-eyebrow" }, "Predict"),
        h("span", { class: "vm-question", id: `${base}-question` }, inline(data.question))), fields,
      h("p", { class: "vm-acts" }, commit, tell, forget), help), verdict);
    element.replaceChildren(...[script].filter(Boolean), form);
    element.addEventListener("keydown", (event) => event.stopPropagation());

    function read() {
      if (choose) {
        const picked = boxes.find((box) => box.checked);
        if (picked) return Number(picked.value);
        help.textContent = "Choose one first; a wrong guess teaches more than none.";
        boxes[0].focus();
        return null;
      }
      const lacking = vmView.lacking(boxes[0].value, typeof data.answer === "number");
      if (!lacking) return boxes[0].value.trim();
      help.textContent = lacking;
      boxes[0].focus();
      return null;
    }

    const unit = data.unit ? ` ${data.unit}` : "";
    const shown = (value) => (choose ? inline(data.options[value]) : [`${value}${unit}`]);
    const isRight = (guess) =>
      choose ? guess === data.answer : vmView.agrees(guess, data.answer, data.tolerance || 0);

    // `guess` null: the reader asked to be shown. `fresh`: now, not remembered from an earlier visit.
    function settle(guess, fresh) {
      help.textContent = "";
      if (fresh) store.set(key, { guess });
      // A reason that is a sentence of its own follows a colon.
      const joint = /^[A-Z][a-z ]/.test(data.because) ? " · because: " : " · because ";
      const because = [joint, inline(data.because.replace(/[.]?$/, "."))].flat();
      const right = guess !== null && isRight(guess);
      const jump = data.jump;
      verdict.replaceChildren(
        h("p", {}, guess === null ? ["It is "] : [vmView.mark(right), " You said ",
          h("strong", {}, shown(guess)), " · it is "], h("strong", {}, shown(data.answer)), because),
        data.often ? h("p", { class: "vm-often" }, h("em", {}, "Others: "), inline(data.often)) : "",
        jump ? h("p", {}, h("a", { href: `#${jump[0]}-step-${jump[1]}`, onclick: (event) => {
          if (!move()) return;
          event.preventDefault();
          vmView.find(jump[0]).element.scrollIntoView({ block: "nearest" });
        } }, `See it in the figure: step ${jump[1]}`)) : "");
      if (choose) {
        marks.forEach((place, i) => place.replaceChildren(i === data.answer ? vmView.mark(true)
          : i === guess ? vmView.mark(false) : ""));
      }
      for (const box of boxes) box.disabled = true;
      commit.hidden = tell.hidden = true;
      forget.hidden = false;
      forget.textContent = guess === null ? "let me guess again" : "forget my guess";
      element.classList.add("vm-open");
      if (fresh) {
        verdict.focus({ preventScroll: true });
        move();
      }
    }

    function move() {
      const player = data.jump && vmView.find(data.jump[0]);
      if (player) player.go(data.jump[1], "reader");
      return Boolean(player);
    }

    function reset() {
      store.forget(key);
      verdict.replaceChildren();
      marks.forEach((place) => place.replaceChildren());
      for (const box of boxes) {
        box.disabled = box.checked = false;
        if (!choose) box.value = "";
      }
      commit.hidden = tell.hidden = false;
      forget.hidden = true;
      element.classList.remove("vm-open");
      boxes[0].focus({ preventScroll: true });
    }

    const kept = store.get(key);
    if (!kept || typeof kept !== "object" || !("guess" in kept)) return;
    const { guess } = kept;
    if (guess !== null && choose && !(guess in data.options)) return;
    if (guess !== null && choose) boxes[guess].checked = true;
    else if (guess !== null) boxes[0].value = guess;
    settle(guess, false);
  };
})();
