// MODEL_CARD.md as elements: the few forms of Markdown that the card has.

const make = (tag, ...children) => {
  const element = document.createElement(tag);
  element.append(...children);
  return element;
};

/** Text with **strong** and `code`. */
const inline = (text) =>
  text.split(/(\*\*.+?\*\*|`.+?`)/).map((part) =>
    part.startsWith("**") ? make("strong", part.slice(2, -2)) : part.startsWith("`") ? make("code", part.slice(1, -1)) : part,
  );

let tables = 0;
function table(lines) {
  const cells = (line) => line.split("|").slice(1, -1).map((cell) => cell.trim());
  const row = (line, tag) => make("tr", ...cells(line).map((cell) => make(tag, ...inline(cell))));
  const head = cells(lines[0]).some(Boolean) ? [make("thead", row(lines[0], "th"))] : [];
  const region = make("div", make("table", ...head, make("tbody", ...lines.slice(2).map((line) => row(line, "td")))));
  Object.assign(region, { className: "wide", tabIndex: 0, role: "region", ariaLabel: `Table ${++tables}` });
  return region;
}

function block(text) {
  const lines = text.split("\n").filter((line) => !line.startsWith("<!--"));
  const [, marks, title] = /^(#+) (.*)/.exec(lines[0] ?? "") ?? [];
  if (marks) return make(`h${marks.length}`, ...inline(title));
  if (lines[0]?.startsWith("|")) return table(lines);
  if (lines[0]?.startsWith("```")) return make("pre", lines.slice(1, -1).join("\n"));
  if (lines[0]?.startsWith("- ")) {
    const entries = lines.join(" ").split(/(?:^|\s)- (?=\S)/).slice(1);
    return make("ul", ...entries.map((entry) => make("li", ...inline(entry))));
  }
  return make("p", ...inline(lines.join(" ")));
}

const response = await fetch("MODEL_CARD.md");
if (response.ok) {
  const text = await response.text();
  document.getElementById("card").replaceChildren(...text.trim().split(/\n\n+/).map(block));
}
