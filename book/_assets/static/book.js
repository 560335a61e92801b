// A page opened from a disk may not fetch other pages: the search then shows titles only.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS === "object") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// Paper cannot unfold: open what is folded while printing, and close it again afterwards.
(function () {
  var opened = [];
  addEventListener("beforeprint", function () {
    document.querySelectorAll("article details:not([open])").forEach(function (box) {
      if (box.closest(".vm-predict")) return; // their answers stand at the end of the page
      box.open = true;
      opened.push(box);
    });
  });
  addEventListener("afterprint", function () {
    opened.splice(0).forEach(function (box) { box.open = false; });
  });
})();
