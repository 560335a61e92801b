// A page opened from a disk may not fetch other pages: the search then shows titles only.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS === "object") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// Paper is white and cannot unfold: print in the light scheme, with open what is folded, and put
// both back afterwards.
(function () {
  var opened = [], root = document.documentElement, scheme = root.dataset.theme;
  addEventListener("beforeprint", function () {
    scheme = root.dataset.theme;
    root.dataset.theme = "light";
    document.querySelectorAll("article details:not([open])").forEach(function (box) {
      if (box.closest(".vm-predict")) return; // their answers stand at the end of the page
      box.open = true;
      opened.push(box);
    });
  });
  addEventListener("afterprint", function () {
    root.dataset.theme = scheme;
    opened.splice(0).forEach(function (box) { box.open = false; });
  });
})();
