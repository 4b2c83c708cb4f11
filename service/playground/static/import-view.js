// The dialog that reads a paste or a file, and says what it means before it is taken.
import { understand } from "./columns.js";
import { example } from "./example.js";
import { readFile, readTable } from "./files.js";
import { html, useEffect, useMemo, useRef, useState } from "./htm-preact.js";
import { rowProblems } from "./questions.js";
import { get, set } from "./store.js";

const TITLES = { cases: "Cases from a spreadsheet or a file", inputs: "Inputs from a spreadsheet or a file", labelled: "Labelled inputs from a spreadsheet or a file" };
const SHOWN_CHARS = 20_000; // a text area takes a second for 500 rows, and ever longer for more

/** `target` is `{part, file, labelled}`: what the rows become, a file that was dropped, and whether labels are needed. */
export function Import({ target, close }) {
  const box = useRef(null);
  const [given, setGiven] = useState({ text: "", name: "" });
  const [fault, setFault] = useState("");
  const [replace, setReplace] = useState(!target.labelled);
  useEffect(() => {
    box.current.showModal();
    box.current.querySelector("textarea").focus();
    if (target.file) open(target.file);
  }, []);

  async function open(file) {
    try {
      setGiven({ text: await readFile(file), name: file.name });
      setFault("");
    } catch (error) {
      setFault(error.message);
    }
  }

  const paste = (event) => {
    const text = event.clipboardData.getData("text/plain");
    if (text.length <= SHOWN_CHARS) return;
    event.preventDefault();
    setGiven({ text, name: "" });
  };

  const found = useMemo(() => (given.text.trim() ? read(given.text, target.part) : null), [given]);
  const accept = () => {
    const { rows, questions } = found;
    set((now) => ({
      questions: [...now.questions.filter((q) => !isBlank(q) && !(replace && found.unused.includes(q.name))), ...questions],
      [target.part]: replace ? rows : [...now[target.part].filter((row) => row.input.trim()), ...rows],
      selected: target.part === "inputs" && replace ? rows[0].id : now.selected,
      problems: rowProblems([...now.questions, ...questions], rows, target.part),
      notice: `${rows.length.toLocaleString("en")} rows were read.${target.labelled ? " Calibrate with them at the gate." : ""}`,
    }));
    close();
  };
  const long = given.text.length > SHOWN_CHARS;
  return html`<dialog ref=${box} class="import" aria-labelledby="import-title" onClose=${close}
      onDragOver=${(e) => e.preventDefault()} onDrop=${(e) => (e.preventDefault(), e.stopPropagation(), e.dataTransfer.files[0] && open(e.dataTransfer.files[0]))}>
    <h2 id="import-title">${TITLES[target.labelled ? "labelled" : target.part]}</h2>
    <p class="hint">Paste rows, or choose or drop a CSV, TSV or JSON Lines file. A column “input” has the texts${target.part === "cases"
      ? "; a column with the name of a question has its answers" : "; a column with the name of a question has right answers, if you know them"}.</p>
    <label class="file">File <input type="file" accept=".csv,.tsv,.txt,.jsonl,.ndjson,.json" onChange=${(e) => e.currentTarget.files[0] && open(e.currentTarget.files[0])} /></label>
    ${long ? html`<p>${given.name || "The paste"}: ${given.text.length.toLocaleString("en")} characters. <button type="button" class="link" onClick=${() => setGiven({ text: "", name: "" })}>Take another</button></p>`
      : html`<textarea aria-label="Rows" rows="8" placeholder=${"input\tteam\turgent\nI was charged twice.\tbilling\tyes"} value=${given.text}
        onPaste=${paste} onInput=${(e) => setGiven({ text: e.currentTarget.value, name: "" })} />`}
    <div role="status" class="meaning">${fault ? html`<p class="problems">${fault}</p>` : found && html`<${Meaning} found=${found} part=${target.part} labelled=${target.labelled} replace=${replace} />`}</div>
    <div class="bar">
      <label><input type="checkbox" checked=${replace} onChange=${(e) => setReplace(e.currentTarget.checked)} /> Replace the ${target.part} that are there</label>
      <span class="gap"></span>
      <button type="button" class="quiet" onClick=${close}>Cancel</button>
      <button type="button" class="main" disabled=${!found?.rows?.length || fault} onClick=${accept}>Take ${found?.rows ? `${found.rows.length.toLocaleString("en")} rows` : "the rows"}</button>
    </div>
  </dialog>`;
}

const ofExample = new Set(example().questions.map((question) => JSON.stringify(question)));
const isOfExample = (question) => ofExample.has(JSON.stringify(question));
const isBlank = (question) => !question.instructions.trim();

function read(text, part) {
  try {
    const questions = get().questions.filter((q) => !isBlank(q));
    const found = understand(readTable(text), questions, { grow: part === "cases" });
    const titles = found.read.map((title) => title.toLowerCase());
    const unused = questions.filter((q) => isOfExample(q) && !titles.includes(q.name.toLowerCase())).map((q) => q.name);
    return { ...found, unused: titles.length && part === "cases" ? unused : [] };
  } catch (error) {
    return { fault: error.message };
  }
}

function Meaning({ found, part, labelled, replace }) {
  if (found.fault) return html`<p class="problems">${found.fault}</p>`;
  if (!found.rows.length) return html`<p class="problems">No row has an input. The first row may be a header with nothing below it.</p>`;
  const known = found.read.filter((title) => !found.questions.some((q) => q.name === title.replace(/\s+/g, "_")));
  const wrong = rowProblems([...get().questions, ...found.questions], found.rows, part);
  return html`<p><strong>${found.rows.length.toLocaleString("en")} rows.</strong> The input is “${found.input}”.
    ${known.length > 0 && ` Answers: ${known.join(", ")}.`}
    ${found.questions.length > 0 && ` New questions: ${found.questions.map((q) => `${q.name} (${q.kind === "predicate" ? "yes or no" : `one of ${q.options.length}`})`).join(", ")}.`}
    ${replace && found.unused.length > 0 && ` Questions of the example that go: ${found.unused.join(", ")}.`}
    ${found.kept.length > 0 && ` ${part === "inputs" ? "Kept beside the answers" : "Not used"}: ${found.kept.join(", ")}.`}</p>
    ${labelled && !known.length && html`<p class="problems">No column has the name of a question, so no row has a right answer. The questions are ${get().questions.map((q) => `“${q.name}”`).join(", ")}.</p>`}
    ${wrong.length > 0 && html`<p class="problems">${wrong[0].message}${wrong.length > 1 ? ` ${wrong.length - 1} more cells are like that.` : ""} You can mend it in the table.</p>`}`;
}
