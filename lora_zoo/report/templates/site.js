(() => {
  const every = (selector, root = document) => [...root.querySelectorAll(selector)];
  const form = document.querySelector("form"), board = document.querySelector(".board");
  const most = (text) => text === "" ? Infinity : Number(text); // what is not known passes no limit
  const narrow = () => {
    const { model, parameters, memory } = form.elements;
    const passes = ({ dataset }) => (model.value === "" || model.value === dataset.model) &&
      most(dataset.parameters) <= most(parameters.value) && most(dataset.memory) <= most(memory.value);
    for (const cell of every("td", board)) {
      const first = every("span", cell).find(passes); // of the best mean on validation
      every("span", cell).forEach((each) => { each.hidden = each !== first; });
    }
    const empty = (cells) => cells.every((cell) => cell.querySelector("span:not([hidden])") === null);
    const rows = [...board.tBodies[0].rows];
    rows.forEach((row) => { row.hidden = empty([...row.cells]); });
    [...board.tHead.rows[0].cells].forEach((head, i) => {
      const column = rows.map((row) => row.cells[i]), hidden = i > 0 && empty(column);
      [head, ...column].forEach((cell) => { cell.hidden = hidden; });
    });
    every(".every tbody tr").forEach((row) => { row.hidden = !passes(row); });
  };
  form.addEventListener("input", narrow);
  form.addEventListener("submit", (event) => event.preventDefault());
  narrow(); // a reload keeps what was typed
  document.documentElement.dataset.ready = "true";
})();
