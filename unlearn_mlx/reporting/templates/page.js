"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const read = (name) => JSON.parse(document.getElementById(name).textContent);

  function draw() {
    const config = read("themes")[dark.matches ? "dark" : "light"];
    for (const place of document.querySelectorAll("[data-chart]")) {
      config.axis.labelLimit = Math.min(280, 0.42 * place.clientWidth);
      // The interpreter in the place of compiled functions: the page's policy forbids eval.
      vegaEmbed(place, read("spec-" + place.dataset.chart), { config, actions: false, renderer: "svg", ast: true });
    }
  }

  function open(hash) {
    const target = document.getElementById(hash.slice(1));
    if (!(target instanceof HTMLDetailsElement)) return;
    for (let around = target; around; around = around.parentElement) {
      if (around instanceof HTMLDetailsElement) around.open = true;
    }
    target.scrollIntoView();
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link) open(link.hash);
  });
  addEventListener("hashchange", () => open(location.hash));
  dark.addEventListener("change", draw);
  draw();
  open(location.hash);
})();
