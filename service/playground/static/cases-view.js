// The table of cases: inputs with right answers.
import { readDelimited } from "./files.js";
import { Grid } from "./grid.js";
import { html, useEffect, useState } from "./htm-preact.js";
import { AnswerSelect, Problems } from "./parts.js";
import { readAnswer } from "./questions.js";
import { emptyRow, get, set, setRow } from "./store.js";

const ROW = 44;

export function Cases({ state, openImport }) {
  const [reveal, setReveal] = useState(null);
  const { questions, cases, problems, shown } = state;
  useEffect(() => {
    const at = cases.findIndex((row) => row.id === shown?.id);
    if (at < 0) return;
    setReveal(at);
    focusInput(at);
  }, [shown]);
  const wrong = problems.filter((p) => p.part === "cases");
  const wrongAt = (row, column) => (wrong.some((p) => p.id === row.id && p.column === column) ? "true" : undefined);
  const columns = [
    { key: "#", title: "", min: 2.6, cell: (_, index) => html`<span class="number">${index + 1}</span>` },
    {
      key: "input", title: "Input", min: 13, grow: 4,
      cell: (row, index) => html`<textarea rows="1" data-at=${`${index}:0`} aria-label=${`Input of case ${index + 1}`} value=${row.input} aria-invalid=${wrongAt(row, "input")}
        onInput=${(e) => setRow("cases", row.id, () => ({ input: e.currentTarget.value }))}
        onPaste=${(e) => paste(e, index)} onKeyDown=${(e) => move(e, index, setReveal)} />`,
    },
    ...questions.map((question) => ({
      key: question.id, title: question.name || "(no name)", hint: question.instructions, min: 6.5, grow: 1,
      cell: (row, index) => html`<${AnswerSelect} question=${question} answer=${row.answers[question.id]} label=${`${question.name} of case ${index + 1}`}
        onChange=${(answer) => setRow("cases", row.id, ({ answers }) => ({ answers: withAnswer(answers, question.id, answer) }))} />`,
    })),
    {
      key: "x", title: "", min: 2.4,
      cell: (row, index) => html`<button type="button" class="icon" aria-label=${`Remove case ${index + 1}`} title="Remove"
        onClick=${() => set((now) => ({ cases: now.cases.filter((one) => one.id !== row.id) }))}>×</button>`,
    },
  ];
  return html`<section aria-labelledby="cases-title">
    <h2 id="cases-title"><span class="step" aria-hidden="true">2</span> Cases <small>${cases.length.toLocaleString("en")}</small></h2>
    <p class="hint">Inputs with their right answers. Leave unknown answers at “–”. “Cannot tell” means that the input does not say.</p>
    <${Problems} problems=${wrong} onGo=${(p) => setReveal(cases.findIndex((row) => row.id === p.id))} />
    <${Grid} label="Cases" rows=${cases} columns=${columns} rowHeight=${ROW} height=${ROW * 8.5} reveal=${reveal} />
    <div class="bar">
      <button type="button" onClick=${() => addRow(setReveal)}>Add a case</button>
      <button type="button" onClick=${() => openImport("cases")}>Paste or open a file</button>
      <button type="button" class="quiet" disabled=${!cases.length} onClick=${() => set({ cases: [emptyRow()], problems: [] })}>Remove all</button>
    </div>
  </section>`;
}

export function withAnswer(answers, id, answer) {
  const { [id]: _, ...rest } = answers;
  return answer === undefined ? rest : { ...rest, [id]: answer };
}

function addRow(setReveal) {
  set((now) => ({ cases: [...now.cases, emptyRow()] }));
  const at = get().cases.length - 1;
  setReveal(at);
  focusInput(at);
}

const focusInput = (at) => setTimeout(() => document.querySelector(`[data-at="${at}:0"]`)?.focus(), 50);

/** Enter goes to the next case, and makes one below the last; Shift and Enter begin a new line. */
function move(event, index, setReveal) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (index === get().cases.length - 1) addRow(setReveal);
  else {
    setReveal(index + 1);
    focusInput(index + 1);
  }
}

/** Spread a paste of several cells over the table, from the row on: the input, then the answers. */
function paste(event, index) {
  const text = event.clipboardData.getData("text/plain");
  if (!/[\t\n]/.test(text.trim())) return;
  const rows = readDelimited(text, "\t");
  if (rows.length === 1 && rows[0].length === 1) return;
  event.preventDefault();
  set((now) => {
    const cases = [...now.cases];
    rows.forEach(([input, ...cells], at) => {
      const row = cases[index + at] ?? emptyRow();
      const answers = { ...row.answers };
      now.questions.forEach((question, i) => {
        const answer = readAnswer(question, cells[i]);
        if (answer !== undefined) answers[question.id] = answer;
      });
      cases[index + at] = { ...row, input, answers };
    });
    return { cases, notice: `${rows.length} rows were pasted.` };
  });
}
