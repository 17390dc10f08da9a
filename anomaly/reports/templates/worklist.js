"use strict";
(() => {
  const value = (id) => { const field = document.getElementById(id); return field ? field.value : ""; };
  const scored = [...document.querySelectorAll(".worklist tbody tr")];
  const unscored = [...document.querySelectorAll(".unscored tbody tr")];
  const fits = (row, words, modality) =>
    words.every((word) => row.dataset.search.includes(word)) && (!modality || row.dataset.modality === modality);
  const show = (selector, visible) => { const part = document.querySelector(selector); if (part) part.hidden = !visible; };
  const filter = () => {
    const words = value("find").toLowerCase().split(/\s+/).filter(Boolean);
    const [result, modality, status] = [value("result"), value("modality"), value("status")];
    let shown = 0;
    for (const row of scored) {
      row.hidden = !(fits(row, words, modality) && (!result || row.dataset.result === result));
      shown += row.hidden ? 0 : 1;
    }
    for (const row of unscored) row.hidden = !fits(row, words, modality) || result !== "";
    show(".scored", status !== "unscored");
    show(".unscored", status !== "scored" && result === "");
    document.getElementById("shown").value = `${status === "unscored" ? 0 : shown} of ${scored.length} scans`;
  };
  const form = document.querySelector(".filters");
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
