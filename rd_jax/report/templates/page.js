const byKey = {
  worst: (a, b) => a.dataset.rank - b.dataset.rank,
  descending: (a, b) => b.dataset.score - a.dataset.score,
  ascending: (a, b) => a.dataset.score - b.dataset.score,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, "en", {numeric: true}),
};
for (const sort of document.querySelectorAll(".sort")) {
  sort.addEventListener("click", ({target}) => {
    if (!target.dataset.key) return;
    const gallery = sort.nextElementSibling;
    gallery.append(...[...gallery.children].sort(byKey[target.dataset.key]));
    for (const button of sort.children) button.setAttribute("aria-pressed", button === target);
  });
}
const dialog = document.querySelector("dialog");
document.addEventListener("click", ({target}) => {
  if (dialog.open) return dialog.close();
  const figure = target.closest(".pictures")?.parentElement;
  if (!figure) return;
  dialog.classList.toggle("small", figure.closest(".small"));
  dialog.replaceChildren(figure.cloneNode(true));
  dialog.showModal();
});
